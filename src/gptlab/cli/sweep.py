"""The command `gptlab sweep`: a search of hyperparameters."""

import json
import shlex
import typing
from dataclasses import dataclass
from typing import Any

from gptlab.cli.guard import guard
from gptlab.cli.options import read
from gptlab.errors import UserError, did_you_mean
from gptlab.generation.config import OutputFormat
from gptlab.lab.config import SweepConfig
from gptlab.units import plural

if typing.TYPE_CHECKING:
    from gptlab.lab.sweep import SweepResult

HELP = """gptlab sweep space=FILE.yaml [group.key=value ...]

Trains one model after another, each in a process and a run folder of its own, and looks for the best. The same command
goes on with a sweep that was stopped or killed; started in several terminals it trains as many at a time.

    space                  a YAML of config keys, each with its values:
                               optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
                               model.n_layer: {low: 2, high: 8, step: 2}
                               optimizer: [adamw, muon]
    n_trials               trials in all (30; of a grid every point)
    sampler                tpe, random, grid or cmaes (tpe)
    sampler_seed           another seed proposes other points (0)
    metric                 what is compared: val/loss, best/val/loss, flops, ... (val/loss); [val/loss,flops] looks for
                           the best of both
    direction              minimize or maximize, of each metric (as its name says)
    pruner                 none, median, halving or hyperband: ends trials early by their evaluations (none)
    pruner_startup_trials  trials that the median pruner never ends (5)
    pruner_warmup_steps    steps of each trial in which it does not either (0)
    storage                the study: FILE.journal for several machines that share a folder, or a database's URL
                           (SQLite in the sweep's folder)
    retry_failed           true: try the points of failed trials once more (false)
    output                 text, or json with nothing else on standard output (text)

Exit code: 0; 1 where a trial failed meanwhile; 2 for bad input; 128 + the signal that stopped it.

All other options are those of gptlab train; name=NAME names the sweep's folder, runs/NAME.
"""
FOREIGN = {
    "trials": "n_trials",
    "method": "sampler",
    "goal": "direction",
    "objectives": "metric",
    "metrics": "metric",
    "study": "storage",
    "search_space": "space",
    "prune": "pruner",
}


@dataclass(kw_only=True, slots=True)
class _Options(SweepConfig):
    space: str
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)


def main(arguments: list[str]) -> int:
    """Carry out the sweep that the arguments ask for; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: _sweep(arguments), arguments)


def _sweep(arguments: list[str]) -> int:
    from gptlab.cli.train import option, split

    flags, rest = split(arguments)
    for flag in flags:
        if flag.startswith("-") and flag.partition("=")[0] not in ("--config-dir", "-cd"):
            raise UserError(f"{flag} is not an option of gptlab sweep; see gptlab sweep --help")
    overrides = [argument for argument in rest if argument.partition("=")[0] not in OPTIONS]
    _refuse_near(overrides)
    own = read([argument for argument in rest if argument not in overrides], OPTIONS, "gptlab sweep")
    if "space" not in own:
        raise UserError("space= is missing; name a YAML file of config keys with their values, space=FILE.yaml")
    space, output = own.pop("space"), own.pop("output", OutputFormat.text)
    from gptlab.lab.sweep import sweep

    quiet = output is OutputFormat.json
    result = sweep(
        space,
        overrides,
        SweepConfig(**own),
        config_dir=option(flags, "--config-dir", "-cd"),
        say=(lambda line: None) if quiet else lambda line: print(line, flush=True),
    )
    command = shlex.join(["gptlab", "sweep", *arguments])
    print(json.dumps(_plain(result)) if quiet else _text(result, command), flush=True)
    return result.exit_code


def _refuse_near(overrides: list[str]) -> None:
    """Answer an option of sweeps that is misspelt, or called as in other programs."""
    from gptlab.overrides import key_of, key_types
    from gptlab.registry import GROUPS

    known = {*(key.split(".")[0] for key, _ in key_types()), *GROUPS}
    for key in map(key_of, overrides):
        if key in FOREIGN:
            raise UserError(f"unknown option {key} of gptlab sweep; did you mean {FOREIGN[key]}?")
        near = did_you_mean(key, OPTIONS)
        if key.split(".")[0] not in known and near.startswith("; did you mean") and "." not in key:
            raise UserError(f"unknown option {key} of gptlab sweep{near}")


def _plain(result: "SweepResult") -> dict[str, Any]:
    best = result.best
    return {
        "folder": str(result.folder),
        "storage": result.storage,
        "best": None if best is None else best.number,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.value,
                "values": trial.values,
                "metrics": {metric: trial.numbers.get(metric) for metric in result.metrics},
                "reason": trial.reason,
                "same_as": trial.same_as,
                "folder": str(trial.folder),
            }
            for trial in result.trials
        ],
    }


def _text(result: "SweepResult", command: str) -> str:
    """The table of trials, and what to type now."""
    from gptlab.lab.report import report_sweep

    lines = ["", result.table(), ""]
    metric, *others = result.metrics
    best = result.best
    if others:
        front = ", ".join(str(trial.number) for trial in result.front)
        lines.append(f"no trial is better in all of them than: {front}" if front else "no trial is finished")
    elif best is not None:
        lines.append(f"best: trial {best.number}, {best.label}: {metric} {best.numbers[metric]:.4f}")
        lines.append(f"next: gptlab generate {shlex.quote(f'run={best.folder}')} prompt='...'")
    if result.exit_code < 128:
        lines.append(report_sweep(result.folder, table=False))
    lines.append(f"the study, while it goes on: optuna-dashboard {shlex.quote(result.storage)}")
    if result.exit_code > 128:
        lines.append(f"stopped; this continues the sweep:\n  {command}")
        return "\n".join(lines)
    if result.n_failed_once:
        failed = plural(result.n_failed_once, "failed trial")
        lines.append(f"the same command with retry_failed=true tries {failed} once more")
    if result.n_untried is None:
        lines.append("the same command with a larger n_trials= goes on")
    elif result.n_untried:
        points = plural(result.n_untried, "point")
        lines.append(f"the same command without n_trials= goes on with {points} of the grid")
    return "\n".join(lines)
