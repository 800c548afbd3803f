"""What two groups of runs show of each other, against explicit maths and simulated runs whose difference is known."""

import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

from gptlab.lab.statistics import (
    LEVEL,
    Verdict,
    bca_interval,
    compare_all,
    compare_groups,
    holm,
    pairs_that_decide,
    permutation_p,
    refused,
    seeds_needed,
    sign_flip_p,
    t_interval,
    welch_interval,
)

DIFFERENCES = [-0.021, -0.034, 0.004, -0.012, -0.027, -0.016, -0.002]


def seeds(values, first=0):
    return {first + i: float(value) for i, value in enumerate(values)}


def compare(differences, *, effect=0.01, unit="nats", **options):
    """A group that differs from its baseline by these, seed by seed."""
    baseline = seeds(2 + 0.1 * np.sin(np.arange(len(differences))))
    return compare_groups(
        baseline, {s: baseline[s] + d for s, d in seeds(differences).items()}, effect=effect, unit=unit, **options
    )


def test_sign_flips_are_counted_one_by_one():
    for n in range(2, 8):
        values = np.array(DIFFERENCES[:n])
        means = [abs(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=n)]
        expected = np.mean([m >= abs(values.sum()) - 1e-12 for m in means])
        assert sign_flip_p(values) == pytest.approx(expected)
    assert sign_flip_p([0.01] * 5) == 2 / 2**5 > LEVEL > sign_flip_p([0.01] * 6)
    many = np.random.default_rng(0).normal(0.5, 1, 30)  # 2^30 signs are too many
    assert sign_flip_p(many) == sign_flip_p(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.01)


def test_labels_of_unpaired_runs_are_counted_one_by_one():
    a, b = [1.0, 1.3, 0.9], [1.6, 1.2, 1.9, 1.5]
    both, observed = a + b, abs(np.mean(b) - np.mean(a))
    count = [
        abs(np.mean([both[i] for i in rest]) - np.mean([both[i] for i in group])) >= observed - 1e-12
        for group in itertools.combinations(range(7), 3)
        for rest in [[i for i in range(7) if i not in group]]
    ]
    # scipy doubles the smaller side, which for groups of one size is the same.
    assert permutation_p(a, b) == pytest.approx(np.mean(count), abs=0.06)
    a, b = [1.0, 1.3, 0.9], [1.6, 1.2, 1.9]
    both, observed = a + b, abs(np.mean(b) - np.mean(a))
    count = [
        abs(sum(both) - 2 * sum(both[i] for i in group)) / 3 >= observed - 1e-12
        for group in itertools.combinations(range(6), 3)
    ]
    assert permutation_p(a, b) == pytest.approx(np.mean(count))


def test_t_intervals_by_hand():
    values = [0.01, 0.02, 0.03, 0.04]
    margin = 3.182446 * math.sqrt(0.0005 / 3) / 2  # of the table of t with 3 degrees of freedom
    assert t_interval(values) == pytest.approx((0.025 - margin, 0.025 + margin), rel=1e-5)
    a, b = [2.0, 2.2, 2.1, 2.4], [1.9, 1.8, 2.0]
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert welch_interval(a, b) == pytest.approx((expected.low, expected.high))


def test_bca_against_the_formula():
    """Efron 1987, with a bootstrap of the test's own."""
    values = np.array([0.1, 0.12, 0.13, 0.2, 0.11, 0.5, 0.14, 0.16])
    n, rng = len(values), np.random.default_rng(1)
    means = np.sort(values[rng.integers(0, n, (200_000, n))].mean(1))
    z0 = stats.norm.ppf((means < values.mean()).mean())
    without = np.array([np.delete(values, i).mean() for i in range(n)])
    away = without.mean() - without
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    expected = []
    for z in (stats.norm.ppf(0.025), stats.norm.ppf(0.975)):
        expected.append(np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - acceleration * (z0 + z)))))
    assert bca_interval(values) == pytest.approx(expected, rel=0.03)
    assert bca_interval(values) == bca_interval(values)
    assert bca_interval([0.1] * 7) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


