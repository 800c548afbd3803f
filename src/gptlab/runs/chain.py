"""The hash chain of a run: chain.jsonl, whose entries seal what the run folder holds, so that a later change shows.

Each entry has the SHA-256 of the one before it and of its own content, `head`. Entries are only ever appended. What
they seal: the rows of metrics.csv by a hash chain of their own, in which each hash is of the one before and the row;
the weights by checksum; events.jsonl by its length and the SHA-256 up to there; config, inputs, tokenizer, environment,
checkpoints and the summary by the SHA-256 of their files.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlab.files import sha256_of

FILE = "chain.jsonl"
EVENTS = "events.jsonl"
BEGINNING = hashlib.sha256(b"gptlab chain 1").hexdigest()  # what comes before the first hash
TAG_DIGITS = 8  # of the hash of each row that an entry keeps, by which the first changed row is found
# Kinds of entries.
STARTED, CONTINUED, ROLLED_BACK, REWRITTEN = "started", "continued", "rolled back", "rewritten"
WEIGHTS, SAVED, ENDED, FINISHED = "weights", "saved", "ended", "finished"
AGAIN = (STARTED, CONTINUED, ROLLED_BACK, REWRITTEN)  # the rows after their step are written again
# What an entry has to have beside `events`, by its kind.
START = ("row", "rows", "files", "tokens")
PARTS = {STARTED: START, CONTINUED: START, WEIGHTS: ("row", "rows", "weights"), SAVED: ("files",)}
PARTS |= {ROLLED_BACK: ("row", "rows"), ENDED: ("row", "rows", "files"), FINISHED: ("row", "rows", "files")}
SEALED = ("config.yaml", "inputs.json", "tokenizer.json", "environment.json")  # at each start


def row_text(row: Mapping[str, float | int]) -> str:
    """A row of metrics.csv as it is hashed: the same whatever other columns the file has, and in whatever order."""
    return ",".join(
        f"{name}={int(value) if name in ('step', 'tokens') else repr(float(value))}"
        for name, value in sorted(row.items())
    )


class RowChain:
    """The hash chain of the rows of metrics.csv."""

    def __init__(self, rows: Iterable[Mapping[str, float | int]] = ()):
        self.head = BEGINNING
        self.step: int | None = None  # of the newest row
        self.tags = ""  # of the rows that no entry has named yet
        for row in rows:
            self.add(row)
        self.tags = ""

    def add(self, row: Mapping[str, float | int]) -> str:
        """The hash of the next row, which the next one is hashed with."""
        self.head = hashlib.sha256(f"{self.head}\n{row_text(row)}".encode()).hexdigest()
        self.step = int(row["step"])
        self.tags += self.head[:TAG_DIGITS]
        return self.head

    def take_tags(self) -> str:
        """The first digits of the hashes of all rows since the last call."""
        tags, self.tags = self.tags, ""
        return tags


def entry_head(before: str, content: Mapping[str, Any]) -> str:
    """The hash of an entry without its `head`."""
    return hashlib.sha256(f"{before}\n{_text(content)}".encode()).hexdigest()


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


class Chain:
    """chain.jsonl while the run goes on; written by rank 0 alone, and by the thread that saves too."""

    def __init__(self, run: Path):
        self.run = run
        self.path = run / FILE
        self._lock = threading.Lock()
        self._events = hashlib.sha256()
        self._event_bytes = 0
        _end_line(self.path)
        entries = read_chain(run).entries
        self.head: str = entries[-1]["head"] if entries else BEGINNING

    def append(self, entry: str, **facts: Any) -> str:
        """Write an entry, with what events.jsonl holds by now, and return its hash."""
        with self._lock:
            content = {"entry": entry, **facts, "events": self._read_events()}
            self.head = entry_head(self.head, content)
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(_text({**content, "head": self.head}) + "\n")
                if entry in (SAVED, ENDED, FINISHED):
                    file.flush()
                    os.fsync(file.fileno())
            return self.head

    def seal(self) -> dict[str, str]:
        """The SHA-256 of the files that a start of the run writes, by name."""
        return {name: sha256_of(self.run / name) for name in SEALED if (self.run / name).is_file()}

    def _read_events(self) -> list[Any]:
        path = self.run / EVENTS
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(self._event_bytes)
                new = file.read()
            self._events.update(new)
            self._event_bytes += len(new)
        return [self._event_bytes, self._events.hexdigest()]


def _end_line(path: Path) -> None:
    """Take away what a kill left of a line that was being written."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _is_whole(entry: Mapping[str, Any]) -> bool:
    """Whether an entry has what those of its kind have; KeyError or TypeError for some that have not."""
    end, checksum = entry["events"]
    known = isinstance(end, int) and isinstance(checksum, str) and isinstance(entry["step"], int)
    found = {part: entry[part] for part in PARTS.get(entry["entry"], ())}
    tables = [found[part] for part in ("files", "tokens") if part in found]
    return (
        known
        and all(isinstance(table, dict) for table in tables)
        and all(isinstance(found[part], str) for part in ("rows", "weights") if part in found)
        and ("row" not in found or found["row"] is None or isinstance(found["row"], int))
        and isinstance(entry.get("tags", ""), str)
        and ("rows" not in entry or "row" in entry)
    )


@dataclass(slots=True)
class ChainRecord:
    """What chain.jsonl holds."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    broken: int | None = None  # the first line that does not follow from those before it, from 1
    torn: bool = False  # the last line was cut off by a kill; it is left out


def read_chain(run: Path) -> ChainRecord:
    """The entries of chain.jsonl up to the first that does not follow from the one before."""
    path, found = run / FILE, ChainRecord()
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    *lines, rest = text.split("\n")
    found.torn = bool(rest)
    head = BEGINNING
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            own = entry.pop("head")
            follows = own == entry_head(head, entry) and line == _text({**entry, "head": own}) and _is_whole(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            follows, entry, own = False, {}, ""
        if not follows:
            found.broken = number
            break
        head = own
        found.entries.append({**entry, "head": own})
    return found
