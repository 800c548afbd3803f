"""Carry out a strategy: the device mesh, and blocks that are sharded, recomputed and compiled."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from gptlab.distributed.config import SHARDED, TENSOR_PARALLEL, Layout, Recompute, Sharding, StrategyConfig
from gptlab.models.base import LanguageModel
from gptlab.nn.tensor_parallel import Split, TensorGroup, TensorParallelPlan


def build_strategy(config: StrategyConfig, *, world_size: int, accelerator: str) -> Strategy | str:
    """Lightning's strategy for a strategy config."""
    timeout = timedelta(seconds=config.timeout_seconds)
    backend = "gloo" if accelerator == "cpu" else "cpu:gloo,cuda:nccl" if config.cpu_offload else None
    if config.shards_model:
        # Its own mesh is of two dimensions at most; `parallelize` makes the one that is used.
        return ModelParallelStrategy(
            data_parallel_size=world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
            timeout=timeout,
        )
    if config.type is not Sharding.auto or world_size > 1:
        return DDPStrategy(process_group_backend=backend, timeout=timeout, gradient_as_bucket_view=True)
    return "auto"


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The ranks as a mesh with the layout's dimensions, those of size one left out."""
    sizes = {"replicas": layout.replicas, "shards": layout.shards, "tensor": layout.tensor}
    sizes = {name: size for name, size in sizes.items() if size > 1} or {"shards": 1}
    return init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def parallelize(
    model: LanguageModel,
    config: StrategyConfig,
    mesh: DeviceMesh | None,
    *,
    precision: str,
    recomputed: Collection[int] | None = None,
) -> None:
    """Shard `model` in place, checkpoint its activations and compile it, block by block, as the config says.

    The model may be on the meta device: nothing here reads a value. `recomputed` are the indices of the blocks whose
    activations are checkpointed, None where it is all of them.
    """
    if config.type in TENSOR_PARALLEL:
        assert mesh is not None
        for block in model.blocks:
            _shard_matrices(block, model.tensor_parallel_plan(block), mesh["tensor"])
    if config.activation_checkpointing is not Recompute.none:
        blocks = list(model.blocks)
        for i in range(len(blocks)) if recomputed is None else recomputed:
            _recompute(blocks[i], config.activation_checkpointing)
    if config.compile:
        # Batches of a second size would be compiled with symbolic sizes, over which torch 2.13 recurses without end in
        # DTensors: under tensor parallelism each size is compiled by itself.
        dynamic = False if config.type in TENSOR_PARALLEL else None
        for block in model.blocks:
            block.compile(dynamic=dynamic)  # in place: a wrapped module would rename its parameters
    if config.type in SHARDED:
        assert mesh is not None and mesh.mesh_dim_names is not None
        names = tuple(name for name in mesh.mesh_dim_names if name != "tensor")
        mixed = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bf16-mixed" else None, reduce_dtype=torch.float32
        )
        shard = partial(fully_shard, mesh=mesh[names], mp_policy=mixed)
        if config.cpu_offload:
            shard = partial(shard, offload_policy=CPUOffloadPolicy())
        for block in model.blocks:
            shard(block, reshard_after_forward=config.type is not Sharding.zero2)
        # The head is used after `hidden_states` returns, so the root's parameters stay gathered until backward.
        shard(model, reshard_after_forward=False)
        register_fsdp_forward_method(model, "hidden_states")


def most_of_all_ranks(blocks: Sequence[int] | None) -> Sequence[int] | None:
    """The longest of what the ranks would recompute: all gather such a block, and one may have less memory free."""
    if not dist.is_initialized():
        return blocks
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, blocks)
    return max(found, key=lambda blocks: len(blocks or ()))


def _shard_matrices(block: nn.Module, plan: TensorParallelPlan, mesh: DeviceMesh) -> None:
    styles = {
        Split.column: ColwiseParallel(),
        Split.row: RowwiseParallel(),
        Split.row_partial: RowwiseParallel(output_layouts=Partial()),
    }
    parallelize_module(block, mesh, {name: styles[split] for name, split in plan.splits.items() if split in styles})
    for name, split in plan.splits.items():
        if split is Split.stack:
            layer = block.get_submodule(name)
            for own, parameter in list(layer.named_parameters(recurse=False)):
                setattr(layer, own, nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)])))
    reduce_grad, reduce = partial(_all_reduce_grad, mesh=mesh), partial(_all_reduce, mesh=mesh)
    plan.use_shard(TensorGroup(mesh.get_local_rank(), mesh.size(), reduce_grad, reduce))


def _all_reduce_grad(x: torch.Tensor, *, mesh: DeviceMesh) -> torch.Tensor:
    return DTensor.from_local(x, mesh, [Replicate()]).to_local(grad_placements=[Partial()])


def _all_reduce(x: torch.Tensor, *, mesh: DeviceMesh) -> torch.Tensor:
    return DTensor.from_local(x, mesh, [Partial()]).redistribute(placements=[Replicate()]).to_local()


def _recompute(block: nn.Module, what: Recompute) -> None:
    # The method is replaced, not the module wrapped, which would rename its parameters.
    contexts = {}
    if what is Recompute.selective:
        contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, **contexts)


_aten = torch.ops.aten
PRODUCTS = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._grouped_mm.default,
    _aten._scaled_mm.default,  # of float8
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def _keep_products(context, operation, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def synchronize_gradients(wrapped: nn.Module | None, model: nn.Module, now: bool) -> None:
    """Let the next backward pass reduce gradients over ranks, or only accumulate them."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = now
    elif isinstance(model, FSDPModule):
        # Each pass is reduce-scattered, since a whole gradient might not fit; replicas are summed with the last pass.
        model.set_requires_all_reduce(now)
