"""One word for how the work is spread over devices."""

from datetime import timedelta
from functools import partial

import torch
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
from gptlab.nn.moe import ExpertShard, MoE

# Megatron's division (arXiv:1909.08053, section 3): one exchange after attention, one after the feedforward.
COLUMNS = ("attn.q", "attn.k", "attn.v", "ffn.up", "ffn.gate", "ffn.shared.up", "ffn.shared.gate")
ROWS = ("attn.out", "ffn.down")
SUMMED_LATER = ("ffn.shared.down",)  # rows too, whose sum goes with that of the experts


def build_strategy(config: StrategyConfig, *, world_size: int, accelerator: str) -> Strategy | str:
    """Lightning's strategy for the config's word."""
    timeout = timedelta(seconds=config.timeout_seconds)
    backend = "gloo" if accelerator == "cpu" else "cpu:gloo,cuda:nccl" if config.cpu_offload else None
    if divides_model(config):
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


def divides_model(config: StrategyConfig) -> bool:
    """Whether no device holds the whole model."""
    return config.type in SHARDED or config.type in TENSOR_PARALLEL


def build_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The ranks as a grid with the layout's dimensions, less those of one."""
    sizes = {"replicas": layout.replicas, "shards": layout.shards, "tensor": layout.tensor}
    sizes = {name: size for name, size in sizes.items() if size > 1} or {"shards": 1}
    return init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def parallelize(model: nn.Module, config: StrategyConfig, mesh: DeviceMesh | None, *, precision: str) -> None:
    """Divide, recompute, compile and shard `model` in place, block by block, as the config says.

    The model may be on the meta device: nothing here reads a value.
    """
    if config.type in TENSOR_PARALLEL:
        for block in model.blocks:
            _divide_matrices(block, mesh["tensor"])
    if config.activation_checkpointing is not Recompute.none:
        for block in model.blocks:
            _recompute(block, config.activation_checkpointing)
    if config.compile:
        for block in model.blocks:
            block.compile()  # in place: a wrapped module would rename its parameters
    if config.type in SHARDED:
        names = tuple(name for name in mesh.mesh_dim_names if name != "tensor")
        mixed = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bf16-mixed" else None, reduce_dtype=torch.float32
        )
        shard = partial(fully_shard, mesh=mesh[names], mp_policy=mixed)
        if config.cpu_offload:
            shard = partial(shard, offload_policy=CPUOffloadPolicy())
        for block in model.blocks:
            shard(block, reshard_after_forward=config.type is not Sharding.zero2)
        # The head is used after `hidden` returns, so the root's parameters stay gathered until backward.
        shard(model, reshard_after_forward=False)
        register_fsdp_forward_method(model, "hidden_states")


def _divide_matrices(block: nn.Module, mesh: DeviceMesh) -> None:
    there = dict(block.named_modules())
    plan = {name: ColwiseParallel() for name in COLUMNS if name in there}
    plan |= {name: RowwiseParallel() for name in ROWS if name in there}
    plan |= {name: RowwiseParallel(output_layouts=Partial()) for name in SUMMED_LATER if name in there}
    parallelize_module(block, mesh, plan)
    if isinstance(block.ffn, MoE):
        _divide_experts(block.ffn, mesh)
    attention = block.attn
    attention.n_head //= mesh.size()
    attention.n_kv_head //= mesh.size()
    attention.joint_projection = False


def _divide_experts(ffn: MoE, mesh: DeviceMesh) -> None:
    """Give each rank whole experts; the router stays on all, so that all decide alike."""
    for stack in ffn.experts.children():
        stack.divided = True
        for name, parameter in list(stack.named_parameters()):
            setattr(stack, name, nn.Parameter(distribute_tensor(parameter, mesh, [Shard(0)])))
    n_held = ffn.n_expert // mesh.size()
    first = mesh.get_local_rank() * n_held
    ffn.division = ExpertShard(range(first, first + n_held), partial(_enter, mesh=mesh), partial(_leave, mesh=mesh))


def _enter(x: torch.Tensor, *, mesh: DeviceMesh) -> torch.Tensor:
    return DTensor.from_local(x, mesh, [Replicate()]).to_local(grad_placements=[Partial()])


def _leave(x: torch.Tensor, *, mesh: DeviceMesh) -> torch.Tensor:
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
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def _keep_products(context, operation, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def synchronize_gradients(wrapped: nn.Module, model: nn.Module, now: bool) -> None:
    """Let the coming backward pass exchange gradients over ranks, or only accumulate them."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = now
    elif isinstance(model, FSDPModule):
        # Each pass is divided at once, since a whole gradient might not fit; replicas add up with the last.
        model.set_requires_all_reduce(now)
