"""Memory layout of weights for decoding one token at a time on a CPU."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from gptlab.models.base import LanguageModel
from gptlab.nn.attention import Attention


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is an `nn.Linear` and nothing else: no subclass, hooks, adapters or parametrizations.

    Only such a module may be replaced, or its weights be used without calling it.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is nn.Linear and not any(hooks)


@torch.no_grad()
def lay_out(model: LanguageModel) -> None:
    """Change how `model`'s matrices lie in memory, in place: not their names, shapes or values, and nothing twice.

    To be called once the model is on its device and has its type.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.join()
    for module in model.modules():
        # A product with one vector reads a matrix in long runs: along its outputs, where they are no fewer.
        if is_plain_linear(module) and module.out_features >= module.in_features:
            _by_columns(module.weight)
    _by_columns(model.head.weight)


def _by_columns(weight: Tensor) -> None:
    if weight.is_contiguous():  # the parts of a joined matrix are not
        weight.data = weight.t().contiguous().t()
