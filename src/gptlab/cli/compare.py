"""The command `gptlab compare`: runs side by side, on the screen and as a page, and what the differences show."""

import functools
import glob
import json
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, read
from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds
from gptlab.generation.config import OutputFormat
from gptlab.lab.collect import collect
from gptlab.lab.compare import DEFAULT_EFFECT, At, compare_records
from gptlab.lab.report import PAGE, follow, page_path, write_comparison

HELP = """gptlab compare RUNS... [metric=val/loss] [baseline=GROUP]

    RUNS        run folders, globs in quotes such as 'runs/*', and folders of sweeps; runs that differ in their seeds
                alone are one group
    metric      what is compared: a column of metrics.csv such as eval/NAME/accuracy (val/loss, or val/bits_per_byte
                where tokenizers differ)
    at          last or best: which value of the metric stands for a run (last)
    baseline    the group that the others are compared with, as the table calls it, or a run or folder of it (the first)
    effect      the smallest difference that matters, for the number of seeds that would show it (0.01)
    by_run      true: a line for each run instead of each group (false)
    best_first  true: the best group comes first (false)
    html        a file that ends in .html, or a folder, which gets compare.html: one page with all curves, samples and
                configs, to be opened without a network (none)
    watch       true: write the page again while runs go on, and end when none does; an open page follows
                (false; html=compare.html where html is not given)
    every       seconds between the pages of watch=true (10)
    output      text, or json with nothing else on standard output (text)
    plugins     modules that register components of your own, as [MODULE]

A difference is called better or worse only where a permutation test, the t interval and the bootstrap interval agree,
and never of five seeds or fewer.
"""


@dataclass(kw_only=True, slots=True)
class _Options:
    metric: str | None = None
    at: At = At.last
    baseline: str | None = None
    effect: float = bounded(DEFAULT_EFFECT, gt=0)
    by_run: bool = False
    best_first: bool = False
    html: str | None = None
    watch: bool = False
    every: float = bounded(10.0, ge=1)
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)
FOREIGN = {
    "page": "html",
    "report": "html",
    "refresh": "watch",
    "interval": "every",
    "format": "output",
    "sort": "best_first",
    "reference": "baseline",
    "min_effect": "effect",
}


def main(arguments: list[str]) -> int:
    """Compare the runs that the arguments name; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: show(arguments))


def show(arguments: list[str]) -> None:
    """Print what the runs show of each other."""
    runs, given = split(load_plugins(arguments))
    own = _Options(**read(given, OPTIONS, "gptlab compare", FOREIGN))
    check_bounds(own)
    if not runs:
        raise UserError("gptlab compare needs runs; name run folders such as runs/NAME, 'runs/*' or a sweep's folder")
    page = page_path(PAGE if own.html is None else own.html) if own.html is not None or own.watch else None
    if page is not None and own.watch:
        if own.output is OutputFormat.json:
            raise UserError("watch=true prints lines as runs go on, and no JSON; leave out output=json or watch=true")
        waits = all(Path(run).expanduser().is_dir() for run in runs)
        say = functools.partial(print, flush=True)
        follow(lambda: collect(runs), page, every_seconds=own.every, waits=waits, say=say)
    records = collect(runs)
    comparing = {"metric": own.metric, "at": own.at, "baseline": own.baseline, "effect": own.effect}
    try:
        found = compare_records(records, **comparing)
    except UserError:  # runs that have not ended have curves
        if page is not None and not any(record.is_finished for record in records):
            print(f"page in {write_comparison(records, page)}", file=sys.stderr)
        raise
    if page is not None:
        write_comparison(records, page, found=found)
    if own.output is OutputFormat.json:
        print(json.dumps(found.plain() | ({"page": str(page)} if page is not None else {})))
        return
    print_text(found.text(by_run=own.by_run, best_first=own.best_first) + "\n")
    if page is not None:
        print_text(f"\npage in {page}\n")


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Runs, whose paths may have an equals sign as those of a sweep do, and options."""
    runs, options = [], []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        # A glob may have its first star behind the equals sign, and so may a value: only one that matches is a path.
        is_path = re.search(r"[^\w.-]", key) or Path(argument).expanduser().exists() or glob.glob(argument)
        (runs if not equals or (key not in OPTIONS and is_path) else options).append(argument)
    return runs, options
