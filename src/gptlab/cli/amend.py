"""The command `gptlab amend`: a planned change of a run in mid-flight."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gptlab import composition
from gptlab.cli.guard import guard
from gptlab.config import ALTERNATIVES, RunConfig, to_plain
from gptlab.errors import UserError
from gptlab.runs import amendments
from gptlab.runs.folder import RunFolder

HELP = """gptlab amend run=PATH word=value ...

Writes down a change of a run's config, which the run takes up at its next step, or when it is continued. Every later
start of the run replays it at the same step.

    run        the run folder
    optimizer  lr, adamw_lr, weight_decay, grad_clip, beta1, beta2, eps, momentum
    schedule   every word, such as schedule.min_lr_ratio=0
    callbacks.checkpoint
               every word, such as callbacks.checkpoint.every_minutes=10

    gptlab amend run=runs/NAME optimizer.lr=3e-4 optimizer.grad_clip=0.5
"""


def main(words: list[str]) -> int:
    """Write the amendment that the words say; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    return guard(lambda: amend(words))


def amend(words: list[str]) -> None:
    """Check the words against the run's config and let them wait for the run."""
    said = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not value:
            raise UserError(f"{key} needs a value; write {key}=...")
        said[key] = value
    if "run" not in said:
        raise UserError("gptlab amend needs run=PATH, such as run=runs/NAME")
    folder = RunFolder(Path(said.pop("run")).expanduser(), writes=True)
    if not (folder.path / "config.yaml").is_file():
        raise UserError(f"run={folder.path} holds no run: it has no config.yaml; name a folder such as runs/NAME")
    if not said:
        raise UserError(f"gptlab amend needs a word that changes, such as optimizer.lr=3e-4 (run={folder.path})")
    summary = folder.summary()
    if summary is not None and summary["finished"]:
        raise UserError(f"run={folder.path} is finished; a longer run starts from it with resume= and a larger budget")
    config, n_steps = _as_it_stands(folder)
    values = _values(config, said)
    amendments.amended(config, values, n_steps=n_steps)
    amendment = amendments.add(folder, values)
    print(f"amendment {amendment.number} of {folder.path}: {amendment}")
    print("a run that is going takes it up at its next step, any other when it is continued")


def _as_it_stands(folder: RunFolder) -> tuple[RunConfig, int | None]:
    """The run's config with all that was amended before, and its length where it has started."""
    config = composition.load_config(folder.path / "config.yaml")
    waiting, _ = amendments.read(folder.path)
    _, refused = amendments.on_record(folder)
    for amendment in waiting:
        if amendment.number not in refused:
            config = amendments.amended(config, amendment.overrides)
    lengths = [event["n_steps"] for event in folder.events() if "n_steps" in event]
    return config, lengths[-1] if lengths else None


def _values(config: RunConfig, said: dict[str, str]) -> dict[str, Any]:
    """What was typed, with the types of the config, and null for the alternatives that it replaces."""
    allowed = amendments.amendable(config)
    for word in said:
        if word not in allowed:
            if word not in composition.preset_names():
                composition.refuse_unknown([f"{word}={said[word]}"])
            amendments.refuse(word, allowed)
    typed = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist([f"{k}={v}" for k, v in said.items()]))
    values = {word: OmegaConf.select(typed, word) for word in said}
    for names in ALTERNATIVES:
        chosen = [name for name in names if values.get(name) is not None]
        if len(chosen) == 1:
            values |= {name: None for name in names if name != chosen[0]}
    return to_plain(values)
