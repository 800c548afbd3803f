import math

import pytest
import torch

from gptlab.errors import UserError
from gptlab.generation.decode import choose
from gptlab.generation.sampling import (
    Sampling,
    apply_temperature,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
)

LOGITS = torch.tensor([1.5, -1.8, 0.9, -3.2])
ROWS = 3 * torch.randn(40, 57, generator=torch.Generator().manual_seed(0))
SEEN = torch.randint(57, (40, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "temperature, expected",
    [
        (1.0, [0.62704177, 0.02312729, 0.34412782, 0.00570312]),
        (0.5, [7.67673394e-01, 1.04431835e-03, 2.31218783e-01, 6.35050642e-05]),
        (0.0, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_probabilities(temperature, expected):
    expected = torch.tensor(expected)
    assert torch.allclose(Sampling(temperature=temperature).probabilities(LOGITS[None]), expected, rtol=1e-5)


def test_temperature_goes_from_greedy_to_uniform():
    rows = torch.stack((LOGITS, LOGITS.flip(0), -LOGITS))
    greedy = Sampling(temperature=0).probabilities(rows)
    assert torch.allclose(Sampling(temperature=1e-3).probabilities(rows), greedy, atol=1e-6)
    assert torch.allclose(Sampling(temperature=1e4).probabilities(rows), torch.full((3, 4), 0.25), atol=1e-3)


def filters(transformers):
    """Ours and theirs, by what they are called with."""
    lp = transformers.generation.logits_process
    for temperature in (0.3, 1.7):
        theirs = lp.TemperatureLogitsWarper(temperature)
        yield f"temperature {temperature}", lambda x, t=temperature: apply_temperature(x, t), theirs
    for k in (1, 5, 57, 100):
        yield f"top_k {k}", lambda x, k=k: keep_top_k(x, k), lp.TopKLogitsWarper(k)
    for p in (0.01, 0.5, 0.9, 0.999, 1.0):
        yield f"top_p {p}", lambda x, p=p: keep_top_p(x, p), lp.TopPLogitsWarper(p)
    for p in (0.0, 0.05, 0.5, 1.0):
        yield f"min_p {p}", lambda x, p=p: keep_min_p(x, p), lp.MinPLogitsWarper(p)
    for penalty in (0.7, 1.0, 1.3):
        theirs = lp.RepetitionPenaltyLogitsProcessor(penalty)
        yield f"penalty {penalty}", lambda x, p=penalty: penalize_repetition(x, SEEN.tolist(), p), theirs


def test_each_filter_equals_transformers():
    transformers = pytest.importorskip("transformers")
    for name, ours, theirs in filters(transformers):
        before = ROWS.clone()
        assert torch.equal(ours(ROWS), theirs(SEEN, ROWS.clone())), name
        assert torch.equal(ROWS, before), f"{name} writes into its input"


def test_all_filters_together_equal_transformers():
    transformers = pytest.importorskip("transformers")
    lp = transformers.generation.logits_process
    expected = ROWS.clone()
    for theirs in (
        lp.RepetitionPenaltyLogitsProcessor(1.2),
        lp.TemperatureLogitsWarper(1.5),
        lp.TopKLogitsWarper(20),
        lp.TopPLogitsWarper(0.9),
        lp.MinPLogitsWarper(0.02),
    ):
        expected = theirs(SEEN, expected)
    sampling = Sampling(repetition_penalty=1.2, temperature=1.5, top_k=20, top_p=0.9, min_p=0.02)
    assert torch.equal(sampling.filtered(ROWS, SEEN.tolist()), expected)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    for p in (0.2, 0.6, 0.95):
        probabilities = torch.softmax(ROWS, -1)
        kept = keep_top_p(ROWS, p).isfinite()
        mass = (probabilities * kept).sum(-1)
        assert (mass >= p).all()
        least = probabilities.masked_fill(~kept, torch.inf).amin(-1)
        assert (mass - least < p).all()  # one token fewer would not reach it
        assert (probabilities.masked_fill(kept, 0).amax(-1) <= least).all()
    halves = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert keep_top_p(halves, 0.5).isfinite().tolist() == [[True, False, False]]
    assert keep_top_p(halves, 0.51).isfinite().tolist() == [[True, True, False]]


FILTERS = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "all": {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_distribution(name, fits):
    logits = 1.5 * torch.randn(9, generator=torch.Generator().manual_seed(3))
    seen = [1, 4, 4, 7]
    n, generator = 20_000, torch.Generator().manual_seed(5)
    sampling = Sampling(**FILTERS[name])
    draws = choose(logits.expand(n, -1), sampling, [seen] * n, [generator] * n)
    # The distribution, written out token by token.
    s = sampling
    scores = [float(x) for x in logits]
    for token in set(seen):
        scores[token] *= s.repetition_penalty if scores[token] < 0 else 1 / s.repetition_penalty
    weight = {token: torch.tensor(x / s.temperature).double().exp().item() for token, x in enumerate(scores)}
    if s.top_k:
        weight = dict(sorted(weight.items(), key=lambda item: -item[1])[: s.top_k])
    if s.top_p:
        total, reached, kept = sum(weight.values()), 0.0, {}
        for token, w in sorted(weight.items(), key=lambda item: -item[1]):
            if reached < s.top_p:
                kept[token] = w
            reached += w / total
        weight = kept
    if s.min_p:
        weight = {token: w for token, w in weight.items() if w >= s.min_p * max(weight.values())}
    expected = torch.tensor([weight.get(token, 0.0) for token in range(9)]).double()
    expected /= expected.sum()
    assert fits(draws, expected)
    assert not fits(draws, expected.roll(1))


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("temperature", -0.5, "at least 0; use 0 for greedy"),
        ("temperature", float("nan"), "at least 0; use 0 for greedy"),
        ("top_k", 0, "at least 1"),
        ("top_p", 0.0, r"outside \(0, 1\]"),
        ("top_p", 1.5, r"outside \(0, 1\]"),
        ("min_p", -0.1, r"outside \[0, 1\]"),
        ("min_p", 1.1, r"outside \[0, 1\]"),
        ("repetition_penalty", 0.0, "must be above 0"),
    ],
)
def test_values_outside_their_range(key, value, allowed):
    with pytest.raises(UserError, match=rf"{key}={value} .*{allowed}"):
        Sampling(**{key: value})


@pytest.mark.parametrize("temperature", [1e-3, 1e-29, 1e-31, 1e-40, 1e-300])
def test_the_coldest_temperatures_are_greedy(temperature):
    rows = torch.stack((LOGITS, 1e4 * LOGITS, -LOGITS.abs(), torch.tensor([2.0, 2.0, 1.0, -torch.inf])))
    expected = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0.5, 0.5, 0, 0]])
    assert torch.allclose(Sampling(temperature=temperature).probabilities(rows), expected)


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
@pytest.mark.parametrize("temperature", [1.0, 1e-40])
def test_no_penalty_makes_probabilities_that_are_none(penalty, temperature):
    rows = torch.stack((LOGITS, -LOGITS.abs(), torch.zeros(4)))
    sampling = Sampling(repetition_penalty=penalty, temperature=temperature)
    for seen in ([0], [0, 2], [0, 1, 2, 3]):
        probabilities = sampling.probabilities(rows, [seen] * 3)
        assert torch.allclose(probabilities.sum(-1), torch.ones(3))
    best = sampling.probabilities(rows, [[0]] * 3).argmax(-1)[0]
    assert best == (0 if penalty < 1 else 2)


