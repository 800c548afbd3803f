"""Records as examples: what the model reads in each and what it predicts."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gptlab.data.config import TargetKind
from gptlab.data.examples.template import Template
from gptlab.data.progress import byte_progress
from gptlab.data.sources.config import TableConfig
from gptlab.data.sources.source import RecordSource
from gptlab.data.sources.table_file import spelled
from gptlab.data.split import unit_hash
from gptlab.data.tokenizers.tokenizer import Tokenizer, split_at
from gptlab.errors import UserError

if TYPE_CHECKING:
    from gptlab.data.examples.chat_template import ChatTemplate


class Segment(NamedTuple):
    """A part of an example, encoded separately."""

    text: str | int | None  # an integer is a token id; None: the end-of-text token
    scored: bool  # its tokens are targets
    special: bool = False  # the spelling of a special token


class Example(NamedTuple):
    """One record; `label` is the number of its class, -1 where it has none."""

    where: str
    segments: list[Segment]
    label: int


def examples(config: TableConfig, source: RecordSource, make: "Make", dropped: Counter[str]) -> Iterator[Example]:
    """The examples of a source in its order; UserError names a record that cannot be one.

    Records without an example are counted in `dropped`, by the reason.
    """
    found = False
    for number, record in enumerate(source.records(), 1):
        example = make(record, f"record {number:,} of {source.description}")
        if example is not None:
            found = True
            yield example
        else:
            dropped["with a label that data.class_names lacks"] += 1
    if not found:
        raise UserError(
            f"{source.description} has no record"
            + (" with a label of data.class_names" if config.target_kind is TargetKind.label else "")
            + "; give another table"
        )


Make = Callable[[dict[str, Any], str], Example | None]


def _maker(config: TableConfig, template: "ChatTemplate | None") -> Make:
    match config.target_kind:
        case TargetKind.response:
            return _responded(config)
        case TargetKind.messages:
            return _chat(config) if template is None else _templated(config, template)
    return _labeled(config)


def _labeled(config: TableConfig) -> Make:
    prompt = Template(config.prompt, "data.prompt")
    numbers = {name: number for number, name in enumerate(config.class_names)}

    def make(record: dict[str, Any], where: str) -> Example | None:
        value = _column(record, config.label_column, "data.label_column", where)
        label = numbers.get(spelled(value))
        if label is None:
            if config.drop_unknown_classes:
                return None
            raise UserError(
                f"{where} has the label {spelled(value)!r} in the column {config.label_column}, and data.class_names "
                f"holds {', '.join(config.class_names)}; add it there, or leave such records out with "
                "data.drop_unknown_classes=true"
            )
        return Example(where, [Segment(_filled(prompt, record, where), True), Segment(None, True)], label)

    return make


def _responded(config: TableConfig) -> Make:
    prompt, response = Template(config.prompt, "data.prompt"), Template(config.response or "", "data.response")

    def make(record: dict[str, Any], where: str) -> Example:
        asked, response_text = _filled(prompt, record, where), _filled(response, record, where)
        return Example(where, [Segment(asked, False), Segment(response_text, True), Segment(None, True)], -1)

    return make


def _chat(config: TableConfig) -> Make:
    templates = {role: Template(text, f"data.chat.{role}") for role, text in config.chat.items()}
    for role, template in templates.items():
        if template.parts[1::2] != ("content",):
            raise UserError(
                f"data.chat.{role}={template.text!r} must have the field {{content}} once, and no other field"
            )
    before, _, after = templates["assistant"].parts

    def make(record: dict[str, Any], where: str) -> Example:
        turns = _column(record, config.messages, "data.messages", where)
        segments: list[Segment] = []
        end = 0
        if not isinstance(turns, list):
            raise UserError(f"{where} holds {type(turns).__name__} in the column {config.messages}, not a list")
        for number, turn in enumerate(turns, 1):
            role, content = _turn(turn, f"{where}, message {number},")
            if role not in templates:
                raise UserError(
                    f"{where}, message {number}, has the role {role!r}; data.chat has templates for "
                    f"{', '.join(templates)}; add one as data.chat.ROLE, with {{content}} in it"
                )
            if role == "assistant":
                segments += [Segment(before, False)] if before else []
                segments += [Segment(content + after, True), Segment(None, True)]
                end = len(segments)
            else:
                segments.append(Segment(templates[role].fill({"content": content}, where), False))
        if not end:
            raise UserError(f"{where} has no message of the assistant, so no target; leave it out")
        return Example(where, segments[:end], -1)  # what follows the last response has no target

    return make


def _templated(config: TableConfig, template: "ChatTemplate") -> Make:
    def make(record: dict[str, Any], where: str) -> Example:
        messages = _column(record, config.messages, "data.messages", where)
        parts = template.parts(messages, where)
        while not parts[-1].scored:
            parts.pop()  # what follows the last response has no target
        return Example(where, [Segment(*part) for part in parts], -1)

    return make


def _turn(turn: Any, where: str) -> tuple[str, str]:
    match turn:
        case {"role": str(role), "content": str(content)}:
            if not content.strip():
                raise UserError(f"{where} has an empty content; give it text or leave the record out")
            return role, content
    raise UserError(f'{where} is not a message such as {{"role": "user", "content": "..."}}')


def _column(record: dict[str, Any], column: str | None, key: str, where: str) -> Any:
    if column not in record:
        raise UserError(f"{key}={column} is not a column of {where}; it has {', '.join(sorted(record))}")
    if record[column] is None:
        raise UserError(f"{where} has null in the column {column}; give it a value or leave the record out")
    return record[column]


def _filled(template: Template, record: dict[str, Any], where: str) -> str:
    text = template.fill(record, where)
    if not text.strip():
        raise UserError(f"{template.key} is empty in {where}; give it text or leave the record out")
    return text


class SpooledExamples:
    """Examples, read once into a file and from there as often as needed.

    `hashes` has a number in [0, 1) for each, computed from its content: equal examples have equal ones.
    """

    def __init__(
        self,
        config: TableConfig,
        source: RecordSource,
        file: Path,
        chat_tokens: Mapping[str, str],
        special_tokens: Iterable[str] = (),
        plain_tokens: Iterable[str] = (),
        *,
        progress: bool = False,
    ) -> None:
        self._file = file
        self._template = self._open_template(config, chat_tokens, special_tokens, plain_tokens)
        dropped: Counter[str] = Counter()
        self.hashes = array("d")
        self.n_bytes = 0
        with open(file, "w", encoding="ascii") as spool, byte_progress("reading", None, show=progress) as advance:
            for example in examples(config, source, _maker(config, self._template), dropped):
                segments = [segment if segment.special else segment[:2] for segment in example.segments]
                content = json.dumps([segments, example.label])
                self.hashes.append(unit_hash(content.encode()))
                spool.write(json.dumps(example) + "\n")
                size_bytes = sum(n_bytes(segment) for segment in example.segments)
                self.n_bytes += size_bytes
                advance(size_bytes)
        self.left_out = [f"{n:,} record{'s' * (n != 1)} {why}" for why, n in dropped.items()]

    @staticmethod
    def _open_template(
        config: TableConfig, chat_tokens: Mapping[str, str], special_tokens: Iterable[str], plain_tokens: Iterable[str]
    ) -> "ChatTemplate | None":
        if config.chat_template is None:
            return None
        from gptlab.data.examples.chat_template import ChatTemplate, read_chat_template

        return ChatTemplate(read_chat_template(config.chat_template), chat_tokens, special_tokens, plain_tokens)

    def notes(self, tokenizer: str) -> list[str]:
        """What a person should know of how the examples are written; `tokenizer` is its type."""
        unknown = [] if self._template is None else sorted(self._template.unknown_tokens)
        if not unknown:
            return []
        listed = ",".join(json.dumps(token, ensure_ascii=False) for token in unknown)
        what = (
            "give a tokenizer.json that has them"
            if tokenizer in ("file", "wordpiece")
            else f"add them with 'tokenizer.special_tokens=[{listed}]'"
        )
        return [
            f"data.chat_template spells {', '.join(unknown)}, which the tokenizer does not have as special tokens: "
            f"each is read as several ordinary tokens; {what}"
        ]

    def __len__(self) -> int:
        return len(self.hashes)

    def __iter__(self) -> Iterator[Example]:
        with open(self._file, encoding="ascii") as spool:
            for line in spool:
                where, segments, label = json.loads(line)
                yield Example(where, [Segment(*segment) for segment in segments], label)


def n_bytes(segment: Segment) -> int:
    """The size of a segment's text as UTF-8."""
    return 0 if not isinstance(segment.text, str) else len(segment.text.encode("utf-8", "surrogatepass"))


def resolve(example: Example, tokenizer: Tokenizer) -> Example:
    """The example with its special tokens as ids; an end-of-text token that the tokenizer lacks is left out."""
    segments: list[Segment] = []
    ids = tokenizer.special_ids if any(segment.special for segment in example.segments) else {}
    for segment in example.segments:
        if segment.special:
            parts = split_at(ids, str(segment.text))
            segments += [Segment(ids.get(part, part), segment.scored) for part in parts]
        elif segment.text is not None:
            segments.append(segment)
        elif tokenizer.eot is not None:
            segments.append(Segment(tokenizer.eot, segment.scored))
    return example._replace(segments=segments)