def test_how_many_comparisons_signs_can_decide():
    for m in range(1, 60):
        n = pairs_that_decide(m)
        assert m <= LEVEL * 2 ** (n - 1) and (n == 6 or m > LEVEL * 2 ** (n - 2))
    assert [pairs_that_decide(m) for m in (1, 2, 3, 4, 6, 7)] == [6, 7, 7, 8, 8, 9]


def test_the_sentences():
    found = compare([-0.021, -0.019, -0.031, -0.012, -0.025, -0.016, -0.022, -0.024])
    assert found.verdict is Verdict.better and found.is_called_different
    assert re.fullmatch(
        r"better by 0\.021 nats \(95%: 0\.01[78] to 0\.02[45], t interval 0\.016 to 0\.026; 8 paired seeds\)",
        found.sentence,
    ), found.sentence
    assert found.difference == pytest.approx(-0.02125) and found.p_value == found.p_corrected == 2 / 2**8
    worse = compare([0.021, 0.019, 0.031, 0.012, 0.025, 0.016, 0.022, 0.024])
    assert worse.verdict is Verdict.worse and worse.sentence == found.sentence.replace("better", "worse")
    more = compare([0.021, 0.019, 0.031, 0.012, 0.025, 0.016, 0.022, 0.024], higher_is_better=True, unit="")
    assert more.verdict is Verdict.better and more.sentence.startswith("better by 0.021 (95%")

    nothing = compare([0.012, -0.01, 0.003, -0.014, 0.009, 0.001, -0.006, 0.011], effect=0.005)
    assert nothing.verdict is Verdict.no_difference and nothing.more_seeds > 0
    assert re.fullmatch(
        r"no difference shown \(95%: 0\.00\d worse to 0\.00\d better, t interval 0\.00\d worse to 0\.00\d better; "
        rf"8 paired seeds\); {nothing.more_seeds} more seeds would show 0\.005 nats",
        nothing.sentence,
    ), nothing.sentence
    enough = compare([0.012, -0.01, 0.003, -0.014, 0.009, 0.001, -0.006, 0.011], effect=0.1)
    assert enough.more_seeds == 0 and enough.sentence.endswith("; so many seeds show a true 0.1 nats in 85% of cases")
    hopeless = compare([5, -7, 9, -8, 3, -2], effect=0.01)
    assert hopeless.more_seeds is None and "only more than 1,000 seeds would show" in hopeless.sentence


def test_five_seeds_or_fewer_suggest_at_most():
    for n in (2, 3, 4, 5):
        found = compare([-0.02 - 0.001 * i for i in range(n)])
        assert found.verdict is Verdict.suggested_better and not found.is_called_different
        assert re.fullmatch(
            rf"suggested: better by 0\.02\d nats \(t interval, 95%: 0\.0\d+ to 0\.0\d+; {n} paired seeds\); "
            rf"{found.more_seeds} more seeds? would decide",
            found.sentence,
        ), found.sentence
        assert n + found.more_seeds >= 6
    one = compare([-0.3])
    assert one.verdict is Verdict.too_few and one.more_seeds == 5 and "nothing shown" in one.sentence
    assert compare([0.02, -0.03, 0.01, 0.002]).verdict is Verdict.no_difference
    none = compare_groups({}, {1: 2.0}, effect=0.01)
    assert none.verdict is Verdict.too_few and "the baseline has no run" in none.sentence
    # Of unpaired runs 4 and 4 have 70 labelings, which alone would do.
    few = compare_groups(seeds([2.0, 2.01, 2.02, 2.03]), seeds([1.0, 1.01, 1.02, 1.03], 50), effect=0.01)
    assert few.verdict is Verdict.suggested_better and few.p_value < LEVEL


