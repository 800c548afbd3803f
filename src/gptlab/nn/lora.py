"""Low-rank adaptation (LoRA): a frozen linear layer plus two trained low-rank matrices."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAPTERS = (".lora_down", ".lora_up")  # how the names of their parameters end


class LoRALinear(nn.Linear):
    """y = W x + b + alpha / r up(down(x)) (arXiv:2106.09685, section 4.1).

    `lora_down` is (r, in) and `lora_up` (out, r); weight and bias keep their names.
    """

    def __init__(self, n_in: int, n_out: int, *, bias: bool, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__(n_in, n_out, bias=bias)
        self.lora_down = nn.Parameter(torch.empty(rank, n_in))
        self.lora_up = nn.Parameter(torch.empty(n_out, rank))
        self.scale, self.dropout = alpha / rank, dropout

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_down)
        return super().forward(x) + self.scale * F.linear(low, self.lora_up)


class Merged(Mapping):
    """A state dict with adapters merged into the weights, one tensor at a time as it is read."""

    def __init__(self, state: Mapping[str, Tensor], *, alpha: float):
        self._state, self._alpha = state, alpha

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._state if not name.endswith(ADAPTERS))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> Tensor:
        if name.endswith(ADAPTERS):
            raise KeyError(name)
        weight = self._state[name]
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or f"{layer}.lora_down" not in self._state:
            return weight
        down, up = self._state[f"{layer}.lora_down"].float(), self._state[f"{layer}.lora_up"].float()
        return (weight.float() + self._alpha / len(down) * (up @ down)).to(weight.dtype)
