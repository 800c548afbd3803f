"""Config schema: strategies. How a model and its training are laid out over devices."""

import math
from dataclasses import dataclass
from enum import Enum

from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds


class Sharding(Enum):
    """What each device holds."""

    auto = "auto"  # one device: everything; several: ddp
    ddp = "ddp"  # each device holds everything
    zero1 = "zero1"  # ddp with sharded optimizer state (arXiv:1910.02054)
    zero2 = "zero2"  # sharded weights, gradients and state; weights stay gathered from forward to backward
    fsdp = "fsdp"  # ZeRO-3: a block's weights are gathered only while it computes
    hsdp = "hsdp"  # fsdp within groups of devices, replicated over the groups
    tp = "tp"  # tensor parallel: each matrix is sharded, and every device sees every sequence (arXiv:1909.08053)
    fsdp_tp = "fsdp_tp"  # tp within groups, fsdp over them


class Recompute(Enum):
    """What the backward pass computes again instead of keeping it (arXiv:1604.06174)."""

    none = "none"
    full = "full"  # each block from its input
    selective = "selective"  # all but matrix products and attention
    budget = "budget"  # each block from its input, of as few blocks as fit the rest into memory


MEMORY_BUDGET = 0.85  # of what a device has free, where no budget is given
SHARDED = (Sharding.zero2, Sharding.fsdp, Sharding.hsdp, Sharding.fsdp_tp)
TENSOR_PARALLEL = (Sharding.tp, Sharding.fsdp_tp)


@dataclass(frozen=True, slots=True)
class Layout:
    """How ranks are arranged: `replicas` x `shards` x `tensor`, the last varying fastest.

    Ranks that differ in `tensor` alone see the same sequences; all others see sequences of their own.
    """

    replicas: int = 1
    shards: int = 1
    tensor: int = 1

    @property
    def data(self) -> int:
        """Parts into which a step's sequences are divided."""
        return self.replicas * self.shards

    def data_rank(self, rank: int) -> int:
        return rank // self.tensor


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """How the work is laid out over devices."""

    type: Sharding = Sharding.auto
    tensor_parallel: int | None = None  # devices that share each matrix; null: all of them (tp), two (fsdp_tp)
    replicas: int | None = None  # hsdp: groups that hold the same; null: one a node, on one node two
    activation_checkpointing: Recompute = Recompute.none
    memory_budget_gib: float | None = None  # budget: what training may take of a device; null: 85% of what is free
    cpu_offload: bool = False  # shards wait in the host's memory
    compile: bool = False  # torch.compile block by block
    check_memory: bool = True  # refuse a run whose plan exceeds the memory that is free; false: try it
    timeout_seconds: int = bounded(1800, ge=1)  # of a collective, after which a hung rank ends the run

    @property
    def shards_model(self) -> bool:
        """Whether no device holds the whole model."""
        return self.type in SHARDED or self.type in TENSOR_PARALLEL

    def layout(self, world_size: int, num_nodes: int = 1) -> Layout:
        """Arrange `world_size` devices; UserError where the config does not fit them."""
        match self.type:
            case Sharding.auto | Sharding.ddp | Sharding.zero1:
                return Layout(replicas=world_size)
            case Sharding.zero2 | Sharding.fsdp:
                return Layout(shards=world_size)
            case Sharding.hsdp:
                replicas = self.replicas or (num_nodes if num_nodes > 1 else 2)
                self._check_divides("replicas", replicas, world_size)
                if replicas == world_size:
                    raise UserError(
                        f"strategy=hsdp with strategy.replicas={replicas} leaves each of {world_size} devices a group "
                        "of its own; use strategy=fsdp, strategy=ddp, or more devices"
                    )
                return Layout(replicas=replicas, shards=world_size // replicas)
            case Sharding.tp:
                if world_size < 2:
                    raise UserError("strategy=tp shards matrices over devices and there is one; use strategy=auto")
                if self.tensor_parallel not in (None, world_size):
                    raise UserError(
                        f"strategy.tensor_parallel={self.tensor_parallel} and there are {world_size} devices, all of "
                        "which strategy=tp uses; leave it out, or use strategy=fsdp_tp"
                    )
                return Layout(tensor=world_size)
            case Sharding.fsdp_tp:
                tensor = self.tensor_parallel or 2
                self._check_divides("tensor_parallel", tensor, world_size)
                if tensor == world_size:
                    raise UserError(
                        f"strategy=fsdp_tp with strategy.tensor_parallel={tensor} uses all of {world_size} devices "
                        "and leaves nothing to shard over; use strategy=tp, or more devices"
                    )
                return Layout(shards=world_size // tensor, tensor=tensor)

    def _check_divides(self, option: str, size: int, world_size: int) -> None:
        if size < 2 or world_size % size:
            sizes = [str(n) for n in range(2, world_size + 1) if world_size % n == 0]
            raise UserError(
                f"strategy={self.type.value} with strategy.{option}={size} does not divide {world_size} "
                + (f"devices; use {' or '.join(sizes)}" if sizes else "device; it needs two or more")
            )

    def check(self) -> None:
        """Refuse values that cannot work."""
        check_bounds(self, "strategy.")
        for option, owners in (("tensor_parallel", TENSOR_PARALLEL), ("replicas", (Sharding.hsdp,))):
            if getattr(self, option) is not None and self.type not in owners:
                names = " or ".join(owner.value for owner in owners)
                raise UserError(f"strategy.{option} belongs to strategy={names}, and strategy is {self.type.value}")
        if self.memory_budget_gib is not None:
            if self.activation_checkpointing is not Recompute.budget:
                raise UserError(
                    "strategy.memory_budget_gib belongs to strategy.activation_checkpointing=budget, "
                    f"and that is {self.activation_checkpointing.value}"
                )
            if not 0 < self.memory_budget_gib < math.inf:
                raise UserError(f"strategy.memory_budget_gib={self.memory_budget_gib} must be above 0, such as 16")
        if self.cpu_offload and self.type not in SHARDED:
            names = ", ".join(name.value for name in SHARDED)
            raise UserError(
                f"strategy.cpu_offload=true needs a strategy that shards the weights: {names}; "
                f"strategy is {self.type.value}"
            )
