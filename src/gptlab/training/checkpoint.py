"""The state of a run in one file: keyed by parameter name, so that it does not depend on how the work was spread."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

FORMAT = 1


def _whole(value: Any) -> Any:
    """A tensor as one CPU tensor, whatever device or shards it lives on; a collective for shards."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _like(value: Any, target: torch.Tensor) -> Any:
    """`value` placed and sharded as `target` is."""
    if isinstance(target, DTensor):
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return value.to(target.device)


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights by name, whole."""
    return {name: _whole(value) for name, value in model.state_dict().items()}


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimiser remembers of each parameter, by the parameter's name."""
    return {
        name: {key: _whole(value) for key, value in optimizer.state[parameter].items()}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def restore_model(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy weights into `model`; ValueError where names or shapes differ."""
    own = model.state_dict()
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        parts = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("also has", extra)) if names]
        raise ValueError(f"the checkpoint is of another architecture: it {' and '.join(parts)}")
    for name, target in own.items():
        if target.shape != state[name].shape:
            raise ValueError(
                f"the checkpoint is of another architecture: {name} is {tuple(state[name].shape)} there "
                f"and {tuple(target.shape)} here"
            )
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(_like(state[name], target))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]) -> None:
    """Give the optimiser its memory of each parameter back."""
    for name, parameter in model.named_parameters():
        if name not in state:
            continue
        optimizer.state[parameter] = {
            key: (
                _like(value, parameter)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                # Fused updates read their step counter on the parameter's device.
                else value.to(parameter.device)
                if isinstance(value, torch.Tensor)
                else value
            )
            for key, value in state[name].items()
        }


class _Writer(io.RawIOBase):
    """A file that remembers why a write failed; torch.save would say only that one did."""

    def __init__(self, file: io.BufferedWriter):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def writable(self) -> bool:
        return True


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that `path` is at every moment absent, the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            writer = _Writer(file)
            try:
                torch.save(state, writer)
                file.flush()
                os.fsync(file.fileno())
            except Exception as error:
                raise (writer.error or error) from None
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(
            error.errno, f"{os.strerror(error.errno)}; the run stays saved at its last checkpoint", str(path)
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def link(source: Path, name: Path) -> None:
    """Let `name` be the same file as `source`, atomically."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(source.read_bytes())
    os.replace(temporary, name)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is run, and tensors stay on disk until they are copied."""
    if not path.is_file():
        raise ValueError(f"resume={path} is not a file; name a .ckpt file such as runs/NAME/checkpoints/last.ckpt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}); resume from another file") from error
    if not isinstance(state, dict) or "gptlab_format" not in state:
        raise ValueError(f"{path} is not a checkpoint of gptlab; resume from runs/NAME/checkpoints/last.ckpt")
    if state["gptlab_format"] > FORMAT:
        raise ValueError(
            f"{path} has format {state['gptlab_format']} and this version reads up to {FORMAT}; upgrade gptlab"
        )
    return state


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in `folder`, and why newer ones were skipped."""
    skipped = []
    candidates = sorted(folder.glob("step_*.ckpt"), reverse=True)
    last = folder / "last.ckpt"
    for path in [*candidates, *([last] if last.exists() else [])]:
        try:
            load(path)
        except ValueError as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped
