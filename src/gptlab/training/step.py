"""One optimizer step on plain torch objects: the arithmetic of `LanguageModule`, usable without a Trainer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gptlab.distributed.sharded_tensors import clip, global_norm
from gptlab.models.base import LanguageModel
from gptlab.objectives.base import Batch, Objective, logged_means, total, training_counts, training_terms

Scales = Mapping[str, float | Tensor]


def target_scales(counts: Mapping[str, int | Tensor], n_data: int = 1) -> dict[str, float | Tensor]:
    """What a sum over the targets of each kind is multiplied by; `counts` are those of the whole step.

    `n_data` ranks average their gradients, and a step's gradient is its sum over all targets divided once.
    """
    # Without targets of a kind the sum over them is zero too; to look at the count would wait for the device.
    at_least_one = {kind: n.clamp(min=1) if isinstance(n, Tensor) else max(1, n) for kind, n in counts.items()}
    return {kind: n_data / count for kind, count in at_least_one.items()}


def micro_batches(batch: Batch, size: int | None) -> list[Batch]:
    """A batch in parts of at most `size` examples; None: whole."""
    n_examples = next(iter(batch.values())).shape[0]
    if size is None or size >= n_examples:
        return [batch]
    parts = {name: value.split(size) for name, value in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def loss_and_gradients(
    model: LanguageModel,
    objective: Objective,
    batch: Batch,
    *,
    micro_batch_size: int | None = None,
    scales: Scales | None = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    before_micro_batch: Callable[[bool], Any] = lambda last: None,
) -> dict[str, Tensor]:
    """Add the gradients of a step to those of the model; returns the means of the terms by name, the loss first.

    Gradients are accumulated over micro-batches and do not depend on their size. `scales` (None: from the batch, which
    is then a whole step's) are `target_scales`. `before_micro_batch` is called with whether it is the last.
    """
    if scales is None:
        scales = target_scales(training_counts(objective, batch))
    parts = micro_batches(batch, micro_batch_size)
    terms: dict[str, Tensor] = {}
    for i, micro_batch in enumerate(parts):
        before_micro_batch(i == len(parts) - 1)
        found = training_terms(objective, model, micro_batch)
        backward(total(found, scales))
        for name, value in logged_means(found, scales).items():
            terms[name] = terms[name] + value if name in terms else value
    return terms


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to its peak times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
        if "multipliers" in group:
            group["lr"] *= group["multipliers"].lr


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients that the next update will use."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def reseed(seed: int, step: int, data_rank: int = 0, device: torch.device | str = "cpu") -> None:
    """Make dropout a function of (seed, step, rank), so that a resumed run draws what an uninterrupted one draws."""
    combined = ((seed * 1_000_003 + step) * 65_536 + data_rank) % 2**63
    torch.default_generator.manual_seed(combined)  # torch.manual_seed would walk over every backend, each step
    device = torch.device(device)
    match device.type:
        case "cuda":
            with torch.cuda.device(device):  # what is seeded is the current one
                torch.cuda.manual_seed(combined)
        case "mps":
            torch.mps.manual_seed(combined)


def train_step(
    model: LanguageModel,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    *,
    seed: int,
    lr_factor: float = 1.0,
    grad_clip: float | None = None,
    micro_batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Carry out the update that follows `step` finished ones, in one process; returns what was measured.

    `batch` is the whole step's, as `batch(config, step)` gives it; `optimizer` comes from `build_optimizer` and
    `lr_factor` from `Schedule.factor(step)`. The result holds the loss, the objective's other terms and `grad_norm`
    before clipping.
    """
    reseed(seed, step, device=next(model.parameters()).device)
    terms = loss_and_gradients(model, objective, batch, micro_batch_size=micro_batch_size)
    gradients = gradients_of(optimizer)
    norm = global_norm(gradients)
    if grad_clip is not None:
        clip(gradients, grad_clip, norm)
    set_lr(optimizer, lr_factor)
    optimizer.step()
    model.zero_grad()
    return {**terms, "grad_norm": norm}
