"""The command `gptlab inspect`: what is in the data, what a training step reads, and what a model computes.

Nothing is trained.
"""

import math
import typing
from dataclasses import dataclass
from enum import Enum

from gptlab.cli import coordinate_check
from gptlab.cli.options import carry_out
from gptlab.errors import UserError
from gptlab.fields import bounded
from gptlab.generation.config import OutputFormat

N_SHOWN = 3
HELP = """gptlab inspect data=text data.path=FOLDER [group.key=value ...] [html=FILE]
gptlab inspect step=1 [group.key=value ...]
gptlab inspect run=runs/NAME step=812
gptlab inspect run=runs/NAME [prompt="..."]
gptlab inspect coordinate_check=true [group.key=value ...]

Without step and run, what is in the data: lengths of documents, tokens by source, frequent and repeated ones, how
sequences cut documents. With step, what that update reads, and of a run the loss of each token under the nearest
checkpoint. With run alone, a page of what its model computes from a text: attention maps, sizes of scores, weights of
norms, activations and gradients by layer, what each layer would predict.

    step          the update, as metrics.csv counts them: 1 is the first
    run           a run folder; without step also a .ckpt file, a transformers folder or a hub name. With step and
                  without run the options that gptlab train takes say which run is meant
    prompt        the text that the model reads, of which the first 128 tokens (of the run's validation split, where it
                  is at hand)
    target        what the decoder of an encoder-decoder reads (what the model writes itself)
    html          a file that ends in .html, or a folder: one page, to be opened without a network (of the data none; of
                  a step of a run step-STEP.html in its folder; of a model inspect.html in the run's folder or here)
    plots         of a model, a folder for the same pictures as files, for a report (none)
    plots_format  png or svg (png)
    n_shown       examples, or documents of the data, that are shown (3)
    sample_mb     of the data, the text that is read of each source, in MB of 10^6 bytes (16)
    by_token      true: one token a line, with its position, its id and what is to be predicted there (false)
    losses        false: no token losses of a run (true)
    checkpoint    a step, last or best (the nearest to the step; of a model the best)
    attempt       of a step that was rolled back, which of the times that the run took it (the last)
    device        cpu, cuda, cuda:1 ... (a GPU where there is one)
    rank          of the devices, which one reads the examples (0)
    world_size    the number of devices, each of which reads its share; 1 shows the examples of all (1)
    output        text, or json with nothing else on standard output (text)
    plugins       modules that register components of your own, as [MODULE]

--config-dir DIR adds presets of your own, as for gptlab train.
"""


class PictureFormat(Enum):
    """The format of pictures as files."""

    png = "png"
    svg = "svg"


@dataclass(kw_only=True, slots=True)
class Options:
    """The options of the command, whichever it shows."""

    step: int | None = bounded(None, ge=1, hint="1 is the first update, as in metrics.csv")
    run: str | None = None
    prompt: str | None = None
    target: str | None = None
    html: str | None = None
    plots: str | None = None
    plots_format: PictureFormat = PictureFormat.png
    n_shown: int = bounded(N_SHOWN, ge=1)
    sample_mb: float = bounded(16.0, ge=0.001, lt=math.inf)
    by_token: bool = False
    losses: bool = True
    checkpoint: str | None = None
    attempt: int | None = bounded(None, ge=1)
    device: str | None = None
    rank: int = bounded(0, ge=0)
    world_size: int = bounded(1, ge=1)
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(Options)
FOREIGN = {"page": "html", "report": "html", "format": "output", "limit": "n_shown", "model": "run", "text": "prompt"}
OF_DATA = ("sample_mb",)
OF_A_STEP = ("by_token", "losses", "attempt", "rank", "world_size")
OF_A_MODEL = ("prompt", "target", "plots", "plots_format")
OF_A_RUN = ("losses", "checkpoint", "attempt", "device")


def main(arguments: list[str]) -> int:
    """Show what the arguments ask for; returns the exit code."""
    if coordinate_check.is_meant(arguments):
        return coordinate_check.main(arguments)
    return carry_out(arguments, Options, _inspect, of="gptlab inspect", help=HELP, foreign=FOREIGN)


def _inspect(own: Options, overrides: list[str]) -> None:
    if own.run is not None and not own.run.strip():
        raise UserError("run= is empty; give run=runs/NAME, or leave it out")
    if own.step is None and own.run is not None:
        from gptlab.cli.inspect_model import show_model

        _refuse(own, ("n_shown", *OF_DATA), "{key} has no effect on a model; leave it out")
        _refuse(own, OF_A_STEP, "{key} is about a step of a run; give step=1, or leave it out")
        show_model(own, overrides)
    elif own.step is None:
        from gptlab.cli.inspect_data import show_data

        _refuse(own, OF_A_MODEL, "{key} is about a model; give run=runs/NAME, or leave it out")
        of_a_step = (*OF_A_STEP, "checkpoint", "device")
        _refuse(own, of_a_step, "{key} has no effect on the data as a whole; give step=1, or leave it out")
        show_data(own, overrides)
    else:
        from gptlab.cli.inspect_step import show_step

        _refuse(own, OF_DATA, "{key} has no effect on step=, which reads what the step does; leave one out")
        _refuse(own, OF_A_MODEL, "{key} has no effect on step=, which reads what the step does; leave one out")
        if own.run is None:
            _refuse(own, OF_A_RUN, "{key} is about a run that was trained; give run=runs/NAME, or leave it out")
        show_step(own, own.step, overrides)


def _refuse(own: Options, keys: tuple[str, ...], why: str) -> None:
    """Refuse options that were given and mean nothing here."""
    usual = Options()
    for key in keys:
        if getattr(own, key) != getattr(usual, key):
            raise UserError(why.format(key=key))
