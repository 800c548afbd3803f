"""The command `gptlab verify`: whether a run is what it claims to be."""

import functools
import json
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, with_run
from gptlab.fields import bounded
from gptlab.generation.config import OutputFormat
from gptlab.plugins import named_in

HELP = """gptlab verify RUN [segments=3] [full=true]

    RUN         a run folder such as runs/NAME; nothing is written into it
    segments    how many stretches between two checksums of the weights are trained again, the first from step 0, then
                one from each checkpoint that is kept; 0: none (3)
    full        true: all steps are (false)
    head        the head of the hash chain that was published, as an earlier gptlab verify or W&B's summary shows it
    tolerance   a factor on the difference of losses that is allowed where other hardware or another version of PyTorch
                computes than did; where the same does, every bit counts (1.0)
    output      text, or json with nothing else on standard output (text)
    plugins     modules that register components of your own, as [MODULE]

Checked are the hash chain, every row of metrics.csv, events, config, inputs, tokenizer, environment, amendments,
summary, the checkpoints' files and weights, and the tokens. The last line says what was checked, and whether the run is
what it claims to be. Exit code 1 if it is not.
"""


@dataclass(kw_only=True, slots=True)
class _Options:
    segments: int = bounded(3, ge=0)
    full: bool = False
    head: str | None = None
    tolerance: float = bounded(1.0, gt=0)
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)


def main(arguments: list[str]) -> int:
    """Verify the run that the arguments name; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: int(not show(arguments)))


def show(arguments: list[str]) -> bool:
    """Print what was checked; returns whether the run is confirmed."""
    plugins = named_in(arguments)
    run, options = with_run(load_plugins(arguments), _Options, "gptlab verify")
    from gptlab.lab.verify import verify  # takes seconds to import

    say = functools.partial(print, file=sys.stderr, flush=True)
    found = verify(
        Path(run),
        options.segments,
        full=options.full,
        head=options.head,
        tolerance=options.tolerance,
        plugins=plugins,
        say=say,
    )
    if options.output is OutputFormat.json:
        print(json.dumps(found.plain()))
    else:
        print_text(found.text() + "\n")
    return found.is_confirmed
