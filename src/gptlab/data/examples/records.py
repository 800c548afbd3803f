"""The rows of a table as examples: what is read in each and what is to be predicted."""

import hashlib
import json
import platform
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.config import TargetKind
from gptlab.data.examples.template import Template
from gptlab.data.progress import byte_progress
from gptlab.data.sources.config import FunctionsConfig, StdlibConfig, TableConfig
from gptlab.data.sources.corpus import FileCorpus, HubTable, open_stdlib
from gptlab.data.sources.functions import functions
from gptlab.data.sources.table import TABLE_ENDINGS, read_table, table_ending
from gptlab.errors import UserError


class Segment(NamedTuple):
    """A stretch of an example, encoded apart from the others."""

    text: str | None  # None: the end-of-text word
    scored: bool  # its tokens are to be predicted


class Example(NamedTuple):
    """One row of a table; `label` is the number of its class, -1 where it has none."""

    where: str
    segments: list[Segment]
    label: int


@dataclass(kw_only=True, slots=True)
class RecordSource:
    """A table that can be read as often as needed; `fingerprint` changes with its content."""

    description: str
    fingerprint: str
    rows: Callable[[], Iterator[dict[str, Any]]]


def open_functions(config: FunctionsConfig) -> RecordSource:
    """The functions of the standard library, or of the files in `data.path`, as a table."""
    corpus = open_stdlib(StdlibConfig(path=config.path))
    # How code is written out differs between versions of Python.
    key = hashlib.sha256(f"{corpus.fingerprint} {platform.python_version()}".encode()).hexdigest()
    return RecordSource(
        description=f"functions of {corpus.description}", fingerprint=key, rows=lambda: functions(corpus)
    )


def open_table(config: TableConfig) -> RecordSource:
    """The table that a config names; UserError for a bad path."""
    path = None if config.path is None else Path(config.path).expanduser()
    if path is not None and path.is_file() and table_ending(path) is not None:
        for name in ("dataset", "subset", "revision", "hub_split"):
            if getattr(config, name) not in (None, "train"):
                raise UserError(
                    f"data.{name}={getattr(config, name)} is of a data set, and data.path={config.path} is a table in "
                    "a file; leave one of them out"
                )
        return RecordSource(
            description=config.path,
            fingerprint=FileCorpus([(path.name, path)], "").fingerprint,
            rows=lambda: read_table(path),
        )
    if path is not None and path.is_file() and path.suffix != ".parquet":
        raise UserError(
            f"data.path={config.path} is not a table; give a file ending in {', '.join(TABLE_ENDINGS)} or .parquet, "
            "or the folder of a data set"
        )
    table = HubTable(
        path=config.path,
        dataset=config.dataset,
        subset=config.subset,
        revision=config.revision,
        hub_split=config.hub_split,
    )
    key = json.dumps([config.subset, config.hub_split, *table.identity])
    return RecordSource(
        description=table.description, fingerprint=hashlib.sha256(key.encode()).hexdigest(), rows=table.rows
    )


def examples(config: TableConfig, source: RecordSource) -> Iterator[Example]:
    """The examples of a table in its order; a row that cannot be one is a ValueError that names it."""
    make = {TargetKind.label: _labeled, TargetKind.response: _answered, TargetKind.messages: _chat}[config.target_kind](
        config
    )
    found = False
    for number, row in enumerate(source.rows(), 1):
        example = make(row, f"row {number:,} of {source.description}")
        if example is not None:
            found = True
            yield example
    if not found:
        raise UserError(
            f"{source.description} has no row"
            + (" with a label of data.class_names" if config.target_kind is TargetKind.label else "")
            + "; give another table"
        )


Make = Callable[[dict[str, Any], str], Example | None]


def _labeled(config: TableConfig) -> Make:
    prompt = Template(config.prompt, "data.prompt")
    numbers = {name: number for number, name in enumerate(config.class_names)}

    def make(row: dict[str, Any], where: str) -> Example | None:
        value = _column(row, config.label_column, "data.label_column", where)
        label = numbers.get(str(value))
        if label is None:
            if config.drop_unknown_classes:
                return None
            raise UserError(
                f"{where} has the label {value!r} in the column {config.label_column}, and data.class_names holds "
                f"{', '.join(config.class_names)}; add it there, or leave such rows out with data.drop_unknown_classes=true"
            )
        return Example(where, [Segment(_filled(prompt, row, where), True), Segment(None, True)], label)

    return make


