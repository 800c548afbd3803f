"""Writing a run folder: its lock, events, metrics and summary; and reading them back."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gptlab.errors import UserError
from gptlab.files import is_locked, locked, replacing, write_text_atomic

# What only the process that holds a run's lock writes.
LAYERS_FILE = "layers.csv"  # sizes by layer, of some of the steps, in the form of metrics.csv
OWN_FILES = (
    *("config.yaml", "inputs.json", "tokenizer.json", "environment.json", "metrics.csv", LAYERS_FILE),
    *("loss.png", "summary.json", "forecast.json"),
)
RUNNING_LOCK = ".running.lock"  # beside `lock`, which is read: on Windows nobody can read a locked file


class RunFolder:
    """`runs/<name>/` while it is written; only rank 0 does."""

    def __init__(self, path: Path, *, writes: bool):
        self.path = path
        self.writes = writes
        self.checkpoints = path / "checkpoints"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process out; UserError where one holds the lock."""
        if not self.writes:
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be created ({error.strerror}); name another folder") from error
        file, own = self.path / "lock", self.path / RUNNING_LOCK
        process = ""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(own, wait=False))
            except BlockingIOError:
                with suppress(OSError):  # which the other writes after it has the lock
                    process = f" (process {file.read_text().strip()})"
                raise UserError(
                    f"{self.path} is being written by another run{process}; "
                    "wait for it, stop it, or give this run another name with name=..."
                ) from None
            file.write_text(str(os.getpid()))
            self._clear_interrupted()
            self._end_event()
            try:
                yield
            finally:
                empty = {entry.name for entry in self.path.iterdir()} <= {file.name, own.name}
                if empty:  # refused before anything was written
                    if os.name == "nt":  # where nobody can remove a locked file
                        stack.close()
                    file.unlink(missing_ok=True)
                    own.unlink(missing_ok=True)
                    with suppress(OSError):  # another run has begun here
                        self.path.rmdir()

    def _clear_interrupted(self) -> None:
        """Remove the temporary files and folders of a process that was killed while it wrote them."""
        for pattern in (*(f".{name}.*.tmp" for name in OWN_FILES), "checkpoints/.*.tmp", "checkpoints/.*.old"):
            for left in self.path.glob(pattern):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    def _end_event(self) -> None:
        """End the line of an event that a kill cut off, so that the next one is not lost with it."""
        with suppress(FileNotFoundError), open(self.path / "events.jsonl", "rb+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to events.jsonl."""
        if self.writes:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            with open(self.path / "events.jsonl", "a") as file:
                file.write(json.dumps({"time": moment, "event": kind, **facts}) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """What happened so far, oldest first."""
        return read_events(self.path)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text_atomic(self.path / name, json.dumps(content, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """summary.json of a run that has ended; None for any other."""
        return read_summary(self.path)


def is_running(run: Path) -> bool:
    """Whether a process is writing the run folder now, on this machine or one that shares its locks."""
    return is_locked(run / RUNNING_LOCK)


def read_events(run: Path) -> list[dict[str, Any]]:
    """The lines of events.jsonl, oldest first; one that was cut off by a kill is left out."""
    path = run / "events.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json of a run that has ended; None for any other."""
    path = run / "summary.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it, or delete it and run the same command again"
        ) from None


class MetricsFile:
    """metrics.csv: a row per optimizer step, floats written so that they read back exactly."""

    def __init__(self, path: Path, columns: list[str]):
        self.path = path
        self.columns = columns
        self._file = open(path, "a", newline="")  # noqa: SIM115  (open as long as the run)
        if self._file.tell() == 0:
            self._file.write(",".join(columns) + "\n")

    def write(self, row: dict[str, float | int]) -> None:
        self._file.write(",".join(repr(row[name]) if name in row else "" for name in self.columns) + "\n")

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        """Flush the rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv; empty cells are left out, `step` and `tokens` are ints."""
    columns = read_columns(path)
    names = list(columns)
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def read_columns(path: Path) -> dict[str, list]:
    """The columns of a metrics.csv, with None in empty cells; `step` and `tokens` are ints. {} where there is none."""
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        text = file.read()
    # What follows the last line end is being written, or was when the run was killed: its last number may be cut off.
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    names = header.split(",")
    if "step" not in names or "tokens" not in names:
        return {}
    rows = [cells for line in lines if len(cells := line.split(",")) == len(names)]
    try:
        return _parsed(names, rows)
    except ValueError:
        return _parsed(names, [row for row in rows if _is_whole(names, row)])


def _parsed(names: list[str], rows: list[list[str]]) -> dict[str, list]:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return {
        name: [int(cell) for cell in cells]
        if name in ("step", "tokens")
        else [float(cell) if cell else None for cell in cells]
        for name, cells in zip(names, columns, strict=True)
    }


def _is_whole(names: list[str], row: list[str]) -> bool:
    try:
        _parsed(names, [row])
    except ValueError:
        return False
    return True


def cut_metrics(source: Path, target: Path, step: int, columns: list[str]) -> None:
    """Keep the rows up to `step`, which a run that continues from there will not write again."""
    kept = [row for row in read_metrics(source) if row["step"] <= step]
    with replacing(target) as temporary:
        file = MetricsFile(temporary, columns)
        for row in kept:
            file.write(row)
        file.close()
