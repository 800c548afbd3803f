"""Two groups of runs compared: intervals, permutation tests, and one sentence about what they show.

A difference is called better or worse only where three agree: a permutation test (of the signs of paired differences,
or of the labels of unpaired runs), the t interval and the BCa bootstrap interval, which covers too little of few values
and is never used alone.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

import numpy as np

from gptlab.units import plural

LEVEL = 0.05  # of the tests; intervals are of 1 - LEVEL
MIN_SEEDS = 6  # below which nothing is decided: 2 of 2^5 signs are 0.0625
N_RESAMPLES = 9999
# Of the t test for which seeds are planned. The permutation test, which has to agree, finds about 0.03 less at 8 pairs;
# at the fewest that can decide at all it is taken into account as it is.
PLANNED_POWER = 0.85
MAX_PLANNED = 1000  # more seeds than that are not counted
Values = Sequence[float] | np.ndarray

N_SIGMAS = 41  # values of the unknown deviation over which power is averaged


class Verdict(Enum):
    """What two groups show of each other."""

    better = "better"
    worse = "worse"
    suggested_better = "suggested better"
    suggested_worse = "suggested worse"
    no_difference = "no difference shown"
    too_few = "too few seeds"
    identical = "identical"
    refused = "not compared"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A group of runs against a baseline; `difference` and intervals are the group's mean less the baseline's."""

    verdict: Verdict
    sentence: str
    paired: bool = True
    n: tuple[int, int] = (0, 0)  # seeds of the group and the baseline; where paired, both are the number of pairs
    difference: float | None = None
    t_interval: tuple[float, float] | None = None
    bca_interval: tuple[float, float] | None = None
    p_value: float | None = None  # of the permutation test
    p_corrected: float | None = None  # by Holm, for all groups that are compared with the baseline
    n_compared: int = 1  # groups that are
    n_failed: tuple[int, int] = (0, 0)  # seeds of the group and the baseline that are missing, as their runs failed
    more_seeds: int | None = None  # that would decide about this difference, or show `effect`
    effect: float | None = None  # the smallest difference that matters

    @property
    def is_called_different(self) -> bool:
        return self.verdict in (Verdict.better, Verdict.worse)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"verdict": self.verdict.value}


def refused(reason: str) -> Comparison:
    """No comparison, and why."""
    return Comparison(Verdict.refused, f"not compared: {reason}")


def compare_groups(
    baseline: Mapping[int, float],
    group: Mapping[int, float],
    *,
    effect: float,
    unit: str = "",
    higher_is_better: bool = False,
) -> Comparison:
    """One group against a baseline; each is a value of the metric by seed.

    `effect` is the smallest difference that matters, `unit` what the metric is measured in, with a plural.
    """
    (found,) = compare_all(
        baseline, {"group": group}, effect=effect, unit=unit, higher_is_better=higher_is_better
    ).values()
    return found


