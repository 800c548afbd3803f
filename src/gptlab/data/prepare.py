"""Text to token files: split, tokenized, cached by content."""

import dataclasses
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from gptlab.data.cache import cache_root, locked
from gptlab.data.config import DataConfig, Split, TargetKind
from gptlab.data.encode import Encoded, EncodeJob, Encoders
from gptlab.data.examples.example_table import (
    ExampleFormat,
    ExampleTable,
    ExampleTableWriter,
    open_example_tables,
    write_example_format,
)
from gptlab.data.examples.records import Example, RecordSource, SpooledExamples, n_bytes
from gptlab.data.progress import byte_progress
from gptlab.data.sources.config import TableConfig
from gptlab.data.sources.corpus import Corpus, HubCorpus, SpooledCorpus, TextChunk
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.tokenizers.config import TokenizerConfig, TokenizerFileConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer, between_words, load_tokenizer, read_tokenizer_file
from gptlab.errors import UserError

_VERSION = 1
_PARTS = ("train", "val", "test")
_UNIT_CHARACTERS = 1 << 18
_SMALL_CORPUS_BYTES = 4_000_000


@dataclass(kw_only=True, slots=True)
class PreparedData:
    """A corpus as token files; `val` and `test` are None where their fraction is 0.

    `rows` has each split's examples where the source has rows, and is empty where it has text.
    """

    tokenizer: Tokenizer
    train: TokenFile
    val: TokenFile | None
    test: TokenFile | None
    fingerprint: str  # sha256 over the corpus's content, the tokenizer and the split
    folder: Path
    description: str
    rows: dict[str, ExampleTable] = field(default_factory=dict)

    def part(self, name: str) -> TokenFile | None:
        """The split `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def prepare(data: DataConfig, tokenizer: TokenizerConfig, *, progress: bool = True) -> PreparedData:
    """The token files of a corpus, made on the first call and found in the cache afterwards.

    Of several processes that call at once one prepares and the others wait. Errors and kills leave no half cache.
    """
    data.check()
    tokenizer.check()
    rows = data.target_kind is not None
    corpus = data.build(progress=progress)
    fingerprint = _fingerprint(data, tokenizer, corpus)
    root = cache_root(data.cache_dir)
    folder = root / f"{data.type}-{fingerprint[:16]}"
    made = None
    if not folder.is_dir():
        with locked(root, f"{folder.name}.lock"):
            if not folder.is_dir():
                # The lock makes the name ours alone: what a killed process left there can go.
                partial = root / f".{folder.name}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    made = (_build_rows if rows else _build)(partial, data, tokenizer, corpus, progress=progress)
                    os.rename(partial, folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    return _load(folder, data, corpus, fingerprint, made)


def _fingerprint(data: DataConfig, tokenizer: TokenizerConfig, corpus: Corpus | RecordSource) -> str:
    words = dataclasses.asdict(tokenizer)
    for name in ("special_tokens", "n_sentinel_tokens"):
        if not words[name]:  # vocabularies without them keep their folders
            del words[name]
    if isinstance(tokenizer, TokenizerFileConfig):
        words["path"] = hashlib.sha256(read_tokenizer_file(tokenizer).encode()).hexdigest()
    split = [Split(data.split).value, data.val_fraction, data.test_fraction]
    key = {"version": _VERSION, "corpus": corpus.fingerprint, "tokenizer": words, "split": split}
    if data.target_kind is not None:
        settings = ("prompt", "response", "label_column", "class_names", "drop_unknown_classes", "messages", "chat")
        key["rows"] = {name: getattr(data, name) for name in settings}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _load(
    folder: Path, data: DataConfig, corpus: Corpus | RecordSource, fingerprint: str, made: Tokenizer | None
) -> PreparedData:
    tokenizer = made or load_tokenizer(folder / "tokenizer.json")
    files = {}
    for part, fraction in zip(_PARTS, (1, data.val_fraction, data.test_fraction), strict=True):
        files[part] = TokenFile.open(folder / f"{part}.bin") if fraction else None
        if files[part] and files[part].tokenizer != tokenizer.fingerprint:
            raise UserError(
                f"{folder}: {part}.bin is of another tokenizer than tokenizer.json; delete it and run again"
            )
    try:
        sizes = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        plural = "" if sizes["n_documents"] == 1 else "s"
        what = "row" if data.target_kind is not None else "document"
        size = f"{sizes['n_documents']:,} {what}{plural}, {sizes['n_bytes']:,} bytes"
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder}/corpus.json is missing or altered; delete the folder and run again") from None
    description = f"{corpus.description}: {size}, content {corpus.fingerprint[:16]}"
    there = {part: file for part, file in files.items() if file is not None}
    return PreparedData(
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        folder=folder,
        description=description,
        rows=open_example_tables(folder, there) if data.target_kind is not None else {},
        **files,
    )


def _build(folder: Path, data: DataConfig, config: TokenizerConfig, corpus: Corpus, *, progress: bool) -> Tokenizer:
    if isinstance(corpus, HubCorpus):
        corpus = SpooledCorpus(corpus, folder / "spool", progress=progress)
    with ExitStack() as stack:
        learns = config.trained
        if not learns:  # its errors come before any work, and the workers start beside the first reading
            tokenizer = config.build(lambda: iter(()))
            encoders = _start(stack, folder, tokenizer, data, corpus)
        sizes = _measure(corpus)
        part_of = _split(data, sizes)
        if learns:

            def texts() -> Iterator[str]:
                for (part, _), run in _by_document(_parts(corpus.pieces(), part_of)):
                    # Every split must be spelled with the same characters.
                    if part == "train" or config.all_splits:
                        yield from between_words(piece.text for _, piece in run)

            tokenizer = config.build(texts)
            encoders = _start(stack, folder, tokenizer, data, corpus)
        writers = _writers(stack, folder, tokenizer, data)
        advance = stack.enter_context(byte_progress("tokenizing", sizes.n_bytes, show=progress))
        for unit, encoded in encoders.map(_units(_parts(corpus.pieces(), part_of), tokenizer)):
            writer = writers[unit.part]
            writer.write(encoded.ids)
            writer.end_documents(unit.n_documents, n_bytes=unit.n_bytes, n_characters=unit.n_characters)
            advance(unit.n_bytes)
    (folder / "spool").unlink(missing_ok=True)
    _write_sizes(folder, len(sizes.characters), sizes.n_bytes)
    return tokenizer


def _build_rows(
    folder: Path, data: TableConfig, config: TokenizerConfig, source: RecordSource, *, progress: bool
) -> Tokenizer:
    learns = config.trained
    if not learns:  # its errors come before any work
        tokenizer = config.build(lambda: iter(()))
    examples = SpooledExamples(data, source, folder / "spool", progress=progress)
    part_of = _split_rows(data, examples)
    if learns:

        def texts() -> Iterator[str]:
            for number, example in enumerate(examples):
                if part_of(number) == "train" or config.all_splits:
                    yield from (segment.text for segment in example.segments if segment.text)

        tokenizer = config.build(texts)
    if tokenizer.eot is None and data.target_kind is not TargetKind.label:
        raise UserError(
            f"tokenizer={config.type} has no end-of-text word, which ends each response of data={data.type}; use "
            "another, such as tokenizer=bpe"
        )
    with ExitStack() as stack:
        encoders = _start(stack, folder, tokenizer, data, examples)
        writers = _writers(stack, folder, tokenizer, data)
        tables = {part: ExampleTableWriter() for part in writers}
        advance = stack.enter_context(byte_progress("tokenizing", examples.n_bytes, show=progress))
        for unit, encoded in encoders.map(_row_units(examples, part_of, tokenizer)):
            writer = writers[unit.part]
            writer.write(_add_rows(unit.examples, encoded, tokenizer, tables[unit.part]))
            writer.end_documents(unit.n_documents, n_bytes=unit.n_bytes, n_characters=unit.n_characters)
            advance(unit.n_bytes)
    rows = ExampleFormat(
        form=data.target_kind.value, n_beginning=len(tokenizer.beginning), has_end=tokenizer.eot is not None
    )
    write_example_format(folder, rows, {part: table.save(folder, part) for part, table in tables.items()})
    (folder / "spool").unlink()
    _write_sizes(folder, len(examples), examples.n_bytes)
    return tokenizer


def _write_sizes(folder: Path, n_documents: int, n_bytes: int) -> None:
    counts = {"n_documents": n_documents, "n_bytes": n_bytes}
    (folder / "corpus.json").write_text(json.dumps(counts), encoding="utf-8")


def _writers(stack: ExitStack, folder: Path, tokenizer: Tokenizer, data: DataConfig) -> dict[str, TokenWriter]:
    return {
        part: stack.enter_context(
            TokenWriter(folder / f"{part}.bin", vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.fingerprint)
        )
        for part, fraction in zip(_PARTS, (1, data.val_fraction, data.test_fraction), strict=True)
        if fraction
    }


def _start(
    stack: ExitStack, folder: Path, tokenizer: Tokenizer, data: DataConfig, corpus: Corpus | SpooledExamples
) -> Encoders:
    tokenizer.save(folder / "tokenizer.json")
    n_processes = data.n_processes or _n_cores()
    # Starting a process costs as much as tokenizing a few megabytes; bytes and characters are looked up faster than
    # they could be sent.
    if corpus.n_bytes < _SMALL_CORPUS_BYTES or tokenizer.type in ("byte", "char"):
        n_processes = 1
    return stack.enter_context(Encoders(tokenizer, n_processes))


def _n_cores() -> int:
    with suppress(AttributeError):  # not on every platform
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(kw_only=True, slots=True)
class _Sizes:
    characters: array  # of each document
    hashes: array  # of each document's name, in [0, 1)
    n_bytes: int


def _measure(corpus: Corpus) -> _Sizes:
    sizes = _Sizes(characters=array("q"), hashes=array("d"), n_bytes=0)
    for piece in corpus.pieces():
        if piece.document == len(sizes.characters):
            sizes.characters.append(0)
            digest = hashlib.sha256(piece.name.encode("utf-8", "surrogatepass")).digest()
            sizes.hashes.append((int.from_bytes(digest[:8], "big") >> 11) / (1 << 53))
        sizes.characters[-1] += len(piece.text)
        sizes.n_bytes += len(piece.text.encode("utf-8", "surrogatepass"))
    if not sizes.characters:
        raise UserError(f"{corpus.description} holds no readable text; give another with data.path=")
    return sizes


def _split_rows(data: TableConfig, examples: SpooledExamples) -> Callable[[int], str]:
    """The split of each example, by its content: equal ones are never in two."""
    parts = ["train", *(part for part in _PARTS[1:] if getattr(data, f"{part}_fraction"))]
    hashes, kinds = np.unique(np.array(examples.hashes), return_inverse=True)
    if len(hashes) < len(parts):
        several = len(hashes) > 1
        alike = f", the others are like {'them' if several else 'it'}," if len(hashes) < len(examples) else ""
        raise UserError(
            f"the table has {len(hashes):,} row{'s' * several}{alike} and each of {', '.join(parts)} needs one; "
            "give more rows, or set data.val_fraction=0 and data.test_fraction=0"
        )
    part_of = _split_by_document(data, hashes)
    return lambda number: part_of(int(kinds[number]))[0][0]


PartOf = Callable[[int], list[tuple[str, int]]]


def _split(data: DataConfig, sizes: _Sizes) -> PartOf:
    """For each document, where its parts begin in characters, e.g. [("train", 0), ("val", 3105)]."""
    if Split(data.split) is Split.document:
        return _split_by_document(data, np.array(sizes.hashes))
    n = sum(sizes.characters)
    # Rounded, so that 1 - 0.1 is 0.9 and its product with n the one that everybody else computes.
    ends = [
        int(round(1 - data.val_fraction - data.test_fraction, 12) * n),
        int(round(1 - data.test_fraction, 12) * n),
        n,
    ]
    starts = [0, *ends[:2]]
    for part, fraction, start, end in zip(
        _PARTS, (1, data.val_fraction, data.test_fraction), starts, ends, strict=True
    ):
        if fraction and start == end:
            setting = "the training split" if part == "train" else f"data.{part}_fraction={fraction}"
            raise UserError(f"{setting} is empty: the corpus has {n:,} characters; give more text or other fractions")
    offsets = np.concatenate([[0], np.cumsum(np.array(sizes.characters))])

    def part_of(document: int) -> list[tuple[str, int]]:
        first, last = int(offsets[document]), int(offsets[document + 1])
        return [
            (part, max(start, first) - first)
            for part, start, end in zip(_PARTS, starts, ends, strict=True)
            if max(start, first) < min(end, last)
        ]

    return part_of


def _split_by_document(data: DataConfig, hashes: np.ndarray) -> PartOf:
    n = len(hashes)
    wanted = [
        part for part, fraction in zip(_PARTS[1:], (data.val_fraction, data.test_fraction), strict=True) if fraction
    ]
    if n <= len(wanted):
        raise UserError(
            f"data.split=document needs a document for each of train, {', '.join(wanted)} and the corpus has {n}; "
            "use data.split=fraction, which cuts the text itself"
        )
    n_val = int((hashes < data.val_fraction).sum())
    n_test = int((hashes < data.val_fraction + data.test_fraction).sum()) - n_val
    # In the order of the hashes the parts are neighbors: an empty one takes the next document.
    n_val, n_test = max(n_val, "val" in wanted), max(n_test, "test" in wanted)
    n_val = min(n_val, n - 1 - ("test" in wanted))
    n_test = min(n_test, n - 1 - n_val)
    codes = np.zeros(n, dtype=np.uint8)
    order = np.argsort(hashes, kind="stable")
    codes[order[:n_val]] = 1
    codes[order[n_val : n_val + n_test]] = 2
    return lambda document: [(_PARTS[codes[document]], 0)]


def _parts(pieces: Iterable[TextChunk], part_of: PartOf) -> Iterator[tuple[str, TextChunk]]:
    for document, run in groupby(pieces, key=lambda piece: piece.document):
        waiting = part_of(document)
        position = 0
        part = ""
        for piece in run:
            text = piece.text
            while text:
                if waiting and waiting[0][1] == position:
                    part = waiting.pop(0)[0]
                room = waiting[0][1] - position if waiting else len(text)
                yield part, TextChunk(document, piece.name, text[:room])
                position += min(room, len(text))
                text = text[room:]


def _units(parts: Iterable[tuple[str, TextChunk]], tokenizer: Tokenizer) -> Iterator[EncodeJob]:
    open_units: dict[str, EncodeJob] = {}
    begun: set[str] = set()
    for (part, _), run in _by_document(parts):
        unit = open_units.get(part)
        if unit is None:
            unit = open_units[part] = _empty_unit(part)
        if part in begun and tokenizer.eot is not None:
            unit.texts.append(None)
        begun.add(part)
        unit.n_documents += 1
        for chunk in tokenizer.chunks(piece.text for _, piece in run):
            unit.texts.append(chunk)
            unit.n_characters += len(chunk)
            unit.n_bytes += len(chunk.encode("utf-8", "surrogatepass"))
            if unit.n_characters >= _UNIT_CHARACTERS:
                yield unit
                unit = open_units[part] = _empty_unit(part)
    yield from (unit for unit in open_units.values() if unit.texts)


@dataclass(kw_only=True, slots=True)
class _ExampleJob(EncodeJob):
    examples: list[Example]


def _row_units(
    examples: Iterable[Example], part_of: Callable[[int], str], tokenizer: Tokenizer
) -> Iterator[_ExampleJob]:
    open_units: dict[str, _ExampleJob] = {}
    for number, example in enumerate(examples):
        part = part_of(number)
        unit = open_units.get(part)
        if unit is None:
            unit = _ExampleJob(part=part, texts=[], n_documents=0, n_characters=0, n_bytes=0, examples=[])
            open_units[part] = unit
        if tokenizer.eot is None:
            example = example._replace(segments=[segment for segment in example.segments if segment.text is not None])
        unit.examples.append(example)
        unit.n_documents += 1
        for segment in example.segments:
            unit.texts.append(segment.text)
            unit.n_characters += len(segment.text or "")
            unit.n_bytes += n_bytes(segment)
        if unit.n_characters >= _UNIT_CHARACTERS:
            yield open_units.pop(part)
    yield from open_units.values()


def _add_rows(examples: list[Example], encoded: Encoded, tokenizer: Tokenizer, table: ExampleTableWriter) -> np.ndarray:
    """Note the rows of the examples in `table`; returns their tokens."""
    beginning = np.array(tokenizer.beginning, dtype=encoded.ids.dtype)
    sizes, parts, place = iter(encoded.sizes), [], 0
    for example in examples:
        length, spans = len(beginning), []
        for segment in example.segments:
            size = next(sizes)
            if not size and (segment.scored or segment.text.strip()):
                raise UserError(
                    f"{example.where}: the tokenizer makes no token of {segment.text[:40]!r}; leave the row out"
                )
            if segment.scored:
                follows = spans and spans[-1][1] == length
                spans.append((spans.pop()[0] if follows else length, length + size))
            length += size
        table.add(length, spans, example.label)
        n = length - len(beginning)
        parts += [beginning, encoded.ids[place : place + n]]
        place += n
    return np.concatenate(parts)


def _by_document(
    parts: Iterable[tuple[str, TextChunk]],
) -> Iterator[tuple[tuple[str, int], Iterator[tuple[str, TextChunk]]]]:
    return groupby(parts, key=lambda item: (item[0], item[1].document))


def _empty_unit(part: str) -> EncodeJob:
    return EncodeJob(part=part, texts=[], n_documents=0, n_characters=0, n_bytes=0)