def _answered(config: TableConfig) -> Make:
    prompt, response = Template(config.prompt, "data.prompt"), Template(config.response, "data.response")

    def make(row: dict[str, Any], where: str) -> Example:
        asked, answer = _filled(prompt, row, where), _filled(response, row, where)
        return Example(where, [Segment(asked, False), Segment(answer, True), Segment(None, True)], -1)

    return make


def _chat(config: TableConfig) -> Make:
    templates = {role: Template(text, f"data.chat.{role}") for role, text in config.chat.items()}
    for role, template in templates.items():
        if template.parts[1::2] != ("content",):
            raise UserError(
                f"data.chat.{role}={template.text!r} must have the field {{content}} once, and no other field"
            )
    learned = templates["assistant"].parts

    def make(row: dict[str, Any], where: str) -> Example:
        turns = _column(row, config.messages, "data.messages", where)
        segments: list[Segment] = []
        end = 0
        if not isinstance(turns, list):
            raise UserError(f"{where} holds {type(turns).__name__} in the column {config.messages}, not a list")
        for number, turn in enumerate(turns, 1):
            role, content = _turn(turn, f"{where}, message {number},")
            if role not in templates:
                raise UserError(
                    f"{where}, message {number}, has the role {role!r}, and data.chat has templates for "
                    f"{', '.join(templates)}; add one as data.chat.ROLE, with {{content}} in it"
                )
            if role == "assistant":
                before, _, after = learned
                segments += [Segment(before, False)] if before else []
                segments += [Segment(content + after, True), Segment(None, True)]
                end = len(segments)
            else:
                segments.append(Segment(templates[role].fill({"content": content}, where), False))
        if not end:
            raise UserError(f"{where} has no message of the assistant, so nothing to learn; leave it out")
        return Example(where, segments[:end], -1)  # nothing is learned from what comes after the last answer

    return make


def _turn(turn: Any, where: str) -> tuple[str, str]:
    match turn:
        case {"role": str(role), "content": str(content)}:
            if not content.strip():
                raise UserError(f"{where} has an empty content; give it text or leave the row out")
            return role, content
    raise UserError(f'{where} is not a message such as {{"role": "user", "content": "..."}}')


def _column(row: dict[str, Any], column: str, word: str, where: str) -> Any:
    if column not in row:
        raise UserError(f"{word}={column} is not a column of {where}; it has {', '.join(sorted(row))}")
    if row[column] is None:
        raise UserError(f"{where} has null in the column {column}; give it a value or leave the row out")
    return row[column]


def _filled(template: Template, row: dict[str, Any], where: str) -> str:
    text = template.fill(row, where)
    if not text.strip():
        raise UserError(f"{template.word} is empty in {where}; give it text or leave the row out")
    return text


class SpooledExamples:
    """Examples, read once into a file and from there as often as needed.

    `hashes` has a number in [0, 1) for each, made of its content: equal examples have equal ones.
    """

    def __init__(self, config: TableConfig, source: RecordSource, file: Path, *, progress: bool = False) -> None:
        self._file = file
        self.hashes = array("d")
        self.n_bytes = 0
        with open(file, "w", encoding="ascii") as spool, byte_progress("reading", None, show=progress) as advance:
            for example in examples(config, source):
                content = json.dumps([example.segments, example.label])
                digest = hashlib.sha256(content.encode()).digest()
                self.hashes.append((int.from_bytes(digest[:8], "big") >> 11) / (1 << 53))
                spool.write(json.dumps(example) + "\n")
                size_bytes = sum(n_bytes(segment) for segment in example.segments)
                self.n_bytes += size_bytes
                advance(size_bytes)

    def __len__(self) -> int:
        return len(self.hashes)

    def __iter__(self) -> Iterator[Example]:
        with open(self._file, encoding="ascii") as spool:
            for line in spool:
                where, segments, label = json.loads(line)
                yield Example(where, [Segment(*segment) for segment in segments], label)


def n_bytes(segment: Segment) -> int:
    """The size of a segment's text as UTF-8."""
    return 0 if segment.text is None else len(segment.text.encode("utf-8", "surrogatepass"))
