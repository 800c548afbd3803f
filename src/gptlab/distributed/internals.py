"""Private parts of Lightning and torch that gptlab relies on, each used through this module and checked at start.

Lightning is imported where it is used: commands that only read models do without it.
"""

from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.tensor._utils as tensor_utils

from gptlab.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

SUPPORTED = {"lightning": ">=2.6.4,<2.7", "torch": ">=2.11,<3"}  # as in pyproject.toml
FOREACH = ("_foreach_mul_", "_foreach_add_", "_foreach_lerp", "_foreach_lerp_")


class MissingInternal(UserError):
    """The installed version of a library lacks a private part that gptlab relies on."""

    def __init__(self, library: str, name: str):
        super().__init__(
            f"{library} {version(library)} has no {name}, which gptlab relies on; "
            f"install a supported version: pip install '{library}{SUPPORTED[library]}'"
        )


def internal(library: str, owner: Any, name: str) -> Any:
    """A private attribute of a library's module, class or object; MissingInternal where this version has none."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise MissingInternal(library, f"{getattr(owner, '__name__', type(owner).__name__)}.{name}") from None


def check() -> None:
    """Refuse versions of Lightning and torch that lack what gptlab relies on."""
    for name in FOREACH:
        internal("torch", torch, name)
    internal("torch", tensor_utils, "compute_local_shape_and_global_offset")
    internal("torch", torch.optim.AdamW, "_init_group")
    internal("torch", torch.optim.AdamW([torch.zeros(1)], fused=True), "_step_supports_amp_scaling")
    internal("lightning", subprocess_launcher(), "_call_children_scripts")
    internal("torch", torch.distributed.distributed_c10d, "_get_default_store")


def local_shape_and_offset(shape: torch.Size, mesh: Any, placements: Any) -> tuple[Any, Any]:
    """The shape of this rank's shard of a DTensor, and where in the whole it begins."""
    return internal("torch", tensor_utils, "compute_local_shape_and_global_offset")(shape, mesh, placements)


def rendezvous_store() -> Any:
    """The store through which the ranks of this run found each other; it is on the CPU whatever the devices are."""
    return internal("torch", torch.distributed.distributed_c10d, "_get_default_store")()


def leave_loss_scale_to_the_scaler(optimizer: torch.optim.Optimizer) -> None:
    """Keep a fused optimizer from dividing by the loss scale: norms are measured, and clipped, before its step."""
    # Only fused optimizers have it; the scaler looks for it on any.
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]


def subprocess_launcher() -> type:
    """The class of Lightning's launcher that starts the other processes of a machine."""
    from lightning.pytorch.strategies import launchers

    return internal("lightning", launchers, "_SubprocessScriptLauncher")


def replace_launcher(trainer: "Trainer", launcher: Any) -> None:
    """Let another launcher start the processes of a trainer."""
    internal("lightning", trainer.strategy, "_launcher")
    trainer.strategy._launcher = launcher


def count_from(trainer: "Trainer", step: int) -> None:
    """Let a trainer's counters go on from `step`.

    A continued run is a new fit over the steps that remain. Lightning's own way restarts its loops in the middle, and
    may then run a validation of one batch or skip one.
    """
    loop = internal("lightning", trainer.fit_loop, "epoch_loop")
    batches = internal("lightning", loop, "batch_progress").total
    steps = internal("lightning", internal("lightning", loop, "manual_optimization"), "optim_step_progress").total
    internal("lightning", loop, "_batches_that_stepped")
    for progress in (batches, steps):
        progress.ready = progress.completed = step
    batches.started = batches.processed = step
    loop._batches_that_stepped = step


def skips_missing_hooks() -> bool:
    """Whether Lightning leaves out a hook of a callback or of its module that is None."""
    from lightning.pytorch.trainer import call

    owner = SimpleNamespace(hook=None)
    trainer = SimpleNamespace(lightning_module=None, callbacks=[owner], profiler=None)
    try:
        internal("lightning", call, "_call_callback_hooks")(trainer, "hook")
        internal("lightning", call, "_call_lightning_module_hook")(trainer, "hook", pl_module=owner)
    except (AttributeError, TypeError):  # it asked the profiler, or called None
        return False
    return True
