"""The command `gptlab reproduce`: a run trained again from its config, and how closely it came out."""

import json
import sys
import typing
from dataclasses import dataclass

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, with_run
from gptlab.fields import bounded
from gptlab.generation.config import OutputFormat

HELP = """gptlab reproduce RUN [to=FOLDER]

    RUN         a run folder such as runs/NAME; it is only read
    to          the folder of the new run (RUN-again); the same command goes on with it after Ctrl-C
    tolerance   a factor on the difference of losses that is allowed (1.0)
    output      text, or json with nothing else on standard output (text)
    plugins     modules that register components of your own, as [MODULE]

Says first what differs here, in versions, machine, threads and code, and what agreement to expect; then trains; then
reports the largest difference of each loss and the last values. Exit code 1 where the run is not reproduced.
"""


@dataclass(kw_only=True, slots=True)
class _Options:
    to: str | None = None
    tolerance: float = bounded(1.0, gt=0)
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)


def main(arguments: list[str]) -> int:
    """Train the run again that the arguments name; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: int(not show(arguments)))


def show(arguments: list[str]) -> bool:
    """Train, print the differences and return whether the run is reproduced."""
    run, options = with_run(load_plugins(arguments), _Options, "gptlab reproduce")
    from contextlib import redirect_stdout

    from gptlab.distributed.launch import is_rank_0
    from gptlab.lab.reproduce import reproduce  # takes seconds to import

    with redirect_stdout(sys.stderr):  # the new run's own report
        found = reproduce(run, options.to, tolerance=options.tolerance, say=print, progress=True)
    if is_rank_0():
        if options.output is OutputFormat.json:
            print(json.dumps(found.plain()))
        else:
            print_text(found.text() + "\n")
    return found.agrees or not is_rank_0()
