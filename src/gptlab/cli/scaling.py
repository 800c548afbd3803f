"""The command `gptlab scaling`: a ladder of runs, and the scaling law of runs or of a table."""

import functools
import json
import shlex
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, read
from gptlab.errors import UserError, did_you_mean
from gptlab.fields import check_bounds
from gptlab.generation.config import OutputFormat
from gptlab.lab.scaling import FitConfig

HELP = """gptlab scaling ladder=FILE.yaml [group.key=value ...]
gptlab scaling fit RUNS...|FILE.csv [law=law.json] [plots=scaling.png]

The first trains a ladder of sizes and budgets at one recipe, fits a scaling law to it, writes down what larger,
held-out runs will reach, and then trains those. The same command goes on where it was stopped. All other options are
those of gptlab train and hold for every run; name=NAME names the folder, runs/NAME.

The second fits the law to runs that are there, or to a CSV file with columns for parameters, tokens or FLOPs, and loss.

    ladder                    a YAML of overrides, sizes, budgets, seeds and held_out; see
                              docs/scaling.md
    dry_run                   true: list the ladder's runs and their FLOPs, and train nothing (false)
    form                      sum: L(N, D) = E + A / N^alpha + B / D^beta; norm: with a constant p more,
                              E + ((A / N^alpha)^p + (B / D^beta)^p)^(1/p) (sum)
    parameters                what N is: total, non_embedding or active parameters (total); of a table, what its column
                              holds
    metric                    the loss of runs, at their end (val/loss)
    min_tokens_per_parameter  runs with fewer are left out (0)
    delta                     of the Huber loss on log residuals (0.001)
    bootstrap                 fits to runs drawn with replacement, for the intervals (1000)
    seed                      of those draws (0)
    compute                   FLOPs, as 1e21 or [1e21,1e22]: their optimal sizes are shown (the largest run's, and 10
                              and 100 times that)
    parameters_column, tokens_column, flops_column, loss_column
                              columns of a table with other names
    law                       a file for the fit, which gptlab plan law=FILE reads (law.json; none for none)
    plots                     a .png or .svg file, or a folder, for the picture (none)
    html                      a file that ends in .html, or a folder: the fit and its picture as one page (none)
    output                    text, or json with nothing else on standard output (text)
    plugins                   modules that register components of your own, as [MODULE]

Exit code: 0; 1 where a run failed or is missing, so that there is no law; 2 for bad input; 128 + the
signal that stopped it.
"""
FOREIGN = {
    "n_bootstrap": "bootstrap",
    "count": "parameters",
    "budget": "compute",
    "flops": "compute",
    "plot": "plots",
    "column_loss": "loss_column",
    "column_tokens": "tokens_column",
    "column_parameters": "parameters_column",
    "column_flops": "flops_column",
    "params_column": "parameters_column",
}
FIT = "fit"


@dataclass(kw_only=True, slots=True)
class _Options(FitConfig):
    ladder: str | None = None
    dry_run: bool = False
    compute: str | None = None
    law: str | None = "law.json"
    plots: str | None = None
    html: str | None = None
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)
OF_FIT = ("law", "plots", "html", "parameters_column", "tokens_column", "flops_column", "loss_column")


def main(arguments: list[str]) -> int:
    """Carry out what the arguments ask for; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    if arguments[0] == FIT:
        return guard(lambda: _fit(arguments[1:]), arguments)
    return guard(lambda: _ladder(arguments), arguments)


def _fit(arguments: list[str]) -> None:
    from gptlab.lab.scaling import fit_scaling_law
    from gptlab.lab.scaling_law import isoflops

    sources, given = _sources(load_plugins(arguments))
    own = _Options(**read(given, OPTIONS, "gptlab scaling fit", FOREIGN))
    check_bounds(own)
    if own.ladder is not None or own.dry_run:
        raise UserError("ladder= and dry_run= are of gptlab scaling without fit; leave one of the two out")
    if not sources:
        raise UserError("gptlab scaling fit needs runs, such as 'runs/ladder/*', or a CSV file")
    budgets, places = _budgets(own.compute), _places(own)
    quiet = own.output is OutputFormat.json
    law = fit_scaling_law(sources, _settings(own), progress=sys.stderr.isatty() and not quiet)
    iso = isoflops(law.observations, law)
    _show(law, iso, own, budgets, places, title=", ".join(sources))


def _sources(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Runs and tables, whose paths may have an equals sign, and options."""
    sources, options = [], []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        is_option = bool(equals) and (key in OPTIONS or not ("/" in key or Path(argument).expanduser().exists()))
        (options if is_option else sources).append(argument)
    return sources, options


