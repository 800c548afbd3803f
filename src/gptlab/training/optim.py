"""The optimiser: which parameters are treated how."""

from collections.abc import Iterator

import torch
from torch import nn

from gptlab.training.config import Decay, MuonConfig, OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, or Muon with AdamW for what it does not take, over all parameters of `model`."""
    groups = [group for group in _groups(model, config) if group["params"]]
    for group in groups:
        group["initial_lr"] = group["lr"]
    fused = config.fused if config.fused is not None else device.type in ("cpu", "cuda")
    common = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps, "fused": fused}
    if isinstance(config, MuonConfig):
        from gptlab.training.muon import Muon

        return Muon(groups, momentum=config.momentum, n_steps=config.newton_schulz_steps, **common)
    optimizer = torch.optim.AdamW(groups, **common)
    # A fused AdamW would divide by the loss scale itself: the norm is measured, and clipped, before that.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def _groups(model: nn.Module, config: OptimizerConfig) -> Iterator[dict]:
    muon = isinstance(config, MuonConfig)
    hidden, matrices, rest = [], [], []
    for name, parameter in model.named_parameters():
        # Muon is meant for the hidden matrices: embeddings and the head are none (Jordan et al. 2024).
        if muon and parameter.ndim == 2 and name.startswith("blocks."):
            hidden.append(parameter)
        elif parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    lr = config.adamw_lr if muon and config.adamw_lr is not None else config.lr
    decay = config.weight_decay
    if muon:
        yield {"params": hidden, "lr": config.lr, "weight_decay": decay, "muon": True}
    yield {"params": matrices, "lr": lr, "weight_decay": decay}
    yield {"params": rest, "lr": lr, "weight_decay": decay if config.decay is Decay.all else 0.0}
