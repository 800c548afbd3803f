"""Masked words and next sentences: rates, reproducibility, and the loss by explicit maths."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.config import RunConfig
from gptlab.data.examples.pairs import SegmentPairs
from gptlab.data.order import uniforms
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.data.tokenizers.tokenizer import build_tokenizer
from gptlab.models.build import build_model
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.nn.loss import IGNORE_INDEX
from gptlab.objectives.config import MaskedLMConfig
from gptlab.objectives.masked_lm import MaskedLM

WORDS = ByteConfig(special_tokens=["<mask>", "<cls>", "<sep>", "<pad>"])
TOKENIZER = build_tokenizer(WORDS, lambda: iter(()))


def config_of(length=128, *, next_sentence=True, **words):
    heads = Heads.pretraining if next_sentence else Heads.masked_lm
    model = EncoderConfig(n_layer=1, n_head=2, d_model=16, context_length=length, heads=heads, dropout=0.0)
    objective = MaskedLMConfig(next_sentence=next_sentence, **words)
    return RunConfig(model=model, objective=objective, tokenizer=WORDS, batch_tokens=length * 8, budget_steps=1, seed=3)


@pytest.fixture
def file(tmp_path):
    """Two hundred documents of random letters, none of which is by chance in another one's range."""
    draw = np.random.default_rng(0)
    with TokenWriter(tmp_path / "train.bin", vocab_size=TOKENIZER.vocab_size, tokenizer="x") as writer:
        for i in range(200):
            text = draw.integers(32, 127, size=draw.integers(300, 900))
            writer.write(np.concatenate([[TOKENIZER.eot], text]) if i else text)
            writer.end_documents(1, n_bytes=len(text), n_characters=len(text))
    return TokenFile.open(tmp_path / "train.bin")


def batches(file, config, n):
    objective = MaskedLM(config, TOKENIZER)
    pairs = SegmentPairs(file, TOKENIZER.eot, config.context_length - 3, split="train")
    for start in range(0, n, 64):
        numbers = np.arange(start, min(start + 64, n))
        yield objective.collate(pairs.gather(numbers % len(pairs)), numbers)


def test_rates_over_a_million_tokens(file):
    """15% of the words; of these 80% hidden, 10% any word, 10% as they were; words that are no text never."""
    config = config_of()
    n_text = n_chosen = n_masked = n_kept = n_random = follows = n_pairs = 0
    random = np.zeros(TOKENIZER.vocab_size)
    for batch in batches(file, config, 9400):
        tokens, places, words = (batch[name].numpy() for name in ("tokens", "places", "words"))
        chosen = words != IGNORE_INDEX
        original = tokens.copy()
        for row in range(len(tokens)):
            at = places[row][chosen[row]]
            assert len(set(at)) == len(at), "a place is chosen once"
            original[row, at] = words[row][chosen[row]]
        assert not np.isin(words[chosen], list(TOKENIZER.specials)).any()
        now = np.take_along_axis(tokens, places, 1)
        n_text += (~np.isin(original, list(TOKENIZER.specials))).sum()
        n_chosen += chosen.sum()
        n_masked += (now == TOKENIZER.mask)[chosen].sum()
        n_kept += (now == words)[chosen].sum()
        other = chosen & (now != words) & (now != TOKENIZER.mask)
        n_random += other.sum()
        np.add.at(random, now[other], 1)
        follows += (batch["differs"] == 0).sum().item()
        n_pairs += len(tokens)
    assert n_text > 1_000_000
    assert n_chosen / n_text == pytest.approx(0.15, abs=0.001)
    assert n_masked / n_text == pytest.approx(0.12, abs=0.001)
    # Of the words drawn at random one in 256 is by chance the old one.
    assert n_random / n_text == pytest.approx(0.015 * 255 / 256, abs=0.001)
    assert n_kept / n_text == pytest.approx(0.015 + 0.015 / 256, abs=0.001)
    assert not random[list(TOKENIZER.specials)].any()
    assert random[:256].min() > 0.5 * random.sum() / 256, "every word is drawn"
    assert follows / n_pairs == pytest.approx(0.5, abs=0.02)


def test_a_pair_as_the_paper_draws_it(file):
    (batch,) = batches(file, config_of(64), 64)
    text = batch["tokens"].numpy().copy()
    for row, (places, words) in enumerate(zip(batch["places"].numpy(), batch["words"].numpy(), strict=True)):
        text[row, places[words != IGNORE_INDEX]] = words[words != IGNORE_INDEX]
    for row, segments in zip(text, batch["segments"].numpy(), strict=True):
        first, second = np.flatnonzero(row == TOKENIZER.sep)
        assert row[0] == TOKENIZER.cls and TOKENIZER.eot not in row
        assert (segments == ((np.arange(64) > first) & (np.arange(64) <= second))).all()
        assert (row[second + 1 :] == TOKENIZER.pad).all()
    if "mask" in batch:
        assert torch.equal(batch["mask"], batch["tokens"] != TOKENIZER.pad)


