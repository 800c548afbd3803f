"""What a checkpoint is: the state of a run by parameter name, so that it does not depend on how the work was spread.

One file, `step_00000200.ckpt`, or where no device holds the whole model a folder, `step_00000200/`, with a file for
each rank. Checksums are kept in the form of `sha256sum`: beside the files, and within the folders.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gptlab.distributed.sharded_tensors import Part, fill, is_first_holder, local, part_of, whole
from gptlab.errors import UserError
from gptlab.runs.folder import write_text
from gptlab.training.optimizers import named

FORMAT = 1
SUMS = "SHA256SUMS"
REST = "state.pt"  # of a folder: all that is no weight and no memory of the optimizer
STEP = re.compile(r"step_(\d{8,})(\.ckpt)?")
BLOCK_BYTES = 2**22


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, whole; a collective where they are divided."""
    return {name: whole(value).detach() for name, value in model.state_dict().items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimizer remembers of each parameter, by the parameter's name; a collective where it is divided."""
    return {
        name: {key: _gathered(value) if isinstance(value, DTensor) else value for key, value in memory.items()}
        for name, memory in _memories(optimizer)
    }


def _gathered(value: DTensor) -> Tensor:
    return whole(value).cpu()  # one at a time: together they might not fit the device


def local_shards(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What this rank keeps in a folder, by key: all ranks' parts together are everything, once."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for name, memory in _memories(optimizer):
        tensors |= {f"optimizer/{name}/{key}": value for key, value in memory.items()}
    return {key: value.detach() for key, value in tensors.items() if is_first_holder(value) and local(value).numel()}


def _memories(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, parameter in named(optimizer):
        if parameter in optimizer.state:
            yield name, optimizer.state[parameter]


def restore_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights into `model`, each rank its part; ValueError where names or shapes differ."""
    own = model.state_dict()
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        parts = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("also has", extra)) if names]
        raise UserError(f"the checkpoint is of another architecture: it {' and '.join(parts)}")
    for name, target in own.items():
        there = state.shapes[name] if isinstance(state, ShardedTensors) else tuple(state[name].shape)
        if tuple(target.shape) != there:
            raise UserError(
                f"the checkpoint is of another architecture: {name} is {there} there and {tuple(target.shape)} here"
            )
    for name, target in own.items():
        _fill_from(target, state, name)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the optimizer its memory of each parameter back, each rank its part."""
    for name, parameter in named(optimizer):
        memory = state.get(name, {})
        shapes = (
            memory.shapes
            if isinstance(memory, ShardedTensors)
            else {k: getattr(v, "shape", None) for k, v in memory.items()}
        )
        restored = {}
        for key, shape in shapes.items():
            if shape == tuple(parameter.shape):
                restored[key] = torch.empty_like(parameter, memory_format=torch.preserve_format).detach()
                _fill_from(restored[key], memory, key)
            else:  # a count of steps; fused updates read it on the parameter's device
                value = memory[key]
                restored[key] = value.to(local(parameter).device, copy=True) if isinstance(value, Tensor) else value
        if restored:
            optimizer.state[parameter] = restored


def _fill_from(target: Tensor, values: Mapping[str, Tensor], key: str) -> None:
    if isinstance(values, ShardedTensors):
        with torch.no_grad():
            local(target).copy_(values.part(key, part_of(target)))
    else:
        fill(target, values[key])


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class ShardedTensors(Mapping):
    """Tensors that lie in parts over the files of a folder; reading one joins it."""

    def __init__(self, pieces: dict[str, list[tuple[Path, str, list[int], list[int]]]], shapes: dict[str, tuple]):
        self._pieces = pieces  # of each tensor: file, key there, offset, shape
        self.shapes = shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, name: str) -> Tensor:
        return self.part(name, tuple(slice(0, size) for size in self.shapes[name]))

    def part(self, name: str, part: Part) -> Tensor:
        """A block of one tensor, of which only the files that hold some are read."""
        from safetensors import safe_open

        result = None
        for path, key, offset, shape in self._pieces[name]:
            low = [max(want.start, at) for want, at in zip(part, offset, strict=True)]
            high = [min(want.stop, at + size) for want, at, size in zip(part, offset, shape, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            there = tuple(slice(a - at, b - at) for a, b, at in zip(low, high, offset, strict=True))
            with safe_open(path, framework="pt") as file:
                value = file.get_slice(key)[there] if shape else file.get_tensor(key)
            if result is None:
                result = value.new_empty([want.stop - want.start for want in part])
            result[tuple(slice(a - want.start, b - want.start) for a, b, want in zip(low, high, part, strict=True))] = (
                value
            )
        return torch.empty([want.stop - want.start for want in part]) if result is None else result


class _Writer:
    """A file that knows the checksum of what was written, and why a write failed, which torch.save would not say."""

    def __init__(self, file):
        self._file = file
        self.sum = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            self.sum.update(data)
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_file(state: dict[str, Any], path: Path) -> str:
    """Write `state` to the disk and return its checksum; OSError with the reason where that fails."""
    with open(path, "wb") as file:
        writer = _Writer(file)
        try:
            torch.save(state, writer)
            file.flush()
            os.fsync(file.fileno())
        except Exception as error:
            raise (writer.error or error) from None
    return writer.sum.hexdigest()


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint of one file, so that `path` is at every moment absent, the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        checksum = write_file(state, temporary)
        _write_sums(path.parent, {**_known_sums(path.parent), path.name: checksum})
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise unsaved(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


def unsaved(error: OSError, path: Path) -> OSError:
    """The same error, saying what it means for the run."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    there = kept(path.parent) or linked(path.parent, "last")
    meaning = "the run stays saved at its last checkpoint" if there else "nothing of the run is saved yet"
    return OSError(error.errno, f"{reason}; {meaning}", str(path))


def write_shards(parts: dict[str, Tensor], where: dict[str, tuple[Part, torch.Size]], path: Path) -> str:
    """Write this rank's file of a folder and return its checksum."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    places = {
        key: {"offset": [along.start for along in part], "shape": list(shape)} for key, (part, shape) in where.items()
    }
    try:
        save_file(parts, path, metadata={"places": json.dumps(places)})
    except SafetensorError as error:  # which hides what the system said
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from None
    path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets the owner alone read it
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return checksum_of(path)


def checksum_of(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(source: Path, name: str) -> None:
    """Let `last` or `best` be the checkpoint `source` beside it, atomically."""
    is_file = source.is_file()
    target = source.with_name(f"{name}.ckpt" if is_file else name)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    if is_file:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
    else:
        temporary.symlink_to(source.name)
    other = target.with_name(name if is_file else f"{name}.ckpt")  # of before the strategy changed
    for old in (target, other):
        if old.is_dir() and not old.is_symlink():  # a copy of the run in which links became what they led to
            shutil.rmtree(old)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
    other.unlink(missing_ok=True)


def linked(folder: Path, name: str) -> Path | None:
    """The checkpoint that `last` or `best` is, if there is one."""
    return next((path for path in (folder / f"{name}.ckpt", folder / name) if path.exists()), None)


def kept(folder: Path) -> list[tuple[int, Path]]:
    """Every checkpoint that bears its step in its name, by step."""
    found = [(int(m[1]), path) for path in folder.glob("step_*") if (m := STEP.fullmatch(path.name))]
    return sorted(found)


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest, and what `last` and `best` are."""
    needed = {path.resolve() for name in ("last", "best") if (path := linked(folder, name)) is not None}
    old = [path for _, path in kept(folder)[:-keep_last] if path.is_file() or path.resolve() not in needed]
    _settle_sums(folder, {path.name for path in old})
    for path in old:
        if path.is_file():  # `best.ckpt` is a name of its own for the same file
            path.unlink()
        else:
            doomed = path.with_name(f".{path.name}.tmp")
            os.replace(path, doomed)  # never there in part
            shutil.rmtree(doomed)


def rollback(folder: Path, step: int, best: dict[str, Any] | None) -> list[str]:
    """Take what was saved after `step` out of the run's line, and let `last` and `best` be of that line again.

    `best` is what the checkpoint of that step knows of the best one so far. Returns the names that were set aside.
    """
    names = []
    for later, path in kept(folder):
        if later > step:
            aside = path.with_suffix(".aside")
            if aside.is_dir():  # a file of that name is replaced
                shutil.rmtree(aside)
            path.rename(aside)
            names.append(path.name)
    by_step = dict(kept(folder))
    for name, wanted in (("last", step), ("best", best["step"] if best else None)):
        if wanted in by_step:
            link(by_step[wanted], name)
            continue
        for path in (folder / name, folder / f"{name}.ckpt"):
            dangles = path.is_symlink() and not path.exists()
            if dangles or (names and path.is_file() and _step_of(path) != wanted):
                path.unlink()
    if names:
        _settle_sums(folder, set())
    return names


def _step_of(path: Path) -> int | None:
    try:
        return load(path)["step"]
    except ValueError:  # it is damaged
        return None


def _settle_sums(folder: Path, leaving: set[str]) -> None:
    """Let SHA256SUMS name the files that stay, under all of their names."""
    known = _known_sums(folder)
    steps = [path for _, path in kept(folder) if path.is_file() and path.name in known]
    sums = {path.name: known[path.name] for path in steps if path.name not in leaving}
    for name in ("last.ckpt", "best.ckpt"):
        path = folder / name
        if path.is_file():
            same = next((step.name for step in steps if step.samefile(path)), name)
            if same in known:
                sums[name] = known[same]
    if sums != known:
        _write_sums(folder, sums)


def _known_sums(folder: Path) -> dict[str, str]:
    return _parse(folder / SUMS) if (folder / SUMS).is_file() else {}


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{checksum}  {name}\n" for name, checksum in sums.items()))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is run, and tensors stay on disk until they are copied."""
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise UserError(f"resume={path} is no checkpoint; name one such as runs/NAME/checkpoints/last.ckpt")
    if path.name == REST:
        raise UserError(f"{path} is a part of a checkpoint; name the folder that it lies in")
    return _read(path, path)


def _read(path: Path, shown: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged or no checkpoint (torch.save wrote no such file); resume from another one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is damaged or no checkpoint ({reason}); resume from another file") from error
    if not isinstance(state, dict) or "gptlab_format" not in state:
        raise UserError(f"{path} is not a checkpoint of gptlab; resume from runs/NAME/checkpoints/last.ckpt")
    if state["gptlab_format"] > FORMAT:
        raise UserError(
            f"{shown} has format {state['gptlab_format']} and this version reads up to {FORMAT}; upgrade gptlab"
        )
    return state


def _load_folder(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    state = {}
    pieces: dict[str, list] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _sums_within(folder):
        if name == REST:
            state = _read(folder / name, folder)
            continue
        try:
            with safe_open(folder / name, framework="pt") as file:
                places = json.loads(file.metadata()["places"])
                for key in file.keys():  # noqa: SIM118
                    place = places[key]
                    shape = file.get_slice(key).get_shape()
                    pieces.setdefault(key, []).append((folder / name, key, place["offset"], shape))
                    shapes[key] = tuple(place["shape"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / name} is damaged ({error}); resume from another checkpoint") from error
    for key, found in pieces.items():
        if sum(math.prod(shape) for *_, shape in found) != math.prod(shapes[key]):
            raise UserError(f"{folder} lacks a part of {key}; restore it, or resume from another checkpoint")
    model, memories = {}, {}
    for key, found in pieces.items():
        kind, _, rest = key.partition("/")
        if kind == "model":
            model[rest] = key, found
        else:
            name, _, what = rest.rpartition("/")
            memories.setdefault(name, {})[what] = key, found

    def joined(tensors: dict[str, tuple[str, list]]) -> ShardedTensors:
        return ShardedTensors(
            {name: found for name, (_, found) in tensors.items()},
            {name: shapes[key] for name, (key, _) in tensors.items()},
        )

    return state | {"model": joined(model), "optimizer": {name: joined(memory) for name, memory in memories.items()}}


def _sums_within(folder: Path) -> dict[str, str]:
    """The checksum of each file of a checkpoint that is a folder; ValueError where one is missing."""
    if not (folder / SUMS).is_file():
        raise UserError(f"{folder} is no whole checkpoint: it has no {SUMS}; name a folder such as checkpoints/last")
    sums = _parse(folder / SUMS)
    missing = [name for name in {**sums, REST: ""} if not (folder / name).is_file()]
    if REST not in sums or len(sums) < 2:
        raise UserError(f"{folder} is no whole checkpoint: its {SUMS} names too few files; resume from another one")
    if missing:
        raise UserError(f"{folder} lacks {_some(missing)}; restore it, or resume from another checkpoint")
    return sums


def _parse(sums: Path) -> dict[str, str]:
    rows = [line.split("  ", 1) for line in sums.read_text().splitlines()]
    return {row[1]: row[0] for row in rows if len(row) == 2}


def verify(path: Path) -> None:
    """Hold a checkpoint against its checksums; ValueError where it is not what was written."""
    try:
        if path.is_dir():
            for name, checksum in _sums_within(path).items():
                if checksum_of(path / name) != checksum:
                    raise UserError(f"{path / name} is not what was written: its checksum is not that of {SUMS}")
        else:
            sums = path.parent / SUMS
            lines = sums.read_text().splitlines() if sums.is_file() else []
            # `last` and `best` are other names of a step's file.
            if lines and checksum_of(path) not in {line.split(" ")[0] for line in lines}:
                raise UserError(f"{path} is not what was written: its checksum is not in {sums}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def newest(folder: Path, *, until: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in `folder`, of step `until` or before, and why newer ones were skipped."""
    skipped = []
    last = linked(folder, "last") if until is None else None
    steps = (path for step, path in reversed(kept(folder)) if until is None or step <= until)
    for path in [*steps, *([last] if last is not None else [])]:
        try:
            verify(path)
            load(path)
        except ValueError as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped
