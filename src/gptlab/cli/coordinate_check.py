"""The form `gptlab inspect coordinate_check=true`: whether a parametrization keeps activations at their size."""

import json
import math
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from gptlab.cli.options import carry_out, compose, html_path, print_text
from gptlab.errors import UserError
from gptlab.fields import bounded
from gptlab.generation.config import OutputFormat
from gptlab.models.config import Parametrization

if typing.TYPE_CHECKING:
    from gptlab.lab.coordinate_check import CoordinateCheck

KEY = "coordinate_check"
PAGE = "coordinate_check.html"
HELP = """gptlab inspect coordinate_check=true [group.key=value ...] [widths=32,64,128] [depths=2,4,8] [html=FILE]

Trains small copies of the run's model for a few steps on its data, over widths and, for completep, over depths, and
prints the size of each layer's activations and of what training changed of them. Where a parametrization is right they
do not depend on the size of the model. Exit code 1: it is not, and which layer drifts by what factor over 16 times the
size.

    widths        of the copies (five over a factor of 16)
    depths        likewise (for completep 2,4,8,16,32, with the smallest width; for the others none)
    steps         updates, each at optimizer.lr (4)
    sequences     examples of a batch (8)
    seeds         whose mean is taken (1)
    html          a file that ends in .html, or a folder: a page with charts (none)
    plots         a folder for the charts as PNG files (none)
    output        text, or json with nothing else on standard output (text)
    plugins       modules that register components of your own, as [MODULE]

--config-dir DIR adds presets of your own, as for gptlab train.
"""


@dataclass(kw_only=True, slots=True)
class Options:
    """The options of the form."""

    coordinate_check: bool = True
    widths: str | None = None
    depths: str | None = None
    steps: int = bounded(4, ge=1)
    sequences: int = bounded(8, ge=1)
    seeds: int = bounded(1, ge=1)
    html: str | None = None
    plots: str | None = None
    output: OutputFormat = OutputFormat.text


FOREIGN = {"width": "widths", "depth": "depths", "seed_count": "seeds", "page": "html", "format": "output"}


def is_meant(arguments: list[str]) -> bool:
    """Whether the arguments of `gptlab inspect` ask for this form."""
    return any(argument.partition("=")[0] == KEY for argument in arguments)


def main(arguments: list[str]) -> int:
    """Check what the arguments ask for; returns the exit code: 1 where a layer drifts."""
    return carry_out(
        arguments,
        Options,
        lambda own, overrides: int(not _check(own, overrides)),
        of=f"gptlab inspect {KEY}=true",
        help=HELP,
        foreign=FOREIGN,
    )


def _check(own: Options, overrides: list[str]) -> bool:
    if not own.coordinate_check:
        raise UserError(f"{KEY}=false asks for nothing; leave it out to inspect the data")
    page = None if own.html is None else html_path(own.html, PAGE)
    config = compose(overrides, "gptlab inspect")
    checks = _checks(own, config)
    given = config.model.parametrization.value
    passed = all(check.passed for check in checks)
    if page is not None:
        from gptlab.lab.coordinate_page import write_coordinate_page

        _written("html", page, lambda: write_coordinate_page(checks, page, title=_title(config)))
    files = []
    if own.plots is not None:
        from gptlab.lab.coordinate_page import draw

        folder = Path(own.plots).expanduser()
        files = _written("plots", folder, lambda: [draw(check, folder, title=_title(config)) for check in checks])
    if own.output is OutputFormat.json:
        found = {"parametrization": given, "passed": passed, "checks": [check.plain() for check in checks]}
        found |= {} if page is None else {"page": str(page)}
        print(json.dumps(_finite(found | ({"plots": [str(file) for file in files]} if files else {}))))
        return passed
    from gptlab.lab.coordinate_page import as_text, verdict

    for check in checks:
        print_text(f"{as_text(check)}\n\n")
    for check in checks:
        print_text(f"{verdict(check, given)}\n")
    print_text("".join(f"page in {page}\n" for _ in range(page is not None)))
    print_text("".join(f"chart in {file}\n" for file in files))
    return passed


def _checks(own: Options, config: typing.Any) -> "list[CoordinateCheck]":
    from gptlab.evaluation.progress import progress
    from gptlab.lab import coordinate_check as lab
    from gptlab.training.loop import open_batches

    model = config.model
    widths = _sizes("widths", own.widths) or lab.usual_widths(model)
    depths = _sizes("depths", own.depths) or lab.usual_depths(model)
    if depths and model.parametrization is Parametrization.mup:
        raise UserError("depths= checks what model.parametrization=mup leaves to depth; use completep, or leave it out")
    copies = {"width": {width: lab.of_width(model, width) for width in widths}}
    if depths:
        smallest = lab.of_width(model, min(widths))
        copies["depth"] = {depth: lab.of_depth(smallest, depth) for depth in depths}
    data, batches = open_batches(config)
    # One more, in which activations are measured.
    read = [{name: value[: own.sequences] for name, value in batches[step].items()} for step in range(own.steps + 1)]
    n_updates = own.steps * own.seeds * sum(len(found) for found in copies.values())
    shows = sys.stderr.isatty() and own.output is OutputFormat.text
    with progress("updates", n_updates, show=shows) as done:
        return [
            lab.check_coordinates(
                found,
                dimension,
                vocab_size=model.vocab_size or data.tokenizer.vocab_size,
                objective=batches.objective,
                optimizer=config.optimizer,
                batches=read[:-1],
                probe=read[-1],
                seed=config.seed,
                n_seeds=own.seeds,
                done=done,
            )
            for dimension, found in copies.items()
        ]


def _sizes(key: str, text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        found = sorted({int(part) for part in text.strip("[]").split(",")})
    except ValueError:
        found = []
    if len(found) < 2 or found[0] < 1:
        raise UserError(f"{key}={text} must be two whole numbers or more, such as {key}=32,64,128")
    return found


def _written(key: str, path: Path, write: typing.Callable[[], typing.Any]) -> typing.Any:
    try:
        return write()
    except OSError as error:
        raise UserError(f"{key}={path} cannot be written ({error.strerror or error})") from None


def _title(config: typing.Any) -> str:
    return f"Coordinate check: {config.model.parametrization.value}, {config.optimizer.type}"


def _finite(value: typing.Any) -> typing.Any:
    """Values as JSON has them: None for a number that it lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
