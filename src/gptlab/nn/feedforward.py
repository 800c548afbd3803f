"""Position-wise sublayers: (B, T, D) -> (B, T, D), F wide inside."""

import torch.nn.functional as F
from torch import Tensor, nn


class GELU(nn.Module):
    """GPT-2's: the tanh form of the Gaussian error linear unit (arXiv:1606.08415, section 2)."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool):
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """Llama's: a unit gated by SiLU of another (arXiv:2002.05202, equation 6)."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool):
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SquaredReLU(nn.Module):
    """Primer's: the square of the rectifier (arXiv:2109.08668, section 4.2)."""

    def __init__(self, d_model: int, d_ff: int, *, bias: bool):
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rectified = F.relu(self.up(x))
        return self.down(rectified * rectified)  # the gradient of square() takes several passes more
