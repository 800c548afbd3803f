"""samples.txt of a run folder: what the model wrote at each evaluation, a block each."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.tokenizers.pieces import escaped

SAMPLES = "samples.txt"
HEAD = re.compile(r"^--- step (\d+)((?:, \S+/loss \S+)*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was written after `step` optimizer steps, and the losses then, as `val/loss 2.5000`."""

    step: int
    losses: str
    text: str


def sample_block(step: int, evaluation: Mapping[str, float], text: str) -> str:
    """A sample under a line with its step and losses, and an empty line; control characters are escapes."""
    losses = "".join(f", {name} {value:.4f}" for name, value in evaluation.items() if name.endswith("/loss"))
    shown = "".join(character if character in "\n\t" else escaped(character) for character in text)
    return f"--- step {step}{losses}\n{shown.rstrip()}\n\n"


def samples_until(content: str, step: int) -> str:
    """The blocks of a samples.txt up to a step."""
    return "".join(block for head, block in _blocks(content) if head is None or int(head[1]) <= step)


def read_samples(run: Path) -> list[Sample]:
    """The samples of a run folder, oldest first; none where it has no samples.txt."""
    path = run / SAMPLES
    content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [
        Sample(int(head[1]), head[2].removeprefix(", "), block[len(head[0]) :].strip("\n"))
        for head, block in _blocks(content)
        if head is not None
    ]


def _blocks(content: str) -> Iterator[tuple[re.Match | None, str]]:
    """Each block with the match of its first line; what comes before the first one has none."""
    heads = list(HEAD.finditer(content))
    ends = [*(head.start() for head in heads), len(content)]
    if ends[0]:
        yield None, content[: ends[0]]
    for head, end in zip(heads, ends[1:], strict=True):
        yield head, content[head.start() : end]
