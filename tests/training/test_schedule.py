"""The learning rate against the formulas written out here."""

import math
from itertools import pairwise

import pytest

from gptlab.errors import UserError
from gptlab.training.config import ConstantConfig, CosineConfig, LinearConfig, WSDConfig

CONFIGS = [CosineConfig, LinearConfig, ConstantConfig, WSDConfig]


def factors(config, n_steps=100, batch_tokens=10):
    config.check()
    schedule = config.build(n_steps=n_steps, batch_tokens=batch_tokens)
    return [schedule.factor(step) for step in range(n_steps + 20)]


def test_cosine_is_nanogpts():
    got = factors(CosineConfig(warmup_steps=10, min_lr_ratio=0.1))
    for step, factor in enumerate(got):
        if step < 10:
            expected = (step + 1) / 11
        elif step >= 100:
            expected = 0.1
        else:
            expected = 0.1 + 0.5 * (1 + math.cos(math.pi * (step - 10) / 90)) * 0.9
        assert factor == pytest.approx(expected, abs=1e-12), step


def test_linear_falls_by_equal_amounts():
    for step, factor in enumerate(factors(LinearConfig(warmup_steps=20, decay_steps=60, min_lr_ratio=0.2))):
        expected = (step + 1) / 21 if step < 20 else max(0.2, 1 - 0.8 * (step - 20) / 40)
        assert factor == pytest.approx(expected, abs=1e-12), step


def test_constant_stays_after_warmup():
    for step, factor in enumerate(factors(ConstantConfig(warmup_steps=4, min_lr_ratio=0.1))):
        assert factor == min(1, (step + 1) / 5), step


def test_wsd_is_flat_until_its_last_part():
    for step, factor in enumerate(factors(WSDConfig(warmup_steps=5, decay_fraction=0.25, min_lr_ratio=0.1))):
        expected = (step + 1) / 6 if step < 5 else min(1, max(0.1, 1 - 0.9 * (step - 75) / 25))
        assert factor == pytest.approx(expected, abs=1e-12), step


def test_wsd_decays_after_its_warmup():
    got = factors(WSDConfig(warmup_steps=90, decay_fraction=0.5, min_lr_ratio=0.0))
    assert got[90] == 1 and got[95] == pytest.approx(0.5) and got[100] == 0


@pytest.mark.parametrize("config_class", CONFIGS)
def test_lengths_in_tokens_are_those_in_steps(config_class):
    in_steps = factors(config_class(warmup_steps=8, decay_steps=60, min_lr_ratio=0.1))
    for tokens in (80, 71):  # a part of a step is a whole one
        assert factors(config_class(warmup_tokens=tokens, decay_tokens=600, min_lr_ratio=0.1)) == in_steps


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_fraction_follows_the_budget(config_class):
    assert factors(config_class(warmup_fraction=0.2), 50) == factors(config_class(warmup_steps=10), 50)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_the_rate_rises_to_its_peak_and_falls_to_its_floor(config_class):
    got = factors(config_class(warmup_steps=7, min_lr_ratio=0.3))
    assert all(0 < factor <= 1 for factor in got)
    assert max(got) == got[7] == 1
    assert all(a < b for a, b in pairwise(got[:8]))
    assert all(a >= b - 1e-12 for a, b in pairwise(got[7:]))
    assert got[100] == got[119] == pytest.approx(1.0 if config_class is ConstantConfig else 0.3)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_warmup_longer_than_the_run_is_refused(config_class):
    with pytest.raises(UserError, match=r"warms up for 200 steps.*after 100.*schedule\.warmup_steps"):
        factors(config_class(warmup_steps=200))


def test_two_values_for_one_length_are_refused():
    with pytest.raises(UserError, match=r"schedule\.decay_steps and schedule\.decay_tokens"):
        factors(CosineConfig(decay_steps=9, decay_tokens=90))
