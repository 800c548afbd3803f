"""Linear layers that may be bypassed or replaced."""

from typing import TypeGuard

from torch import nn


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is an `nn.Linear` and nothing else: no subclass, hooks, adapters or parametrizations.

    Only such a module may be replaced, or its weight be used without calling it. Tensor-parallel layers are none: their
    weights are DTensors, and their communication is in hooks.
    """
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
        )
    )
