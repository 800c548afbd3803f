"""Sizes of activations, weights and gradients by layer, at one step on the loss of the text."""

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.lab.inspection.subject import Subject

SUBLAYERS = ("attn", "cross", "ffn")


def norms(subject: Subject) -> dict[str, Any] | None:
    """By block: the RMS of its output and of its sublayers', and the norms of its weights and of the loss's gradients.

    `activations` has a row for each block, and `parameters` for each block and each part outside of them. `gradient` is
    of the mean loss in nats, `loss`: of a block's output over the whole text, and of its weights. Both are None where
    the model predicts no tokens, and a layer's own is where the loss does not reach it.
    """
    names, model = subject.block_names(), subject.model
    if not names:
        return None
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, float] = {}

    def keep(name: str, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor):
            outputs[name] = value
            if value.requires_grad:
                value.retain_grad()

    def measure(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradients[name] = _norm(parameter.grad)
        parameter.grad = None  # no second copy of the weights

    watched = {
        f"{block}.{part}": f"{block}.{part}" for block in names for part in SUBLAYERS if _has(model, block, part)
    }
    with ExitStack() as hooks, torch.enable_grad():
        for name in (*names, *watched):
            module = model.get_submodule(name)
            handle = module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            hooks.callback(handle.remove)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(lambda p, name=name: measure(name, p))
                hooks.callback(hook.remove)
        loss = subject.loss()
        if loss is None:
            with torch.no_grad():
                model.hidden_states(subject.tokens, **subject.inputs)
        else:
            loss.backward()
    activations = [
        {
            "name": name,
            "rms": _rms(outputs.get(name)),
            **{part: _rms(outputs.get(f"{name}.{part}")) for part in SUBLAYERS if f"{name}.{part}" in watched},
            "gradient": _grad_norm(outputs.get(name)),
        }
        for name in names
    ]
    parts: dict[str, list[str]] = {}
    for name, layer in model.layers_of_parameters().items():
        parts.setdefault(layer, []).append(name)
    values = dict(model.named_parameters())
    parameters = [
        {
            "name": part,
            "n": sum(values[name].numel() for name in own),
            "weights": math.hypot(*(_norm(values[name]) for name in own)),
            "gradient": None if loss is None else math.hypot(*(gradients.get(name, 0.0) for name in own)),
        }
        for part, own in parts.items()
    ]
    return {
        "loss": None if loss is None else float(loss.detach()),
        "gradient": None if loss is None else math.hypot(*gradients.values()),
        "activations": activations,
        "parameters": parameters,
    }


def _has(model: nn.Module, block: str, part: str) -> bool:
    return isinstance(getattr(model.get_submodule(block), part, None), nn.Module)


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.detach().double()))


def _rms(value: Tensor | None) -> float | None:
    return None if value is None else float(value.detach().double().square().mean().sqrt())


def _grad_norm(value: Tensor | None) -> float | None:
    return None if value is None or value.grad is None else _norm(value.grad)
