"""The optimiser: which parameters are treated how."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gptlab.training.config import Decay, MuonConfig, OptimizerConfig
from gptlab.training.shards import by_mesh


def build_optimizer(
    parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, *, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW for what it does not take, over a model's `named_parameters()`."""
    groups = [
        group | {"params": [group["params"][i] for i in positions]}
        for group in _groups(parameters, config)
        # One update may not take tensors that are divided differently.
        for positions in by_mesh(parameter for _, parameter in group["params"])
    ]
    fused = config.fused if config.fused is not None else device.type in ("cpu", "cuda")
    if isinstance(config, MuonConfig):
        from gptlab.training.muon import Muon

        return Muon(groups, n_steps=config.newton_schulz_steps, fused=fused)
    optimizer = torch.optim.AdamW(groups, fused=fused)
    # A fused AdamW would divide by the loss scale itself: the norm is measured, and clipped, before that.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def retune(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> None:
    """Let an optimiser go on with the config's numbers; what it remembers stays."""
    for group in optimizer.param_groups:
        matrices = _is_matrix(group["param_names"][0], group["params"][0])
        group |= _numbers(config, muon=group.get("muon", False), matrices=matrices)


def named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What an optimiser updates, by the parameters' names."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _groups(parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig) -> Iterator[dict]:
    muon = isinstance(config, MuonConfig)
    hidden, matrices, rest = [], [], []
    for name, parameter in parameters:
        # Muon is meant for the hidden matrices: embeddings and the head are none (Jordan et al. 2024).
        if not _is_matrix(name, parameter):
            rest.append((name, parameter))
        elif muon and ".blocks." in f".{name}":
            hidden.append((name, parameter))
        else:
            matrices.append((name, parameter))
    if muon:
        yield {"params": hidden, "muon": True} | _numbers(config, muon=True, matrices=True)
    yield {"params": matrices} | _numbers(config, muon=False, matrices=True)
    yield {"params": rest} | _numbers(config, muon=False, matrices=False)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is one, or a stack of them; experts' biases are a stack too."""
    return parameter.ndim >= 2 and not name.endswith(".bias")


def _numbers(config: OptimizerConfig, *, muon: bool, matrices: bool) -> dict[str, Any]:
    """What a group's updates are made with. The schedule is a factor on `initial_lr`."""
    lr = config.lr
    if isinstance(config, MuonConfig) and not muon and config.adamw_lr is not None:
        lr = config.adamw_lr
    return {
        "lr": lr,
        "initial_lr": lr,
        "weight_decay": config.weight_decay if matrices or config.decay is Decay.all else 0.0,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        **({"momentum": config.momentum} if muon else {}),
    }