def test_a_single_seed_has_no_interval_and_is_told_how_many_would():
    """The seeds of the other group say how much seeds differ, and so how many are needed of each."""
    values = [1.97, 1.98, 1.99, 1.96, 2.0, 1.98, 1.97, 1.99]
    baseline, group = {3: 2.1}, seeds(values)  # seed 3 is in both: one pair is no more than eight seeds and one
    found = compare_groups(baseline, group, effect=0.01, unit="nats")
    assert found.verdict is Verdict.too_few and found.t_interval is found.bca_interval is found.p_value is None
    assert not found.paired and found.n == (8, 1) and found.difference == pytest.approx(np.mean(values) - 2.1)
    needed = seeds_needed(float(np.std(values, ddof=1)), 7, abs(found.difference), paired=False)
    assert needed == 6 and found.more_seeds == needed - 1
    assert re.fullmatch(
        r"nothing shown: better by 0\.1\d* nats on the mean of 8 seeds, without an interval, as the baseline has one "
        r"seed; 5 more seeds of the baseline would decide",
        found.sentence,
    ), found.sentence
    turned = compare_groups(group, baseline, effect=0.01, unit="nats")
    assert turned.n == (1, 8) and "as the group has one seed; 5 more seeds of the group would decide" in turned.sentence
    # Where the difference is less than what matters, seeds are counted for that, of both groups.
    small = compare_groups({50: 1.98}, group, effect=0.01, unit="nats")
    n = seeds_needed(float(np.std(values, ddof=1)), 7, 0.01, paired=False)
    assert small.more_seeds == n - 1 > 7
    assert small.sentence.endswith(f"{n - 1} more seeds of the baseline and {n - 8} of the group would show 0.01 nats")
    wild = compare_groups({50: 5.0}, seeds([1.0, 9.0]), effect=0.01)
    assert wild.more_seeds is None and wild.sentence.endswith("only more than 1,000 seeds would show 0.01")
    alone = compare_groups({1: 2.0}, {2: 1.9}, effect=0.01)
    assert "with one seed of each, and nothing says how much seeds differ; at least 5 more of each" in alone.sentence


def test_groups_whose_seeds_failed_are_at_most_suggested():
    baseline = seeds(np.linspace(2, 2.1, 8))
    others = {name: {seed: value - 0.02 - seed / 1000 for seed, value in baseline.items()} for name in "ab"}
    found = compare_all(baseline, others, effect=0.01, unit="nats", n_failed={"a": (1, 0), "b": (0, 0)})
    assert found["b"].verdict is Verdict.better and found["b"].n_failed == (0, 0)
    assert found["a"].verdict is Verdict.suggested_better and found["a"].n_failed == (1, 0)
    assert found["a"].sentence == (
        f"suggested: {found['b'].sentence}; not decided, as 1 of 9 seeds of the group failed"
    )
    turned = compare_all(others["a"], {"a": baseline}, effect=0.01, n_failed={"a": (2, 1)})["a"]
    assert turned.verdict is Verdict.suggested_worse
    assert turned.sentence.endswith("2 of 10 seeds of the group failed and 1 of 9 seeds of the baseline failed")
    same = compare_all(baseline, {"a": baseline}, effect=0.01, n_failed={"a": (1, 0)})["a"]
    assert same.verdict is Verdict.no_difference and same.sentence.endswith("; 1 of 9 seeds of the group failed")


def test_seeds_that_are_not_shared():
    unpaired = compare_groups(
        seeds([2.0, 2.01, 2.02, 1.99, 2.0, 2.01]), seeds(np.full(7, 1.9), 50), effect=0.01, unit="nats"
    )
    assert not unpaired.paired and unpaired.n == (7, 6)
    assert unpaired.sentence.startswith("better by 0.105 nats (95%: ")
    assert "Welch t interval" in unpaired.sentence and "7 and 6 unpaired seeds" in unpaired.sentence
    some = compare_groups(seeds(np.linspace(2, 3, 8)), seeds(np.linspace(2, 3, 8) - 0.1, 1), effect=0.01)
    assert some.paired and some.n == (7, 7) and "7 paired seeds, 2 without a partner left out" in some.sentence
    few = compare_groups(seeds(np.linspace(2, 3, 8)), seeds(np.linspace(2, 3, 8) - 0.1, 6), effect=0.01)
    assert not few.paired and few.n == (8, 8)


