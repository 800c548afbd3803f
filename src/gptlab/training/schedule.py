"""The learning rate as a pure function of the step."""

from collections.abc import Callable
from dataclasses import dataclass

from gptlab.errors import UserError
from gptlab.steps import Steps
from gptlab.training.config import ScheduleConfig


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor on the peak learning rate, with every length in optimizer steps."""

    warmup_steps: int
    decay_start: int
    decay_end: int
    min_lr_ratio: float
    remaining: Callable[[float], float]  # fraction of the distance from floor to peak, by progress through the decay

    def factor(self, step: int) -> float:
        """The factor for the update that follows `step` finished ones."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if step < self.decay_start:
            return 1.0
        progress = 1.0
        if step < self.decay_end:
            progress = (step - self.decay_start) / (self.decay_end - self.decay_start)
        return self.min_lr_ratio + self.remaining(progress) * (1 - self.min_lr_ratio)


def build_schedule(config: ScheduleConfig, *, n_steps: int, batch_tokens: int, steps: Steps | None = None) -> Schedule:
    """Convert the config's lengths into steps of a run of `n_steps`; UserError for a warmup longer than the run.

    `steps` are the sizes of steps (None: all have `batch_tokens`).
    """
    sizes = steps

    def in_steps(steps: int | None, tokens: int | None) -> int | None:
        if tokens is None:
            return steps
        return -(-tokens // batch_tokens) if sizes is None else sizes.reaching(tokens)

    warmup = in_steps(config.warmup_steps, config.warmup_tokens) or round(n_steps * (config.warmup_fraction or 0))
    end = in_steps(config.decay_steps, config.decay_tokens)
    end = n_steps if end is None else end
    if warmup > end:
        raise UserError(
            f"the schedule warms up for {warmup} steps and ends after {end}; "
            "lower schedule.warmup_steps (or warmup_tokens), or raise the budget"
        )
    return Schedule(warmup, config.decay_start(warmup, end), end, config.min_lr_ratio, config.remaining)
