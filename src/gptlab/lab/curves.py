"""Curves small enough for a page: fewer points that draw the same picture, and their bytes as text.

A long curve keeps, for each of so many intervals of its steps, its lowest and its highest point: what a line drawn over
fewer pixels than points would show. Each point kept is exact, and beside them are the means of the intervals, from
which a page smooths and averages, since extremes do not have the mean of what they stand for.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_POINTS = 40  # of a curve, however little room there is
MAX_POINTS = 3000  # of a curve, however much room there is
INVISIBLE = 1 / 4000  # of a curve's range


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of a metric by step, and the means over intervals where points were left out."""

    steps: np.ndarray
    values: np.ndarray
    n_measured: int
    mean_steps: np.ndarray | None = None
    means: np.ndarray | None = None


def curve(steps: Sequence[int], values: Sequence[float | None]) -> Curve:
    """The measured values of a column; a value that is not finite becomes NaN, a gap of the line."""
    found = np.array(values, dtype=np.float64)  # None becomes NaN
    there = ~np.isnan(found)
    for i in np.flatnonzero(~there).tolist():
        there[i] = values[i] is not None
    found[~np.isfinite(found)] = np.nan
    return Curve(np.array(steps, dtype=np.int64)[there], found[there], int(there.sum()))


def thinned(full: Curve, n_points: int) -> Curve:
    """At most about `n_points` of a curve's points, drawn alike on a linear and on a logarithmic axis."""
    if len(full.steps) <= n_points:
        return full
    straight = without_straight(full)
    if len(straight.steps) <= n_points:
        return straight
    # Half of the intervals are of equal length, half of equal ratio.
    first, last, n = int(full.steps[0]), int(full.steps[-1]), max(2, n_points // 4)
    linear = np.linspace(first, last, n + 1)
    ratio = np.geomspace(max(first, 1), last, n + 1)
    edges = np.unique(np.ceil(np.concatenate([linear, ratio])))
    starts = np.unique(np.searchsorted(full.steps, edges[:-1]))
    starts = starts[starts < len(full.steps)]
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    finite = np.isfinite(full.values)
    lowest = _extreme(np.where(finite, full.values, np.inf), starts, np.minimum)
    highest = _extreme(np.where(finite, full.values, -np.inf), starts, np.maximum)
    gaps = _extreme(np.where(finite, 1.0, 0.0), starts, np.minimum)  # the first gap, or else the first point
    kept = np.unique(np.concatenate([lowest, highest, gaps[~finite[gaps]], [0, len(full.steps) - 1]]))
    counts = np.maximum(np.add.reduceat(finite.astype(float), starts), 1e-9)
    sums = np.add.reduceat(np.where(finite, full.values, 0.0), starts)
    mean_steps = np.add.reduceat(np.where(finite, full.steps, 0.0), starts)
    measured = counts >= 1
    return Curve(
        full.steps[kept],
        full.values[kept],
        full.n_measured,
        np.round((mean_steps / counts)[measured]).astype(np.int64),
        (sums / counts)[measured],
    )


def without_straight(full: Curve, tolerance: float = INVISIBLE) -> Curve:
    """The curve without the points that lie, as far as an eye can tell, on the line between their neighbors."""
    steps, values = full.steps, full.values
    finite = values[np.isfinite(values)]
    near = tolerance * float(np.ptp(finite)) if len(finite) else 0.0
    for _ in range(12):  # each round may leave out every other point, and bends four times as far as the one before
        if len(steps) < 8:
            break
        inner = np.arange(1, len(steps) - 1, 2)
        before, after = inner - 1, inner + 1
        share = (steps[inner] - steps[before]) / (steps[after] - steps[before])
        between = values[before] + share * (values[after] - values[before])
        on_line = np.abs(values[inner] - between) <= near / 2  # NaN is on no line
        if not on_line.any():
            break
        kept = np.ones(len(steps), dtype=bool)
        kept[inner[on_line]] = False
        steps, values = steps[kept], values[kept]
    return Curve(steps, values, full.n_measured)


def budgeted(
    curves: Mapping[Any, Curve], weights: Mapping[Any, float], n_bytes: int, most: int = MAX_POINTS
) -> dict[Any, Curve]:
    """The curves thinned so that all together take about `n_bytes` of a page; a larger weight keeps more points."""
    sizes = {key: (len(one.steps), 4 if _fits_float32(one.values) else 8) for key, one in curves.items()}
    low, high = 0.0, float(most)
    for _ in range(14):
        middle = (low + high) / 2
        lengths = {key: _points(weights[key] * middle, most) for key in curves}
        if sum(_size(*sizes[key], lengths[key]) for key in curves) > n_bytes:
            high = middle
        else:
            low = middle
    if high == most:  # all fits
        low = float("inf")
    return {key: thinned(one, _points(weights[key] * low, most)) for key, one in curves.items()}


def packed(found: Curve) -> dict[str, Any]:
    """A curve as a page reads it: steps `s`, values `v`; of a thinned one the means `ms`, `mv` and all its points `n`.

    Steps are `[first, stride, count]`, or differences as `u1:`, `u2:` or `u4:` and base64. Values are little-endian
    `f4:` where that holds them exactly, else `f8:`.
    """
    content = {"s": pack_steps(found.steps), "v": pack_values(found.values)}
    if found.n_measured > len(found.steps):
        content["n"] = found.n_measured
    if found.means is not None and found.mean_steps is not None:
        # Means are drawn and averaged, never read as measurements: seven digits do.
        content |= {"ms": pack_steps(found.mean_steps), "mv": pack_values(found.means.astype(np.float32))}
    return content


def pack_steps(steps: np.ndarray) -> list[int] | str:
    """Ascending integers, as `packed` describes."""
    if not len(steps):
        return [0, 1, 0]
    differences = np.diff(steps)
    if not len(differences) or (differences == differences[0]).all():
        return [int(steps[0]), int(differences[0]) if len(differences) else 1, len(steps)]
    largest = int(max(differences.max(), steps[0]))
    size = 1 if largest < 2**8 else 2 if largest < 2**16 else 4
    whole = np.concatenate([steps[:1], differences]).astype(f"<u{size}")
    return f"u{size}:{base64.b64encode(whole.tobytes()).decode()}"


def pack_values(values: np.ndarray) -> str:
    """Floats, as `packed` describes; they read back exactly."""
    data = values.astype("<f4" if _fits_float32(values.astype(np.float64)) else "<f8")
    return f"f{data.itemsize}:{base64.b64encode(data.tobytes()).decode()}"


def _points(wanted: float, most: int) -> int:
    return int(min(most, max(MIN_POINTS, wanted)))


def _size(n_measured: int, value_bytes: int, n_points: int) -> int:
    """About the characters of base64 that a curve takes: values and differences, and a mean for every two points."""
    n = min(n_measured, n_points)
    return 80 + math.ceil(4 / 3 * n * (value_bytes + 2 + (0 if n == n_measured else (4 + 2) / 2)))


def _fits_float32(values: np.ndarray) -> bool:
    """Whether float32 holds the values exactly."""
    with np.errstate(over="ignore"):  # what it cannot hold becomes infinite, and is not equal
        return np.array_equal(values.astype(np.float32).astype(np.float64), values, equal_nan=True)


def _extreme(values: np.ndarray, starts: np.ndarray, of: np.ufunc) -> np.ndarray:
    """The index of each interval's lowest or highest value, the first of equal ones."""
    best = of.reduceat(values, starts)
    which = np.searchsorted(starts, np.arange(len(values)), side="right") - 1
    places = np.flatnonzero(values == best[which])
    _, first = np.unique(which[places], return_index=True)
    return places[first]
