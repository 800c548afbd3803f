"""Span corruption: nothing is lost, the sizes are the paper's, and nothing is filled up."""

import numpy as np
import pytest
import torch

from gptlab.config import RunConfig
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.data.tokenizers.tokenizer import build_tokenizer
from gptlab.models.build import build_model
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.objectives.config import SpanCorruptionConfig
from gptlab.objectives.span_corruption import SpanCorruption

WORDS = ByteConfig(n_sentinel_tokens=100)
TOKENIZER = build_tokenizer(WORDS, lambda: iter(()))


def objective_of(length, **words):
    model = EncoderDecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=length, decoder_start_token_id=7)
    config = RunConfig(model=model, objective=SpanCorruptionConfig(**words), tokenizer=WORDS, budget_steps=1, seed=2)
    return SpanCorruption(config, TOKENIZER)


def texts(n, length):
    return np.random.default_rng(1).integers(0, 256, size=(n, length))


def restored(source, target):
    """The text that the spans of a target make of a source."""
    sentinels, spans = set(TOKENIZER.sentinels), {}
    for word in target[:-1]:
        if word in sentinels:
            span = spans[word] = []
        else:
            span.append(word)
    assert list(spans) == list(TOKENIZER.sentinels[: len(spans)]), "in order, each once"
    whole = []
    for word in source[:-1]:
        whole += spans.pop(word) if word in sentinels else [word]
    assert not spans
    return whole


@pytest.mark.parametrize("length", [3, 17, 128, 512])
def test_source_and_target_give_the_text_back(length):
    objective = objective_of(length)
    rows = texts(40, objective.n_tokens)
    batch = objective.collate(rows, np.arange(40))
    for text, source, target in zip(rows, batch["source"].tolist(), batch["targets"].tolist(), strict=True):
        assert source[-1] == target[-1] == TOKENIZER.eot
        assert restored(source, target) == text.tolist()
    read = batch["tokens"]
    assert (read[:, 0] == 7).all() and torch.equal(read[:, 1:], batch["targets"][:, :-1])


@pytest.mark.parametrize("length", [64, 128, 512])
def test_noise_spans_and_lengths(length):
    """T5's own figures at 512: 568 tokens of text, 114 target tokens (its code's comment)."""
    objective = objective_of(length)
    n = objective.n_tokens
    batch = objective.collate(texts(2000, n), np.arange(2000))
    assert batch["source"].shape[1] <= length and (length - batch["source"].shape[1]) / length <= 0.02
    if length == 512:
        assert n == 568 and batch["targets"].shape[1] == 114
    hidden = batch["targets"] < 256
    assert hidden.sum().item() / (2000 * n) == pytest.approx(0.15, abs=0.01)
    n_spans = (batch["source"] >= TOKENIZER.sentinels[0]).sum().item()
    assert hidden.sum().item() / n_spans == pytest.approx(3.0, rel=0.12 if length == 64 else 0.05), "whole spans"
    # Every place is hidden about as often, but for the edges: a text begins with what is kept.
    sources = batch["source"].numpy()
    starts = (sources[:, 0] >= TOKENIZER.sentinels[0]).mean()
    assert starts == 0


def test_every_division_into_spans_is_as_likely():
    from collections import Counter

    from gptlab.data.order import uniforms
    from gptlab.objectives.span_corruption import _parts

    counts = Counter(tuple(_parts(6, 3, row)) for row in uniforms(0, np.arange(20_000), 6))
    assert len(counts) == 10, "of 6 tokens into 3 spans"
    expected = 2000
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 27.9, "chi-square, 9 degrees, p = 0.001"


def test_what_is_hidden_is_a_function_of_seed_and_number():
    objective = objective_of(64)
    rows, numbers = texts(3, objective.n_tokens), np.array([5, 77, 4])
    whole = objective.collate(rows, numbers)
    alone = objective.collate(rows[1:2], numbers[1:2])
    assert all(torch.equal(whole[name][1:2], value) for name, value in alone.items())
    assert not torch.equal(objective.collate(rows, numbers + 100)["source"], whole["source"])


def test_loss_is_that_of_the_targets():
    objective = objective_of(24)
    batch = objective.collate(texts(3, objective.n_tokens), np.arange(3))
    model = build_model(objective.config.model, TOKENIZER.vocab_size, seed=0)
    logits = model(batch["tokens"], source=batch["source"]).double()
    expected = -logits.log_softmax(-1).gather(-1, batch["targets"][..., None]).mean()
    assert objective.mean_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective.counts(batch) == {"targets": batch["targets"].numel()}


def test_too_few_sentinels_and_too_short_a_context_are_refused():
    config = objective_of(128).config
    config.tokenizer = ByteConfig(n_sentinel_tokens=2)
    with pytest.raises(ValueError, match=r"has 2 sentinels for them; set tokenizer\.n_sentinel_tokens=100"):
        SpanCorruption(config, build_tokenizer(config.tokenizer, lambda: iter(())))
    config.tokenizer = ByteConfig()
    with pytest.raises(ValueError, match="has no sentinels"):
        SpanCorruption(config, build_tokenizer(config.tokenizer, lambda: iter(())))
    with pytest.raises(ValueError, match="no room in context_length=2; use 3 or more"):
        objective_of(2)
