"""What a step read, and the loss of each of its tokens, of every objective."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import OBJECTIVES, of_objective, small_run, write_text

from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import ShardsConfig, TextConfig
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.lab.step import by_loss, read_step, to_plain
from gptlab.models.build import init_weights, shape_model
from gptlab.objectives.config import MaskedLMConfig
from gptlab.training.loop import open_batches


def opened(config):
    data, batches = open_batches(config)
    vocab_size = data.tokenizer.vocab_size
    model = shape_model(config.model, vocab_size, config.n_class).to_empty(device="cpu")
    init_weights(model, seed=1)
    return data, batches, model.eval()


def check_targets(read, batches, item, model, usual=2.5):
    """The loss of the step is that of the objective, and every target is of one document at most."""
    nats = [one for example in read.examples for one in example.nats]
    with torch.no_grad():
        terms = batches.objective.loss(model, batches[item])
    term = terms.get("loss", terms.get("mlm_loss"))
    assert math.fsum(nats) == pytest.approx(term.sum.item(), rel=1e-5)
    of_documents = [one for document in read.documents for one in document.nats]
    assert sorted(of_documents) == pytest.approx(sorted(nats))
    raised = [document.raises for document in read.documents]
    assert raised == sorted(raised, reverse=True)
    assert math.fsum(raised) == pytest.approx(read.loss - usual, abs=1e-6)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "classification"])
def test_losses_are_the_objectives_and_belong_to_documents(tmp_path, objective):
    config = small_run(tmp_path / "run", **of_objective(objective, tmp_path))
    data, batches, model = opened(config)
    read = read_step(data, batches, 2, model=model, usual=2.5, n_texts=2)
    assert read.scored and not read.notes
    check_targets(read, batches, 2, model)
    assert [len(one.texts) > 0 for one in by_loss(read.examples)] == [True, True] + [False] * (len(read.examples) - 2)
    plain = to_plain(read, n_examples=2)
    assert len(plain["token_losses"]) == 2 and plain["loss"] == read.loss
    for document in read.documents:
        for _, begin, end in document.parts:
            assert document.begin <= begin < end <= document.end


def test_sequences_in_parts_are_the_same_texts(tmp_path):
    config = small_run(tmp_path / "run")
    data, batches, model = opened(config)
    whole = read_step(data, batches, 1, model=model, n_texts=99)
    data, batches, model = opened(replace(config, length_warmup=[[10_000, 4]]))
    assert batches[1]["tokens"].ndim == 3
    parts = read_step(data, batches, 1, model=model, usual=2.5, n_texts=99)
    check_targets(parts, batches, 1, model)
    for one, other in zip(whole.examples, parts.examples, strict=True):
        assert [token.text for token in one.texts["tokens"]] == [token.text for token in other.texts["tokens"]]


def test_each_token_of_a_text_has_its_own_loss(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(9):
        (texts / f"{i}.txt").write_text(chr(97 + i) * (30 + i))
    config = small_run(tmp_path / "run", data=TextConfig(path=str(texts), split="document"))
    data, batches, model = opened(config)
    read = read_step(data, batches, 0, model=model, n_texts=99)
    batch = batches[0]
    with torch.no_grad():
        log_p = torch.log_softmax(model.head.logits(model.hidden_states(batch["tokens"])), -1)
    for example in read.examples:
        tokens, targets = batch["tokens"][example.number], batch["targets"][example.number]
        expected = [-float(log_p[example.number, i, target]) for i, target in enumerate(targets)]
        shown = example.texts["tokens"]
        assert shown[0].nats is None and [one.nats for one in shown[1:]] == pytest.approx(expected, rel=1e-4)
        assert "".join(one.text for one in shown[:-1]) == data.tokenizer.decode(tokens.numpy())
    # A text is of one letter, so a document's targets are these and the separator after it.
    by_letter = {}
    for i, row in enumerate(batch["targets"].tolist()):
        before = int(batch["tokens"][i, 0])
        for j, target in enumerate(row):
            letter = before if target == 256 else target
            by_letter.setdefault(letter, []).append(-float(log_p[i, j, target]))
            before = int(target)
    assert {ord(one.text.replace("<|endoftext|>", "")[0]) for one in read.documents if one.nats} == set(by_letter)
    for document in read.documents:
        letter = ord(data.tokenizer.decode(np.array(data.train.tokens[document.begin : document.begin + 1])))
        assert sorted(document.nats) == pytest.approx(sorted(by_letter.get(letter, [])), rel=1e-4)


def test_masked_tokens_of_windows_have_their_places(tmp_path):
    given = of_objective("masked_lm", tmp_path) | {"objective": MaskedLMConfig(next_sentence=False)}
    data, batches, model = opened(small_run(tmp_path / "run", **given))
    read = read_step(data, batches, 1, model=model, usual=2.5)
    check_targets(read, batches, 1, model)
    shown = "".join(token.text for token in by_loss(read.examples)[0].texts["tokens"])
    assert "<mask>" not in shown and shown.startswith("<cls>"), "the text as it was"


def test_what_has_no_token_losses_says_so(tmp_path):
    data, batches, model = opened(small_run(tmp_path / "run", **of_objective("classification", tmp_path)))
    read = read_step(data, batches, 0, model=model)
    assert not read.scored and "no loss of single tokens" in read.notes[0]
    assert len(read.documents) == len(read.examples) and read.loss is None
    lines = (tmp_path / "examples.jsonl").read_text().splitlines()
    assert all(one.text.split("<|endoftext|>")[0] in "".join(lines) for one in read.documents)


def test_a_mixture_of_text_and_shards(tmp_path):
    small = write_text(tmp_path / "small.txt", 4_000)
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(40):
        (texts / f"{i:02}.txt").write_text(f"NUMBER {i} " * 12)
    shards = TextConfig(path=str(texts), val_fraction=0.0, split="document")
    prepare_shards(shards, ByteConfig(), tmp_path / "shards", shard_tokens=700)
    sources = {"small": TextConfig(path=str(small)), "big": ShardsConfig(path=str(tmp_path / "shards"), val_fraction=0)}
    mixture = MixtureConfig(sources=sources, weights={"small": 0.5, "big": 0.5})
    data, batches, model = opened(small_run(tmp_path / "run", data=mixture))
    read = read_step(data, batches, 3, model=model, usual=2.5)
    check_targets(read, batches, 3, model)
    assert {one.source for one in read.documents} == {"small", "big"}
    for one in read.documents:
        if one.source == "big":
            begin = data.tokenizer.decode(np.array(data.corpora["big"].train.tokens[one.begin : one.begin + 9]))
            assert begin.startswith(f"NUMBER {one.number}")
    assert [one["name"] for one in batches.sources(3)] == [one.source for one in read.examples]


def test_without_separators_the_place_is_what_is_known(tmp_path):
    from gptlab.data.tokenizers.config import CharConfig

    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(4):
        write_text(texts / f"{i}.txt", 500)
    config = small_run(tmp_path / "run", data=TextConfig(path=str(texts)), tokenizer=CharConfig())
    data, batches, _ = opened(config)
    read = read_step(data, batches, 0)
    assert "no end-of-text token" in read.notes[0]
    assert all(one.number is None and one.end - one.begin == 17 for one in read.documents)
