"""Position-wise sublayers: (B, T, D) -> (B, T, D), with F inner channels.

`linear` makes their layers. Those of experts also take where each expert's tokens end in x.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.models.config import Feedforward
from gptlab.nn.tensor_parallel import Split, TensorGroup


class MLP(nn.Module, ABC):
    """A nonlinearity between two matrices, with dropout on its F channels."""

    up: nn.Module
    inputs: tuple[str, ...] = ("up",)  # the matrices that read x, in their order among the parameters

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        bias: bool,
        dropout: float = 0.0,
        linear: Callable[..., nn.Module] = nn.Linear,
    ):
        super().__init__()
        self.dropout = dropout
        for name in self.inputs:
            setattr(self, name, linear(d_model, d_ff, bias=bias))
        self.down = linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor, *ends: Tensor) -> Tensor:
        return self.down(F.dropout(self.activations(x, *ends), self.dropout, self.training), *ends)

    @abstractmethod
    def activations(self, x: Tensor, *ends: Tensor) -> Tensor:
        """What `down` reads: (B, T, D) -> (B, T, F)."""

    def splits(self) -> dict[str, Split]:
        """How its layers are sharded over a tensor-parallel group: by inner channel."""
        return {name: Split.column for name in self.inputs} | {"down": Split.row}

    def use_shard(self, group: TensorGroup) -> None:
        """Nothing to adapt: no size of the whole is used."""


class GatedMLP(MLP):
    """A product of two matrices' outputs, of which one goes through a nonlinearity (arXiv:2002.05202, section 2)."""

    gate: nn.Module
    inputs = ("gate", "up")


class ReLU(MLP):
    """The rectifier (arXiv:1706.03762, equation 2; T5)."""

    def activations(self, x: Tensor, *ends: Tensor) -> Tensor:
        return F.relu(self.up(x, *ends))


class SquaredReLU(MLP):
    """Primer's: the square of the rectifier (arXiv:2109.08668, section 4.2)."""

    def activations(self, x: Tensor, *ends: Tensor) -> Tensor:
        rectified = F.relu(self.up(x, *ends))
        return rectified * rectified  # the gradient of square() reads memory several times more


class GELU(MLP):
    """GPT-2's: the tanh form of the Gaussian error linear unit (arXiv:1606.08415, section 2)."""

    def activations(self, x: Tensor, *ends: Tensor) -> Tensor:
        return F.gelu(self.up(x, *ends), approximate="tanh")


class ExactGELU(MLP):
    """BERT's: the Gaussian error linear unit itself (arXiv:1606.08415, section 2)."""

    def activations(self, x: Tensor, *ends: Tensor) -> Tensor:
        return F.gelu(self.up(x, *ends))


class GEGLU(GatedMLP):
    """T5 1.1's: a unit gated by the tanh form of GELU of another (arXiv:2002.05202, equation 6)."""

    def activations(self, x: Tensor, *ends: Tensor) -> Tensor:
        return F.gelu(self.gate(x, *ends), approximate="tanh") * self.up(x, *ends)


class SwiGLU(GatedMLP):
    """Llama's: a unit gated by SiLU of another (arXiv:2002.05202, equation 6)."""

    def activations(self, x: Tensor, *ends: Tensor) -> Tensor:
        return F.silu(self.gate(x, *ends)) * self.up(x, *ends)


FEEDFORWARDS = {
    Feedforward.relu: ReLU,
    Feedforward.relu2: SquaredReLU,
    Feedforward.gelu: GELU,
    Feedforward.gelu_exact: ExactGELU,
    Feedforward.geglu: GEGLU,
    Feedforward.swiglu: SwiGLU,
}
