"""`gptlab inspect run=RUN`: what a trained model computes from a text."""

import json
import sys
import typing
from pathlib import Path
from typing import Any

from gptlab.cli.options import html_path, load_plugins, print_text
from gptlab.errors import UserError
from gptlab.generation.config import OutputFormat
from gptlab.quoting import unescaped
from gptlab.units import plural

if typing.TYPE_CHECKING:
    from gptlab.cli.inspect import Options
    from gptlab.lab.inspection.subject import Subject

PAGE = "inspect.html"


def show_model(own: "Options", overrides: list[str]) -> None:
    """Read the model and the text, print what is known of them, and write the page."""
    assert own.run is not None
    rest = load_plugins(overrides)
    if rest:
        raise UserError(f"{rest[0]} has no effect on run={own.run}, whose model is shown as it is; leave out one")
    page = None if own.html is None else html_path(own.html, PAGE)
    if own.plots is None and own.plots_format.value != "png":
        raise UserError(f"plots_format={own.plots_format.value} is of pictures as files; give plots=FOLDER too")
    if own.plots is not None and not own.plots:
        raise UserError("plots= is empty; give the folder for the pictures, such as plots=pictures")
    if own.plots is not None and Path(own.plots).expanduser().is_file():
        raise UserError(f"plots={own.plots} is a file; give a folder, and plots_format=svg for SVG files")
    path = Path(own.run).expanduser()
    is_run = (path / "config.yaml").is_file()
    if is_run and not any((path / "checkpoints").glob("*")):
        raise UserError(
            f"run={own.run} keeps no checkpoint (callbacks.checkpoint), so there is no model to show; a step needs "
            f"none: {_of_a_step(own.run)}"
        )
    prompt, target = unescaped((own.prompt, own.target))
    checkpoint = own.checkpoint
    from gptlab.generation.precision import find_device
    from gptlab.lab.inspection.page import look_at, summary, write_inspection
    from gptlab.lab.inspection.subject import open_subject

    subject = open_subject(
        own.run,
        prompt=prompt,
        target=target,
        checkpoint=int(checkpoint) if checkpoint is not None and checkpoint.isdecimal() else checkpoint,
        device=find_device(own.device),
    )
    found = look_at(subject)
    facts = summary(subject, found)
    written = page or (subject.folder or Path()) / PAGE
    try:
        write_inspection(subject, written, title=f"{own.run}: what the model computes", found=found)
    except OSError as error:
        why = f"{written} cannot be written ({error.strerror or error})"
        if page is not None:
            raise UserError(f"html={why}") from None
        print(f"no page: {why}; name another with html=FILE", file=sys.stderr)
        written = None
    pictures = _pictures(own, subject, found)
    if own.output is OutputFormat.json:
        content = {"run": own.run, "facts": dict(facts), "tokens": subject.tokens[0].tolist(), **found}
        content |= {} if written is None else {"page": str(written)}
        print(json.dumps(content | ({} if own.plots is None else {"plots": pictures})))
        return
    width = max(len(name) for name, _ in facts)
    print_text("".join(f"{name:<{width}}  {text}\n" for name, text in facts))
    if written is not None:
        print_text(f"\npage in {written}\n")
    if own.plots is not None:
        print_text(f"{plural(len(pictures), 'picture')} in {own.plots}\n")
    if is_run:
        print_text(f"step=N shows what a training step read: {_of_a_step(own.run)}\n")


def _pictures(own: "Options", subject: "Subject", found: dict[str, Any]) -> list[str]:
    """Write the files that plots= asks for; returns their paths."""
    if own.plots is None:
        return []
    from gptlab.lab.inspection.plots import write_plots

    texts = {"tokens": subject.labels(), "source": [] if subject.source is None else subject.labels(subject.source)}
    try:
        paths = write_plots(Path(own.plots).expanduser(), found, texts, suffix=own.plots_format.value)
    except OSError as error:
        raise UserError(f"plots={own.plots} cannot be written ({error.strerror or error})") from None
    return [str(path) for path in paths]


def _of_a_step(run: str) -> str:
    from gptlab.cli.inspect_step import suggested_step

    return suggested_step(run)
