"""Position-wise sublayers: (B, T, D) -> (B, T, D), F wide inside.

`linear` makes their layers. Those of experts take where each expert's rows end beside x.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class GELU(nn.Module):
    """GPT-2's: the tanh form of the Gaussian error linear unit (arXiv:1606.08415, section 2)."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool, linear: Callable[..., nn.Module] = nn.Linear):
        super().__init__()
        self.up = linear(d_model, d_ff, bias=bias)
        self.down = linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x, *ends), approximate="tanh"), *ends)


class SwiGLU(nn.Module):
    """Llama's: a unit gated by SiLU of another (arXiv:2002.05202, equation 6)."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool, linear: Callable[..., nn.Module] = nn.Linear):
        super().__init__()
        self.gate = linear(d_model, d_ff, bias=bias)
        self.up = linear(d_model, d_ff, bias=bias)
        self.down = linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x, *ends)) * self.up(x, *ends), *ends)


class SquaredReLU(nn.Module):
    """Primer's: the square of the rectifier (arXiv:2109.08668, section 4.2)."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool, linear: Callable[..., nn.Module] = nn.Linear):
        super().__init__()
        self.up = linear(d_model, d_ff, bias=bias)
        self.down = linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        rectified = F.relu(self.up(x, *ends))
        return self.down(rectified * rectified, *ends)  # the gradient of square() takes several passes more
