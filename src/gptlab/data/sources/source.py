"""What a source is built into: documents or records, in a fixed order, and what identifies their content."""

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gptlab.data.cache import checksums
from gptlab.data.progress import byte_progress
from gptlab.data.sources.storage import BLOCK_BYTES, Address, Seen, Stored, ending, size_bytes, unpacked
from gptlab.data.sources.table_file import is_text_table, read_texts
from gptlab.errors import UserError

BYTE_ORDER_MARK = "\ufeff"  # at the beginning of a file or a document; not text


class TextChunk(NamedTuple):
    """A part of one document's text; the chunks of a document follow each other."""

    document: int
    name: str
    text: str


class Document(NamedTuple):
    """One document of a corpus; a section is a part of the corpus, such as a file, from which reading can begin."""

    section: int
    number: int  # in its section
    name: str
    texts: Callable[[], Iterator[str]]  # its text in parts, which may be asked for again
    fields: Mapping[str, Any] = MappingProxyType({})  # of its record, the columns that filters read


class Corpus(ABC):
    """Documents in a fixed order; `fingerprint` is a SHA-256 that changes with their names or content."""

    description: str
    fingerprint: str
    n_bytes: int = 0  # as stored, so fewer than the text's where it is compressed; 0: unknown
    n_bytes_read: int = 0  # of these, by the newest `documents_from`
    left_out: Sequence[str] = ()  # what the source has beside the documents, known after they were read; for a person
    slow: bool = False  # read once into the cache, since reading again would mean another download
    sections: Sequence[tuple[str, str]] = ()  # name and checksum of each, where they are known
    stores_text: bool = False  # whether the bytes that are stored are those of the text

    @property
    def n_sections(self) -> int:
        """How many sections there are; 0: unknown."""
        return len(self.sections)

    @abstractmethod
    def chunks(self) -> Iterator[TextChunk]:
        """All text in order; a large document in chunks of about a quarter of a megabyte."""

    def documents(self) -> Iterator[tuple[str, str]]:
        """Name and text of each document."""
        for (_, name), chunks in groupby(self.chunks(), key=lambda chunk: (chunk.document, chunk.name)):
            yield name, "".join(chunk.text for chunk in chunks)

    def documents_from(self, section: int = 0) -> Iterator[Document]:
        """The documents from the beginning of a section on, empty ones included; sections without any are passed over.

        A document may be held in memory here; sources of large ones read them again.
        """
        assert section == 0
        for number, (_, chunks) in enumerate(groupby(self.chunks(), key=lambda chunk: chunk.document)):
            parts = list(chunks)
            yield Document(0, number, parts[0].name, partial(iter, [chunk.text for chunk in parts]))


