"""The command `gptlab amend`: a planned change to the config of a run in progress."""

import typing
from functools import reduce
from pathlib import Path
from typing import Any

from gptlab import composition
from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, refuse_bare_run, split
from gptlab.config import ALTERNATIVES, to_plain
from gptlab.errors import UserError
from gptlab.overrides import refuse_unknown_key
from gptlab.runs import amendments
from gptlab.runs.folder import RunFolder
from gptlab.runs.run import Run
from gptlab.values import coerce

HELP = """gptlab amend run=PATH key=value ...

Records overrides of a run's config. The run applies them at its next optimizer step, or when it is resumed; every
later resume applies them at the same step.

    run        the run folder
    plugins    modules that register components of your own, as [MODULE]
    optimizer  lr, adamw_lr, weight_decay, grad_clip, beta1, beta2, eps, momentum
    schedule   every key, such as schedule.min_lr_ratio=0
    callbacks.checkpoint
               every key, such as callbacks.checkpoint.every_minutes=10

    gptlab amend run=runs/NAME optimizer.lr=3e-4 optimizer.grad_clip=0.5
"""


def main(arguments: list[str]) -> int:
    """Record the overrides that the arguments give; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: amend(load_plugins(arguments)))


def amend(arguments: list[str]) -> None:
    """Check the overrides against the run's config and record them for the run to apply."""
    refuse_bare_run(arguments, ("run",))
    overrides: dict[str, str] = {}
    for key, value in split(arguments):
        if not value:
            raise UserError(f"{key} needs a value; write {key}=...")
        if key in overrides:
            raise UserError(f"{key}= is given twice; give it once")
        overrides[key] = value
    if "run" not in overrides:
        raise UserError("gptlab amend needs run=PATH, such as run=runs/NAME")
    folder = RunFolder(Path(overrides.pop("run")).expanduser(), writes=True)
    if not (folder.path / "config.yaml").is_file():
        raise UserError(f"run={folder.path} is not a run: it has no config.yaml; name a folder such as runs/NAME")
    if not overrides:
        raise UserError(f"gptlab amend needs an override, such as optimizer.lr=3e-4 (run={folder.path})")
    summary = folder.summary()
    if summary is not None and summary["finished"]:
        raise UserError(
            f"run={folder.path} is finished; to train it longer, start a run with resume= and a larger budget"
        )
    config, n_steps = _current(folder)
    values = _values(config, overrides)
    amendments.amended(config, values, n_steps=n_steps)
    amendment = amendments.add(folder, values)
    print(f"amendment {amendment.number} of {folder.path}: {amendment}")
    print("a run in progress applies it at its next step, any other when it is resumed")


def _current(folder: RunFolder) -> tuple[amendments.Amendable, int | None]:
    """The run's config with all earlier amendments, and its number of steps where it has started."""
    config = Run(folder.path).config
    waiting, _ = amendments.read(folder.path)
    _, refused = amendments.on_record(folder)
    for amendment in waiting:
        if amendment.number not in refused:
            config = amendments.amended(config, amendment.overrides)
    lengths = [event["n_steps"] for event in folder.events() if "n_steps" in event]
    return config, lengths[-1] if lengths else None


def _values(config: amendments.Amendable, overrides: dict[str, str]) -> dict[str, Any]:
    """The overrides with the types of the config, and null for the alternatives that they replace."""
    allowed = amendments.amendable(config)
    values = {}
    for key, text in overrides.items():
        if key not in allowed:
            if key not in composition.preset_names():
                refuse_unknown_key(key)
            amendments.refuse(key, allowed)
        *path, name = key.split(".")
        part = reduce(getattr, path, config)
        values[key] = coerce(key, text, typing.get_type_hints(type(part))[name])
    for names in ALTERNATIVES:
        chosen = [name for name in names if values.get(name) is not None]
        if len(chosen) == 1:
            values |= {name: None for name in names if name != chosen[0]}
    plain = to_plain(values)
    assert isinstance(plain, dict)
    return plain
