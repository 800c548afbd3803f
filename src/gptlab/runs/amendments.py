"""Amendments: overrides that change a run while it is going, and the file in which they wait for it."""

import copy
import json
import time
import typing
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from gptlab.errors import UserError
from gptlab.files import locked, write_text_atomic
from gptlab.runs.folder import RunFolder
from gptlab.steps import Steps
from gptlab.training.config import CallbacksConfig, OptimizerConfig, ScheduleConfig
from gptlab.values import coerce

FILE = "amendments.jsonl"
TAKEN, REFUSED = "amended", "amendment refused"  # events
OPTIMIZER = ("lr", "adamw_lr", "weight_decay", "grad_clip", "beta1", "beta2", "eps", "momentum")


class Amendable(Protocol):
    """The parts of a config that an amendment may change, and what their checks need."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    callbacks: CallbacksConfig
    batch_tokens: int

    @property
    def steps(self) -> Steps: ...


@dataclass(slots=True)
class AmendableConfig:
    """These parts alone."""

    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    callbacks: CallbacksConfig
    batch_tokens: int
    steps: Steps


A = TypeVar("A", bound=Amendable)


@dataclass(frozen=True, slots=True)
class Amendment:
    """Overrides that hold from an optimizer step on."""

    number: int
    overrides: dict[str, Any]
    step: int | None = None  # finished when it was applied; None: it waits

    def __str__(self) -> str:
        return " ".join(f"{key}={'null' if value is None else value}" for key, value in self.overrides.items())


def amendable(config: Amendable) -> list[str]:
    """The keys of this config that may change while it runs."""
    keys = [f"optimizer.{name}" for name in OPTIMIZER if hasattr(config.optimizer, name)]
    keys += [f"schedule.{f.name}" for f in fields(config.schedule) if f.name != "type"]
    if config.callbacks.checkpoint is not None:
        keys += [f"callbacks.checkpoint.{f.name}" for f in fields(config.callbacks.checkpoint)]
    return keys


def amended(config: A, overrides: dict[str, Any], *, n_steps: int | None = None) -> A:
    """The config with other values; UserError where a key may not change or a value is not one of its type.

    `n_steps` is the length of the run, where it is known, for the check of the schedule.
    """
    changed = copy.deepcopy(config)
    allowed = amendable(config)
    for key, value in overrides.items():
        if key not in allowed:
            refuse(key, allowed)
        *path, name = key.split(".")
        part = reduce(getattr, path, changed)
        setattr(part, name, coerce(key, value, typing.get_type_hints(type(part))[name]))
    for part in (changed.optimizer, changed.schedule, changed.callbacks):
        part.check()
    if n_steps is not None:
        changed.schedule.build(n_steps=n_steps, batch_tokens=changed.batch_tokens, steps=changed.steps)
    return changed


def refuse(key: str, allowed: list[str]) -> NoReturn:
    """Refuse a key that may not change, and name those that may."""
    raise UserError(f"{key} cannot be changed while a run is going; these can: {', '.join(allowed)}")


def read(folder: Path) -> tuple[list[Amendment], list[str]]:
    """All amendments that were ever written for a run, and what is wrong with lines that cannot be read."""
    path = folder / FILE
    found, damaged = [], []
    try:
        lines = path.read_text().splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        return [], [f"{path} cannot be read ({error})"]
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            found.append(Amendment(int(entry["number"]), dict(entry["overrides"])))
        except (ValueError, TypeError, KeyError):
            damaged.append(f"line {number} of {path} is not an amendment; delete it and run gptlab amend again")
    return found, damaged


def add(folder: RunFolder, overrides: dict[str, Any]) -> Amendment:
    """Write an amendment for a run to apply; UserError where the file is damaged."""
    path = folder.path
    with locked(path):  # two amendments at once are both kept
        known, damaged = read(path)
        if damaged:
            raise UserError(damaged[0])
        decided = [event["number"] for event in folder.events() if event["event"] in (TAKEN, REFUSED)]
        number = max([amendment.number for amendment in known] + decided, default=0) + 1
        line = json.dumps({"number": number, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "overrides": overrides})
        earlier = (path / FILE).read_text() if (path / FILE).is_file() else ""
        write_text_atomic(path / FILE, f"{earlier}{line}\n")
    return Amendment(number, overrides)


def on_record(folder: RunFolder) -> tuple[list[Amendment], set[int]]:
    """What a run applied and at which steps, and the numbers of what it refused."""
    events = folder.events()
    taken = [Amendment(e["number"], e["overrides"], e["step"]) for e in events if e["event"] == TAKEN]
    return taken, {e["number"] for e in events if e["event"] == REFUSED}


def at_step(config: A, taken: list[Amendment], step: int) -> A:
    """The config that holds for the update after `step` finished ones; of two values of one key the later counts."""
    overrides = {}
    for amendment in sorted(taken, key=lambda amendment: amendment.number):
        if amendment.step is not None and amendment.step <= step:
            overrides |= amendment.overrides
    return amended(config, overrides)