def compare_all(
    baseline: Mapping[int, float],
    others: Mapping[str, Mapping[int, float]],
    *,
    effect: float,
    unit: str = "",
    higher_is_better: bool = False,
    n_failed: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Comparison]:
    """Several groups against a baseline, as `compare_groups` does, corrected for their number by Holm.

    `n_failed` are the seeds of a group, and of the baseline, that have no value as their runs failed. Who failed might
    have been the worst, so nothing is decided without them.
    """
    samples = {label: _sample(baseline, group) for label, group in others.items()}
    tested = {label: sample for label, sample in samples.items() if sample.can_be_tested}
    n_compared = max(1, len(tested))
    p_values = {label: sample.p_value() for label, sample in tested.items()}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    n_all = max(1, sum(min(len(sample.a), len(sample.b)) > 0 for sample in samples.values()))
    writer = _Writer(effect, unit, higher_is_better, n_compared, n_all)
    found = {label: writer.judge(one, p_values.get(label), corrected.get(label)) for label, one in samples.items()}
    return {
        label: _without_failed(one, (n_failed or {}).get(label, (0, 0)), (len(others[label]), len(baseline)))
        for label, one in found.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): each is at least the one before it in ascending order."""
    order, found, largest = sorted(range(len(p_values)), key=lambda i: p_values[i]), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = largest
    return found


def pairs_that_decide(n_compared: int = 1) -> int:
    """The fewest pairs whose signs can decide about any of several comparisons.

    n pairs have 2^n signs, so that p is 2^-(n-1) at least, which Holm wants to be at most 0.05 / m: n pairs decide
    0.05 x 2^(n-1) comparisons at most.
    """
    return max(MIN_SEEDS, 1 + math.ceil(math.log2(n_compared / LEVEL)))


def sign_flip_p(differences: Values) -> float:
    """The two-sided p value of paired differences' mean when each may as well have the other sign.

    All 2^n signs are tried up to n = 13; of more, 9,999 at random with a fixed seed.
    """
    return _permutation_p((np.asarray(differences, float),), "samples")


def permutation_p(a: Values, b: Values) -> float:
    """The two-sided p value of a difference of means when runs may as well belong to the other group."""
    return _permutation_p((np.asarray(a, float), np.asarray(b, float)), "independent")


def t_interval(differences: Values) -> tuple[float, float]:
    """The 95% interval of paired differences' mean by Student's t; needs two of them."""
    values = np.asarray(differences, float)
    return _interval(float(values.mean()), values.std(ddof=1) / math.sqrt(len(values)), len(values) - 1)


def welch_interval(a: Values, b: Values) -> tuple[float, float]:
    """The 95% interval of the mean of `b` less that of `a`, by Welch's t; needs two values of each."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return _interval(float(b.mean() - a.mean()), *_welch(a, b))