class FileCorpus(Corpus):
    """Files as documents, or of tables their records; also compressed, by the ending of their name.

    `text_column` is the column of a table with the text; None: a table is read as plain text. `columns` are others
    that a document's `fields` have. An empty or binary file is refused by name, or skipped.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, Stored]],
        description: str,
        *,
        text_column: str | None = None,
        columns: Sequence[str] = (),
        skip_unreadable: bool = False,
        left_out: Sequence[str] = (),
        cache_dir: str | None = None,
    ) -> None:
        self.files = files
        self._column, self._columns = text_column, tuple(columns)
        self._not_found = list(left_out)
        self.left_out = self._not_found
        self.description = description
        self._skip_unreadable = skip_unreadable
        self._cache_dir = cache_dir
        self._before_bytes = [0, *accumulate(size_bytes(file) for _, file in files)]
        self.n_bytes = self._before_bytes[-1]
        self.slow = any(isinstance(file, Address) for _, file in files)
        self.stores_text = not any(self._is_table(file) or ending(file.name)[1] for _, file in files)

    @property
    def n_sections(self) -> int:
        return len(self.files)

    # A look at a few of the files needs no checksums of all.
    @cached_property
    def sections(self) -> Sequence[tuple[str, str]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        keys = keys_of([file for _, file in self.files], self._cache_dir)
        return [(name, key) for (name, _), key in zip(self.files, keys, strict=True)]

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        found = _fingerprint(self.sections)
        if any(self._is_table(file) for _, file in self.files):
            found = hashlib.sha256(json.dumps([found, self._column]).encode()).hexdigest()
        return found

    def chunks(self) -> Iterator[TextChunk]:
        number = n_empty = 0
        for document in self.documents_from():
            is_empty = True
            for text in document.texts():
                is_empty = False
                yield TextChunk(number, document.name, text)
            number, n_empty = number + (not is_empty), n_empty + is_empty
        if n_empty:
            self.left_out = [*self.left_out, records_without_text(n_empty)]

    def documents_from(self, section: int = 0) -> Iterator[Document]:
        unreadable = [name for name, file in self.files[:section] if self._skip_unreadable and _is_lost(file)]
        for number, (name, file) in enumerate(self.files[section:], section):
            seen = partial(self._see, self._before_bytes[number])
            seen(0)
            if self._is_table(file):
                assert self._column is not None
                for record, (text, fields) in enumerate(read_texts(file, self._column, self._columns, seen)):
                    text = (text or "").removeprefix(BYTE_ORDER_MARK)
                    yield Document(number, record, f"{name}#{record}", partial(iter, [text] if text else []), fields)
            elif not self._skip_unreadable:
                yield Document(number, 0, name, partial(_read_text, file, seen))
            else:
                try:
                    texts = list(_read_text(file))
                except UserError:
                    if size_bytes(file):  # else it has no text to lose
                        unreadable.append(name)
                else:
                    yield Document(number, 0, name, partial(iter, texts))
        self._see(self.n_bytes, 0)
        others = f" and {len(unreadable) - 1:,} more" if len(unreadable) > 1 else ""
        self.left_out = [*self._not_found, *([f"{unreadable[0]}{others}, not UTF-8 text"] if unreadable else [])]

    def _is_table(self, file: Stored) -> bool:
        return self._column is not None and is_text_table(file)

    def _see(self, before: int, position: int) -> None:
        self.n_bytes_read = before + position


def _is_lost(file: Stored) -> bool:
    try:
        return not any(_read_text(file))
    except UserError:
        return bool(size_bytes(file))


def records_without_text(n: int) -> str:
    """What of a table is no document, for a person."""
    return f"{n:,} record{'s' * (n != 1)} without text"


class SpooledCorpus(Corpus):
    """Another corpus's documents, read once into a file and from there as often as needed."""

    def __init__(self, corpus: Corpus, file: Path, *, progress: bool = False) -> None:
        self.description, self.fingerprint = corpus.description, corpus.fingerprint
        self._file = file
        self._sizes_bytes = array("q")
        self._names: list[str] = []
        with open(file, "wb") as spool, byte_progress("reading", None, show=progress) as advance:
            for name, text in corpus.documents():
                data = text.encode("utf-8", "surrogatepass")
                spool.write(data)
                self._sizes_bytes.append(len(data))
                self._names.append(name)
                advance(len(data))
        self.n_bytes = sum(self._sizes_bytes)
        self.left_out = corpus.left_out

    def chunks(self) -> Iterator[TextChunk]:
        with open(self._file, "rb") as spool:
            for document, (name, size_bytes) in enumerate(zip(self._names, self._sizes_bytes, strict=True)):
                decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
                for start in range(0, size_bytes, BLOCK_BYTES):
                    block = spool.read(min(BLOCK_BYTES, size_bytes - start))
                    yield TextChunk(document, name, decoder.decode(block, final=start + BLOCK_BYTES >= size_bytes))


@dataclass(kw_only=True, slots=True)
class RecordSource:
    """Records that can be read as often as needed; `fingerprint` is a SHA-256 that changes with their content."""

    description: str
    fingerprint: str
    records: Callable[[], Iterator[dict[str, Any]]]


def fingerprint_of(files: Sequence[tuple[str, Stored]], cache_dir: str | None = None) -> str:
    """A SHA-256 over names and contents; the files are read only if they changed since the last call."""
    keys = keys_of([file for _, file in files], cache_dir)
    return _fingerprint([(name, key) for (name, _), key in zip(files, keys, strict=True)])