def test_what_is_hidden_is_a_function_of_seed_and_number(file):
    objective = MaskedLM(config_of(64), TOKENIZER)
    pairs = SegmentPairs(file, TOKENIZER.eot, 61, split="train")
    numbers = np.array([7, 900, 12])
    whole = objective.collate(pairs.gather(numbers), numbers)
    alone = objective.collate(pairs.gather(numbers[1:2]), numbers[1:2])
    for name, value in alone.items():
        assert torch.equal(whole[name][1:2], value), name
    later = objective.collate(pairs.gather(numbers), numbers + 1000)
    assert not torch.equal(later["places"], whole["places"]), "another epoch hides other words"
    assert uniforms(1, np.array([4, -4]), 3).shape == (2, 3)


def test_loss_and_accuracies_by_explicit_maths(file):
    config = config_of(32)
    objective = MaskedLM(config, TOKENIZER)
    (batch,) = batches(file, config, 6)
    model = build_model(config.model, TOKENIZER.vocab_size, seed=0)
    logits = model(batch["tokens"], segments=batch["segments"], mask=batch.get("mask")).double()
    nats, right, n = 0.0, 0, 0
    for row, (places, words) in enumerate(zip(batch["places"], batch["words"], strict=True)):
        for place, word in zip(places[words != IGNORE_INDEX], words[words != IGNORE_INDEX], strict=True):
            nats -= logits[row, place].log_softmax(-1)[word].item()
            right += int(logits[row, place].argmax() == word)
            n += 1
    hidden = model.hidden_states(batch["tokens"], segments=batch["segments"], mask=batch.get("mask"))
    scores = model.next_sentence(model.pooled(hidden))
    sentence = F.cross_entropy(scores, batch["differs"]).item()
    counts = objective.counts(batch)
    means = logged_means(objective.loss(model, batch), {kind: 1 / count for kind, count in counts.items()})
    assert list(means) == list(objective.names)
    assert counts["words"] == n and counts["pairs"] == 6
    assert means["mlm_loss"].item() == pytest.approx(nats / n, rel=1e-5)
    assert means["mlm_accuracy"].item() == pytest.approx(right / n)
    assert means["nsp_loss"].item() == pytest.approx(sentence, rel=1e-5)
    assert means["nsp_accuracy"].item() == pytest.approx((scores.argmax(-1) == batch["differs"]).float().mean())
    assert means["loss"].item() == pytest.approx(nats / n + sentence, rel=1e-5)
    assert objective.mean_loss(model, batch).item() == pytest.approx(nats / n + sentence, rel=1e-5)


def test_without_next_sentences_windows_are_read_whole():
    config = config_of(16, next_sentence=False)
    objective = MaskedLM(config, TOKENIZER)
    batch = objective.collate(np.arange(32, 60).reshape(2, 14), np.array([0, 1]))
    assert "differs" not in batch and "mask" not in batch and not batch["segments"].any()
    assert objective.idle and objective.names == ("loss", "mlm_loss", "mlm_accuracy")
    short = objective.collate(np.arange(32, 37)[None], np.array([-9]))
    assert short["mask"].sum() == 7 and short["tokens"].shape == (1, 16)


@pytest.mark.parametrize(("next_sentence", "least"), [(True, 5), (False, 4)])
def test_a_context_has_room_for_the_marks_and_two_words(next_sentence, least):
    MaskedLM(config_of(least, next_sentence=next_sentence), TOKENIZER)
    with pytest.raises(ValueError, match=f"no room in context_length={least - 1}; use {least} or more"):
        MaskedLM(config_of(least - 1, next_sentence=next_sentence), TOKENIZER)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (ByteConfig(), "<mask>, <cls>, <sep>, <pad>"),
        (ByteConfig(special_tokens=["<cls>", "<sep>", "<pad>"]), "has no <mask>"),
    ],
)
def test_a_tokenizer_without_a_mask_is_refused(words, said):
    config = config_of()
    config.tokenizer = words
    with pytest.raises(ValueError, match=f"{said}.*use tokenizer=wordpiece, or add tokenizer.special_tokens"):
        MaskedLM(config, build_tokenizer(words, lambda: iter(())))
