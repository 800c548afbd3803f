"""Span corruption: nothing is lost, the sizes are the paper's, and nothing is padded."""

import numpy as np
import pytest
import torch

from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.errors import UserError
from gptlab.models.build import build_model
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.objectives.config import SpanCorruptionConfig

BYTES = ByteConfig(n_sentinel_tokens=100)
TOKENIZER = BYTES.build(lambda: iter(()))


def model_of(length):
    return EncoderDecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=length, decoder_start_token_id=7)


def objective_of(length, tokenizer=TOKENIZER):
    return SpanCorruptionConfig().build(
        tokenizer=tokenizer,
        model=model_of(length),
        data=TextConfig(path="none"),
        context_length=length,
        seed=2,
    )


def texts(n, length):
    return np.random.default_rng(1).integers(0, 256, size=(n, length))


def restored(source, target):
    """The text that the spans of a target make of a source."""
    sentinels, spans = set(TOKENIZER.sentinels), {}
    for token in target[:-1]:
        if token in sentinels:
            span = spans[token] = []
        else:
            span.append(token)
    assert list(spans) == list(TOKENIZER.sentinels[: len(spans)]), "in order, each once"
    whole = []
    for token in source[:-1]:
        whole += spans.pop(token) if token in sentinels else [token]
    assert not spans
    return whole


@pytest.mark.parametrize("length", [3, 17, 128, 512])
def test_source_and_target_give_the_text_back(length):
    objective = objective_of(length)
    given = texts(40, objective.n_tokens)
    batch = objective.collate(given, np.arange(40))
    for text, source, target in zip(given, batch["source"].tolist(), batch["targets"].tolist(), strict=True):
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
    masked = batch["targets"] < 256
    assert masked.sum().item() / (2000 * n) == pytest.approx(0.15, abs=0.01)
    n_spans = (batch["source"] >= TOKENIZER.sentinels[0]).sum().item()
    assert masked.sum().item() / n_spans == pytest.approx(3.0, rel=0.12 if length == 64 else 0.05), "whole spans"
    # Every position is masked about as often, but for the edges: a text begins with what is kept.
    sources = batch["source"].numpy()
    starts = (sources[:, 0] >= TOKENIZER.sentinels[0]).mean()
    assert starts == 0


def test_every_partition_into_spans_has_the_same_probability():
    from collections import Counter

    from gptlab.data.order import uniforms
    from gptlab.objectives.span_corruption import _partition

    counts = Counter(tuple(_partition(6, 3, draw)) for draw in uniforms(0, np.arange(20_000), 6))
    assert len(counts) == 10, "of 6 tokens into 3 spans"
    expected = 2000
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 27.9, "chi-square, 9 degrees, p = 0.001"


def test_spans_are_a_function_of_seed_and_sample_id():
    objective = objective_of(64)
    given, sample_ids = texts(3, objective.n_tokens), np.array([5, 77, 4])
    whole = objective.collate(given, sample_ids)
    alone = objective.collate(given[1:2], sample_ids[1:2])
    assert all(torch.equal(whole[name][1:2], value) for name, value in alone.items())
    assert not torch.equal(objective.collate(given, sample_ids + 100)["source"], whole["source"])


def test_loss_is_that_of_the_targets():
    objective = objective_of(24)
    batch = objective.collate(texts(3, objective.n_tokens), np.arange(3))
    model = build_model(model_of(24), TOKENIZER.vocab_size, seed=0)
    logits = model(batch["tokens"], source=batch["source"]).double()
    expected = -logits.log_softmax(-1).gather(-1, batch["targets"][..., None]).mean()
    assert objective.mean_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective.counts(batch) == {"targets": batch["targets"].numel()}


def test_too_few_sentinels_and_too_short_a_context_are_refused():
    with pytest.raises(UserError, match=r"has 2 sentinels for them; set tokenizer\.n_sentinel_tokens=100"):
        objective_of(128, ByteConfig(n_sentinel_tokens=2).build(lambda: iter(())))
    with pytest.raises(UserError, match="has no sentinels"):
        objective_of(128, ByteConfig().build(lambda: iter(())))
    with pytest.raises(UserError, match=r"context_length=2 .*use 3 or more"):
        objective_of(2)