def _settings(own: _Options) -> FitConfig:
    from dataclasses import fields

    return FitConfig(**{f.name: getattr(own, f.name) for f in fields(FitConfig)})


def _budgets(text: str | None) -> list[float]:
    try:
        found = [float(part) for part in (text or "").strip("[]").split(",") if part.strip()]
    except ValueError:
        found = [0.0]
    if (text is not None and not found) or any(not 0 < value < float("inf") for value in found):
        raise UserError(f"compute={text} is no number of FLOPs; give compute=1e21, or compute=[1e21,1e22]")
    return found


def _places(own: _Options) -> dict[str, Path]:
    """Where the files go, checked before any fit."""
    from gptlab.lab.report import page_path
    from gptlab.lab.scaling_plot import picture_path

    found = {}
    if own.law == "":
        raise UserError("law= is empty; name a file for the fit, or write law=none for none")
    if own.law not in (None, "null", "none"):
        path = Path(str(own.law)).expanduser()
        path = path / "law.json" if path.is_dir() else path
        if path.suffix != ".json" or not path.parent.is_dir():
            raise UserError(f"law={own.law} has to be a folder or a file ending in .json, in a folder that exists")
        found["law"] = path
    if own.plots is not None:
        found["plots"] = picture_path(own.plots)
    if own.html is not None:
        found["html"] = page_path(own.html, "scaling.html")
    return found


def _show(law: Any, iso: Any, own: _Options, budgets: list[float], places: dict[str, Path], title: str) -> None:
    from gptlab.lab.scaling import default_budgets, text
    from gptlab.lab.scaling_page import write_page
    from gptlab.lab.scaling_plot import draw

    shown = text(law, iso, budgets or default_budgets(law))
    if "law" in places:
        law.write(places["law"])
    if "plots" in places:
        draw(law, iso, places["plots"], title=title)
    if "html" in places:
        write_page(law, iso, shown, places["html"], title=title)
    if own.output is OutputFormat.json:
        return print(json.dumps(_plain(law, iso, budgets or default_budgets(law), places)))
    print_text(shown + "\n")
    for what, path in places.items():
        print_text(f"{'picture' if what == 'plots' else 'page' if what == 'html' else 'law'} in {path}\n")
    if "law" in places:
        named = shlex.quote(f"law={places['law']}")
        print_text(f"next: gptlab plan {named} model=... says what a run would reach\n")


def _plain(law: Any, iso: Any, budgets: list[float], places: dict[str, Path]) -> dict[str, Any]:
    plain = {key: value for key, value in law.plain().items() if key not in ("draws", "theta", "residuals", "runs")}
    plain["n_runs"] = len(law.observations)
    plain["optima"] = [
        {"flops": budget}
        | {name: getattr(law.optimum(budget), name).plain() for name in ("parameters", "tokens", "loss")}
        for budget in budgets
    ]
    plain["isoflops"] = {
        "exponent": iso.exponent,
        "bias": iso.bias,
        "exponent_bias": iso.exponent_bias,
        "profiles": [
            {"flops": one.flops, "n_runs": len(one.runs), "parameters": one.parameters, "inside": one.inside}
            for one in iso.profiles
        ],
    }
    return plain | {name: str(path) for name, path in places.items()}


