"""Hooks that do nothing, which Lightning need not call."""

from collections.abc import Iterable

from lightning import LightningModule
from lightning.pytorch.callbacks import Callback

from gptlab.distributed import internals

HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)


def skip_idle_hooks(owners: Iterable[Callback | LightningModule]) -> None:
    """Let Lightning skip the hooks of a step that a callback or module does not define.

    It calls each of them, also the empty ones of its base classes, inside a context of its profiler; over a module and
    ten callbacks that is a tenth of a millisecond a step. A hook that is None is left out.
    """
    if not internals.skips_missing_hooks():
        return
    for owner in owners:
        base = Callback if isinstance(owner, Callback) else LightningModule
        for name in HOOKS_OF_A_STEP:
            if getattr(type(owner), name) is getattr(base, name):
                vars(owner).setdefault(name, None)
