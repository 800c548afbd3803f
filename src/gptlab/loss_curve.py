"""The final loss of a run, forecast from its curve so far and from finished runs of the same recipe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LEVEL = 0.8  # of the interval
WINDOW = 0.05  # of the run, over which the training loss is a level
SEEN_FROM = 0.4  # of the steps so far: what came before is no power law
N_BINS = 8  # of the curve, evenly spaced in the logarithm of the steps

# A curve on its own: L = E + A x^-a - D g (a power law with annealing, arXiv:2408.11029), where x is the sum of the
# learning rates so far and g how far the learning rate has fallen. Early on, exponent and drop are hardly seen: they
# are averaged over what small runs show.
EXPONENTS = np.arange(0.1, 2.05, 0.1)
EXPONENT = (0.9, 0.15)  # mean and deviation
DROPS = np.array([0.0, 0.01, 0.02, 0.03, 0.045, 0.06])  # by the whole fall of the learning rate, as parts of the loss
DROP = (0.02, 0.02)
POINT_ERROR = 0.004  # of the loss: how far a point lies off the law, beside the noise of batches
LEAST_ERROR = 0.004  # of the loss: at the end of the run too
N_LAST = 8  # losses of which the scale is taken
CURVE_DF = 5.0  # as many runs the errors were seen in, for the tails
CURVE_ERROR = 0.03  # of the loss: what the law misses of a run that lies e times ahead

# Runs of one recipe: their finals differ by the seed.
SEED_ERROR, SEED_WEIGHT = 0.009, 2.0  # relative deviation that is expected, and as many runs as that counts for


@dataclass(frozen=True, slots=True)
class Curve:
    """What a run measured so far."""

    steps: np.ndarray  # of the training losses, ascending, from 1
    losses: np.ndarray
    validations: Mapping[int, float]  # by step; empty where there are none
    factors: np.ndarray  # (n_steps) of the peak learning rate, at each step of the whole run
    n_steps: int

    @property
    def metric(self) -> str:
        """Which loss is forecast: that of the validation, where one was measured in training."""
        return "val/loss" if any(step > 0 for step in self.validations) else "train/loss"

    @property
    def newest(self) -> int:
        """The newest step that was measured."""
        return int(self.steps[-1])

    def level(self, step: int) -> float | None:
        """The loss at a step: the validation's, or the mean of the training's newest; None where there is none."""
        if self.metric == "val/loss":
            return self.validations.get(step)
        within = (self.steps <= step) & (self.steps > step - max(1, WINDOW * self.n_steps))
        return float(self.losses[within].mean()) if within.any() else None

    def final(self) -> float | None:
        """The loss at the end; None where the run has not ended."""
        return self.level(self.n_steps) if self.newest >= self.n_steps else None


@dataclass(frozen=True, slots=True)
class LossForecast:
    """A final loss with its 80% interval."""

    loss: float
    low: float
    high: float


def forecast_final(curve: Curve, earlier: Sequence[Curve] = ()) -> LossForecast:
    """Forecast the final loss of a run; `earlier` are finished runs that differ from it in the seed.

    A pure function of the curves. Needs eight losses at least.
    """
    mean, deviation, df = _from_itself(curve)
    alike = _from_others(curve, earlier)
    if alike is not None:
        other, other_deviation, other_df = alike
        weights = np.array([1 / deviation**2, 1 / other_deviation**2])
        weights /= weights.sum()
        mean = float(weights @ [mean, other])
        # Their errors are not independent: the curve of this run is in both.
        deviation = float(weights @ [deviation, other_deviation])
        df = other_df if weights[1] > 0.5 else df
    margin = _quantile(df) * deviation
    return LossForecast(mean, mean - margin, mean + margin)


def _from_itself(curve: Curve) -> tuple[float, float, float]:
    """Mean, deviation and degrees of freedom of the final loss, by the curve alone."""
    seen = np.cumsum(curve.factors)
    points = _points(curve, seen)
    x, fallen, y, weights, is_val = points.T
    now = seen[curve.newest - 1]
    left, end = float(seen[-1] / now), 1 - float(curve.factors[-1] / curve.factors.max())
    scale, of_val = float(curve.losses[-N_LAST:].mean()), float(curve.metric == "val/loss")
    # The validation's loss lies above the training's by what is fitted too.
    columns = 3 if is_val.any() else 2
    drops = DROPS * scale
    targets = (y[:, None] + drops * fallen[:, None]) * weights[:, None]  # (N, drops)
    means, scores = [], []
    for exponent in EXPONENTS:
        basis = np.stack([np.ones_like(x), x**-exponent, is_val], 1)[:, :columns] * weights[:, None]
        last = np.array([1.0, left**-exponent, of_val])[:columns]
        fitted, *_ = np.linalg.lstsq(basis, targets, rcond=None)
        rises = fitted[1] < 0
        if rises.any():
            kept, *_ = np.linalg.lstsq(np.delete(basis, 1, axis=1), targets[:, rises], rcond=None)
            fitted[:, rises] = np.insert(kept, 1, 0.0, axis=0)
        means.append(last @ fitted - drops * end)
        unlikely = ((exponent - EXPONENT[0]) / EXPONENT[1]) ** 2 + ((DROPS - DROP[0]) / DROP[1]) ** 2
        scores.append(-0.5 * (((targets - basis @ fitted) ** 2).sum(0) + unlikely))
    likely = np.exp(np.concatenate(scores) - np.max(scores))
    likely /= likely.sum()
    found = np.maximum(np.concatenate(means), 0.0)
    mean = float(likely @ found)
    spread = float(np.sqrt(likely @ (found - mean) ** 2))
    missed = CURVE_ERROR * scale * math.log(max(left, 1.0))
    return mean, math.sqrt(spread**2 + missed**2 + (LEAST_ERROR * scale) ** 2), CURVE_DF


def _points(curve: Curve, seen: np.ndarray) -> np.ndarray:
    """What is fitted (N, 5): the sum of learning rates as a part of the newest, how far the rate has fallen, the loss,
    its weight (1 / deviation), and whether it is the validation's."""
    now, steps = curve.newest, curve.steps
    peak = float(curve.factors.max())
    warm = int(np.argmax(curve.factors[:now] >= curve.factors[:now].max()))
    first = min(max(1, warm, round(SEEN_FROM * now)), max(1, now - N_BINS))
    edges = np.unique(np.geomspace(first, now, N_BINS + 1).round().astype(int))
    points = []
    for low, high in pairwise(edges):
        within = (steps > low) & (steps <= high)
        if within.any():
            losses, at = curve.losses[within], steps[within] - 1
            noise = float(losses.std()) if len(losses) > 2 else 0.05 * float(losses.mean())
            error = math.hypot(noise / math.sqrt(len(losses)), POINT_ERROR * float(losses.mean()))
            fallen = 1 - float(curve.factors[at].mean()) / peak
            points.append((seen[at].mean() / seen[now - 1], fallen, losses.mean(), 1 / error, 0.0))
    for step, loss in curve.validations.items():
        if first <= step <= now:
            fallen = 1 - float(curve.factors[step - 1]) / peak
            points.append((seen[step - 1] / seen[now - 1], fallen, loss, 1 / (POINT_ERROR * loss), 1.0))
    return np.array(points)


