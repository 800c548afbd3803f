"""Tensor files in the safetensors format: written as a stream with their checksum, read one tensor at a time.

The safetensors library reads them. It does not write them, since its `save_file` copies all tensors in memory first,
hides the reason of a failed write and leaves the checksum to a second pass over the file.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptlab.distributed.sharded_tensors import Part
from gptlab.errors import UserError

BLOCK_BYTES = 2**22
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Shard(NamedTuple):
    """Where a shard lies in its tensor."""

    offset: list[int]
    shape: list[int]  # of the whole tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], shards: Mapping[str, Shard] | None = None
) -> str:
    """Write tensors to a file, sync it and return its SHA-256; OSError with the system's reason where that fails.

    `shards` says which of them are shards of larger tensors.
    """
    # Wider elements first: so each tensor is aligned to its own element size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    places = {key: shard._asdict() for key, shard in (shards or {}).items()}
    header: dict[str, Any] = {"__metadata__": {**metadata, "shards": json.dumps(places)}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    checksum = hashlib.sha256()
    with open(path, "wb") as file:

        def write(data) -> None:
            checksum.update(data)
            file.write(data)

        write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            # Arrays are typed as buffers from Python 3.12 on.
            array: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            data = memoryview(array)
            for start in range(0, len(data), BLOCK_BYTES):
                write(data[start : start + BLOCK_BYTES])
        file.flush()
        os.fsync(file.fileno())
    return checksum.hexdigest()


class _StoredShard(NamedTuple):
    path: Path
    key: str
    offset: list[int]
    shape: list[int]


@dataclass(slots=True)
class TensorFiles:
    """The tensors of one or several files by key, and their metadata; shards of one tensor are found together."""

    metadata: dict[Path, dict[str, str]] = field(default_factory=dict)
    stored: dict[str, list[_StoredShard]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def open(cls, paths: list[Path]) -> "TensorFiles":
        """Read the headers; UserError where a file is damaged or no tensor file, or a tensor lacks a shard."""
        from safetensors import SafetensorError, safe_open

        found = cls()
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    found.metadata[path] = file.metadata() or {}
                    places = json.loads(found.metadata[path].get("shards", "{}"))
                    for key in file.keys():  # noqa: SIM118
                        shape = list(file.get_slice(key).get_shape())
                        shard = Shard(**places.get(key, {"offset": [0] * len(shape), "shape": shape}))
                        found.stored.setdefault(key, []).append(_StoredShard(path, key, shard.offset, shape))
                        found.shapes[key] = tuple(shard.shape)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} is damaged or no checkpoint ({error}); use another checkpoint") from error
        for key, shards in found.stored.items():
            if sum(math.prod(shard.shape) for shard in shards) != math.prod(found.shapes[key]):
                where = paths[0].parent if len(paths) > 1 else paths[0]
                raise UserError(f"{where} lacks a shard of {key}; restore it, or use another checkpoint")
        return found

    def below(self, prefix: str) -> "ShardedTensors":
        """The tensors whose keys begin with `prefix`, by the rest of their keys."""
        return self.select({key.removeprefix(prefix): key for key in self.stored if key.startswith(prefix)})

    def select(self, keys: Mapping[str, str], values: Mapping[str, Any] | None = None) -> "ShardedTensors":
        """Tensors by new names; a key that no file has is that of a value in `values`."""
        tensors = {name: key for name, key in keys.items() if key in self.stored}
        return ShardedTensors(
            {name: self.stored[key] for name, key in tensors.items()},
            {name: self.shapes[key] for name, key in tensors.items()},
            {name: (values or {})[key] for name, key in keys.items() if name not in tensors},
        )


class ShardedTensors(Mapping[str, Any]):
    """Tensors whose shards lie in one or several files; each access reads one and joins its shards."""

    def __init__(
        self,
        stored: dict[str, list[_StoredShard]],
        shapes: dict[str, tuple[int, ...]],
        values: Mapping[str, Any] | None = None,
    ):
        self._stored = stored
        self._values = values or {}  # that are no tensors, in memory
        self.shapes: dict[str, tuple[int, ...] | None] = {**shapes, **dict.fromkeys(self._values)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        return self.part(name, tuple(slice(0, size) for size in self.shapes[name] or ()))

    def part(self, name: str, part: Part) -> Tensor:
        """A block of one tensor; only the files that hold some of it are read."""
        from safetensors import safe_open

        result = None
        for path, key, offset, shape in self._stored[name]:
            low = [max(want.start, at) for want, at in zip(part, offset, strict=True)]
            high = [min(want.stop, at + size) for want, at, size in zip(part, offset, shape, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            inside = tuple(slice(a - at, b - at) for a, b, at in zip(low, high, offset, strict=True))
            with safe_open(path, framework="pt") as file:
                value = file.get_slice(key)[inside] if shape else file.get_tensor(key)
            if result is None:
                result = value.new_empty([want.stop - want.start for want in part])
            block = tuple(slice(a - want.start, b - want.start) for a, b, want in zip(low, high, part, strict=True))
            result[block] = value
        return torch.empty([want.stop - want.start for want in part]) if result is None else result
