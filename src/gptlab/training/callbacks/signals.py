"""Signals to the run: the first ends it after the current step, the second at once."""

import signal
import sys
import time
from functools import partial

from lightning.pytorch.callbacks import Callback

from gptlab.distributed.signals import SIGNALS, Stopped
from gptlab.training.callbacks.agreement import Agreement

ECHO_SECONDS = 1  # in which a launcher passes on a signal that the whole group has got already


class SignalListener(Callback):
    """Notes a signal and lets all ranks agree to stop after the same step."""

    def __init__(self, agreement: Agreement, *, command: str, speaks: bool, received: int = 0):
        self.agreement = agreement
        self.command = command  # what continues the run
        self.speaks = speaks
        self.received = received  # by this process
        self._received_at = 0.0
        agreement.requests |= {signum.name: partial(self._has_received, signum) for signum in SIGNALS}

    @property
    def agreed(self) -> int:
        """The signal that all ranks act on; 0 for none."""
        return next((signum for signum in SIGNALS if signum.name in self.agreement.agreed), 0)

    def on_train_start(self, trainer, module) -> None:
        # Lightning's own handlers are replaced: they end a run without saving it.
        for signum in SIGNALS:
            signal.signal(signum, self._note)

    def _has_received(self, signum: int) -> bool:
        return self.received == signum

    def _note(self, signum: int, frame) -> None:
        if self.received:
            if time.monotonic() - self._received_at < ECHO_SECONDS:
                return
            raise Stopped(signum, f"stopped at once; this continues it from its last checkpoint:\n  {self.command}")
        self.received, self._received_at = signum, time.monotonic()
        if self.speaks and sys.stderr is not None:
            print("\nstopping after this step; press again to stop at once", file=sys.stderr)
