"""The learning rate against the formulas written out here."""

import math
from itertools import pairwise

import pytest

from gptlab.training.config import ScheduleConfig, Shape
from gptlab.training.schedule import build_schedule


def factors(n_steps=100, batch_tokens=10, **words):
    schedule = build_schedule(ScheduleConfig(**words), n_steps=n_steps, batch_tokens=batch_tokens)
    return [schedule.factor(step) for step in range(n_steps + 20)]


def test_cosine_is_nanogpts():
    got = factors(shape=Shape.cosine, warmup_steps=10, min_lr_ratio=0.1)
    for step, factor in enumerate(got):
        if step < 10:
            expected = (step + 1) / 11
        elif step >= 100:
            expected = 0.1
        else:
            expected = 0.1 + 0.5 * (1 + math.cos(math.pi * (step - 10) / 90)) * 0.9
        assert factor == pytest.approx(expected, abs=1e-12), step


def test_linear_falls_by_equal_amounts():
    got = factors(shape=Shape.linear, warmup_steps=0, min_lr_ratio=0.2)
    assert got[0] == 1 and got[100] == got[119] == 0.2
    assert all(a - b == pytest.approx(0.8 / 100) for a, b in pairwise(got[:101]))


def test_constant_stays_after_warmup():
    got = factors(shape=Shape.constant, warmup_steps=4)
    assert got[:4] == [0.2, 0.4, 0.6, 0.8] and set(got[4:]) == {1.0}


def test_wsd_is_flat_until_its_last_part():
    got = factors(shape=Shape.wsd, warmup_steps=5, decay_fraction=0.25, min_lr_ratio=0.0)
    assert set(got[5:76]) == {1.0}
    assert got[88] == pytest.approx(12 / 25) and got[100] == 0


@pytest.mark.parametrize("shape", Shape)
def test_tokens_say_the_same_as_steps(shape):
    in_steps = factors(shape=shape, warmup_steps=8, decay_steps=60, min_lr_ratio=0.1)
    in_tokens = factors(shape=shape, warmup_tokens=80, decay_tokens=600, min_lr_ratio=0.1)
    assert in_steps == in_tokens


def test_a_fraction_follows_the_budget():
    assert factors(n_steps=50, warmup_fraction=0.2) == factors(n_steps=50, warmup_steps=10)


@pytest.mark.parametrize("shape", Shape)
def test_the_rate_never_leaves_its_bounds(shape):
    got = factors(shape=shape, warmup_steps=7, min_lr_ratio=0.3)
    assert all(0 < factor <= 1 for factor in got)
    assert all(a <= b for a, b in pairwise(got[:8]))
    assert all(a >= b - 1e-12 for a, b in pairwise(got[7:]))


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warms up for 200 steps.*after 100"):
        factors(warmup_steps=200)
