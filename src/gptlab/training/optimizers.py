"""Parameter groups of optimizers, and AdamW."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gptlab.distributed.internals import leave_loss_scale_to_the_scaler
from gptlab.distributed.sharded_tensors import by_mesh
from gptlab.training.config import OptimizerConfig


def parameter_groups(parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of (name, parameter) pairs that share settings: hidden matrices, other matrices, the rest.

    Hidden matrices are those of blocks. The schedule is a factor on each group's `initial_lr`.
    """
    settings = {
        (hidden, matrix): _settings(config, hidden=hidden, matrix=matrix)
        for hidden, matrix in ((True, True), (False, True), (False, False))
    }
    one_kind = settings[True, True] == settings[False, True]  # of matrices
    members: dict[tuple[bool, bool], list[tuple[str, Tensor]]] = {kind: [] for kind in settings}
    for name, parameter in parameters:
        hidden, matrix = _kind(name, parameter)
        members[hidden and not one_kind, matrix].append((name, parameter))
    return [
        settings[kind] | {"params": [named_parameters[i] for i in positions]}
        for kind, named_parameters in members.items()
        # One update must not mix tensors that are sharded differently.
        for positions in by_mesh(parameter for _, parameter in named_parameters)
    ]


def adamw(parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, *, device: torch.device):
    """AdamW over a model's `named_parameters()`."""
    optimizer = torch.optim.AdamW(parameter_groups(parameters, config), fused=fused(config, device))
    leave_loss_scale_to_the_scaler(optimizer)
    return optimizer


def fused(config: OptimizerConfig, device: torch.device) -> bool:
    """Whether updates run as one kernel."""
    return config.fused if config.fused is not None else device.type in ("cpu", "cuda")


def retune(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
    """Continue an optimizer with the settings of a config; its state stays."""
    for group in optimizer.param_groups:
        hidden, matrix = _kind(group["param_names"][0], group["params"][0])
        group |= _settings(config, hidden=hidden, matrix=matrix)


def _kind(name: str, parameter: Tensor) -> tuple[bool, bool]:
    """Whether it is a hidden matrix, and whether it is a matrix or a stack of them; experts' biases are stacks too."""
    matrix = parameter.ndim >= 2 and not name.endswith(".bias")
    return matrix and ".blocks." in f".{name}", matrix


def _settings(config: OptimizerConfig, *, hidden: bool, matrix: bool) -> dict[str, Any]:
    found = config.settings(hidden=hidden, matrix=matrix)
    return found | {"initial_lr": found["lr"]}
