"""A training step for a person: its documents and the losses of its tokens, as text and as a page."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptlab.data.tokenizers.pieces import escaped, visible
from gptlab.lab import html
from gptlab.lab.step import DocumentRead, ExampleRead, StepRead, by_loss
from gptlab.units import grid, plural

N_DOCUMENTS = 10  # on the screen
PAGE_DOCUMENTS = 500
PAGE_CHARACTERS = 20_000  # of an example's text
TEXT_COLUMNS = 48
N_COSTLIEST = 6
# Backgrounds of 256 colors that black text can be read on.
_LEVELS = (None, 230, 223, 216, 210, 203)
DOCUMENTS_NOTE = (
    "Documents that raise the loss of the step most come first: what the loss of their targets is above the usual one, "
    "summed and divided by all targets of the step. Numbers are those in the training split, from 0."
)


def documents_text(read: StepRead, n_shown: int = N_DOCUMENTS) -> str:
    """The documents of a step in columns."""
    has_sources = any(one.source for one in read.documents)
    header = ["raises", "loss", "targets"] if read.scored else []
    header += ["source"] if has_sources else []
    header += ["document", "file or record", "tokens", "text"]
    rows = []
    for one in read.documents[:n_shown]:
        row = [_signed(one.raises), _number(one.loss), f"{len(one.nats):,}"] if read.scored else []
        row += [one.source] if has_sources else []
        row += ["?" if one.number is None else f"{one.number:,}", one.name or "-", tokens_of(one), _first_words(one)]
        rows.append(row)
    if all(one.name is None for one in read.documents):
        column = header.index("file or record")
        for row in (header, *rows):
            del row[column]
    left_out = len(read.documents) - n_shown
    more = f"\nand {left_out:,} more, which the page and output=json list" if left_out > 0 else ""
    text = [row.pop() for row in rows]
    lines = grid(header[:-1], rows, n_left=0).split("\n")
    width = max(map(len, lines))
    return "\n".join(f"{line:<{width}}  {last}" for line, last in zip(lines, ["text", *text], strict=True)) + more


def tokens_of(one: DocumentRead) -> str:
    """Which tokens of a document a step read, as [begin, end) within the document, and how many it has."""
    start = one.begin if one.number is not None else 0
    parts = sorted({(begin, end) for _, begin, end in one.parts})
    shown = ", ".join(f"{begin - start:,}-{end - start:,}" for begin, end in parts[:3])
    more = f" and {plural(len(parts) - 3, 'part')}" if len(parts) > 3 else ""
    return f"{shown}{more}" + (f" of {one.end - one.begin:,}" if one.number is not None else "")


def tokens_text(read: StepRead, scale: float, *, color: bool) -> str:
    """The examples that have a text, those with the highest loss first; with `color` as terminals show it."""
    blocks = []
    for one in by_loss(read.examples):
        if not one.texts:
            continue
        lines = [f"--- {heading(one)}"]
        for name, text in one.texts.items():
            lines += [name] if len(one.texts) > 1 else []
            lines.append("".join(_colored(token.text, token.nats, scale, color=color) for token in text))
        costly = sorted(
            (t for text in one.texts.values() for t in text if t.nats is not None), key=lambda t: -(t.nats or 0)
        )
        if costly:
            listed = ", ".join(f"{visible(token.text)} {token.nats:.2f}" for token in costly[:N_COSTLIEST])
            lines.append(f"highest: {listed}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def heading(one: ExampleRead) -> str:
    """Which example of the step it is, as `--- example 3 of the step` counts them, and its loss."""
    source = f"{one.source}, " if one.source else ""
    loss = "" if one.loss is None else f", loss {one.loss:.4f}"
    return f"example {one.number + 1} of the step ({source}example {one.index:,} of the split){loss}"


def legend(scale: float) -> str:
    """What the colors on a terminal mean."""
    levels = len(_LEVELS)
    marks = [
        _background(f" {scale * i / levels:.1f} ", level) if level else f" {0:.1f} " for i, level in enumerate(_LEVELS)
    ]
    return f"nats of each token: {''.join(marks)}  (a guess among all tokens costs {scale:.2f})"


def write_step_page(
    path: Path, read: StepRead, *, title: str, facts: Sequence[tuple[str, str]], vocab_size: int
) -> None:
    """Write the page of a step, atomically; `facts` are what is said first."""
    data = {
        "title": title,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "facts": [*map(list, facts), *(["note", note] for note in read.notes)],
        "scored": read.scored,
        "scale": scale_of(vocab_size),
        "documentsNote": DOCUMENTS_NOTE if read.scored else "Numbers are those in the training split, from 0.",
        "documents": [_document(one, read.scored) for one in read.documents[:PAGE_DOCUMENTS]],
        "leftOut": max(0, len(read.documents) - PAGE_DOCUMENTS),
        "examples": [
            {"head": heading(one), "texts": {name: _limited(text) for name, text in one.texts.items()}}
            for one in by_loss(read.examples)
            if one.texts
        ],
    }
    scripts = ["inspect/parts.js", "inspect/step.js"]
    text = html.document(
        title, '<div id="app"></div>', data=data, scripts=scripts, styles=["inspect/inspect.css"], charts=False
    )
    html.write_document(path, text)


def scale_of(vocab_size: int) -> float:
    """The loss that has the strongest color: that of a guess among all tokens."""
    return math.log(vocab_size)


def _document(one: DocumentRead, scored: bool) -> dict[str, Any]:
    examples = sorted({example + 1 for example, _, _ in one.parts})
    return {
        "source": one.source,
        "document": one.number,
        "name": one.name or "",
        "where": tokens_of(one),
        "examples": ", ".join(map(str, examples[:8])) + (f" and {len(examples) - 8} more" if len(examples) > 8 else ""),
        "text": one.text,
        "n_targets": len(one.nats),
        "loss": one.loss,
        "raises": one.raises if scored else None,
    }


def _limited(text: Sequence[Any]) -> list[list[Any]]:
    found, room = [], PAGE_CHARACTERS
    for token in text:
        room -= len(token.text)
        if room < 0:
            return [*found, [" [the rest is left out]", None]]
        found.append([readable(token.text), token.nats])
    return found


def readable(text: str, escape: Callable[[str], str] = escaped) -> str:
    """A text with what would not be seen as escapes, beside line ends and tabs."""
    return "".join(character if character in "\n\t" else escape(character) for character in text)


def _first_words(one: DocumentRead) -> str:
    shown = visible(" ".join(one.text.split()) or one.text)
    return shown if len(shown) <= TEXT_COLUMNS else f"{shown[: TEXT_COLUMNS - 1]}…"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _colored(text: str, nats: float | None, scale: float, *, color: bool) -> str:
    text = readable(text)
    if not color or nats is None:
        return text
    level = _LEVELS[min(len(_LEVELS) - 1, int(len(_LEVELS) * max(0.0, nats) / scale)) if math.isfinite(nats) else -1]
    # Not over the end of a line, where some terminals would fill it.
    return text if level is None else "\n".join(_background(line, level) if line else "" for line in text.split("\n"))


def _background(text: str, level: int) -> str:
    return f"\x1b[48;5;{level}m\x1b[38;5;16m{text}\x1b[0m"