def bca_interval(*samples: Values) -> tuple[float, float] | None:
    """The 95% bootstrap interval (BCa) of a mean, or of the second mean less the first; None where all are equal."""
    from scipy.stats import bootstrap

    data = tuple(np.asarray(sample, float) for sample in samples)
    if all(np.ptp(sample) == 0 for sample in data):
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of a bootstrap distribution with one value, which gives NaN
        found = bootstrap(
            data,
            _mean_difference if len(data) == 2 else np.mean,
            n_resamples=N_RESAMPLES,
            confidence_level=1 - LEVEL,
            vectorized=True,
            method="BCa",
            rng=np.random.default_rng(0),  # the same runs give the same interval
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return None if math.isnan(low) or math.isnan(high) else (low, high)


def seeds_needed(deviation: float, df: int, effect: float, *, n_compared: int = 1, paired: bool = True) -> int | None:
    """How many pairs, or seeds of each group, find a true difference of `effect` in at least 80% of the cases.

    `deviation` is the standard deviation of paired differences, or of one group, measured with `df` degrees of freedom:
    power is averaged over what it may really be. None where more than 1,000 are needed.
    """
    least = pairs_that_decide(n_compared) if paired else MIN_SEEDS
    if deviation == 0:
        return least
    scale = deviation / effect * (1 if paired else math.sqrt(2))
    if _power(MAX_PLANNED, scale, df, n_compared, paired) < PLANNED_POWER:
        return None
    low, high = least - 1, MAX_PLANNED
    while high - low > 1:
        middle = (low + high) // 2
        if _power(middle, scale, df, n_compared, paired) >= PLANNED_POWER:
            high = middle
        else:
            low = middle
    return high


@cache
def _sigmas(df: int) -> np.ndarray:
    """What the true deviation may be, as parts of the measured one, each as likely: sqrt(df / chi2)."""
    from scipy.stats import chi2

    return np.sqrt(df / chi2.ppf((np.arange(N_SIGMAS) + 0.5) / N_SIGMAS, df))


def _power(n: int, scale: float, df: int, n_compared: int, paired: bool) -> float:
    """The mean power of n seeds; `scale` is the measured deviation as a multiple of the effect."""
    from scipy.stats import nct, norm, t

    own = (n if paired else 2 * n) - (1 if paired else 2)
    effects = 1 / (scale * _sigmas(df))
    critical = t.ppf(1 - LEVEL / n_compared / 2, own)
    noncentrality = np.minimum(effects * math.sqrt(n), 37)  # beyond which scipy's nct fails, and power is 1
    power = 1 - nct.cdf(critical, own, noncentrality)
    power = np.where(np.isnan(power), 1.0, power)
    if paired and n == pairs_that_decide(n_compared):  # all signs must be the same
        power = np.minimum(power, norm.cdf(effects) ** n)
    return float(power.mean())


@dataclass(frozen=True, slots=True)
class _Sample:
    """The values that are compared."""

    a: np.ndarray  # the baseline's
    b: np.ndarray
    paired: bool
    left_out: tuple[int, int]  # seeds of group and baseline without a partner

    @property
    def can_be_tested(self) -> bool:
        return min(len(self.a), len(self.b)) > 1

    @property
    def difference(self) -> float:
        return float(self.b.mean() - self.a.mean())

    def p_value(self) -> float:
        return sign_flip_p(self.b - self.a) if self.paired else permutation_p(self.a, self.b)

    def t_interval(self) -> tuple[float, float]:
        return t_interval(self.b - self.a) if self.paired else welch_interval(self.a, self.b)

    def bca_interval(self) -> tuple[float, float] | None:
        return bca_interval(self.b - self.a) if self.paired else bca_interval(self.a, self.b)

    def deviation(self) -> tuple[float, int]:
        """The standard deviation that decides how many seeds are needed, and its degrees of freedom."""
        if self.paired:
            return float((self.b - self.a).std(ddof=1)), len(self.a) - 1
        df = len(self.a) + len(self.b) - 2
        squares = ((self.a - self.a.mean()) ** 2).sum() + ((self.b - self.b.mean()) ** 2).sum()
        return float(np.sqrt(squares / df)), df

    def seeds_text(self) -> str:
        if self.paired:
            text = f"{len(self.a)} paired seed{'s' * (len(self.a) != 1)}"
            if any(self.left_out):
                text += f", {sum(self.left_out)} without a partner left out"
            return text
        return f"{len(self.b)} and {len(self.a)} unpaired seeds"


def _sample(baseline: Mapping[int, float], group: Mapping[int, float]) -> _Sample:
    """Pairs where at least half of the smaller group's seeds have a partner, else all values unpaired.

    A single pair has no interval: unless there is nothing else, all values say more.
    """
    shared = [seed for seed in baseline if seed in group]
    paired = bool(shared) and 2 * len(shared) >= min(len(baseline), len(group))
    paired = paired and (len(shared) > 1 or len(baseline) == len(group) == 1)
    left_out = (len(group) - len(shared), len(baseline) - len(shared)) if paired else (0, 0)
    a = [baseline[seed] for seed in (shared if paired else baseline)]
    b = [group[seed] for seed in (shared if paired else group)]
    return _Sample(np.array(a, float), np.array(b, float), paired, left_out)


@dataclass(frozen=True, slots=True)
class _Writer:
    """What a comparison shows, in words."""

    effect: float
    unit: str
    higher_is_better: bool
    n_compared: int
    n_all: int  # of groups, those with too few seeds to be compared too

    def judge(self, sample: _Sample, p_value: float | None, p_corrected: float | None) -> Comparison:
        n = (len(sample.b), len(sample.a))
        usual = {"paired": sample.paired, "n": n, "n_compared": self.n_compared, "effect": self.effect}
        if not min(n):
            empty = "group" if not n[0] else "baseline"
            return Comparison(Verdict.too_few, f"no comparison: the {empty} has no run that counts", **usual)
        difference = sample.difference
        usual["difference"] = difference
        if p_value is None or p_corrected is None:
            return self._single(sample, usual)
        t, bca = sample.t_interval(), sample.bca_interval()
        usual |= {"t_interval": t, "bca_interval": bca, "p_value": p_value, "p_corrected": p_corrected}
        excludes = t[0] * t[1] > 0 and (bca is None or bca[0] * bca[1] > 0)
        least = pairs_that_decide(self.n_compared) if sample.paired else MIN_SEEDS
        if excludes and min(n) >= least and p_corrected <= LEVEL:
            verdict = Verdict.better if self._is_better(difference) else Verdict.worse
            return Comparison(verdict, f"{self._difference(difference, t)} ({self._figures(sample, t, bca)})", **usual)
        # The t interval alone is at most a hint, and with enough seeds only where the correction takes it away.
        if excludes and (min(n) < least or p_value <= LEVEL):
            return self._suggest(sample, t, bca, least, usual)
        return self._none(sample, t, bca, usual)

    def _single(self, sample: _Sample, usual: dict[str, Any]) -> Comparison:
        """Where the group, the baseline or both have one seed."""
        n, of = usual["n"], ("the group", "the baseline")
        text = f"nothing shown: {self._difference(sample.difference, (0.0, 2 * abs(sample.difference)))}"
        if max(n) == 1:
            more = MIN_SEEDS - 1
            seeds = sample.seeds_text() if sample.paired else "one seed of each"
            text += f" with {seeds}, and nothing says how much seeds differ; at least {more} more of each are needed"
            return Comparison(Verdict.too_few, text, more_seeds=more, **usual)
        one, other = (0, 1) if n[0] == 1 else (1, 0)
        text += f" on the mean of {plural(n[other], 'seed')}, without an interval, as {of[one]} has one seed; "
        # The seeds of the other say how much seeds differ, but not how much pairs do.
        effect = max(self.effect, abs(sample.difference))
        needed = seeds_needed(*sample.deviation(), effect, n_compared=self.n_all, paired=False)
        more = None if needed is None else needed - 1
        text += f"{self._more(more, sample, of[one])}"
        text += f" and {needed - n[other]} of {of[other]}" if needed is not None and needed > n[other] else ""
        text += " would decide" if effect > self.effect else f" would show {self.effect:g}{self._of_unit}"
        return Comparison(Verdict.too_few, text, more_seeds=more, **usual)

    def _suggest(
        self,
        sample: _Sample,
        t: tuple[float, float],
        bca: tuple[float, float] | None,
        least: int,
        usual: dict[str, Any],
    ) -> Comparison:
        n, difference = min(usual["n"]), usual["difference"]
        needed = self._needed(sample, abs(difference))
        more = None if needed is None else max(least, needed, n + 1) - n
        figures = f"t interval, 95%: {self._between(t)}; {sample.seeds_text()}"
        if n >= least:
            figures = f"{self._figures(sample, t, bca)}; p = {_p(usual['p_value'])}"
        sentence = f"suggested: {self._difference(difference, t)} ({figures})"
        if n >= least:
            sentence += f", but not after correction for {self.n_compared} comparisons (p = {_p(usual['p_corrected'])})"
        elif n >= MIN_SEEDS:
            most = int(LEVEL * 2 ** (n - 1))
            sentence += f", as {n} pairs can decide {most} of {self.n_compared} comparisons at most"
        sentence += f"; {self._more(more, sample)} would decide"
        verdict = Verdict.suggested_better if self._is_better(difference) else Verdict.suggested_worse
        return Comparison(verdict, sentence, more_seeds=more, **usual)

    def _none(
        self, sample: _Sample, t: tuple[float, float], bca: tuple[float, float] | None, usual: dict[str, Any]
    ) -> Comparison:
        n = min(usual["n"])
        needed = self._needed(sample, self.effect)
        more = None if needed is None else max(0, needed - n)
        effect = f"{self.effect:g}{self._of_unit}"
        figures = f"({self._figures(sample, t, bca, sides=True)})"
        if more == 0:
            sentence = (
                f"no difference shown {figures}; so many seeds show a true {effect} in {PLANNED_POWER:.0%} of cases"
            )
        else:
            sentence = f"no difference shown {figures}; {self._more(more, sample)} would show {effect}"
        return Comparison(Verdict.no_difference, sentence, more_seeds=more, **usual)

    def _needed(self, sample: _Sample, effect: float) -> int | None:
        return seeds_needed(*sample.deviation(), effect, n_compared=self.n_compared, paired=sample.paired)

    def _more(self, more: int | None, sample: _Sample, of: str = "") -> str:
        if more is None:
            return f"only more than {MAX_PLANNED:,} seeds"
        where = f" of {of}" if of else "" if sample.paired else " in each group"
        return f"{more} more seed{'s' * (more != 1)}{where}"

    def _is_better(self, difference: float) -> bool:
        return (difference > 0) == self.higher_is_better

    @property
    def _of_unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def _difference(self, difference: float, interval: tuple[float, float]) -> str:
        word = "better" if self._is_better(difference) else "worse"
        return f"{word} by {abs(difference):.{_digits(interval)}f}{self._of_unit}"

    def _between(self, interval: tuple[float, float], *, sides: bool = False) -> str:
        """An interval of how much better, or worse, the group is; with the words where `sides` or on both sides."""
        digits, sign = _digits(interval), 1 if self.higher_is_better else -1
        low, high = sorted((sign * interval[0], sign * interval[1]))  # above zero is better
        words = [" better" if value > 0 else " worse" for value in (low, high)]
        if low * high > 0:
            low, high = sorted((abs(low), abs(high)))
            return f"{low:.{digits}f} to {high:.{digits}f}" + words[0] * sides
        return f"{abs(low):.{digits}f}{words[0]} to {abs(high):.{digits}f}{words[1]}"

    def _figures(
        self, sample: _Sample, t: tuple[float, float], bca: tuple[float, float] | None, *, sides: bool = False
    ) -> str:
        name, of_t = "t interval" if sample.paired else "Welch t interval", self._between(t, sides=sides)
        if bca is None:
            return f"{name}, 95%: {of_t}; {sample.seeds_text()}"
        return f"95%: {self._between(bca, sides=sides)}, {name} {of_t}; {sample.seeds_text()}"


def _without_failed(found: Comparison, n_failed: tuple[int, int], n_left: tuple[int, int]) -> Comparison:
    """The comparison where seeds are missing since they failed: said, and at most suggested."""
    parts = [
        f"{failed} of {failed + left} seeds of {name} failed"
        for failed, left, name in zip(n_failed, n_left, ("the group", "the baseline"), strict=True)
        if failed
    ]
    if not parts:
        return found
    said, verdict, sentence = " and ".join(parts), found.verdict, f"{found.sentence}; "
    if found.is_called_different:
        verdict = Verdict.suggested_better if verdict is Verdict.better else Verdict.suggested_worse
        sentence = f"suggested: {found.sentence}; not decided, as "
    return replace(found, verdict=verdict, sentence=sentence + said, n_failed=n_failed)


def _digits(interval: tuple[float, float]) -> int:
    """Decimals that an interval deserves: three, or more where it is narrow, or fewer where it is wide."""
    half = (interval[1] - interval[0]) / 2
    if not 0 < half < math.inf:
        return 3
    exponent = -math.floor(math.log10(half))  # of the first digit of the half width
    return exponent + 1 if exponent < 1 else max(3, exponent) if exponent < 12 else 12


def _p(value: float) -> str:
    return f"{value:.2g}"


def _mean_difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> Any:
    return np.mean(b, axis=axis) - np.mean(a, axis=axis)


def _permutation_p(data: tuple[np.ndarray, ...], kind: Any) -> float:
    from scipy.stats import permutation_test

    return float(
        permutation_test(
            data,
            _mean_difference if len(data) == 2 else np.mean,
            permutation_type=kind,
            vectorized=True,
            n_resamples=N_RESAMPLES,
            rng=np.random.default_rng(0),
        ).pvalue
    )


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The standard error of a difference of means, and Welch's degrees of freedom."""
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    both = of_a + of_b
    if both == 0:
        return 0.0, len(a) + len(b) - 2
    return math.sqrt(both), both**2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))


def _interval(mean: float, error: float, df: float) -> tuple[float, float]:
    from scipy.stats import t

    margin = float(t.ppf(1 - LEVEL / 2, df)) * error
    return mean - margin, mean + margin