def test_several_groups_are_corrected_for_their_number():
    rng = np.random.default_rng(3)
    baseline = seeds(rng.normal(2, 0.01, 8))
    others = {f"g{i}": {s: v - 0.02 * i + rng.normal(0, 0.008) for s, v in baseline.items()} for i in range(5)}
    found = compare_all(baseline, others, effect=0.01, unit="nats")
    p_values = [found[name].p_value for name in others]
    assert [found[name].p_corrected for name in others] == pytest.approx(
        [float(p) for p in _holm_by_definition(p_values)], abs=6e-4
    )
    assert found["g4"].verdict is Verdict.better and found["g0"].verdict is Verdict.no_difference
    # 7 pairs can decide 3 comparisons, and these are 5.
    short = compare_all({s: baseline[s] for s in range(7)}, others, effect=0.01, unit="nats")
    assert short["g4"].verdict is Verdict.suggested_better
    assert "as 7 pairs can decide 3 of 5 comparisons at most; 1 more seed would decide" in short["g4"].sentence
    # What one comparison would have decided, two do not.
    values = [-0.03, -0.02, -0.035, -0.01, -0.04, -0.025, 0.004]
    assert compare(values).verdict is Verdict.better
    same = {s: v + d for (s, v), d in zip(baseline.items(), values, strict=False)}
    both = compare_all({s: baseline[s] for s in range(7)}, {"a": same, "b": same}, effect=0.01)
    assert (
        both["a"].verdict is Verdict.suggested_better
        and "but not after correction for 2 comparisons" in both["a"].sentence
    )


def _holm_by_definition(p_values):
    """The smallest level at which the step-down procedure rejects each."""
    for p in p_values:
        levels = np.arange(1, 2001) / 2000
        for level in levels:
            rejected = []
            for rank, other in enumerate(sorted(p_values)):
                if other * (len(p_values) - rank) > level + 1e-12:
                    break
                rejected.append(other)
            if p in rejected:
                break
        yield min(1, math.ceil(level * 2000 - 1e-9) / 2000) if level < 1 else 1.0


def test_refusals_and_json():
    import json

    found = refused("other validation text")
    assert found.sentence == "not compared: other validation text" and found.plain()["verdict"] == "not compared"
    json.dumps(compare(DIFFERENCES).plain())


@pytest.mark.parametrize("paired", [True, False])
def test_the_seeds_that_it_asks_for_find_the_effect(paired):
    """A planted difference is found in at least 80% of the cases, by seeds whose number a few pilot runs asked for."""
    rng, effect, sigma, found, asked = np.random.default_rng(11), 0.02, 0.015, 0, []
    for _ in range(60):
        pilot = (
            rng.normal(0, sigma, 6) if paired else np.concatenate([rng.normal(0, sigma, 6), rng.normal(0, sigma, 6)])
        )
        deviation = pilot.std(ddof=1) if paired else math.sqrt((pilot[:6].var(ddof=1) + pilot[6:].var(ddof=1)) / 2)
        n = seeds_needed(float(deviation), 5 if paired else 10, effect, paired=paired)
        asked.append(n)
        a = rng.normal(2, sigma, n)
        b = a - effect + rng.normal(0, sigma, n) if paired else rng.normal(2 - effect, sigma, n)
        found += compare_groups(seeds(a), seeds(b, 0 if paired else 999), effect=effect).is_called_different
    assert found >= 0.8 * 60, (found, np.median(asked))
    assert np.median(asked) < 25  # not by asking for far too many


def test_equal_groups_are_rarely_called_different():
    """200 comparisons of 6 and 6 of 40 runs that are equal but for their seeds: 18 is the 99% bound of a 5% test."""
    rng = np.random.default_rng(5)
    runs = rng.normal(2, 0.01, 40)
    called = 0
    for _ in range(200):
        chosen = rng.permutation(40)[:12]
        called += compare_groups(seeds(runs[chosen[:6]]), seeds(runs[chosen[6:]]), effect=0.01).is_called_different
    assert called <= 18


def test_planning_is_of_a_t_test_where_the_deviation_is_known():
    # A difference of one deviation, which is known for certain.
    n = seeds_needed(1.0, 10**6, 1.0)
    power = 1 - stats.nct.cdf(stats.t.ppf(0.975, n - 1), n - 1, math.sqrt(n))
    before = 1 - stats.nct.cdf(stats.t.ppf(0.975, n - 2), n - 2, math.sqrt(n - 1))
    assert n == 11 or before < 0.85 <= power
    assert seeds_needed(1.0, 5, 1.0) > n  # a deviation of a few runs may be far too low
    assert seeds_needed(0.0, 5, 1.0) == 6 and seeds_needed(100.0, 5, 0.01) is None
    assert seeds_needed(1.0, 5, 1.0, n_compared=10) > seeds_needed(1.0, 5, 1.0)
