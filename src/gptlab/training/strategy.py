"""One word for how the work is spread over devices."""

from datetime import timedelta

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from gptlab.training.config import Sharding, StrategyConfig


def build_strategy(config: StrategyConfig, *, world_size: int, accelerator: str) -> Strategy | str:
    """Lightning's strategy for the config's word."""
    timeout = timedelta(seconds=config.timeout_seconds)
    backend = "gloo" if accelerator == "cpu" else None
    if config.name is Sharding.fsdp:
        return ModelParallelStrategy(
            data_parallel_size=world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
            timeout=timeout,
        )
    if config.name is Sharding.ddp or world_size > 1:
        return DDPStrategy(process_group_backend=backend, timeout=timeout, gradient_as_bucket_view=True)
    return "auto"


def parallelise(model: nn.Module, config: StrategyConfig, mesh: torch.distributed.DeviceMesh | None) -> None:
    """Compile and shard `model` in place, block by block, as the config says."""
    if config.compile:
        for block in model.blocks:
            block.compile()  # in place: a wrapped module would rename its parameters
    if config.name is Sharding.fsdp:
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for block in model.blocks:
            fully_shard(block, mesh=mesh["data_parallel"], mp_policy=policy)
        # The head is used after `hidden` returns, so the root's parameters stay gathered until backward.
        fully_shard(model, mesh=mesh["data_parallel"], mp_policy=policy, reshard_after_forward=False)
        register_fsdp_forward_method(model, "hidden")


def synchronise_gradients(wrapped: nn.Module, model: nn.Module, now: bool) -> None:
    """Let the coming backward pass exchange gradients over ranks, or only accumulate them."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = now
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
