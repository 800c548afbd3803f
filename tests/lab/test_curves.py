"""Thinned curves: what is kept, what is exact, and the bytes."""

import base64
import math
from itertools import pairwise

import numpy as np
import pytest

from gptlab.lab.curves import Curve, budgeted, curve, pack_steps, packed, thinned, without_straight


def noisy(n: int, seed: int = 0) -> Curve:
    steps = np.arange(1, n + 1)
    return Curve(steps, 5 / steps**0.3 + np.random.default_rng(seed).normal(0, 0.1, n), n)


def test_missing_values_are_left_out_and_what_is_not_finite_is_a_gap():
    found = curve([1, 2, 3, 4], [0.5, None, math.nan, math.inf])
    assert found.steps.tolist() == [1, 3, 4] and found.n_measured == 3
    assert found.values[0] == 0.5 and np.isnan(found.values[1:]).all()


def test_every_interval_keeps_its_lowest_and_highest_point():
    full = noisy(20_000)
    short = thinned(full, 400)
    assert len(short.steps) <= 500
    values = dict(zip(full.steps.tolist(), full.values.tolist(), strict=True))
    assert [values[step] for step in short.steps.tolist()] == short.values.tolist()
    # A picture with 100 columns shows the same lowest and highest pixels in each, on both kinds of axis.
    for edges in (np.linspace(1, 20_000, 101), np.geomspace(1, 20_000, 101)):
        edges = np.unique(np.ceil(edges))
        for low, high in pairwise(edges):
            inside = (full.steps >= low) & (full.steps < high)
            kept = (short.steps >= low) & (short.steps < high)
            assert short.values[kept].min() == full.values[inside].min()
            assert short.values[kept].max() == full.values[inside].max()
    assert short.steps[0] == 1 and short.steps[-1] == 20_000


def test_means_are_of_all_points_and_not_of_the_extremes():
    steps = np.arange(1, 20_001)
    skewed = Curve(steps, np.random.default_rng(0).exponential(1.0, 20_000), 20_000)  # its mean is 1
    short = thinned(skewed, 400)
    lengths = np.diff([0, *(short.mean_steps[:-1] + short.mean_steps[1:]) / 2, 20_000])
    assert np.average(short.means, weights=lengths) == pytest.approx(skewed.values.mean(), rel=0.01)
    assert short.values.mean() > 1.3


def test_a_gap_stays_a_gap():
    full = noisy(5_000)
    full.values[2_000:2_003] = np.nan
    short = thinned(full, 200)
    assert np.isnan(short.values).sum() >= 1
    assert short.steps[np.isnan(short.values)][0] == 2_001


def test_points_on_a_line_are_left_out():
    steps = np.arange(1, 1_001)
    flat = without_straight(Curve(steps, np.full(1_000, 3.0), 1_000))
    assert len(flat.steps) < 10 and flat.steps[[0, -1]].tolist() == [1, 1_000]
    cosine = Curve(steps, np.cos(np.pi * steps / 1_000), 1_000)
    short = without_straight(cosine)
    assert len(short.steps) < 130
    drawn = np.interp(steps, short.steps, short.values)
    assert np.abs(drawn - cosine.values).max() < 2 / 1_000  # of a range of 2: less than a pixel


def test_all_curves_together_keep_to_the_bytes():
    curves = {i: noisy(5_000, i) for i in range(30)}
    weights = {i: 4.0 if i == 0 else 1.0 for i in curves}
    short = budgeted(curves, weights, 100_000)
    size = sum(len(str(packed(one))) for one in short.values())
    assert 50_000 < size < 110_000
    assert len(short[0].steps) > 2 * len(short[1].steps)
    roomy = budgeted({0: noisy(500)}, {0: 1.0}, 100_000)
    assert len(roomy[0].steps) == 500 and roomy[0].means is None


@pytest.mark.parametrize("steps", [[5], [], [10, 20, 30], [1, 2, 9, 300], [1, 2, 70_000], [7, 8, 9_000_000, 9_000_001]])
def test_steps_read_back(steps):
    text = pack_steps(np.array(steps, dtype=np.int64))
    if isinstance(text, str):
        read = np.frombuffer(base64.b64decode(text[3:]), dtype=f"<{text[:2]}").astype(int).cumsum().tolist()
    else:
        read = [text[0] + i * text[1] for i in range(text[2])]
    assert read == steps


def test_values_read_back_exactly():
    short = np.array([0.5, np.float32(0.1), np.nan], dtype=np.float64)
    exact = np.array([0.1, 1e300, 1e-300])
    for values, kind in ((short, "f4"), (exact, "f8")):
        text = packed(Curve(np.arange(3), values, 3))["v"]
        assert text[:3] == f"{kind}:"
        read = np.frombuffer(base64.b64decode(text[3:]), dtype=f"<{kind}").astype(np.float64)
        assert np.array_equal(read, values, equal_nan=True)
