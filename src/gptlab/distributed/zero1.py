"""ZeRO-1: each rank keeps the optimizer state of a shard of every parameter."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from gptlab.distributed.sharded_tensors import part_of, whole


class OptimizerShards:
    """The shard of each trained parameter that this rank updates, as tensors sharded over the ranks of `mesh`.

    They share the memory of the parameters, which stay whole on every rank (arXiv:1910.02054, section 5.1).
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh):
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._pairs = [(name, parameter, _sharded(parameter, mesh)) for name, parameter in trained]

    def named_parameters(self) -> Iterator[tuple[str, DTensor]]:
        for name, _, shard in self._pairs:
            yield name, shard

    def take_gradients(self) -> None:
        """Give the shards their part of the parameters' gradients, without a copy."""
        for _, parameter, shard in self._pairs:
            shard.grad = None if parameter.grad is None else _shard_of(parameter.grad, shard)

    @torch.no_grad()
    def gather(self) -> None:
        """Fetch the shards that the other ranks updated; a collective."""
        for _, parameter, shard in self._pairs:
            parameter.copy_(whole(shard))
            shard.grad = None


def _sharded(parameter: Tensor, mesh: DeviceMesh) -> DTensor:
    shape = parameter.shape
    empty = torch.empty(shape, device="meta")
    like = DTensor.from_local(empty[:0], mesh, [Shard(0)], run_check=False, shape=shape, stride=empty.stride())
    return _shard_of(parameter.detach(), like)


def _shard_of(tensor: Tensor, like: DTensor) -> DTensor:
    own = tensor[part_of(like)]
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
