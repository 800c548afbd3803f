"""ZeRO-1: each rank keeps the optimizer's state of a part of every parameter."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from gptlab.distributed.sharded_tensors import part_of, whole


class OptimizerShards:
    """The rows of each trained parameter that this rank updates, as tensors divided over the ranks of `mesh`.

    They share the memory of the parameters, which stay whole on every rank (arXiv:1910.02054, section 5.1).
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh):
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._pairs = [(name, parameter, _rows(parameter, mesh)) for name, parameter in trained]

    def named_parameters(self) -> Iterator[tuple[str, DTensor]]:
        for name, _, rows in self._pairs:
            yield name, rows

    def take_gradients(self) -> None:
        """Give the rows their part of the parameters' gradients, without a copy."""
        for _, parameter, rows in self._pairs:
            rows.grad = None if parameter.grad is None else _rows_of(parameter.grad, rows)

    @torch.no_grad()
    def spread(self) -> None:
        """Let every rank have the rows that the others updated; a collective."""
        for _, parameter, rows in self._pairs:
            parameter.copy_(whole(rows))
            rows.grad = None


def _rows(parameter: Tensor, mesh: DeviceMesh) -> DTensor:
    shape = parameter.shape
    empty = torch.empty(shape, device="meta")
    like = DTensor.from_local(empty[:0], mesh, [Shard(0)], run_check=False, shape=shape, stride=empty.stride())
    return _rows_of(parameter.detach(), like)


def _rows_of(tensor: Tensor, like: DTensor) -> DTensor:
    rows = tensor[part_of(like)]
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
