"""The fit of a scaling law against the published one, scipy, closed forms and simulated runs whose law is known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from gptlab import UserError
from gptlab.lab.scaling import FitConfig, observe
from gptlab.lab.scaling_law import CONSTANTS, LawForm, Observations, fit_law, isoflops, read_law

RUNS = Path(__file__).with_name("chinchilla_runs.csv")
# Of Besiroglu et al. (arXiv:2404.10102), table 1: estimates and standard errors without five outliers.
PUBLISHED = {
    "E": (1.817, 0.03),
    "A": (482.0, 124.6),
    "B": (2085, 1293),
    "alpha": (0.3478, 0.02),
    "beta": (0.3658, 0.02),
}
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def true_loss(n, d):
    return TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]


def grid(n_sizes, n_budgets):
    n, d = np.meshgrid(np.geomspace(5e7, 1e10, n_sizes), np.geomspace(1e9, 3e11, n_budgets))
    return n.ravel(), d.ravel()


@pytest.fixture(scope="module")
def chinchilla():
    found, notes = observe([RUNS], FitConfig(min_tokens_per_parameter=0.43))
    return found, notes


@pytest.fixture(scope="module")
def law(chinchilla):
    found, _ = chinchilla
    return fit_law(found.parameters, found.tokens, found.losses, n_bootstrap=200)


def test_the_published_fit_of_chinchillas_runs(chinchilla, law):
    found, notes = chinchilla
    everything, _ = observe([RUNS], FitConfig())
    # The five outliers are the first rows of the table: the highest losses and the fewest tokens per parameter.
    assert len(everything) == 245 and len(found) == 240 and "5 runs" in notes[0]
    assert np.array_equal(np.sort(everything.losses)[-5:], np.sort(everything.losses[:5]))
    assert np.array_equal(found.losses, everything.losses[5:])
    for name, (value, error) in PUBLISHED.items():
        assert abs(law.constants[name].value - value) < error
        assert law.constants[name].low < value < law.constants[name].high
        assert 0.5 * error < law.standard_errors[name] < 1.5 * error
    # Chinchilla's own budget: 70 billion parameters lie inside, those of Kaplan's exponent do not.
    best = law.optimum(5.76e23)
    assert best.parameters.low < 70e9 < best.parameters.high and 6 * best.parameters.value * best.tokens.value == (
        pytest.approx(5.76e23)
    )
    assert law.exponents["parameters"].low < 0.5 < law.exponents["parameters"].high < 0.73


def huber(theta, n, d, losses, delta=1e-3):
    e, a, b, alpha, beta = theta
    residuals = np.logaddexp(np.logaddexp(e, a - alpha * np.log(n)), b - beta * np.log(d)) - np.log(losses)
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum()


def test_the_minimum_is_scipys(chinchilla, law):
    found, _ = chinchilla
    runs = (found.parameters, found.tokens, found.losses)
    best = min(
        (
            minimize(huber, start, runs, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-14})
            for start in ((0.6, 6, 7.6, 0.35, 0.37), law.theta)
        ),
        key=lambda one: one.fun,
    )
    assert huber(law.theta, *runs) <= best.fun * (1 + 1e-4)
    assert law.theta == pytest.approx(best.x, rel=2e-3)


def test_without_noise_the_law_comes_back():
    n, d = grid(4, 4)
    law = fit_law(n, d, true_loss(n, d), n_bootstrap=20)
    for name, one in law.constants.items():
        assert one.value == pytest.approx(TRUTH[name], rel=1e-4)
        assert one.low == pytest.approx(one.high, rel=1e-3)
    assert law.spread < 1e-6 and not law.notes and law.n_agreeing == 8
    assert law.predict(1e12, 1e13).value == pytest.approx(true_loss(1e12, 1e13), rel=1e-6)


def true_norm(n, d, p):
    a, b = TRUTH["A"] / n ** TRUTH["alpha"], TRUTH["B"] / d ** TRUTH["beta"]
    return TRUTH["E"] + (a**p + b**p) ** (1 / p)


@pytest.mark.parametrize("p", [0.7, 2.5])
def test_a_norm_comes_back_without_noise_and_the_sum_does_not_fit_it(p):
    n, d = grid(5, 5)
    losses = true_norm(n, d, p)
    law = fit_law(n, d, losses, form=LawForm.norm, n_bootstrap=20)
    assert [*law.constants] == [*CONSTANTS]
    for name, one in law.constants.items():
        assert one.value == pytest.approx({**TRUTH, "p": p}[name], rel=1e-3), name
    assert law.spread < 1e-6 and law.predict(1e12, 1e13).value == pytest.approx(true_norm(1e12, 1e13, p), rel=1e-5)
    assert fit_law(n, d, losses, n_bootstrap=2).spread > 1e-3


def test_a_norm_of_the_runs_of_a_sum_is_the_sum(chinchilla, law):
    n, d = grid(5, 5)
    assert fit_law(n, d, true_loss(n, d), form=LawForm.norm, n_bootstrap=2).constants["p"].value == (
        pytest.approx(1, rel=1e-3)
    )
    found, _ = chinchilla
    norm = fit_law(found.parameters, found.tokens, found.losses, form=LawForm.norm, n_bootstrap=100)
    # Not quite a sum, by these runs, whose scatter about the law becomes a tenth smaller.
    assert 1 < norm.constants["p"].low < 1.3 < norm.constants["p"].high < 2 and 0.85 < norm.spread / law.spread < 1
    assert norm.predict(70e9, 1.4e12).value == pytest.approx(law.predict(70e9, 1.4e12).value, rel=0.02)


def test_the_minimum_of_a_norm_is_scipys():
    n, d = grid(5, 4)
    losses = true_norm(n, d, 2) * np.exp(0.003 * np.random.default_rng(5).standard_normal(20))

    def cost(theta):
        e, a, b, alpha, beta, p = theta
        both = np.logaddexp(p * (a - alpha * np.log(n)), p * (b - beta * np.log(d))) / p
        size = np.abs(np.logaddexp(e, both) - np.log(losses))
        return np.where(size <= 1e-2, size**2 / 2, 1e-2 * (size - 1e-2 / 2)).sum()

    law = fit_law(n, d, losses, form=LawForm.norm, delta=1e-2, n_bootstrap=2)
    start = [*np.log([1.8, 480, 2100]), 0.35, 0.37, 2]
    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-16, "adaptive": True}
    best = min(
        (minimize(cost, x, method="Nelder-Mead", options=options) for x in (start, law.theta)), key=lambda r: r.fun
    )
    assert cost(law.theta) <= best.fun * (1 + 1e-4)
    assert law.predict(1e11, 1e12).value == pytest.approx(true_norm(1e11, 1e12, 2), rel=0.02)


def test_an_outlier_hardly_moves_the_fit():
    n, d = grid(5, 5)
    losses = true_loss(n, d)
    losses[7] *= 1.5
    law = fit_law(n, d, losses, n_bootstrap=2)
    assert law.constants["alpha"].value == pytest.approx(TRUTH["alpha"], rel=0.01)


def test_the_same_runs_give_the_same_law():
    n, d = grid(4, 3)
    losses = true_loss(n, d) * np.exp(0.003 * np.random.default_rng(3).standard_normal(12))
    one, again, other = (fit_law(n, d, losses, n_bootstrap=50, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.draws, again.draws) and not np.array_equal(one.draws, other.draws)
    assert np.array_equal(one.theta, other.theta)
    order = np.random.default_rng(0).permutation(12)
    assert fit_law(n[order], d[order], losses[order], n_bootstrap=2).theta == pytest.approx(one.theta, rel=1e-6)


@pytest.fixture(scope="module")
def norm():
    n, d = grid(5, 4)
    losses = true_norm(n, d, 2.5) * np.exp(0.003 * np.random.default_rng(5).standard_normal(20))
    return fit_law(n, d, losses, form=LawForm.norm, n_bootstrap=100)


@pytest.mark.parametrize("cost", [(6.0, 1.0), (30.0, 0.9)])
@pytest.mark.parametrize("form", ["law", "norm"])
def test_the_optimum_is_the_lowest_loss_of_its_budget(request, form, cost):
    law = request.getfixturevalue(form)
    for flops in (1e19, 1e24):
        best = law.optimum(flops, cost)
        factor, power = cost

        def loss(log_n, flops=flops, factor=factor, power=power):
            return float(law.loss(np.exp(log_n), flops / (factor * np.exp(log_n) ** power)))

        searched = minimize_scalar(loss, (10, 30), tol=1e-12)
        assert best.loss.value == pytest.approx(searched.fun, rel=1e-9)
        assert np.log(best.parameters.value) == pytest.approx(searched.x, abs=1e-3)
        assert factor * best.parameters.value**power * best.tokens.value == pytest.approx(flops)
        assert best.parameters.low < best.parameters.value < best.parameters.high


def test_flops_of_the_runs_decide_what_a_token_costs():
    n, d = grid(4, 4)
    law = fit_law(n, d, true_loss(n, d), flops=100 * n**0.9 * d, n_bootstrap=2)
    assert law.flops_per_token == pytest.approx((100, 0.9))
    best = law.optimum(1e20)
    assert 100 * best.parameters.value**0.9 * best.tokens.value == pytest.approx(1e20)


def test_flops_that_fall_with_size_are_refused():
    n, d = grid(4, 4)
    with pytest.raises(UserError, match=r"FLOPs per token fall with parameters.* as N\^-0\.50.* flops_column=NAME"):
        fit_law(n, d, true_loss(n, d), flops=d / n**0.5, n_bootstrap=2)


def test_a_run_is_no_more_certain_than_the_law(law):
    one_sided = replace(law, residuals=np.full_like(law.residuals, 0.05))
    curve, run = one_sided.predict(1e9, 2e10), one_sided.predict(1e9, 2e10, one_run=True)
    assert run.low == curve.low and run.high > curve.high


@pytest.mark.parametrize("form", ["law", "norm"])
def test_a_law_is_read_back(request, form, tmp_path):
    law = request.getfixturevalue(form)
    file = tmp_path / "my law.json"
    law.write(file)
    again = read_law(file)
    assert again.form is law.form and again.plain()["form"] == law.plain()["form"]
    for name in law.constants:
        assert again.constants[name].plain() == pytest.approx(law.constants[name].plain(), rel=1e-8)
    assert again.predict(1e9, 2e10, one_run=True).plain() == pytest.approx(law.predict(1e9, 2e10, one_run=True).plain())
    for damage in ("", "[]", "{}", file.read_text().replace('"theta": [', '"theta": [NaN, ')):
        file.write_text(damage)
        with pytest.raises(UserError, match="gptlab scaling fit"):
            read_law(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_law(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["parameters"], "all"),
        (["residuals", 0], math.nan),
        (["runs", "losses", 1], math.nan),
        (["runs", "tokens", 1], 0.0),
        (["runs", "parameters"], [1e6]),
        (["theta", 3], -0.1),
        (["draws"], [[1, 2, 3, 4, 5]]),
        (["flops_per_token", "exponent"], -0.2),
        (["flops_per_token", "factor"], math.nan),
    ],
)
def test_a_damaged_law_is_refused(law, tmp_path, keys, value):
    plain = law.plain()
    inner = plain
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (tmp_path / "law.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"law\.json (is damaged|holds no fit).* gptlab scaling fit"):
        read_law(tmp_path)


def test_a_law_of_as_many_runs_as_constants_is_refused(law, tmp_path):
    plain = law.plain()
    plain["residuals"] = plain["residuals"][:5]
    plain["runs"] = {name: values and values[:5] for name, values in plain["runs"].items()}
    (tmp_path / "law.json").write_text(json.dumps(plain))
    with pytest.raises(UserError, match="is damaged"):
        read_law(tmp_path)


def test_one_run_scatters_more_than_the_law():
    n, d = grid(5, 5)
    losses = true_loss(n, d) * np.exp(0.01 * np.random.default_rng(0).standard_normal(25))
    law = fit_law(n, d, losses, n_bootstrap=200)
    assert law.spread == pytest.approx(0.01, rel=0.4)
    curve, run = law.predict(1e9, 2e10), law.predict(1e9, 2e10, one_run=True)
    assert run.high - run.low > 1.5 * (curve.high - curve.low) and run.value == curve.value
    assert 0.02 < np.log(run.high / run.low) < 0.08  # about four standard deviations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d, x: (n[:5], d[:5], x[:5]), "5 runs do not"),
        (lambda n, d, x: (n[:1], d[:1], x[:1]), "1 run does not"),
        (lambda n, d, x: (np.where(n > 1e9, 1e10, 1e8), d, x), "2 different values of parameters"),
        (lambda n, d, x: (n, np.full_like(d, 1e9), x), "1 different value of tokens"),
        (lambda n, d, x: (n, 20 * n, x), "several budgets"),
        (lambda n, d, x: (n, d, np.where(x == x.max(), np.nan, x)), "losses=nan"),
        (lambda n, d, x: (np.where(n == n.min(), 0, n), d, x), "parameters=0"),
    ],
)
def test_what_runs_cannot_determine_is_refused(change, message):
    n, d = grid(4, 4)
    with pytest.raises(UserError, match=message):
        fit_law(*change(n, d, true_loss(n, d)))


def test_a_constant_that_is_not_determined_is_named():
    n, d = grid(4, 4)
    law = fit_law(n, d, 2100 / d**0.37 + 1.8, n_bootstrap=20)  # nothing depends on N
    assert law.at_bound and "A" in law.at_bound and any("A is at the end" in note for note in law.notes)
    assert json.dumps(law.plain())


def profiles(width, n_budgets=3):
    """Runs of isoFLOP profiles, each of seven sizes from `width` times below to as much above the optimum."""
    budgets = np.geomspace(1e19, 1e22, n_budgets)
    a, b = TRUTH["alpha"], TRUTH["beta"]
    scale = (a * TRUTH["A"] / (b * TRUTH["B"])) ** (1 / (a + b))
    n, c = [], []
    for budget in budgets:
        best = scale * (budget / 6) ** (b / (a + b))
        n += [*np.geomspace(best / width, best * width, 7)]
        c += [budget] * 7
    n, c = np.array(n), np.array(c)
    return Observations(n, c / (6 * n), true_loss(n, c / (6 * n)))


def test_isoflop_parabolas_and_their_bias():
    runs = profiles(3)
    law = fit_law(runs.parameters, runs.tokens, runs.losses, n_bootstrap=2)
    found = isoflops(runs, law)
    assert len(found.profiles) == 3 and all(one.inside for one in found.profiles)
    for one in found.profiles:
        x = np.log(one.runs.parameters)
        assert np.polyval(one.coefficients, x) == pytest.approx(np.polyval(np.polyfit(x, one.runs.losses, 2), x))
        assert np.polyval(one.coefficients, np.log(one.parameters)) == pytest.approx(one.loss)
        assert 6 * one.parameters * one.tokens == pytest.approx(one.flops)
    # Without noise the error of the parabolas is the bias that is said, and wider profiles have more of it.
    errors = [one.parameters / law.optimum(one.flops).parameters.value - 1 for one in found.profiles]
    assert found.bias == pytest.approx(max(errors, key=abs), rel=1e-3)
    wide = isoflops(profiles(16), law)
    assert abs(wide.bias) > 2 * abs(found.bias) > 0
    # Profiles that drift off their center change the exponent, too.
    drifting = [runs.parameters[7 * i : 7 * i + 7] * 2.0 ** (i - 1) for i in range(3)]
    n = np.concatenate(drifting)
    d = np.repeat(np.geomspace(1e19, 1e22, 3), 7) / (6 * n)
    off = isoflops(Observations(n, d, true_loss(n, d)), law)
    assert abs(off.exponent_bias) > 2 * abs(found.exponent_bias)
    assert off.exponent == pytest.approx(0.37 / 0.72 + off.exponent_bias, abs=1e-3)


def test_runs_of_no_common_budget_have_no_profiles():
    n, d = grid(3, 3)
    found = isoflops(Observations(n, d, true_loss(n, d)))
    assert found.profiles == () and found.exponent is None and found.bias is None and found.optimum(1e20) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "n_sizes", "n_budgets"), [(LawForm.sum, 4, 4), (LawForm.sum, 6, 6), (LawForm.norm, 6, 6)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(form, n_sizes, n_budgets):
    n, d = grid(n_sizes, n_budgets)
    p = 2.5 if form is LawForm.norm else 1.0
    names = CONSTANTS[: form.n_constants]
    truth, rng = np.array([{**TRUTH, "p": p}[name] for name in names]), np.random.default_rng(7)
    hits, predicted = np.zeros(len(names)), 0
    for _ in range(100):
        losses = true_norm(n, d, p) * np.exp(0.003 * rng.standard_normal(len(n)))
        law = fit_law(n, d, losses, form=form, n_bootstrap=300)
        ends = np.array([[one.low, one.high] for one in law.constants.values()])
        hits += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        one = law.predict(3e10, 1e12)
        predicted += one.low <= true_norm(3e10, 1e12, p) <= one.high
    assert ((hits >= 89) & (hits <= 99)).all(), dict(zip(names, hits, strict=True))
    assert 85 <= predicted <= 100