def test_probabilities_before_and_after_each_setting():
    logits = torch.tensor([[1.5, -1.8, 0.9, -3.2]])
    sampling = Sampling(temperature=0.5, top_k=3, top_p=0.9, min_p=0.5, repetition_penalty=2.0)
    names, values = zip(*sampling.stages(logits, [[0, 1]]), strict=True)
    assert names == ("model", "repetition_penalty=2", "temperature=0.5", "top_k=3", "top_p=0.9", "min_p=0.5")
    found = [torch.softmax(value, -1)[0].tolist() for value in values]

    def shares(*weights):
        return pytest.approx([weight / sum(weights) for weight in weights], abs=1e-6)

    e = math.exp
    assert found[0] == shares(e(1.5), e(-1.8), e(0.9), e(-3.2))
    assert found[1] == shares(e(0.75), e(-3.6), e(0.9), e(-3.2))
    assert found[2] == shares(e(1.5), e(-7.2), e(1.8), e(-6.4))
    assert found[3] == shares(e(1.5), 0, e(1.8), e(-6.4))
    assert found[4] == found[5] == shares(e(1.5), 0, e(1.8), 0)
    assert torch.equal(sampling.filtered(logits, [[0, 1]]), values[-1])


@pytest.mark.parametrize(
    "settings, expected",
    [
        # Of a course's exercise, computed independently.
        ({}, [0.62704177, 0.02312729, 0.34412782, 0.00570312]),
        ({"temperature": 0.1}, [0.99753, 0, 0.00247, 0]),
        ({"top_k": 3}, [0.6306, 0.0233, 0.3461, 0]),
        ({"top_p": 0.8}, [0.6457, 0, 0.3543, 0]),
        ({"temperature": 0}, [1, 0, 0, 0]),
    ],
)
def test_four_words(settings, expected):
    found = Sampling(**settings).probabilities(torch.tensor([[1.5, -1.8, 0.9, -3.2]]))[0]
    assert found.tolist() == pytest.approx(expected, abs=5e-5 if settings else 1e-7)