def _ladder(arguments: list[str]) -> int:
    from gptlab.cli.train import option, split

    flags, rest = split(arguments)
    for flag in flags:
        if flag.startswith("-") and flag.partition("=")[0] not in ("--config-dir", "-cd"):
            raise UserError(f"{flag} is not an option of gptlab scaling; see gptlab scaling --help")
    overrides = [argument for argument in rest if argument.partition("=")[0] not in OPTIONS or _is_run_key(argument)]
    if words := [one for one in overrides if "=" not in one]:
        raise UserError(f"{words[0]} is no option; to fit runs write gptlab scaling fit {words[0]}")
    for key in (one.partition("=")[0] for one in overrides):
        if key in FOREIGN:
            raise UserError(f"unknown option {key} of gptlab scaling; did you mean {FOREIGN[key]}?")
    own = _Options(**read([one for one in rest if one not in overrides], OPTIONS, "gptlab scaling", FOREIGN))
    check_bounds(own)
    if own.ladder is not None and not own.ladder.strip():
        raise UserError("ladder= is empty; name a YAML file of sizes and budgets")
    if own.ladder is None:
        near = did_you_mean(arguments[0].partition("=")[0], [FIT, "ladder"])
        raise UserError(f"ladder= is missing; name a YAML file of sizes and budgets, or write gptlab scaling fit{near}")
    for name in OF_FIT:
        if any(one.partition("=")[0] == name for one in rest):
            raise UserError(f"{name}= is of gptlab scaling fit; a ladder writes its files into its own folder")
    budgets = _budgets(own.compute)
    from gptlab.lab.ladder import PICTURE, Ladder, train_ladder
    from gptlab.lab.scaling import default_budgets, text
    from gptlab.lab.scaling_law import isoflops
    from gptlab.lab.scaling_plot import draw

    quiet = own.output is OutputFormat.json
    say = (lambda line: None) if quiet else functools.partial(print, flush=True)
    ladder = Ladder(own.ladder, overrides, _settings(own), config_dir=option(flags, "--config-dir", "-cd"))
    if own.dry_run:
        print(json.dumps(_rungs(ladder)) if quiet else ladder.table())
        return 0
    result = train_ladder(ladder, progress=sys.stderr.isatty() and not quiet, say=say)
    law = result.law
    if law is None:
        say(f"no law yet: runs are missing; this goes on with them:\n  {shlex.join(['gptlab', 'scaling', *arguments])}")
        if quiet:
            print(json.dumps({"folder": str(result.folder), "law": None}))
        return result.exit_code
    iso = isoflops(law.observations, law)
    picture = result.folder / PICTURE
    draw(law, iso, picture, title=result.folder.name, held_out=result.held_out)
    if quiet:
        places = {"law": result.folder / "law.json", "plots": picture}
        held = [
            {"name": one.name, "predicted": one.predicted.plain(), "written": one.predicted_at}
            | {"measured": one.measured, "error": one.error, "times_the_largest": one.times_the_largest}
            for one in result.held_out
        ]
        plain = _plain(law, iso, budgets or default_budgets(law), places)
        print(json.dumps(plain | {"folder": str(result.folder), "held_out": held}))
        return result.exit_code
    say("")
    print_text(text(law, iso, budgets or default_budgets(law)) + "\n")
    if result.held_out:
        print_text(f"\n{result.held_out_text()}\n")
    print_text(f"\nlaw in {result.folder / 'law.json'}, picture in {picture}\n")
    return result.exit_code


def _is_run_key(argument: str) -> bool:
    # `seed` is a key of every run: the bootstrap's is that of `gptlab scaling fit`.
    return argument.partition("=")[0] == "seed"


def _rungs(ladder: Any) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "parameters": one.parameters, "tokens": one.tokens, "flops": one.flops}
        | {"held_out": one in ladder.held_out, "folder": str(one.folder)}
        for one in (*ladder.rungs, *ladder.held_out)
    ]
