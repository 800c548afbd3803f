"""Masked language modeling: rates, reproducibility, and the loss by explicit maths."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.data.examples.pairs import SegmentPairs
from gptlab.data.order import uniforms
from gptlab.data.sources.config import TextConfig
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.errors import UserError
from gptlab.models.build import build_model
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.nn.loss import IGNORE_INDEX
from gptlab.objectives.base import logged_means
from gptlab.objectives.config import MaskedLMConfig

BYTES = ByteConfig(special_tokens=["<mask>", "<cls>", "<sep>", "<pad>"])
TOKENIZER = BYTES.build(lambda: iter(()))


def model_of(length, *, next_sentence=True):
    heads = Heads.pretraining if next_sentence else Heads.masked_lm
    return EncoderConfig(n_layer=1, n_head=2, d_model=16, context_length=length, heads=heads, dropout=0.0)


def objective_of(length=128, *, tokenizer=TOKENIZER, next_sentence=True, **options):
    return MaskedLMConfig(next_sentence=next_sentence, **options).build(
        tokenizer=tokenizer,
        model=model_of(length, next_sentence=next_sentence),
        data=TextConfig(path="none"),
        context_length=length,
        seed=3,
    )


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


def batches(file, objective, n):
    pairs = SegmentPairs(file, TOKENIZER.eot, objective.context_length - 3, split="train")
    for start in range(0, n, 64):
        sample_ids = np.arange(start, min(start + 64, n))
        yield objective.collate(pairs.gather(sample_ids % len(pairs)), sample_ids)


def test_rates_over_a_million_tokens(file):
    """15% of the tokens; of these 80% the mask token, 10% any token, 10% unchanged; special tokens never."""
    n_text = n_chosen = n_masked = n_kept = n_random = follows = n_pairs = 0
    random = np.zeros(TOKENIZER.vocab_size)
    for batch in batches(file, objective_of(), 9400):
        tokens, positions, labels = (batch[name].numpy() for name in ("tokens", "masked_positions", "labels"))
        chosen = labels != IGNORE_INDEX
        original = tokens.copy()
        for i in range(len(tokens)):
            at = positions[i][chosen[i]]
            assert len(set(at)) == len(at), "a position is chosen once"
            original[i, at] = labels[i][chosen[i]]
        assert not np.isin(labels[chosen], list(TOKENIZER.specials)).any()
        now = np.take_along_axis(tokens, positions, 1)
        n_text += (~np.isin(original, list(TOKENIZER.specials))).sum()
        n_chosen += chosen.sum()
        n_masked += (now == TOKENIZER.mask)[chosen].sum()
        n_kept += (now == labels)[chosen].sum()
        other = chosen & (now != labels) & (now != TOKENIZER.mask)
        n_random += other.sum()
        np.add.at(random, now[other], 1)
        follows += (batch["nsp_labels"] == 0).sum().item()
        n_pairs += len(tokens)
    assert n_text > 1_000_000
    assert n_chosen / n_text == pytest.approx(0.15, abs=0.001)
    assert n_masked / n_text == pytest.approx(0.12, abs=0.001)
    # Of the tokens drawn at random one in 256 is by chance the old one.
    assert n_random / n_text == pytest.approx(0.015 * 255 / 256, abs=0.001)
    assert n_kept / n_text == pytest.approx(0.015 + 0.015 / 256, abs=0.001)
    assert not random[list(TOKENIZER.specials)].any()
    assert random[:256].min() > 0.5 * random.sum() / 256, "every token is drawn"
    assert follows / n_pairs == pytest.approx(0.5, abs=0.02)


def test_a_pair_as_the_paper_draws_it(file):
    (batch,) = batches(file, objective_of(64), 64)
    text = batch["tokens"].numpy().copy()
    masked = zip(batch["masked_positions"].numpy(), batch["labels"].numpy(), strict=True)
    for i, (positions, labels) in enumerate(masked):
        text[i, positions[labels != IGNORE_INDEX]] = labels[labels != IGNORE_INDEX]
    for tokens, segments in zip(text, batch["segments"].numpy(), strict=True):
        first, second = np.flatnonzero(tokens == TOKENIZER.sep)
        assert tokens[0] == TOKENIZER.cls and TOKENIZER.eot not in tokens
        assert (segments == ((np.arange(64) > first) & (np.arange(64) <= second))).all()
        assert (tokens[second + 1 :] == TOKENIZER.pad).all()
    assert torch.equal(batch["attention_mask"], batch["tokens"] != TOKENIZER.pad)


def test_masks_are_a_function_of_seed_and_sample_id(file):
    objective = objective_of(64)
    pairs = SegmentPairs(file, TOKENIZER.eot, 61, split="train")
    sample_ids = np.array([7, 900, 12])
    whole = objective.collate(pairs.gather(sample_ids), sample_ids)
    alone = objective.collate(pairs.gather(sample_ids[1:2]), sample_ids[1:2])
    for name, value in alone.items():
        assert torch.equal(whole[name][1:2], value), name
    later = objective.collate(pairs.gather(sample_ids), sample_ids + 1000)
    assert not torch.equal(later["masked_positions"], whole["masked_positions"]), "another epoch, other masks"
    assert uniforms(1, np.array([4, -4]), 3).shape == (2, 3)


def test_loss_and_accuracies_by_explicit_maths(file):
    objective = objective_of(32)
    (batch,) = batches(file, objective, 6)
    model = build_model(model_of(32), TOKENIZER.vocab_size, seed=0)
    inputs = {"segments": batch["segments"], "attention_mask": batch.get("attention_mask")}
    logits = model(batch["tokens"], **inputs).double()
    nats, right, n = 0.0, 0, 0
    for i, (positions, labels) in enumerate(zip(batch["masked_positions"], batch["labels"], strict=True)):
        chosen = labels != IGNORE_INDEX
        for position, label in zip(positions[chosen], labels[chosen], strict=True):
            nats -= logits[i, position].log_softmax(-1)[label].item()
            right += int(logits[i, position].argmax() == label)
            n += 1
    hidden = model.hidden_states(batch["tokens"], **inputs)
    scores = model.next_sentence(model.pooled(hidden))
    sentence = F.cross_entropy(scores, batch["nsp_labels"]).item()
    counts = objective.counts(batch)
    means = logged_means(objective.loss(model, batch), {kind: 1 / count for kind, count in counts.items()})
    assert list(means) == list(objective.names)
    assert counts["masked_tokens"] == n and counts["pairs"] == 6
    assert means["mlm_loss"].item() == pytest.approx(nats / n, rel=1e-5)
    assert means["mlm_accuracy"].item() == pytest.approx(right / n)
    assert means["nsp_loss"].item() == pytest.approx(sentence, rel=1e-5)
    assert means["nsp_accuracy"].item() == pytest.approx((scores.argmax(-1) == batch["nsp_labels"]).float().mean())
    assert means["loss"].item() == pytest.approx(nats / n + sentence, rel=1e-5)
    assert objective.mean_loss(model, batch).item() == pytest.approx(nats / n + sentence, rel=1e-5)


def test_without_next_sentences_windows_are_read_whole():
    objective = objective_of(16, next_sentence=False)
    batch = objective.collate(np.arange(32, 60).reshape(2, 14), np.array([0, 1]))
    assert "nsp_labels" not in batch and "attention_mask" not in batch and not batch["segments"].any()
    assert objective.unused_parameters and objective.names == ("loss", "mlm_loss", "mlm_accuracy")
    short = objective.collate(np.arange(32, 37)[None], np.array([-9]))
    assert short["attention_mask"].sum() == 7 and short["tokens"].shape == (1, 16)


@pytest.mark.parametrize(("next_sentence", "least"), [(True, 5), (False, 4)])
def test_a_context_holds_the_special_tokens_and_two_others(next_sentence, least):
    objective_of(least, next_sentence=next_sentence)
    with pytest.raises(UserError, match=f"context_length={least - 1} .*use {least} or more"):
        objective_of(least - 1, next_sentence=next_sentence)


@pytest.mark.parametrize(
    ("tokenizer", "missing"),
    [
        (ByteConfig(), "<mask>, <cls>, <sep>, <pad>"),
        (ByteConfig(special_tokens=["<cls>", "<sep>", "<pad>"]), "has no <mask>"),
    ],
)
def test_a_tokenizer_without_special_tokens_is_refused(tokenizer, missing):
    with pytest.raises(UserError, match=f"{missing}.*use tokenizer=wordpiece, or add tokenizer.special_tokens"):
        objective_of(tokenizer=tokenizer.build(lambda: iter(())))
