"""The trials of `gptlab train -m`: configs that are known before the first of them is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.errors import UserError
from gptlab.lab.trials import (
    State,
    Trial,
    check_folder,
    counts,
    key_of_config,
    outcome,
    refuse_other_run,
    table,
)
from gptlab.runs.folder import read_summary


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of a sweep's values."""

    values: Mapping[str, str]  # as they were typed, by key
    config: dict[str, Any] | None  # all of it, plain; None where it is refused
    identity: dict[str, Any]  # that of it which decides what is learned
    folder: str
    refusal: str = ""


class Grid:
    """The trials of a sweep's folder, one for each point, as their source.

    UserError for a value that no trial can have, and for a folder that holds runs of other configs: before any trial.
    """

    def __init__(self, points: Sequence[Point], *, say: Callable[[str], None] = print):
        self.say = say
        self.folder = Path(points[0].folder).parent
        check_folder(self.folder)
        _refuse_values(points)
        self.trials: list[Trial] = []
        first: dict[str, Trial] = {}  # by what is trained
        for number, point in enumerate(points):
            label = " ".join(f"{key}={value}" for key, value in point.values.items())
            trial = Trial(number=number, label=label, values=point.values, folder=Path(point.folder))
            self.trials.append(trial)
            if point.config is None:
                trial.state, trial.reason = State.refused, point.refusal
                continue
            refuse_other_run(trial, point.identity)
            trial.config = point.config
            same = first.setdefault(key_of_config(point.config), trial)
            if same is not trial:
                trial.state, trial.same_as = State.repeated, same.number
        self._left = [trial for trial in self.trials if trial.config is not None and trial.state is State.waiting]
        n_done = sum(read_summary(trial.folder) is not None for trial in self._left)
        say(f"sweep {self.folder}: {counts(self.trials)}" + (f"; {n_done} finished before" if n_done else ""))
        for trial in self.trials:
            if trial.state is State.refused:
                say(f"trial {trial.number} is refused: {trial.reason}")

    @property
    def refused(self) -> bool:
        """Whether a combination cannot work."""
        return any(trial.state is State.refused for trial in self.trials)

    def take(self) -> Trial | None:
        while self._left:
            trial = self._left.pop(0)
            begun = (trial.folder / "metrics.csv").is_file()
            if not trial.hold():
                trial.state = State.running
                continue
            summary = read_summary(trial.folder)
            if summary is not None:
                trial.held.close()
                trial.state, trial.numbers = State.finished, summary
                continue
            how = " goes on" if begun else f" of {len(self.trials)}"
            self.say(f"trial {trial.number}{how}: {trial.label}; its output is in {trial.log}")
            return trial
        return None

    def report(self, trial: Trial) -> bool:
        return False

    def settle(self, trial: Trial) -> None:
        for other in self.trials:
            if other.same_as == trial.number:
                other.numbers = trial.numbers

    def text(self, again: str) -> str:
        """The trials as a table, and what to type now."""
        for trial in self.trials:  # which other processes train, or have trained meanwhile
            if trial.state in (State.running, State.waiting):
                trial.state, trial.reason, trial.numbers = outcome(trial.folder)
        for trial in self.trials:
            if trial.same_as is not None:
                trial.numbers = self.trials[trial.same_as].numbers
        measured = [name for trial in self.trials for name in trial.numbers if name.startswith(("val/", "val_part/"))]
        metric = next((name for name in measured if name.endswith("/loss")), "train/loss")
        lines = ["", table(self.trials, [metric]), ""]
        if any(trial.state not in (State.finished, State.repeated, State.refused) for trial in self.trials):
            lines.append(again)
        return "\n".join([*lines, counts(self.trials)])


def _refuse_values(points: Sequence[Point]) -> None:
    """Refuse a value that no combination can have; one that works beside some other values is left to the trials."""
    wrong: list[str] = []
    for key in points[0].values:
        for value in dict.fromkeys(point.values[key] for point in points):
            refusals = [point.refusal for point in points if point.values[key] == value]
            wrong += refusals if all(refusals) else []
    if not wrong and all(point.refusal for point in points):
        wrong = [point.refusal for point in points]
    if wrong:
        raise UserError("; ".join(dict.fromkeys(wrong)))
