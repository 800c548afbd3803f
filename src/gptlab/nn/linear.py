"""Linear layers: which may be bypassed or replaced, and products with few vectors."""

from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Products with up to so many vectors, by a matrix of so many elements, are computed in parts: measured on two cores.
MAX_VECTORS = 16
MIN_ELEMENTS = 2**19
MAX_PARTS = 32
MIN_INPUTS_PER_PART = 8


class ThreadedLinear(nn.Linear):
    """`nn.Linear` that computes by `threaded_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return threaded_linear(input, self.weight, self.bias)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes `x @ weight.T + bias` and nothing else: no hooks, adapters or parametrizations.

    Only such a module may be replaced, or its weight be used without calling it. Tensor-parallel layers are none: their
    weights are DTensors, and their communication is in hooks.
    """
    return (
        type(module) in (nn.Linear, ThreadedLinear)
        and type(module.weight) is nn.Parameter
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
        )
    )


def threaded_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for x (..., I) and weight (O, I), where decoding on a CPU is faster: by all threads.

    With few vectors MKL reads the matrix in a single thread, but computes a batch of products in all of them. So it is
    given the parts of the matrix as a batch: parts of the inputs, whose products are summed (split-K), where the matrix
    is stored by column, else parts of the outputs.
    """
    n_inputs, n_vectors = x.shape[-1], x.numel() // max(1, x.shape[-1])
    if not 0 < n_vectors <= MAX_VECTORS or not _supports(x, weight):
        return F.linear(x, weight, bias)
    n_outputs, by_column = len(weight), weight.stride(0) == 1
    most = min(MAX_PARTS, n_inputs // (MIN_INPUTS_PER_PART * n_vectors)) if by_column else MAX_PARTS
    n_parts = _n_parts(n_inputs if by_column else n_outputs, torch.get_num_threads(), most)
    if n_parts == 1:
        return F.linear(x, weight, bias)
    vectors = x.reshape(n_vectors, n_inputs)
    if by_column:
        slices = vectors.unflatten(1, (n_parts, -1)).transpose(0, 1)  # (parts, vectors, I / parts)
        product = torch.bmm(slices, weight.t().unflatten(0, (n_parts, -1))).sum(0)
    else:
        parts = weight.unflatten(0, (n_parts, -1)).transpose(1, 2)  # (parts, I, O / parts)
        product = torch.bmm(vectors.expand(n_parts, -1, -1), parts).transpose(0, 1).flatten(1)
    product = product if bias is None else product.add_(bias)
    return product.view(*x.shape[:-1], n_outputs)


def _supports(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and type(weight) in (Tensor, nn.Parameter)
        and weight.numel() >= MIN_ELEMENTS
        and torch.backends.mkl.is_available()
        and not torch.is_autocast_enabled("cpu")  # which would round what is summed
    )


@cache
def _n_parts(size: int, n_threads: int, most: int) -> int:
    """The number of equal parts of `size` that are computed at once: two for each thread, or the next below that.

    1, for no parts, where they would leave most threads without one.
    """
    if n_threads == 1:
        return 1
    n = next((n for n in range(min(2 * n_threads, most), 0, -1) if size % n == 0), 1)
    return n if n >= min(n_threads, MAX_PARTS // 4) else 1
