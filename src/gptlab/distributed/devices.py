"""Devices, precision, peak FLOP/s and memory of the machine."""

import gc
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from gptlab.distributed import hardware
from gptlab.distributed.allocator import expected_fragmentation, release_kept_memory
from gptlab.distributed.float8 import check_capability
from gptlab.distributed.launch import check_launch, find_launched
from gptlab.errors import UserError
from gptlab.training.config import FLOAT8, TrainerConfig

LOADED_LATER = 24 * 2**20  # bytes of libraries that a CPU's process loads while it trains (benchmarks/memory.py)
LOADED_FOR_FLOAT8 = 40 * 2**20  # torchao's and, with it, of torch's compiler


@dataclass(frozen=True, slots=True)
class Devices:
    """Where a run is carried out."""

    accelerator: str
    per_node: int | list[int]
    world_size: int
    precision: str
    peak_flops: float | None  # of one device
    process_bytes: int = 0  # what a process on the CPU takes besides the tensors of training
    fragmentation: float = 0.0  # of memory on the CPU, as a fraction of the tensors that come and go

    def describe(self) -> str:
        kind = (
            "CPU"
            if self.accelerator == "cpu"
            else torch.cuda.get_device_name()
            if self.accelerator == "cuda"
            else self.accelerator
        )
        threads = f" (threads: {torch.get_num_threads()})" if self.accelerator == "cpu" else ""
        return f"{self.world_size} x {kind}{threads}, {self.precision}"


def find_devices(config: TrainerConfig) -> Devices:
    """Resolve what the config leaves to the machine; UserError for devices that are not there."""
    accelerator = {"gpu": "cuda"}.get(config.accelerator, config.accelerator)
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator not in ("cpu", "cuda", "mps"):
        raise UserError(f"trainer.accelerator={config.accelerator} is unknown; use auto, cpu, gpu or mps")
    there = {"cpu": None, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[accelerator]
    launched = find_launched()
    if launched is not None and config.devices == "auto":
        asked = launched.per_node
    else:
        asked = config.device_count() or there or 1
    check_launch(launched, per_node=asked, n_nodes=config.num_nodes)
    source = f"trainer.devices={config.devices}" if launched is None else launched.by
    if accelerator != "cpu" and asked > there:
        raise UserError(f"{source} asks for {asked} devices and this machine has {there}")
    if accelerator == "cpu" and asked > 1 and config.accelerator == "auto":
        raise UserError(
            f"{source} asks for {asked} devices and this machine has no GPU; "
            "for processes on the CPU use trainer.accelerator=cpu"
        )
    precision = config.precision
    if precision is None:
        bf16 = accelerator == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if bf16 else "32-true"
    if precision == "16-mixed" and accelerator == "cpu":
        raise UserError("trainer.precision=16-mixed needs a GPU; on a CPU use 32-true or bf16-mixed")
    if precision == FLOAT8:
        _check_float8(accelerator, config.devices if isinstance(config.devices, list) else range(asked))
    world_size = asked * config.num_nodes
    per_node = config.devices if isinstance(config.devices, list) else asked
    process_bytes, fragmentation = 0, 0.0
    if accelerator == "cpu":
        process_bytes = (resident_bytes() or 0) + LOADED_LATER + LOADED_FOR_FLOAT8 * (precision == FLOAT8)
        fragmentation = expected_fragmentation()
    return Devices(
        accelerator, per_node, world_size, precision, _peak(accelerator, precision), process_bytes, fragmentation
    )


def _check_float8(accelerator: str, indices: Iterable[int]) -> None:
    if accelerator == "mps":
        raise UserError(
            f"trainer.precision={FLOAT8} does not run on accelerator mps; use a GPU with CUDA, "
            "trainer.accelerator=cpu, which emulates it, or trainer.precision=32-true"
        )
    for index in indices if accelerator == "cuda" else ():
        check_capability(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))


def _peak(accelerator: str, precision: str) -> float | None:
    if accelerator != "cuda":
        return None
    kind = hardware.of_cuda(torch.cuda.get_device_name())
    return None if kind is None else kind.peak_flops(precision)


def free_memory_bytes(devices: Devices, n_nodes: int = 1) -> int | None:
    """What each device of this machine may still allocate; None where that is not known.

    Processes on a CPU share what the system and the control groups (versions 1 and 2) of this process leave.
    """
    gc.collect()  # an earlier run's model lies in cycles
    if devices.accelerator == "cuda":
        torch.cuda.empty_cache()
        chosen = devices.per_node if isinstance(devices.per_node, list) else range(devices.per_node)
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        return torch.cuda.mem_get_info(chosen[local % len(chosen)])[0]
    if devices.accelerator != "cpu":
        return None
    release_kept_memory()  # which is free too
    free = [
        *_free_in_system(Path("/proc/meminfo")),
        *_free_in_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")),
    ]
    return min(free) // (devices.world_size // n_nodes) if free else None


def _free_in_system(meminfo: Path) -> list[int]:
    with suppress(OSError, StopIteration, ValueError):
        lines = meminfo.read_text().splitlines()
        return [1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))]
    return []


def _free_in_groups(root: Path, own: Path) -> list[int]:
    """What each control group that this process is in leaves, its cache of files being free."""
    found = []
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return found
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if not controllers:
            base, limit, usage = root, "memory.max", "memory.current"
            cache = ("inactive_file", "active_file", "slab_reclaimable")
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = ("total_inactive_file", "total_active_file")
        else:
            continue
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):  # a limit of a group above holds too
            with suppress(OSError, ValueError):
                most, used = (int((folder / file).read_text()) for file in (limit, usage))
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                found.append(max(0, min(most, most - used + sum(int(stat.get(name, 0)) for name in cache))))
            if folder == base:
                break
    return found


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_gib(device: torch.device) -> float:
    """The most that was allocated on a GPU; what the process holds on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return (resident_bytes() or 0) / 2**30


def resident_bytes() -> int | None:
    """What this process holds in memory, or its peak where that alone is known (macOS); None where neither is."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        try:
            import resource
        except ImportError:  # Windows
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")
