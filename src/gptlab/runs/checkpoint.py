"""Checkpoints: weights, optimizer state and `CheckpointState`, by parameter name and so independent of the strategy.

One file, `step_00000200.ckpt`, or where no device holds the whole model a folder, `step_00000200/`, with a file for
each rank. All are files in the safetensors format, whose metadata holds the state as JSON; nothing in them is code.
Checksums are kept in the form of `sha256sum`: beside the files, and within the folders.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gptlab.distributed.sharded_tensors import fill, is_first_holder, local, part_of, whole
from gptlab.errors import UserError
from gptlab.files import replacing, sha256_of, sync_folder, write_text_atomic
from gptlab.runs.checkpoint_state import FORMAT, CheckpointState, format_of
from gptlab.runs.tensor_files import Shard, ShardedTensors, TensorFiles, write_tensors

SUMS = "SHA256SUMS"
STEP = re.compile(r"step_(\d{8,})(\.ckpt)?")
MODEL, OPTIMIZER, STATE = "model/", "optimizer/", "state/"  # how the keys of tensors begin


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds; tensors are read from the disk when they are asked for."""

    path: Path
    state: CheckpointState
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Any]]  # by parameter name

    @property
    def vocab_size(self) -> int:
        """The number of token embeddings."""
        weights, name = self.model, "tok_emb.weight"
        shape = weights.shapes[name] if isinstance(weights, ShardedTensors) else weights[name].shape
        return (shape or (0,))[0]

    def weights(self) -> Mapping[str, Tensor]:
        """The weights to use the model with: LoRA's adapters are merged."""
        from gptlab.nn.lora import Merged

        finetune = self.state.config.get("finetune", {})
        return Merged(self.model, alpha=finetune["alpha"]) if finetune.get("type") == "lora" else self.model


