"""Muon for the matrices and AdamW for the rest, as one optimizer."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from gptlab.distributed.internals import leave_loss_scale_to_the_scaler
from gptlab.distributed.sharded_tensors import local, part_of, whole
from gptlab.errors import UserError
from gptlab.training.config import MuonConfig
from gptlab.training.optimizers import fused, parameter_groups


def muon(parameters, config: MuonConfig, *, device: torch.device) -> "Muon":
    """Muon on the hidden matrices of a model's `named_parameters()`, AdamW on the rest.

    Embeddings and the head are not hidden matrices (Jordan et al. 2024).
    """
    return Muon(parameter_groups(parameters, config), n_steps=config.newton_schulz_steps, fused=fused(config, device))


# Keller Jordan's quintic: steep at 0 while singular values end near 1 (kellerjordan.github.io/posts/muon).
QUINTIC = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalize(matrices: Tensor, n_steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix near 1 by Newton-Schulz steps: (n, r, c) -> (n, r, c).

    In bfloat16 on an accelerator, in float32 on a CPU. The values end between 0.7 and 1.2, not at 1.
    """
    a, b, c = QUINTIC
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the product below is then of the smaller side
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(n_steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _orthogonalize_all(matrices: Sequence[Tensor], n_steps: int) -> list[Tensor]:
    """This rank's shard of each update; a shard cannot be orthogonalized alone, so whole matrices are gathered."""
    if matrices[0].ndim == 3:  # sharded by experts, so that the matrices of this rank are whole
        stacks = torch.stack([local(matrix) for matrix in matrices])  # (n, E, r, c)
        return list(orthogonalize(stacks.flatten(0, 1), n_steps).view(stacks.shape))
    updates = orthogonalize(torch.stack([whole(matrix) for matrix in matrices]), n_steps)
    return [update[part_of(matrix)] for update, matrix in zip(updates, matrices, strict=True)]


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `muon=True` take steps of orthogonalized Nesterov momentum instead.

    Such a group holds matrices (r, c) or stacks of them (E, r, c), as those of experts, each of which is treated by
    itself. Its update is scaled by 0.2 sqrt(max(r, c)), which gives it the size of AdamW's, so that one learning rate
    and one weight decay serve all groups (Moonlight, arXiv:2502.16982, equation 4).
    """

    def __init__(self, params, *, momentum: float = 0.95, n_steps: int = 5, **adamw):
        params = list(params)
        if not isinstance(params[0], dict):
            params = [{"params": params}]
        muon = {"muon": False, "momentum": momentum, "n_steps": n_steps}
        super().__init__([muon | group for group in params], **adamw)
        for group in self.param_groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.ndim not in (2, 3):
                    raise UserError(
                        f"Muon is for matrices, and a parameter of shape {tuple(parameter.shape)} is not one; "
                        "put it into a group with muon=False"
                    )
        leave_loss_scale_to_the_scaler(self)

    def _init_group(self, group, params_with_grad, *state):
        # AdamW's step collects each group's tensors here. A Muon group takes its step at once and leaves AdamW nothing.
        if not group["muon"]:
            return super()._init_group(group, params_with_grad, *state)
        by_shape = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape, parameter.dtype, parameter.device].append(parameter)
        for parameters in by_shape.values():
            self._muon_step(group, parameters)
        return False

    def _muon_step(self, group: dict, parameters: list[Tensor]) -> None:
        """Update matrices of one shape, together."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)  # torch's Adam expects one when it loads
                state["momentum_buffer"] = torch.zeros_like(parameter)
            state["step"] += 1
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        updates = _orthogonalize_all(ahead, group["n_steps"])
        lr = group["lr"]
        held = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(held, 1 - lr * group["weight_decay"])
        torch._foreach_add_(held, updates, alpha=-lr * 0.2 * max(parameters[0].shape[-2:]) ** 0.5)
