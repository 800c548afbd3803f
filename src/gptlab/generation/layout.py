"""Linear layers for decoding few tokens at a time on a CPU."""

import torch
from torch import Tensor

from gptlab.models.base import LanguageModel
from gptlab.nn.attention import Attention
from gptlab.nn.linear import ThreadedLinear, is_plain_linear


@torch.no_grad()
def lay_out(model: LanguageModel) -> None:
    """Change how `model`'s matrices lie in memory and are multiplied, in place: not their names, shapes or values.

    To be called once the model is on its device and has its type.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            module.join()
    for module in model.modules():
        if not is_plain_linear(module):
            continue
        module.__class__ = ThreadedLinear
        # A product with one vector reads a matrix in long runs: along its outputs, where they are no fewer.
        if module.out_features >= module.in_features:
            _by_columns(module.weight)
    _by_columns(model.head.weight)


def _by_columns(weight: Tensor) -> None:
    if weight.is_contiguous():  # the parts of a joined matrix are not
        weight.data = weight.t().contiguous().t()