def named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The parameters that an optimizer updates, by name."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name, whole; a collective where they are sharded."""
    return {name: whole(value).detach() for name, value in model.state_dict().items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer state by parameter name, whole; a collective where it is sharded."""
    return {
        name: {key: _gathered(value) if isinstance(value, DTensor) else value for key, value in state.items()}
        for name, state in _states(optimizer)
    }


def _gathered(value: DTensor) -> Tensor:
    return whole(value).cpu()  # one at a time: together they might not fit the device


def local_shards(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What this rank writes of a sharded checkpoint, by key: all ranks' shards together are everything, once."""
    tensors = by_key(model.state_dict(), dict(_states(optimizer)))
    return {
        key: value.detach() if isinstance(value, Tensor) else value
        for key, value in tensors.items()
        if not isinstance(value, Tensor) or (is_first_holder(value) and local(value).numel())
    }


def by_key(model: Mapping[str, Tensor], optimizer: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Weights and optimizer state under their keys in a file."""
    keys = {f"{MODEL}{name}": value for name, value in model.items()}
    for name, state in optimizer.items():
        keys |= {f"{OPTIMIZER}{name}/{key}": value for key, value in state.items()}
    return keys


def _states(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, parameter in named(optimizer):
        if parameter in optimizer.state:
            yield name, optimizer.state[parameter]


def restore_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into `model`, each rank its shard; UserError where names or shapes differ."""
    own = model.state_dict()
    if own.keys() != weights.keys():
        missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        parts = [f"{verb} {_some(names)}" for verb, names in (("lacks", missing), ("also has", extra)) if names]
        raise UserError(f"the checkpoint is of another architecture: it {' and '.join(parts)}")
    for name, target in own.items():
        shape = weights.shapes[name] if isinstance(weights, ShardedTensors) else tuple(weights[name].shape)
        if tuple(target.shape) != shape:
            raise UserError(
                f"the checkpoint is of another architecture: {name} is {shape} there and {tuple(target.shape)} here"
            )
    for name, target in own.items():
        _fill_from(target, weights, name)


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore the optimizer state of each parameter, each rank its shard."""
    for name, parameter in named(optimizer):
        state = saved.get(name, {})
        shapes = (
            state.shapes
            if isinstance(state, ShardedTensors)
            else {k: getattr(v, "shape", None) for k, v in state.items()}
        )
        restored = {}
        for key, shape in shapes.items():
            if shape == tuple(parameter.shape):
                restored[key] = torch.empty_like(parameter, memory_format=torch.preserve_format).detach()
                _fill_from(restored[key], state, key)
            else:  # a count of steps; fused updates read it on the parameter's device
                value = state[key]
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


def write_file(
    path: Path, tensors: Mapping[str, Any], state: CheckpointState | None, shards: Mapping[str, Shard] | None = None
) -> str:
    """Write one file of a checkpoint and return its checksum.

    `tensors` are by key, as `by_key` and `local_shards` give them. The file of rank 0 holds the state too.
    """
    values = {key: value for key, value in tensors.items() if not isinstance(value, Tensor)}
    own = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    metadata = {"values": json.dumps(values)}
    if state is not None:
        metadata["state"], extra = state.to_json()
        own |= {f"{STATE}{key}": value for key, value in extra.items()}
    return write_tensors(path, own, metadata, shards)


def save(
    path: Path,
    state: CheckpointState,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a checkpoint of one file, so that `path` is at every moment absent, the old file or the whole new one."""
    save_file(path, state, by_key(model, optimizer or {}))


def save_file(path: Path, state: CheckpointState, tensors: Mapping[str, Any]) -> None:
    """The same of tensors by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary:
            checksum = write_file(temporary, tensors, state)
            write_sums(path.parent, {**_known_sums(path.parent), path.name: checksum})
        sync_folder(path.parent)
    except OSError as error:
        raise unsaved(error, path) from None


def unsaved(error: OSError, path: Path) -> OSError:
    """The same error, with what it means for the run: which checkpoint is there, or that none is."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno, f"{path} could not be saved ({reason}); {where_saved(path.parent)}")


def where_saved(folder: Path) -> str:
    """The newest checkpoint in `folder` that can be opened, for a message; its checksum is not compared."""
    last = linked(folder, "last")
    for path in [*(path for _, path in reversed(kept(folder))), *([last] if last is not None else [])]:
        with suppress(UserError, OSError):
            return f"the run is saved at step {load(path).state.step:,}, in {path}"
    return "nothing of the run is saved"


def rank_file(rank: int) -> str:
    """The name of a rank's file in a checkpoint that is a folder."""
    return f"rank_{rank:05d}.safetensors"


def link(source: Path, name: str) -> None:
    """Let `last` or `best` be the checkpoint `source` beside it, atomically."""
    is_file = source.is_file()
    target = source.with_name(f"{name}.ckpt" if is_file else name)
    other = target.with_name(name if is_file else f"{name}.ckpt")  # of before the strategy changed
    with replacing(target) as temporary:
        if is_file:
            try:
                os.link(source, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, temporary)
        else:
            temporary.symlink_to(source.name)
        for old in (target, other):
            if old.is_dir() and not old.is_symlink():  # a copy of the run in which links became what they led to
                shutil.rmtree(old)
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

    `best` is what the checkpoint of that step knows of the best one so far. Returns the names that were renamed.
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
        return load(path).state.step
    except UserError:  # it is damaged
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
        write_sums(folder, sums)


def _known_sums(folder: Path) -> dict[str, str]:
    return _parse(folder / SUMS) if (folder / SUMS).is_file() else {}


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write SHA256SUMS: the checksum of each file, by name."""
    write_text_atomic(folder / SUMS, "".join(f"{checksum}  {name}\n" for name, checksum in sums.items()))


def sums_of(path: Path) -> dict[str, str]:
    """The checksum that was written of each file of a checkpoint, by name; none of what has none."""
    if path.is_dir():
        return _known_sums(path)
    return {name: checksum for name, checksum in _known_sums(path.parent).items() if name == path.name}


def load(path: Path) -> Checkpoint:
    """Open a checkpoint; nothing in it is run, and tensors stay on the disk until they are asked for."""
    if path.is_dir():
        files = [path / name for name in _sums_within(path)]
    elif path.is_file() and re.fullmatch(r"rank_\d+\.safetensors", path.name):
        raise UserError(f"{path} is a part of a checkpoint; name the folder that it lies in")
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"resume={path} is no checkpoint; name one such as runs/NAME/checkpoints/last.ckpt")
    found = TensorFiles.open(files)
    first = path / rank_file(0) if path.is_dir() else path
    if "state" not in found.metadata[first]:
        raise UserError(f"{first} is not a checkpoint of gptlab; use one such as runs/NAME/checkpoints/last.ckpt")
    try:
        version = format_of(found.metadata[first]["state"])
        if version > FORMAT:
            raise UserError(f"{path} has format {version} and this version reads up to {FORMAT}; upgrade gptlab")
        state = CheckpointState.from_json(found.metadata[first]["state"], found.below(STATE).__getitem__)
        values = {k: v for about in found.metadata.values() for k, v in json.loads(about["values"]).items()}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{first} is damaged ({type(error).__name__}: {error}); use another checkpoint") from error
    keys: dict[str, dict[str, str]] = {}  # of each parameter's optimizer state
    for key in (*found.stored, *values):
        if key.startswith(OPTIMIZER):
            parameter, _, name = key.removeprefix(OPTIMIZER).rpartition("/")
            keys.setdefault(parameter, {})[name] = key
    optimizer = {parameter: found.select(names, values) for parameter, names in keys.items()}
    return Checkpoint(path, state, found.below(MODEL), optimizer)


def _sums_within(folder: Path) -> dict[str, str]:
    """The checksum of each file of a checkpoint that is a folder; UserError where one is missing."""
    if not (folder / SUMS).is_file():
        raise UserError(f"{folder} is no whole checkpoint: it has no {SUMS}; name a folder such as checkpoints/last")
    sums = _parse(folder / SUMS)
    missing = [name for name in sums if not (folder / name).is_file()]
    if rank_file(0) not in sums:
        raise UserError(f"{folder} is no whole checkpoint: its {SUMS} lacks {rank_file(0)}; use another one")
    if missing:
        raise UserError(f"{folder} lacks {_some(missing)}; restore it, or use another checkpoint")
    return sums


def _parse(sums: Path) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in sums.read_text().splitlines()]
    return {line[1]: line[0] for line in lines if len(line) == 2}


def verify(path: Path) -> None:
    """Compare a checkpoint with its checksums; UserError where they differ."""
    try:
        if path.is_dir():
            for name, checksum in _sums_within(path).items():
                if sha256_of(path / name) != checksum:
                    raise UserError(f"{path / name} is damaged: its checksum is not that of {SUMS}")
        else:
            sums = path.parent / SUMS
            lines = sums.read_text().splitlines() if sums.is_file() else []
            # `last` and `best` are other names of a step's file.
            if lines and sha256_of(path) not in {line.split(" ")[0] for line in lines}:
                raise UserError(f"{path} is damaged: its checksum is not in {sums}")
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
        except UserError as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped
