"""Signals to the run: the first ends it as soon as its state can be saved, the second at once."""

import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch.distributed import PrefixStore

from gptlab.distributed import internals
from gptlab.distributed.signals import ECHO_SECONDS, SIGNALS, Interrupted, Stopped, leave_before_the_first_step
from gptlab.distributed.stop_points import StopPoints
from gptlab.training.callbacks.agreement import SLOW_STEPS, Agreement

_stores = count()  # of this process; the same on all ranks, whose trainers are set up alike


class SignalListener(Callback):
    """Notes a signal and lets all ranks agree where to stop: after a step, or inside one that takes long.

    A single process leaves a forward or backward pass at once, by `Interrupted`.
    """

    def __init__(
        self,
        agreement: Agreement,
        *,
        command: str,
        speaks: bool,
        remedy: Callable[[], str] = lambda: "",
        earlier: "SignalListener | None" = None,
    ):
        self.agreement = agreement
        self.command = command  # what continues the run
        self.remedy = remedy  # where it goes on if it ends at once
        self.speaks = speaks
        self.received = earlier.received if earlier is not None else 0  # by this process
        self._points = StopPoints(None)
        self._module = None
        self._alone = True
        self._trains = False
        self._received_at = 0.0
        # Handlers by signal: those from before the run, not those of a listener that this one follows.
        self._replaced: dict[int, Any] = earlier._replaced if earlier is not None else {}
        agreement.requests |= {signum.name: partial(self._has_received, signum) for signum in SIGNALS}
        agreement.afterwards.append(lambda: self._points.all_passed())

    @property
    def agreed(self) -> int:
        """The signal that all ranks act on after this step; 0 for none."""
        return next((signum for signum in SIGNALS if signum.name in self.agreement.agreed), 0)

    def end_at_once(self) -> None:
        """Until `listen`, let Ctrl-C end this process also while it waits for other ranks, deaf to Python."""
        self._replaced.setdefault(signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_DFL))

    def listen(self) -> None:
        """Take the signals from now on: before the first step they end this process at once."""
        for signum in SIGNALS:
            before = signal.signal(signum, self._note)
            self._replaced.setdefault(signum, before)

    def setup(self, trainer, module, stage: str) -> None:
        self._module, self._alone = module, trainer.world_size == 1
        if not self._alone:
            store = PrefixStore(f"gptlab/stop/{next(_stores)}", internals.rendezvous_store())
            self._points = StopPoints(store, rank=trainer.global_rank)
        self.listen()  # Lightning has set handlers of its own, which end a run without saving it

    def on_train_start(self, trainer, module) -> None:
        self._trains = True
        self.listen()

    def on_test_start(self, trainer, module) -> None:
        self.on_train_start(trainer, module)

    def restore(self) -> None:
        """Give the signals back to who had them before the run."""
        for signum, before in self._replaced.items():
            signal.signal(signum, before if before is not None else signal.SIG_DFL)  # None: not set from Python
        self._replaced.clear()

    def before_micro_batch(self, step: int, index: int, count: int) -> int:
        """The signal that all ranks stop for before a micro-batch of the step that follows `step`; 0: they go on."""
        if not self._alone and self.agreement.settled and SLOW_STEPS not in self.agreement.agreed:
            return 0  # they agree after the step, with its numbers
        return self._points.decide(f"step {step}", index, count, self.received)

    def before_evaluation_batch(self, split: str, step: int, index: int, count: int | None) -> int:
        """The same, before a batch of an evaluation after `step` steps; `count` of how many, where that is known."""
        return self._points.decide(f"{split} {step}", index, count, self.received)

    def _has_received(self, signum: int) -> bool:
        return self.received == signum

    def _note(self, signum: int, frame) -> None:
        if not self._trains:
            leave_before_the_first_step(signum)
        if self.received:
            if time.monotonic() - self._received_at < ECHO_SECONDS:
                return
            raise Stopped(signum, f"stopped at once; {self.remedy()}")
        self.received, self._received_at = signum, time.monotonic()
        at_once = self._alone and self._module is not None and self._module.interruptible
        if self.speaks and sys.stderr is not None:
            print("\nstopping" + ("" if at_once else "; press again to stop at once"), file=sys.stderr, flush=True)
        if at_once:
            raise Interrupted(signum)
