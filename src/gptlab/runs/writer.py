"""Writing checkpoints, beside the steps if asked: a checkpoint gets its name when every rank's part is on the disk."""

import os
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
from gptlab.runs import checkpoint
from gptlab.runs.folder import write_text


@dataclass(slots=True)
class Save:
    """One checkpoint to be written. `parts` is None where one file holds everything, which the first rank writes."""

    path: Path
    state: dict[str, Any]
    parts: dict[str, Tensor] | None
    links: list[str]  # names that it gets beside its own
    # Called by the first rank with the seconds that it took, and those that the steps had to wait.
    done: Callable[[float, float], None] = field(default=lambda seconds, held: None)


class CheckpointWriter:
    """Writes one checkpoint at a time. `save` and `wait` are called by all ranks alike.

    All ranks raise the same error where one of them could not write, so that none waits for another.
    """

    def __init__(self, *, asynchronous: bool, keep_last: int, rank: int, world_size: int, timeout_seconds: int):
        self.asynchronous = asynchronous
        self.keep_last = keep_last
        self.rank = rank
        self.world_size = world_size
        # Of its own, so that exchanges of a thread do not mix with those of the steps.
        timeout = timedelta(seconds=timeout_seconds)
        self._group = torch.distributed.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, save: Save) -> None:
        """Write a checkpoint; if asynchronous, only copy it and return."""
        self.wait()
        started = time.perf_counter()
        where = {}
        if save.parts is not None:
            where = {key: (part_of(value), value.shape) for key, value in save.parts.items()}
            save.parts = {key: self._copied(local(value)) for key, value in save.parts.items()}
        if self.rank == 0:
            save.state = self._all_copied(save.state)
        if self.asynchronous:
            held = time.perf_counter() - started
            self._thread = threading.Thread(target=self._try, args=(save, where, started, held), name="save")
            self._thread.start()
        else:
            self._try(save, where, started)
            self._raise()

    @property
    def failed(self) -> bool:
        """Whether the newest save has ended badly; it says so at once, before the next `wait`."""
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

    def _copied(self, value: Tensor) -> Tensor:
        """On the CPU, in one piece, and where steps go on meanwhile apart from what they change."""
        return value.to("cpu", copy=self.asynchronous, memory_format=torch.contiguous_format).contiguous()

    def _all_copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copied(value)
        return {key: self._all_copied(item) for key, item in value.items()} if isinstance(value, dict) else value

    def _try(self, save: Save, where: dict, started: float, held: float | None = None) -> None:
        try:
            self._write(save, where)
            if self.rank == 0:
                seconds = time.perf_counter() - started
                save.done(seconds, seconds if held is None else held)
        except Exception as error:  # of a thread, or of another rank: raised where the steps are
            self._error = error

    def _write(self, save: Save, where: dict) -> None:
        save.path.parent.mkdir(parents=True, exist_ok=True)
        if save.parts is None:
            self._together(save.path, lambda: checkpoint.save(save.state, save.path), only_first=True)
        else:
            temporary = save.path.with_name(f".{save.path.name}.tmp")
            try:
                self._together(save.path, lambda: self._prepare(temporary), only_first=True)
                sums = self._together(save.path, lambda: self._write_part(temporary, save, where))
                self._together(save.path, lambda: self._commit(temporary, save.path, dict(sums)), only_first=True)
            finally:
                if self.rank == 0:
                    shutil.rmtree(temporary, ignore_errors=True)
        self._together(save.path, lambda: self._name(save), only_first=True)

    def _together(self, path: Path, work: Callable[[], Any], *, only_first: bool = False) -> list:
        """Every rank's result of `work`, or on every rank the first error of any."""
        result, own = None, None
        if self.rank == 0 or not only_first:
            try:
                result = work()
            except Exception as error:
                own = error
        outcome = result, None if own is None else (getattr(own, "errno", None), f"{type(own).__name__}: {own}")
        outcomes = [outcome]
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
                raise Failure(f"{error.strerror}: {path}")  # of all ranks, and said once
        return [result for result, _ in outcomes]

    def _prepare(self, temporary: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()

    def _write_part(self, temporary: Path, save: Save, where: dict) -> tuple[str, str]:
        name = f"rank_{self.rank:05d}.safetensors"
        if self.rank == 0:
            self._rest_sum = checkpoint.write_file(save.state, temporary / checkpoint.REST)
        return name, checkpoint.write_shards(save.parts, where, temporary / name)

    def _commit(self, temporary: Path, path: Path, sums: dict[str, str]) -> None:
        sums = {checkpoint.REST: self._rest_sum, **sums}
        text = "".join(f"{checksum}  {name}\n" for name, checksum in sums.items())
        write_text(temporary / checkpoint.SUMS, text)
        checkpoint.sync_folder(temporary)
        if path.exists():  # the run was taken back to before this step
            replaced = path.with_name(f".{path.name}.old.tmp")
            os.replace(path, replaced)
            os.replace(temporary, path)
            shutil.rmtree(replaced)
        else:
            os.replace(temporary, path)
        checkpoint.sync_folder(path.parent)

    def _name(self, save: Save) -> None:
        for name in save.links:
            checkpoint.link(save.path, name)
        checkpoint.prune(save.path.parent, self.keep_last)
