"""How a block is sharded over a tensor-parallel group, as values: `distributed.parallelize` carries it out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from torch import Tensor


class Split(Enum):
    """How a submodule's parameters are sharded (Megatron-LM, arXiv:1909.08053, section 3)."""

    column = "column"  # a linear layer by its output features; its output stays sharded
    row = "row"  # a linear layer by its input features; its output is summed over the ranks
    row_partial = "row_partial"  # the same, and the block sums the output itself
    stack = "stack"  # every parameter by its first dimension, such as that of experts


class TensorGroup(NamedTuple):
    """A rank's place among the ranks that share a block's matrices, and their two collectives."""

    rank: int
    size: int
    all_reduce_grad: Callable[[Tensor], Tensor]  # the identity, whose gradient is summed over the ranks
    all_reduce: Callable[[Tensor], Tensor]  # the sum over the ranks, whose gradient is the identity


class Shardable(Protocol):
    """A sublayer that can be sharded."""

    def splits(self) -> dict[str, Split]: ...

    def use_shard(self, group: TensorGroup) -> None: ...


@dataclass(frozen=True, slots=True)
class TensorParallelPlan:
    """How one block is sharded."""

    splits: Mapping[str, Split]  # by name of the submodule in the block
    use_shard: Callable[[TensorGroup], None]  # called once the parameters are sharded: adapts counts to the local shard
