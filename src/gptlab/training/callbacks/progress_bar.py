"""Progress: a bar on a terminal, else a line now and then."""

import sys
import time

from lightning.pytorch.callbacks import Callback

from gptlab.training.callbacks.metrics import Metrics
from gptlab.units import duration

SHOW_SECONDS = 0.5  # between two updates of the bar, each of about 3 ms
LINE_SECONDS = 10  # between two lines where there is no terminal


class ProgressBar(Callback):
    """Shows step, loss, tokens per second and time left."""

    def __init__(self, metrics: Metrics, n_steps: int):
        self.metrics = metrics
        self.n_steps = n_steps
        self._bar = None
        self._shown = 0.0

    def on_train_start(self, trainer, module) -> None:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                auto_refresh=False,  # a thread that draws would take its time from the steps
            )
            self._task = self._bar.add_task("", total=self.n_steps, completed=module.finished_steps, numbers="")
            self._bar.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        now = time.monotonic()
        if now - self._shown >= (SHOW_SECONDS if self._bar else LINE_SECONDS):
            self._show(now)

    def on_validation_start(self, trainer, module) -> None:
        if self._bar:
            self._bar.update(self._task, numbers="evaluating ...", refresh=True)

    def on_validation_end(self, trainer, module) -> None:
        self._show(time.monotonic())

    def on_train_end(self, trainer, module) -> None:
        self._close()

    def on_exception(self, trainer, module, exception) -> None:
        self._close()

    def _show(self, now: float) -> None:
        self._shown = now
        row = self.metrics.row
        if "train/loss" not in row:  # before the first step
            return
        numbers = f"loss {row['train/loss']:.4f}"
        if "val/loss" in self.metrics.validated:
            numbers += f"  val {self.metrics.validated['val/loss']:.4f}"
        if "perf/tokens_per_second" in row:
            numbers += f"  {row['perf/tokens_per_second']:,.0f} tokens/s"
        if "perf/mfu" in row:
            numbers += f"  MFU {row['perf/mfu']:.1%}"
        if self._bar:
            self._bar.update(self._task, completed=row["step"], numbers=numbers, refresh=True)
        else:
            print(f"step {row['step']}/{self.n_steps}  {numbers}{self._left()}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        """The time that the remaining steps take at the newest speed, without evaluations."""
        rate, steps = self.metrics.row.get("perf/tokens_per_second"), self.metrics.throughput.steps
        left = steps.tokens_before(self.n_steps) - steps.tokens_before(int(self.metrics.row["step"]))
        return f"  {duration(left / rate)} left" if rate and left else ""

    def _close(self) -> None:
        if self._bar:
            self._show(time.monotonic())
            self._bar.stop()
            self._bar = None
