"""How closely two runs of one config agree, and how closely they have to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gptlab.training.config import FLOAT8

# How far losses of one config may go apart on other hardware, with another version of PyTorch or other threads,
# relative to the loss: float32's rounding, 2^-24 = 6e-8, enters with another order of sums and grows with the steps.
# They are a choice, far above what docs/verify.md measured in 300 steps (4e-7), and no bound.
FIRST_TOLERANCE = 1e-5  # at the first step
TOLERANCE_PER_STEP = 1e-6
LARGEST_TOLERANCE = 0.02
TRAINING = ("step", "tokens", "train/")  # columns of every step, whatever is measured beside training
REDUCED = 50.0  # as many times as much where matrices are multiplied in bfloat16 or float16, whose unit is 2^-9
REDUCED_FLOAT8 = 32 * REDUCED  # in float8_e4m3fn, whose unit is 2^-4


def tolerance_at(n_steps: int, precision: str | None, *, factor: float = 1.0) -> float:
    """How far a loss may be off, relative to itself, after `n_steps` steps from equal weights."""
    reduced = REDUCED_FLOAT8 if precision == FLOAT8 else REDUCED if precision not in (None, "32-true") else 1.0
    return factor * min(LARGEST_TOLERANCE, reduced * (FIRST_TOLERANCE + TOLERANCE_PER_STEP * n_steps))


@dataclass(frozen=True, slots=True)
class Difference:
    """A cell of metrics.csv that came out otherwise."""

    step: int
    name: str
    recorded: float | None
    again: float | None

    def __str__(self) -> str:
        then, now = ("nothing" if v is None else repr(v) for v in (self.recorded, self.again))
        return f"step {self.step:,}: {self.name} {then} recorded, {now} again"


def first_difference(
    recorded: Mapping[int, Mapping[str, float]], again: Mapping[int, Mapping[str, float]]
) -> Difference | None:
    """The first cell that is not equal to the last bit; of steps that both have, and not of times and memory.

    What is measured beside training may be measured at other steps: of it only cells that both have count.
    """
    for step in sorted(recorded.keys() & again.keys()):
        then, now = recorded[step], again[step]
        for name in sorted(then.keys() | now.keys()):
            if not name.startswith(TRAINING) and not (name in then and name in now):
                continue
            if not name.startswith("perf/") and not _same(then.get(name), now.get(name)):
                return Difference(step, name, then.get(name), now.get(name))
    return None


def first_beyond(
    recorded: Mapping[int, Mapping[str, float]],
    again: Mapping[int, Mapping[str, float]],
    start: int,
    precision: str | None,
    *,
    factor: float = 1.0,
) -> Difference | None:
    """The first loss that is off by more than the tolerance of its step."""
    for step in sorted(recorded.keys() & again.keys()):
        allowed = tolerance_at(step - start, precision, factor=factor)
        for name, then in recorded[step].items():
            now = again[step].get(name)
            if (
                is_loss(name)
                and now is not None
                and not _same(then, now)
                and not abs(then - now) <= allowed * abs(then)
            ):
                return Difference(step, name, then, now)
    return None


def largest(
    recorded: Mapping[int, Mapping[str, float]], again: Mapping[int, Mapping[str, float]], name: str
) -> Difference | None:
    """The largest difference in one column; None where both have it nowhere."""
    steps = [step for step in sorted(recorded.keys() & again.keys()) if name in recorded[step] and name in again[step]]
    found = [Difference(step, name, recorded[step][name], again[step][name]) for step in steps]
    return max(found, key=lambda one: abs((one.recorded or 0.0) - (one.again or 0.0)), default=None)


def is_loss(name: str) -> bool:
    """Whether a column is a loss, which rounding changes little; other measures may jump with one token."""
    return name.endswith("loss") and not name.startswith("perf/")


def _same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))
