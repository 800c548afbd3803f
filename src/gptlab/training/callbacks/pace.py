"""A warning, as soon as the speed is known, where a step or the whole run takes very long."""

import sys
import time

from lightning.pytorch.callbacks import Callback

from gptlab.distributed.devices import wait_for
from gptlab.forecast import Plan
from gptlab.units import duration, plural

LONG_STEP_SECONDS = 60
LONG_RUN_SECONDS = 86_400
MEASURED_SECONDS = 30  # of steps, before the length of a run is judged by them


class Pace(Callback):
    """Says on rank 0 how long a step takes after its first micro-batch, and how long the run does after some steps.

    With `warm_up`, the first micro-batch compiles, and the second is measured instead.
    """

    def __init__(self, plan: Plan, *, warm_up: bool):
        self.plan = plan
        self.first = int(warm_up)  # the index of the micro-batch that is measured
        self._began: float | None = None
        self._first_step = 0
        self._steps_began: float | None = None
        self._said = False

    def on_train_start(self, trainer, module) -> None:
        self._first_step = module.finished_steps
        module.before_micro_batch.append(lambda index, count: self._at(module, index, count))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        now, n_steps = time.perf_counter(), module.finished_steps - self._first_step
        if n_steps == 1:
            self._measure(module, 1)  # of a step in one piece
            self._steps_began = time.perf_counter()
        elif not self._said and self._steps_began is not None and now - self._steps_began >= MEASURED_SECONDS:
            self._said = True
            seconds = (now - self._steps_began) / (n_steps - 1) * (self.plan.n_steps - module.finished_steps)
            if seconds >= LONG_RUN_SECONDS:
                self._say(f"the rest of the run takes about {duration(seconds)} at the measured speed")

    def _at(self, module, index: int, count: int) -> None:
        if module.finished_steps == self._first_step:
            if index == self.first:
                wait_for(module.device)
                self._began = time.perf_counter()
            elif index == self.first + 1:
                self._measure(module, count)

    def _measure(self, module, count: int) -> None:
        """Judge a step by the time since `_began`, which was one of its `count` micro-batches."""
        if self._began is None or self._said:
            return
        wait_for(module.device)
        seconds, plan = (time.perf_counter() - self._began) * count, self.plan
        self._began = None
        if seconds < LONG_STEP_SECONDS:
            return
        self._said = True
        step, left = module.finished_steps, plan.n_steps - module.finished_steps
        tokens = plan.steps.tokens(step)
        rest = seconds * (plan.steps.tokens_before(plan.n_steps) - plan.steps.tokens_before(step)) / tokens
        parts = f" in {plural(count, 'gradient accumulation step')}" if count > 1 else ""
        self._say(
            f"a step of {tokens:,} tokens takes about {duration(seconds)}{parts}, "
            f"{tokens / seconds:,.0f} tokens/s, and {plural(left, 'step')} about {duration(rest)}; "
            "Ctrl-C stops the run and keeps its finished steps; batch_tokens=... makes a step smaller"
        )

    def _say(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)
