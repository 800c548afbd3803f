"""Planned changes of a run in mid-flight: the words that may change, and the file in which they wait for the run."""

import copy
import fcntl
import json
import os
import time
import typing
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

from gptlab.config import RunConfig
from gptlab.errors import UserError
from gptlab.runs.folder import RunFolder, write_text
from gptlab.values import coerce

FILE = "amendments.jsonl"
TAKEN, REFUSED = "amended", "amendment refused"  # on the record
OPTIMIZER = ("lr", "adamw_lr", "weight_decay", "grad_clip", "beta1", "beta2", "eps", "momentum")


@dataclass(frozen=True, slots=True)
class Amendment:
    """Words that hold from an optimizer step on."""

    number: int
    words: dict[str, Any]
    step: int | None = None  # finished when it was taken up; None: it waits

    def __str__(self) -> str:
        return " ".join(f"{word}={'null' if value is None else value}" for word, value in self.words.items())


def amendable(config: RunConfig) -> list[str]:
    """The words of this config that may change while it runs."""
    words = [f"optimizer.{name}" for name in OPTIMIZER if hasattr(config.optimizer, name)]
    words += [f"schedule.{f.name}" for f in fields(config.schedule)]
    if config.callbacks.checkpoint is not None:
        words += [f"callbacks.checkpoint.{f.name}" for f in fields(config.callbacks.checkpoint)]
    return words


def amended(config: RunConfig, words: dict[str, Any], *, n_steps: int | None = None) -> RunConfig:
    """The config with other values; ValueError where a word may not change or a value is none of its.

    `n_steps` is the length of the run, where it is known, for the check of the schedule.
    """
    changed = copy.deepcopy(config)
    allowed = amendable(config)
    for word, value in words.items():
        if word not in allowed:
            refuse(word, allowed)
        *path, name = word.split(".")
        part = reduce(getattr, path, changed)
        setattr(part, name, coerce(word, value, typing.get_type_hints(type(part))[name]))
    for part in (changed.optimizer, changed.schedule, changed.callbacks):
        part.check()
    if n_steps is not None:
        changed.schedule.build(n_steps=n_steps, batch_tokens=changed.batch_tokens)
    return changed


def refuse(word: str, allowed: list[str]) -> NoReturn:
    """Say that a word may not change, and which may."""
    raise UserError(f"{word} may not change in mid-flight; these may: {', '.join(allowed)}")


def read(folder: Path) -> tuple[list[Amendment], list[str]]:
    """All amendments that were ever written for a run, and what of the file cannot be read."""
    path = folder / FILE
    found, damaged = [], []
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        return [], [f"{path} cannot be read ({error})"]
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found.append(Amendment(int(entry["number"]), dict(entry["words"])))
        except (ValueError, TypeError, KeyError):
            damaged.append(f"line {number} of {path} is no amendment; take it out and write it again with gptlab amend")
    return found, damaged


def add(folder: RunFolder, words: dict[str, Any]) -> Amendment:
    """Write an amendment for a run to take up; ValueError where the file is damaged."""
    path = folder.path
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # of the folder: two amendments at once are both kept
        known, damaged = read(path)
        if damaged:
            raise UserError(damaged[0])
        decided = [event["number"] for event in folder.events() if event["event"] in (TAKEN, REFUSED)]
        number = max([amendment.number for amendment in known] + decided, default=0) + 1
        line = json.dumps({"number": number, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "words": words})
        earlier = (path / FILE).read_text() if (path / FILE).is_file() else ""
        write_text(path / FILE, f"{earlier}{line}\n")
    finally:
        os.close(descriptor)
    return Amendment(number, words)


def on_record(folder: RunFolder) -> tuple[list[Amendment], set[int]]:
    """What a run took up and at which steps, and the numbers of what it refused."""
    events = folder.events()
    taken = [Amendment(e["number"], e["words"], e["step"]) for e in events if e["event"] == TAKEN]
    return taken, {e["number"] for e in events if e["event"] == REFUSED}


def at_step(config: RunConfig, taken: list[Amendment], step: int) -> RunConfig:
    """The config that holds for the update after `step` finished ones; of two words for one thing the later counts."""
    words = {}
    for amendment in sorted(taken, key=lambda amendment: amendment.number):
        if amendment.step <= step:
            words |= amendment.words
    return amended(config, words)
