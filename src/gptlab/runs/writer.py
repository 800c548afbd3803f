"""Writing checkpoints, in the background if asked: a checkpoint gets its name when every rank's file is on the disk."""

import copy
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.distributed.sharded_tensors import local, part_of
from gptlab.distributed.signals import Failure
from gptlab.files import replace_folder, sync_folder
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.tensor_files import Shard


@dataclass(slots=True)
class Save:
    """One checkpoint to be written."""

    path: Path
    state: CheckpointState
    tensors: dict[str, Any]  # by key: all of them on rank 0, or if `sharded` those that this rank writes
    sharded: bool
    links: list[str]  # further names that it gets: last, best
    # Called by rank 0 with the seconds that it took, and those that training had to wait.
    done: Callable[[float, float], None] = field(default=lambda seconds, waited: None)


class CheckpointWriter:
    """Writes one checkpoint at a time. `save` and `wait` are called by all ranks alike.

    All ranks raise the same error where one of them could not write, so that none waits for another.
    """

    def __init__(self, *, asynchronous: bool, keep_last: int, rank: int, world_size: int, timeout_seconds: int):
        self.asynchronous = asynchronous
        self.keep_last = keep_last
        self.rank = rank
        self.world_size = world_size
        # A process group of its own, so that collectives of the thread do not mix with those of training.
        timeout = timedelta(seconds=timeout_seconds)
        self._group = torch.distributed.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, save: Save) -> None:
        """Write a checkpoint; if asynchronous, copy it, start the writing and return."""
        self.wait()
        started = time.perf_counter()
        shards = None
        if save.sharded:
            shards = {
                key: Shard([along.start for along in part_of(value)], list(value.shape))
                for key, value in save.tensors.items()
                if isinstance(value, Tensor)
            }
        if save.sharded or self.rank == 0:
            save.tensors = {key: self._copied(value) for key, value in save.tensors.items()}
        if self.asynchronous:
            save.state = copy.deepcopy(save.state)  # callbacks may return what they go on to change
            waited = time.perf_counter() - started
            self._thread = threading.Thread(target=self._try, args=(save, shards, started, waited), name="save")
            self._thread.start()
        else:
            self._try(save, shards, started)
            self._raise()

    @property
    def failed(self) -> bool:
        """Whether the newest save failed, known before the next `wait` raises its error."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until nothing is being written; raises what ended the newest save."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _copied(self, value: Any) -> Any:
        """On the CPU and contiguous; where training goes on meanwhile, in memory of its own."""
        if not isinstance(value, Tensor):
            return value
        return local(value).to("cpu", copy=self.asynchronous, memory_format=torch.contiguous_format).contiguous()

    def _try(self, save: Save, shards: dict[str, Shard] | None, started: float, waited: float | None = None) -> None:
        try:
            self._write(save, shards)
            if self.rank == 0:
                seconds = time.perf_counter() - started
                save.done(seconds, seconds if waited is None else waited)
        except Exception as error:  # of a thread, or of another rank: raised where training goes on
            self._error = error

    def _write(self, save: Save, shards: dict[str, Shard] | None) -> None:
        save.path.parent.mkdir(parents=True, exist_ok=True)
        if shards is None:
            self._together(save.path, lambda: checkpoint.save_file(save.path, save.state, save.tensors), rank_0=True)
        else:
            temporary = save.path.with_name(f".{save.path.name}.tmp")
            try:
                self._together(save.path, lambda: self._prepare(temporary), rank_0=True)
                sums = self._together(save.path, lambda: self._write_shards(temporary, save, shards))
                self._together(save.path, lambda: self._commit(temporary, save.path, dict(sums)), rank_0=True)
            finally:
                if self.rank == 0:
                    shutil.rmtree(temporary, ignore_errors=True)
        self._together(save.path, lambda: self._name(save), rank_0=True)

    def _together(self, path: Path, work: Callable[[], Any], *, rank_0: bool = False) -> list:
        """Every rank's result of `work`, which with `rank_0` it alone does; or on every rank the first error of any."""
        result, own = None, None
        if self.rank == 0 or not rank_0:
            try:
                result = work()
            except Exception as error:
                own = error
        outcome = result, None if own is None else (getattr(own, "errno", None), f"{type(own).__name__}: {own}")
        outcomes: list[Any] = [outcome]
        if self._group is not None:
            outcomes = [None] * self.world_size
            torch.distributed.all_gather_object(outcomes, outcome, group=self._group)
        if own is not None and not isinstance(own, OSError):
            raise own
        for _, problem in outcomes:
            if problem is not None:
                number, text = problem
                error = checkpoint.unsaved(OSError(number, text) if number else OSError(text), path)
                if self._group is None:
                    raise error
                raise Failure(error.strerror)  # of all ranks, and printed once
        return [result for result, _ in outcomes]

    def _prepare(self, temporary: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    def _write_shards(self, temporary: Path, save: Save, shards: dict[str, Shard]) -> tuple[str, str]:
        name = checkpoint.rank_file(self.rank)
        state = save.state if self.rank == 0 else None
        return name, checkpoint.write_file(temporary / name, save.tensors, state, shards)

    def _commit(self, temporary: Path, path: Path, sums: dict[str, str]) -> None:
        checkpoint.write_sums(temporary, sums)
        sync_folder(temporary)
        replace_folder(temporary, path)  # one of this name is there where the run went back to before this step
        sync_folder(path.parent)

    def _name(self, save: Save) -> None:
        for name in save.links:
            checkpoint.link(save.path, name)
        checkpoint.prune(save.path.parent, self.keep_last)
