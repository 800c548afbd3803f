"""Parameter groups of optimizers, and AdamW."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gptlab.distributed.internals import leave_loss_scale_to_the_scaler
from gptlab.distributed.sharded_tensors import by_mesh
from gptlab.models.base import LanguageModel
from gptlab.models.config import Parametrization
from gptlab.training.config import Multipliers, OptimizerConfig


def parameter_groups(parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of (name, parameter) pairs that share settings: hidden matrices, other matrices, the rest.

    Hidden matrices are those of blocks. The schedule is a factor on each group's `initial_lr`, and so are the
    `multipliers` that `parametrize` may add.
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


def build_optimizer(
    model: LanguageModel,
    config: OptimizerConfig,
    *,
    device: torch.device,
    parameters: Iterable[tuple[str, Tensor]] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a model, with the rates that its parametrization gives each parameter.

    `parameters` are (name, parameter) pairs (None: those of the model that require gradients).
    """
    if parameters is None:
        parameters = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    optimizer = config.build(parameters, device=device)
    if model.config.parametrization is not Parametrization.standard:
        parametrize(optimizer, config, model)
    return optimizer


def parametrize(optimizer: torch.optim.Optimizer, config: OptimizerConfig, model: LanguageModel) -> None:
    """Divide the groups of a new optimizer until each has the multipliers of all of its parameters, and apply them."""
    config.check_model(model.config)
    modules, groups = dict(model.named_modules()), []
    for group in optimizer.param_groups:
        parts: dict[Multipliers, dict[str, list]] = {}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            hidden, matrix = _kind(name, parameter)
            role = model.role_of(name, modules[name.rpartition(".")[0]])
            found = config.multipliers(role, model.config, hidden=hidden, matrix=matrix)
            part = parts.setdefault(found, {"params": [], "param_names": []})
            part["params"].append(parameter)
            part["param_names"].append(name)
        groups += [_multiplied(group | part, multipliers) for multipliers, part in parts.items()]
    optimizer.param_groups[:] = groups


def retune(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
    """Continue an optimizer with the settings of a config; its state stays."""
    for group in optimizer.param_groups:
        hidden, matrix = _kind(group["param_names"][0], group["params"][0])
        group |= _settings(config, hidden=hidden, matrix=matrix)
        if "multipliers" in group:
            group |= _multiplied(group, group["multipliers"])


def _multiplied(group: dict[str, Any], multipliers: Multipliers) -> dict[str, Any]:
    """A group with its settings multiplied; `initial_lr` stays what it would be in the base model."""
    scaled = {name: group[name] * factor for name, factor in multipliers._asdict().items()}
    return group | scaled | {"multipliers": multipliers}


def _kind(name: str, parameter: Tensor) -> tuple[bool, bool]:
    """Whether it is a hidden matrix, and whether it is a matrix or a stack of them; experts' biases are stacks too."""
    matrix = parameter.ndim >= 2 and not name.endswith(".bias")
    return matrix and ".blocks." in f".{name}", matrix


def _settings(config: OptimizerConfig, *, hidden: bool, matrix: bool) -> dict[str, Any]:
    found = config.settings(hidden=hidden, matrix=matrix)
    return found | {"initial_lr": found["lr"]}