def _fingerprint(named: Sequence[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, key in named:
        digest.update(json.dumps([name, key]).encode())
    return digest.hexdigest()


def keys_of(files: Sequence[Stored], cache_dir: str | None = None) -> list[str]:
    """What changes with a file's content: the SHA-256 of a file here; of one elsewhere what its system tells."""
    known = iter(checksums_of([file for file in files if isinstance(file, Path)], cache_dir))
    return [file.key() if isinstance(file, Address) else next(known) for file in files]


def checksums_of(paths: list[Path], cache_dir: str | None = None) -> list[str]:
    """The SHA-256 of each file, as `cache.checksums`; UserError for one that cannot be read."""
    try:
        return checksums(paths, cache_dir)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror or error})") from None


def existing_path(text: str) -> Path:
    """The path of `data.path`; UserError where nothing is there, and for a pipe."""
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"data.path={text} does not exist; give a file, a folder or a glob")
    if path.is_fifo():  # as of a shell's <(COMMAND); a pipe without a writer would be waited for
        raise UserError(f"data.path={text} is a pipe, and a text is read more than once; write it into a file")
    return path


@dataclass(kw_only=True, slots=True)
class FoundFiles:
    """The files below a folder, and how many others it has."""

    files: list[tuple[str, Path]]  # with their names relative to the folder, sorted by these
    n_hidden: int = 0  # files and folders
    n_other: int = 0  # with another ending
    n_again: int = 0  # that a link leads to once more

    @property
    def left_out(self) -> list[str]:
        """What is not among the files, for a person."""
        counts = (
            (self.n_other, "file{} with another ending"),
            (self.n_hidden, "hidden file{} or folder{}"),
            (self.n_again, "link{} to what is read already"),
        )
        return [f"{n:,} {what.replace('{}', 's' * (n != 1))}" for n, what in counts if n]


def files_below(
    root: Path, is_wanted: Callable[[str], bool] = lambda name: True, skip: Iterable[str] = ()
) -> FoundFiles:
    """Files below a folder, links followed; each file and each folder is taken once, hidden ones and pipes never."""
    found = FoundFiles(files=[])
    folders_seen, n_links = set(), 0
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in folders_seen:
            found.n_again += 1
            folders.clear()
            continue
        folders_seen.add(real)
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in names:
            if name.startswith("."):
                found.n_hidden += 1
            elif is_wanted(name) and not Path(folder, name).is_fifo():  # which would be waited for
                found.files.append((prefix + name, Path(folder, name)))
            else:
                found.n_other += 1
        found.n_hidden += sum(name.startswith(".") for name in folders)
        n_links += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        folders[:] = sorted(name for name in folders if name not in skip and not name.startswith("."))
    found.files.sort()
    if any(path.is_symlink() for _, path in found.files) or n_links:
        _leave_out_repeated(found)
    return found


def _leave_out_repeated(found: FoundFiles) -> None:
    seen: dict[str, tuple[str, Path]] = {}
    for file in sorted(found.files, key=lambda file: (file[1].is_symlink(), file)):  # a file itself before its links
        seen.setdefault(os.path.realpath(file[1]), file)
    found.n_again += len(found.files) - len(seen)
    found.files = sorted(seen.values())


def _blocks(file: Stored, seen: Seen | None) -> Iterator[bytes]:
    with unpacked(file, seen) as stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def _read_text(path: Stored, seen: Seen | None = None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_bytes = n_waiting = n_characters = 0
    try:
        for block in _blocks(path, seen):
            if not n_bytes and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{path} is UTF-16 text, not UTF-8; convert it or leave it out")
            if b"\0" in block:
                at = n_bytes + block.index(b"\0")
                raise UserError(f"{path} is binary, not text (a NUL at byte {at:,}); leave it out")
            text = decoder.decode(block)
            n_bytes += len(block)
            n_waiting = len(decoder.getstate()[0])
            if not n_characters:
                text = text.removeprefix(BYTE_ORDER_MARK)
            n_characters += len(text)
            if text:
                yield text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = n_bytes - n_waiting + error.start
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {at:,}); convert it or leave it out"
        ) from None
    if not n_characters:
        what = "holds nothing but a byte order mark" if n_bytes else "is empty"
        raise UserError(f"{path} {what}; give a file with text or leave it out")
