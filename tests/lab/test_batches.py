"""Batches as text, of every objective: what is shown is what the tensors hold."""

import json

import numpy as np
import pytest
import torch
from small_runs import OBJECTIVES, of_objective, small_run

import gptlab
from gptlab.data.prepare import prepare
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.lab.batches import NEXT_SENTENCE, as_text, n_targets, read_examples
from gptlab.objectives.base import pad


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The first batch of a small run of an objective, its tokenizer and its examples as they are shown."""
    folder, known = tmp_path_factory.mktemp("runs"), {}

    def shown(objective, **more):
        if objective not in known:
            config = small_run(folder / "run", **of_objective(objective, folder), **more)
            batch = gptlab.batch(config, 0)
            tokenizer = prepare(config.data, config.tokenizer, progress=False).tokenizer
            names = getattr(config.data, "class_names", ())
            known[objective] = batch, tokenizer, read_examples(batch, tokenizer, class_names=names)
        return known[objective]

    return shown


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_example_is_shown_as_its_tensors_are(shown, objective):
    batch, _, examples = shown(objective)
    assert len(examples) == len(batch["tokens"])
    for i, example in enumerate(examples):
        for name in ("tokens", "targets", "source"):
            if name in batch:
                assert example[name]["ids"] == batch[name][i].tolist()
                assert [token["id"] for token in example[name]["tokens"]] == batch[name][i].tolist()
    for by_token in (False, True):
        text = as_text(examples, by_token=by_token)
        assert text.count("--- example ") == len(examples)
    json.dumps(examples)
    assert sum(n_targets(batch).values()) > 0


def test_next_tokens(shown):
    _, _, examples = shown("causal_lm")
    for example in examples:
        assert example["tokens"]["text"] == bytes(example["tokens"]["ids"]).decode()
        assert example["tokens"]["text"][1:] == example["targets"]["text"][:-1]
    last = json.dumps(examples[0]["targets"]["text"][-1])
    assert f"targets  each token's next one, and at the end {last}" in as_text(examples[:1])


def test_masked_tokens_give_the_text_back(shown):
    batch, tokenizer, examples = shown("masked_lm")
    for i, example in enumerate(examples):
        ids = batch["tokens"][i].tolist()
        for one in example["masked"]:
            read = tokenizer.decode([ids[one["position"]]])
            assert one["read"].strip('"') == read or one["read"] == "<mask>" or len(read) == 1
            at = batch["masked_positions"][i].tolist().index(one["position"])
            assert one["label"] == json.dumps(tokenizer.decode([int(batch["labels"][i, at])]))
        assert len(example["masked"]) == int((batch["labels"][i] != -100).sum())
        assert example["next_sentence"] == NEXT_SENTENCE[int(batch["nsp_labels"][i])]
        assert example["tokens"]["text"].startswith("<cls>") and example["tokens"]["text"].count("<sep>") == 2
        if "attention_mask" in batch and not batch["attention_mask"][i].all():
            n = int((~batch["attention_mask"][i]).sum())
            assert example["tokens"]["text"].endswith(f"<sep>[padding x {n}]")


def test_spans_and_their_places(shown):
    _, _, examples = shown("span_corruption")
    for example in examples:
        assert example["source"]["text"].count("<extra_id_0>") == example["targets"]["text"].count("<extra_id_0>") == 1
        assert example["targets"]["text"].endswith("<|endoftext|>")


def test_classes_and_responses(shown, tmp_path):
    _, _, examples = shown("classification")
    for example in examples:
        question = example["tokens"]["text"].split("<|endoftext|>")[0].removesuffix("=")
        even = sum(map(int, question.split("+"))) % 2 == 0
        assert example["class"] == {"label": int(even), "name": str(even)}
    _, _, examples = shown("instruction")
    for example in examples:
        before, _, rest = example["targets"]["text"].partition("]")
        question = example["tokens"]["text"].split("=")[0]
        assert (
            before.startswith("[no target x ")
            and rest.split("<|endoftext|>")[0] == f" {sum(map(int, question.split('+')))}"
        )


def test_padding_is_counted_and_odd_text_is_readable():
    tokenizer = ByteTokenizer(["<pad>"])
    tokens, mask = pad([np.array(list("é\x00\n🙂".encode())), np.array([97, 256])], 257)
    examples = read_examples({"tokens": tokens, "attention_mask": mask, "extra": torch.tensor([1, 2])}, tokenizer)
    assert examples[1]["tokens"]["text"] == f"a<|endoftext|>[padding x {tokens.shape[1] - 2}]"
    assert examples[0]["extra"] == 1
    text = as_text(examples)
    assert "tokens  é\\x00\n        🙂" in text and "extra   2" in text
    by_token = as_text(examples, by_token=True)
    assert '"🙂" 4/4' in by_token and "[padding]" in by_token and "256  <|endoftext|>" in by_token
