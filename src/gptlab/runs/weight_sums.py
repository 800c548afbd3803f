"""Checksums of a model's weights that do not depend on how it was sharded, nor over how many devices."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gptlab.distributed.sharded_tensors import whole
from gptlab.runs.tensor_files import DTYPES


def tensor_sum(name: str, tensor: Tensor) -> str:
    """The SHA-256 of a tensor's name, type, shape and values, the last as little-endian bytes."""
    checksum = hashlib.sha256(f"{name} {DTYPES[tensor.dtype]} {list(tensor.shape)}\n".encode())
    checksum.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]: arrays are typed as buffers from Python 3.12 on
    return checksum.hexdigest()


def sum_of(sums: Mapping[str, str]) -> str:
    """The SHA-256 of the checksums of all tensors, in the order of their names."""
    return hashlib.sha256("".join(f"{name} {sums[name]}\n" for name in sorted(sums)).encode()).hexdigest()


def weights_sum(weights: Mapping[str, Tensor]) -> str:
    """The checksum of weights by name, as a checkpoint holds them."""
    return sum_of({name: tensor_sum(name, weights[name]) for name in weights})


@torch.no_grad()
def model_sum(model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> str:
    """The checksum of a model's weights on every rank; a collective.

    Tensors are gathered one by one, and each rank hashes its part of them.
    """
    own = {}
    for i, (name, value) in enumerate(sorted(model.state_dict().items())):
        if isinstance(value, DTensor) and device.type == "cuda":
            value = value.to(device)  # with strategy.cpu_offload they are not there
        value = whole(value)
        if i % world_size == rank:
            own[name] = tensor_sum(name, value)
    if world_size == 1:
        return sum_of(own)
    everywhere: list[dict[str, str]] = [{}] * world_size
    torch.distributed.all_gather_object(everywhere, own)
    return sum_of({name: checksum for sums in everywhere for name, checksum in sums.items()})