def _from_others(curve: Curve, earlier: Sequence[Curve]) -> tuple[float, float, float] | None:
    """The same by the finals of other seeds, and by where they were when they had come as far; None without any."""
    step = max(curve.validations) if curve.metric == "val/loss" else curve.newest
    own = curve.level(step)
    pairs = [(level, final) for one in earlier if (level := one.level(step)) and (final := one.final()) is not None]
    if own is None or not pairs:
        return None
    levels, finals = np.array(pairs).T
    progress, n = step / curve.n_steps, len(finals)
    expected = SEED_ERROR * float(finals.mean())
    # How much of a lead lasts: the further, the more. Other runs say so where they are many.
    about, away = levels - levels.mean(), finals - finals.mean()
    ridge = 2 * expected**2
    lasts = (float(about @ away) + ridge * progress) / (float(about @ about) + ridge)
    lasts = min(max(lasts, 0.0), 1.0)
    residuals = away - lasts * about
    left = math.sqrt(1 - progress**2)
    variance = (SEED_WEIGHT * (expected * left) ** 2 + float(residuals @ residuals)) / (SEED_WEIGHT + n - 1)
    lead = own - float(levels.mean())
    usual = math.sqrt((SEED_WEIGHT * expected**2 + float(about @ about)) / (SEED_WEIGHT + n - 1))
    unusual = max(0.0, abs(lead) - 2 * usual) * (1 - lasts)  # of a run unlike the others little is known
    deviation = math.sqrt(variance * (1 + 1 / n) + unusual**2)
    return float(finals.mean()) + lasts * lead, deviation, SEED_WEIGHT + n - 1


def _quantile(df: float) -> float:
    from scipy.special import stdtrit  # scipy.stats takes longer to import than many a run's pause

    return float(stdtrit(df, 0.5 + LEVEL / 2))
