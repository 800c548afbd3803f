"""Every prefix of a mixture has of each source what its weight asks for, and any sample is found without the others."""

import random
from fractions import Fraction

import numpy as np
import pytest

from gptlab.data.mixture.interleave import Interleave

GOLDEN_CONSTANT = "01020102010102010201"
GOLDEN_SCHEDULED = "10201022012120212102"
BLOOMBERG = (Fraction(51, 100), Fraction(49, 100))


def constant(*weights):
    return Interleave(((0, tuple(map(Fraction, weights))),))


def drawn(draw: random.Random, k: int) -> tuple[Fraction, ...]:
    """Weights of very different sizes, of which some may be 0."""
    power = draw.choice((0.3, 1, 4))
    parts = [int(1000 * draw.random() ** power) for _ in range(k)]
    parts[draw.randrange(k)] += 1
    return tuple(Fraction(part, sum(parts)) for part in parts)


def integral(points, tokens: Fraction, k: int) -> Fraction:
    """The integral of a source's weight up to a number of tokens, by trapezoids."""
    total, ends = Fraction(0), [*points[1:], (None, points[-1][1])]
    for (start, before), (end, after) in zip(points, ends, strict=True):
        until = tokens if end is None else min(tokens, Fraction(end))
        if until <= start:
            break
        slope = 0 if end is None else (after[k] - before[k]) / (end - start)
        total += (until - start) * (before[k] + slope * (until - start) / 2)
    return total


def largest_error(interleave: Interleave, points, n: int, sample_tokens: int = 1) -> float:
    """The largest distance of a count from its quota over all prefixes of n samples; checks positions and `counts`."""
    sources, positions = interleave.locate(np.arange(n))
    taken = (sources[:, None] == np.arange(interleave.n_sources)).cumsum(0)  # (n, sources)
    for k in range(interleave.n_sources):
        assert np.array_equal(positions[sources == k], np.arange((sources == k).sum()))  # none is left out or repeated
    worst = 0.0
    for i in range(n):
        quotas = [
            integral(points, Fraction((i + 1) * sample_tokens), k) / sample_tokens for k in range(interleave.n_sources)
        ]
        worst = max(worst, *(abs(float(a - b)) for a, b in zip(quotas, taken[i].tolist(), strict=True)))
    for i in range(0, n, 97):
        assert interleave.counts(i + 1) == taken[i].tolist()
    return worst


def test_bloombergs_51_to_49_within_half_a_sample_at_every_prefix():
    assert largest_error(constant(*BLOOMBERG), ((0, BLOOMBERG),), 2000) <= 0.5


def test_51_to_49_in_the_end_of_a_schedule():
    points = ((0, (Fraction(0), Fraction(1))), (3000, (Fraction(0), Fraction(1))), (9001, BLOOMBERG))
    assert largest_error(Interleave(points, 7), points, 2000, 7) <= 0.5


@pytest.mark.parametrize("k", range(2, 6))
def test_constant_weights_are_met_within_one(k):
    draw = random.Random(k)
    for _ in range(6):
        weights = drawn(draw, k)
        interleave = constant(*weights)
        assert interleave.bound <= 1
        assert largest_error(interleave, ((0, weights),), 400) <= interleave.bound


@pytest.mark.parametrize("k", range(2, 5))
def test_scheduled_weights_are_met_within_one(k):
    draw = random.Random(k)
    for _ in range(3):
        points = ((0, drawn(draw, k)), (1003, drawn(draw, k)), (3500, drawn(draw, k)))
        interleave = Interleave(points, 7)
        assert interleave.bound <= 1
        assert largest_error(interleave, points, 400, 7) <= interleave.bound


@pytest.mark.parametrize("k", [6, 9, 22])
def test_with_more_sources_the_bound_is_known(k):
    draw = random.Random(k)
    weights = drawn(draw, k)
    assert largest_error(constant(*weights), ((0, weights),), 400) <= constant(*weights).bound < 1.5
    points = ((0, drawn(draw, k)), (2000, drawn(draw, k)))
    interleave = Interleave(points, 7)
    assert largest_error(interleave, points, 400, 7) <= interleave.bound < 2


def test_sources_that_begin_and_end():
    """Also where a group of sources gets no more samples."""
    half, none = Fraction(1, 2), Fraction(0)
    points = ((0, (half, half, none, none)), (700, (none, none, half, half)), (2100, (none, none, 1 - none, none)))
    assert largest_error(Interleave(points, 7), points, 600, 7) <= 1


def test_a_source_of_weight_0_is_never_read():
    sources, _ = constant(0, Fraction(1, 3), Fraction(2, 3)).locate(np.arange(3000))
    assert set(sources.tolist()) == {1, 2}
    assert set(constant(1).locate(np.arange(5))[0].tolist()) == {0}


def test_a_schedule_that_does_not_change_is_no_schedule():
    flat = Interleave(((0, BLOOMBERG), (1000, BLOOMBERG)), 8)
    assert np.array_equal(flat.locate(np.arange(500)), constant(*BLOOMBERG).locate(np.arange(500)))


@pytest.mark.parametrize("weights", [BLOOMBERG, tuple(Fraction(n, 1000) for n in (601, 250, 100, 49))])
def test_far_samples_are_found_alone(weights):
    """10^12 samples in, with the exact count of all before them."""
    points = ((0, weights[::-1]), (10**14, weights))
    for interleave, n in ((constant(*weights), 10**12), (Interleave(points, 1024), 10**12)):
        samples = np.arange(n, n + 300)
        together = interleave.locate(samples)
        for i in (0, 1, 299):
            assert [int(part[0]) for part in interleave.locate(samples[i : i + 1])] == [int(p[i]) for p in together]
        counts, quotas = interleave.counts(n), interleave.quotas(n)
        assert sum(counts) == n
        assert max(abs(a - b) for a, b in zip(counts, quotas, strict=True)) <= 1
        assert interleave.counts(n + 300) == [c + (together[0] == k).sum() for k, c in enumerate(counts)]


def test_golden_values():
    """Resuming a run relies on these: they may never change."""
    three = (Fraction(1, 2), Fraction(3, 10), Fraction(1, 5))
    assert "".join(map(str, constant(*three).locate(np.arange(20))[0])) == GOLDEN_CONSTANT
    scheduled = Interleave(((0, three), (100, three[::-1])), 8)
    assert "".join(map(str, scheduled.locate(np.arange(20))[0])) == GOLDEN_SCHEDULED
