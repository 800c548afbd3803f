"""Linear layers: those that may be bypassed or replaced, and products with few vectors."""

from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Products with up to so many vectors are spread over a CPU's threads here, where the matrix has so many elements.
MAX_VECTORS = 16
MIN_ELEMENTS = 2**19
MAX_PARTS = 32


class SpreadLinear(nn.Linear):
    """`nn.Linear` whose products with few vectors are spread over the threads of a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return spread_linear(input, self.weight, self.bias)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes `x @ weight.T + bias` and nothing else: no hooks, adapters or parametrizations.

    Only such a module may be replaced, or its weight be used without calling it. Tensor-parallel layers are none: their
    weights are DTensors, and their communication is in hooks.
    """
    return (
        type(module) in (nn.Linear, SpreadLinear)
        and type(module.weight) is nn.Parameter
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
        )
    )


def spread_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for x (..., I) and weight (O, I), spread over the threads where it takes part in decoding on a CPU.

    A BLAS library may read the matrix with a single thread where there are few vectors. It spreads a batch of products,
    so the matrix is given to it as a batch of its parts: of its inputs, whose products are summed, where those of one
    input lie together, else of its outputs.
    """
    n_inputs, n_vectors = x.shape[-1], x.numel() // max(1, x.shape[-1])
    if (
        not 0 < n_vectors <= MAX_VECTORS
        or torch.is_grad_enabled()
        or x.dtype is not torch.float32
        or weight.dtype is not torch.float32
        or x.device.type != "cpu"
        or weight.numel() < MIN_ELEMENTS
    ):
        return F.linear(x, weight, bias)
    n_outputs, by_input = len(weight), weight.stride(0) == 1
    n_parts = _n_parts(n_inputs if by_input else n_outputs, torch.get_num_threads())
    if n_parts == 1:
        return F.linear(x, weight, bias)
    vectors = x.reshape(n_vectors, n_inputs)
    if by_input:
        slices = vectors.unflatten(1, (n_parts, -1)).transpose(0, 1)  # (parts, vectors, I / parts)
        product = torch.bmm(slices, weight.t().unflatten(0, (n_parts, -1))).sum(0)
    else:
        parts = weight.unflatten(0, (n_parts, -1)).transpose(1, 2)  # (parts, I, O / parts)
        product = torch.bmm(vectors.expand(n_parts, -1, -1), parts).transpose(0, 1).flatten(1)
    product = product if bias is None else product.add_(bias)
    return product.view(*x.shape[:-1], n_outputs)


@cache
def _n_parts(size: int, n_threads: int) -> int:
    """How many equal parts are computed at once: two for each thread, or the next number below that divides `size`."""
    if n_threads == 1:
        return 1
    return next(n for n in range(min(2 * n_threads, MAX_PARTS), 0, -1) if size % n == 0)
