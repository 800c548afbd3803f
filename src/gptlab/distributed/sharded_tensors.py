"""Sharded tensors: which part this rank holds, filling and gathering them, norms over them."""

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

from gptlab.distributed.internals import local_shape_and_offset

Part = tuple[slice, ...]


def local(tensor: Tensor) -> Tensor:
    """The values that this rank holds, as a plain tensor that shares their memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor) -> Part:
    """Where in the whole tensor `local(tensor)` lies."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offset = local_shape_and_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    # The offset of an empty shard means nothing.
    return tuple(slice(start, start + size) if size else slice(0, 0) for start, size in zip(offset, shape, strict=True))


def is_first_holder(tensor: Tensor) -> bool:
    """Whether no lower rank holds the same part."""
    if not isinstance(tensor, DTensor):
        return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    return _holds_first(tensor.device_mesh, tensor.placements)


@lru_cache
def _holds_first(mesh: DeviceMesh, placements: tuple[Placement, ...]) -> bool:
    coordinate = mesh.get_coordinate()
    assert coordinate is not None  # this rank is in the mesh of a tensor that it holds
    pairs = zip(coordinate, placements, strict=True)
    alike = all(at == 0 for at, placement in pairs if placement.is_replicate())
    return alike and mesh.mesh.min().item() == 0  # a mesh without rank 0 has a twin with it


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Give `tensor` the values of `whole`, of which only this rank's part is read."""
    local(tensor).copy_(whole[part_of(tensor)])


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor's values; a collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def by_mesh(tensors: Iterable[Tensor]) -> list[list[int]]:
    """The positions of tensors that one operation may take together: those sharded over the same ranks."""
    groups: dict[object, list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(i)
    return list(groups.values())


@torch.no_grad()
def global_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm over all elements, wherever they are; a collective where some are sharded."""
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    own = [local(gradient) for gradient in gradients if is_first_holder(gradient)]
    square = torch.nn.utils.get_total_norm(own).square() if own else local(gradients[0]).new_zeros(())
    torch.distributed.all_reduce(square)
    return square.sqrt()


@torch.no_grad()
def square_sums(tensors: list[Tensor]) -> Tensor:
    """The sum of squares of each tensor, wherever its elements are: (n,) in float32; a collective if some are sharded.

    All ranks give the same tensors in the same order.
    """
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors)
    sums = [
        local(tensor).float().square().sum()
        if not sharded or is_first_holder(tensor)
        else local(tensor).new_zeros((), dtype=torch.float32)
        for tensor in tensors
    ]
    found = torch.stack(sums)
    if sharded:
        torch.distributed.all_reduce(found)
    return found


@torch.no_grad()
def clip(gradients: list[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients of that norm to at most `max_norm`, in place."""
    torch._foreach_mul_([local(gradient) for gradient in gradients], (max_norm / (norm + 1e-6)).clamp(max=1.0))
