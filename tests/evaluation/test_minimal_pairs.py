"""Minimal pairs: what they are, and how a model is judged by them."""

import math
from collections import Counter

import pytest
import torch
from small_runs import write_run

import gptlab
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.errors import UserError
from gptlab.evaluation.config import MOST_PAIRS
from gptlab.evaluation.minimal_pairs import CATEGORIES, MinimalPair, judge_pairs, minimal_pairs
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig


def test_pairs_are_different_and_those_of_a_seed():
    pairs = minimal_pairs(MOST_PAIRS, 1)
    assert Counter(pair.category for pair in pairs) == dict.fromkeys(CATEGORIES, MOST_PAIRS)
    assert len(set(pairs)) == len(pairs) and pairs == minimal_pairs(MOST_PAIRS, 1) != minimal_pairs(MOST_PAIRS, 2)
    assert set(minimal_pairs(5, 1)) <= set(pairs), "more pairs are the same ones and some more"
    assert "The dogs run." in {pair.acceptable for pair in pairs} | {pair.acceptable for pair in minimal_pairs(99, 3)}
    for pair in pairs:
        right, wrong = (sentence.rstrip(".").split() for sentence in pair[1:])
        assert pair.acceptable != pair.unacceptable and abs(len(right) - len(wrong)) <= 1, pair


@pytest.mark.parametrize("category", CATEGORIES)
def test_shorter_sentences_are_no_more_often_the_acceptable_ones(category):
    pairs = [pair for seed in range(5) for pair in minimal_pairs(MOST_PAIRS, seed) if pair.category == category]
    sizes = [(len(pair.acceptable), len(pair.unacceptable)) for pair in pairs]
    shorter = sum(1.0 if a < b else 0.5 if a == b else 0.0 for a, b in sizes) / len(sizes)
    assert 0.4 < shorter < 0.6, shorter


def test_the_judgement_is_the_sum_over_the_sentence():
    tokenizer = ByteTokenizer()
    model = build_model(DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=64), 257, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    pairs = minimal_pairs(4, 0)
    found = judge_pairs(model, tokenizer, pairs)

    def log_p(text):
        ids = torch.tensor([[tokenizer.eot, *text.encode()]])
        with torch.no_grad():
            rows = model(ids[:, :-1])[0].double().log_softmax(-1)
        return rows.gather(1, ids[0, 1:, None]).sum().item()

    expected = [(log_p(pair.acceptable), log_p(pair.unacceptable)) for pair in pairs]
    for sample, both in zip(found["samples"], expected, strict=True):
        assert sample["log_likelihood"] == pytest.approx(both, abs=1e-3)
    right = [a > b for a, b in expected]
    assert found["numbers"]["accuracy"] == sum(right) / len(right)
    assert found["numbers"]["negative_polarity/accuracy"] == sum(right[-4:]) / 4
    assert math.isclose(sum(found["numbers"][f"{name}/accuracy"] for name in CATEGORIES) / 8, sum(right) / len(right))


def test_equal_sentences_are_no_success():
    model = build_model(DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=64), 257, seed=1).eval()
    same = MinimalPair("same", "The dog runs.", "The dog runs.")
    assert judge_pairs(model, ByteTokenizer(), [same])["numbers"]["accuracy"] == 0


def test_the_context_must_hold_them(tmp_path):
    model, tokenizer = gptlab.load(write_run(tmp_path / "run", context_length=8))
    with pytest.raises(UserError, match=r"the context holds 8; raise model\.context_length"):
        judge_pairs(model, tokenizer, minimal_pairs(1, 0))
