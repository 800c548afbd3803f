"""The optimiser: which parameters are treated how."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from gptlab.training.config import Decay, MuonConfig, OptimizerConfig
from gptlab.training.shards import by_mesh


def build_optimizer(
    parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig, *, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW for what it does not take, over a model's `named_parameters()`."""
    groups = [
        group | {"params": [group["params"][i] for i in positions], "initial_lr": group["lr"]}
        for group in _groups(parameters, config)
        # One update may not take tensors that are divided differently.
        for positions in by_mesh(parameter for _, parameter in group["params"])
    ]
    fused = config.fused if config.fused is not None else device.type in ("cpu", "cuda")
    common = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps, "fused": fused}
    if isinstance(config, MuonConfig):
        from gptlab.training.muon import Muon

        return Muon(groups, momentum=config.momentum, n_steps=config.newton_schulz_steps, **common)
    optimizer = torch.optim.AdamW(groups, **common)
    # A fused AdamW would divide by the loss scale itself: the norm is measured, and clipped, before that.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What an optimiser updates, by the parameters' names."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _groups(parameters: Iterable[tuple[str, Tensor]], config: OptimizerConfig) -> Iterator[dict]:
    muon = isinstance(config, MuonConfig)
    hidden, matrices, rest = [], [], []
    for name, parameter in parameters:
        # Muon is meant for the hidden matrices: embeddings and the head are none (Jordan et al. 2024).
        if parameter.ndim < 2 or name.endswith(".bias"):  # experts' biases are a stack
            rest.append((name, parameter))
        elif muon and name.startswith("blocks."):
            hidden.append((name, parameter))
        else:
            matrices.append((name, parameter))
    lr = config.adamw_lr if muon and config.adamw_lr is not None else config.lr
    decay = config.weight_decay
    if muon:
        yield {"params": hidden, "lr": config.lr, "weight_decay": decay, "muon": True}
    yield {"params": matrices, "lr": lr, "weight_decay": decay}
    yield {"params": rest, "lr": lr, "weight_decay": decay if config.decay is Decay.all else 0.0}
