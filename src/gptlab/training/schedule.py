"""The learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

from gptlab.training.config import ScheduleConfig, Shape


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor on the peak learning rate, with every length in optimiser steps."""

    shape: Shape
    warmup_steps: int
    decay_start: int
    decay_end: int
    min_ratio: float

    def factor(self, step: int) -> float:
        """The factor for the update that follows `step` finished ones."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.shape is Shape.constant or step < self.decay_start:
            return 1.0
        if step >= self.decay_end:
            return self.min_ratio
        progress = (step - self.decay_start) / (self.decay_end - self.decay_start)
        remaining = 0.5 * (1 + math.cos(math.pi * progress)) if self.shape is Shape.cosine else 1 - progress
        return self.min_ratio + remaining * (1 - self.min_ratio)


def build_schedule(config: ScheduleConfig, *, n_steps: int, batch_tokens: int) -> Schedule:
    """Turn the config's steps and tokens into steps of a run of `n_steps`."""

    def in_steps(steps: int | None, tokens: int | None) -> int | None:
        return -(-tokens // batch_tokens) if tokens is not None else steps

    warmup = in_steps(config.warmup_steps, config.warmup_tokens) or round(n_steps * (config.warmup_fraction or 0))
    end = in_steps(config.decay_steps, config.decay_tokens)
    end = n_steps if end is None else end
    if warmup > end:
        raise ValueError(
            f"the schedule warms up for {warmup} steps and is to end after {end}; "
            "lower schedule.warmup_steps (or warmup_tokens), or raise the budget"
        )
    start = warmup if config.shape is not Shape.wsd else max(warmup, end - round(end * config.decay_fraction))
    return Schedule(config.shape, warmup, start, end, config.min_ratio)
