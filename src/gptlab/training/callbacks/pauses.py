"""How long training stood still for evaluations and for saving."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.callbacks import Callback

MAX_SAVING_SHARE = 0.05  # of the time since training began
SHORT_SECONDS = 1.0  # of one save, which is never left out


class Pauses(Callback):
    """Times evaluations and saves of this start of a run, and says when the next save would take too much of it."""

    def __init__(self):
        self.evaluating_seconds = 0.0
        self.saving_seconds = 0.0
        self._newest_save_seconds = 0.0
        self._began: float | None = None  # None before training
        self._evaluation_began = 0.0

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time an evaluation beside the validation."""
        began = time.perf_counter()
        yield
        self.evaluating_seconds += time.perf_counter() - began

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time a save, as far as training waits for it."""
        began = time.perf_counter()
        yield
        self._newest_save_seconds = time.perf_counter() - began
        self.saving_seconds += self._newest_save_seconds

    def saving_takes_too_much(self) -> bool:
        """Whether one more save as long as the newest exceeds MAX_SAVING_SHARE of the time so far."""
        now, newest = time.perf_counter(), self._newest_save_seconds
        elapsed = now - (self._began or now)
        return newest >= SHORT_SECONDS and self.saving_seconds + newest > MAX_SAVING_SHARE * elapsed

    def on_train_start(self, trainer, module) -> None:
        if self._began is None:  # a run that goes back after a spike starts training once more
            self._began = time.perf_counter()

    def on_validation_start(self, trainer, module) -> None:
        self._evaluation_began = time.perf_counter()

    def on_validation_end(self, trainer, module) -> None:
        self.evaluating_seconds += time.perf_counter() - self._evaluation_began

    def on_test_start(self, trainer, module) -> None:
        self.on_validation_start(trainer, module)

    def on_test_end(self, trainer, module) -> None:
        self.on_validation_end(trainer, module)
