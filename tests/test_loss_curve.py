"""The final loss of a run by its curve so far, on curves whose law is known."""

import dataclasses
import math

import numpy as np
import pytest

from gptlab.loss_curve import Curve, forecast_final

N_STEPS = 500


def cosine(n_steps=N_STEPS):
    return 0.5 * (1 + np.cos(np.pi * np.arange(n_steps) / n_steps))


def curve(seed=0, *, floor=2.0, height=1.5, exponent=0.8, noise=0.03, offset=0.0, gap=0.05, factors=None):
    """A whole run that follows L = floor + height x^-exponent, x being the sum of learning rates after a fifth."""
    rng, factors = np.random.default_rng(seed), cosine() if factors is None else factors
    seen = np.cumsum(factors)
    x = seen / seen[len(factors) // 5 - 1]
    law = floor + height * 0.3 * x**-exponent + offset
    losses = law + rng.normal(0, noise, len(factors))
    every = len(factors) // 10
    validations = {step: float(law[step - 1]) + gap for step in range(every, len(factors) + 1, every)}
    return Curve(np.arange(1, len(factors) + 1), losses, validations, factors, len(factors))


def until(whole, step):
    """What was known of it after `step` steps."""
    validations = {at: loss for at, loss in whole.validations.items() if at <= step}
    return Curve(whole.steps[:step], whole.losses[:step], validations, whole.factors, whole.n_steps)


def test_a_power_law_is_found_and_the_interval_narrows():
    whole = curve()
    final = whole.final()
    assert final == whole.validations[N_STEPS]
    widths = []
    for step in (100, 200, 300, 400, 450):
        found = forecast_final(until(whole, step))
        assert found.low < final < found.high, step
        assert found.loss == pytest.approx(final, rel=0.04 if step == 100 else 0.015)
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.1 * widths[0]


def test_it_is_a_function_of_the_curves_alone():
    whole = curve()
    others = [curve(seed) for seed in (1, 2)]
    state = np.random.get_state()[1].copy()
    assert forecast_final(until(whole, 100), others) == forecast_final(until(whole, 100), others)
    assert (np.random.get_state()[1] == state).all()


def test_finished_runs_of_the_recipe_say_more_than_the_curve():
    rng = np.random.default_rng(4)
    runs = [curve(seed, offset=rng.normal(0, 0.01), exponent=1.3) for seed in range(12)]
    errors, held, widths = [], 0, []
    for i, run in enumerate(runs[1:], 1):
        alone = forecast_final(until(run, 100))
        found = forecast_final(until(run, 100), runs[:i])
        errors.append(abs(found.loss / run.final() - 1))
        held += found.low <= run.final() <= found.high
        widths.append((found.high - found.low) / (alone.high - alone.low))
    assert np.median(errors) < 0.01 and held >= 8 and max(widths) < 0.5
    # The more runs there are, the more of their spread is known.
    assert np.mean(widths[6:]) < widths[0]


def test_a_run_unlike_the_others_has_a_wide_interval():
    others = [curve(seed) for seed in range(5)]
    usual = forecast_final(until(curve(9), 100), others)
    astray = forecast_final(until(curve(9, offset=1.0), 100), others)
    assert astray.high - astray.low > 3 * (usual.high - usual.low) and astray.loss > usual.loss


def test_without_validations_the_training_loss_is_forecast():
    whole = dataclasses.replace(curve(), validations={})
    assert whole.metric == "train/loss" and whole.final() == pytest.approx(whole.losses[-25:].mean())
    found = forecast_final(until(whole, 250))
    assert found.low < whole.final() < found.high and found.loss == pytest.approx(whole.final(), rel=0.02)
    # A validation before the first step says nothing of a gap.
    assert dataclasses.replace(whole, validations={0: 5.5}).metric == "train/loss"


@pytest.mark.parametrize("name", ["flat", "rising", "constant rate", "short", "one batch alike"])
def test_odd_curves_have_a_finite_forecast(name):
    steps = np.arange(1, 41)
    losses = {
        "flat": np.full(40, 2.0),
        "rising": np.linspace(2, 3, 40),
        "constant rate": 3 / steps**0.3,
        "short": 3 / steps**0.3,
        "one batch alike": np.repeat([3.0, 2.9], 20),
    }[name]
    n = 8 if name == "short" else 40
    factors = np.ones(200) if name == "constant rate" else cosine(200)
    found = forecast_final(Curve(steps[:n], losses[:n], {}, factors, 200))
    assert math.isfinite(found.loss) and found.low < found.loss < found.high
    if name == "flat":
        assert found.loss == pytest.approx(2.0, abs=0.05)


def test_steps_may_be_missing_as_after_a_loss_that_was_not_finite():
    whole = curve()
    kept = np.delete(np.arange(200), [30, 31, 150])
    some = Curve(whole.steps[kept], whole.losses[kept], {50: 2.5, 100: 2.4}, whole.factors, N_STEPS)
    assert math.isfinite(forecast_final(some).loss)
