"""What a source is built into: documents or records, in a fixed order, and what identifies their content."""

import codecs
import gzip
import hashlib
import json
import os
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.cache import checksums
from gptlab.data.progress import byte_progress
from gptlab.errors import UserError

BLOCK_BYTES = 1 << 18
BYTE_ORDER_MARK = "\ufeff"  # at the beginning of a file or a document; not text


class TextChunk(NamedTuple):
    """A part of one document's text; the chunks of a document follow each other."""

    document: int
    name: str
    text: str


class Corpus(ABC):
    """Documents in a fixed order; `fingerprint` is a SHA-256 that changes with their names or content."""

    description: str
    fingerprint: str
    n_bytes: int = 0  # as stored, so fewer than the text's where it is compressed; 0: unknown
    left_out: Sequence[str] = ()  # what the source has beside the documents, known after they were read; for a person
    slow: bool = False  # read once into the cache, since reading again would mean another download

    @abstractmethod
    def chunks(self) -> Iterator[TextChunk]:
        """All text in order; a large document in chunks of about a quarter of a megabyte."""

    def documents(self) -> Iterator[tuple[str, str]]:
        """Name and text of each document."""
        for (_, name), chunks in groupby(self.chunks(), key=lambda chunk: (chunk.document, chunk.name)):
            yield name, "".join(chunk.text for chunk in chunks)


class FileCorpus(Corpus):
    """Files as documents, gzipped ones by their name; an empty or binary file is refused by name, or skipped."""

    def __init__(
        self,
        files: list[tuple[str, Path]],
        description: str,
        *,
        skip_unreadable: bool = False,
        left_out: Sequence[str] = (),
        cache_dir: str | None = None,
    ) -> None:
        self.files = files
        self._not_found = list(left_out)
        self.left_out = self._not_found
        self.description = description
        self._skip_unreadable = skip_unreadable
        self.fingerprint = fingerprint_of(files, cache_dir)
        self.n_bytes = sum(path.stat().st_size for _, path in files)

    def chunks(self) -> Iterator[TextChunk]:
        document = 0
        unreadable = []
        for name, path in self.files:
            if self._skip_unreadable:
                try:
                    texts = list(_read_text(path))
                except UserError:
                    if path.stat().st_size:  # else it has no text to lose
                        unreadable.append(name)
                    continue
            else:
                texts = _read_text(path)
            for text in texts:
                yield TextChunk(document, name, text)
            document += 1
        if unreadable:
            others = f" and {len(unreadable) - 1:,} more" if len(unreadable) > 1 else ""
            self.left_out = [*self._not_found, f"{unreadable[0]}{others}, not UTF-8 text"]


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


def fingerprint_of(files: list[tuple[str, Path]], cache_dir: str | None = None) -> str:
    """A SHA-256 over names and contents; the files are read only if they changed since the last call."""
    digest = hashlib.sha256()
    for (name, _), checksum in zip(files, checksums_of([path for _, path in files], cache_dir), strict=True):
        digest.update(json.dumps([name, checksum]).encode())
    return digest.hexdigest()


def checksums_of(paths: list[Path], cache_dir: str | None = None) -> list[str]:
    """The SHA-256 of each file, as `cache.checksums`; UserError for one that cannot be read."""
    try:
        return checksums(paths, cache_dir)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror or error})") from None


def existing_path(text: str) -> Path:
    """The path of `data.path`; UserError where nothing is there."""
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"data.path={text} does not exist; give a file, a folder or a glob")
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


def files_below(root: Path, extensions: set[str] | None = None, skip: Iterable[str] = ()) -> FoundFiles:
    """Files below a folder, links followed; each file and each folder is taken once, hidden ones never."""
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
            elif extensions is None or os.path.splitext(name)[1].lower() in extensions:
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


def _blocks(path: Path, *, unzip: bool = False) -> Iterator[bytes]:
    try:
        with gzip.open(path) if unzip else open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a valid gzip file ({error}); repair it or leave it out") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None


def _read_text(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_bytes = n_waiting = n_characters = 0
    try:
        for block in _blocks(path, unzip=path.suffix.lower() == ".gz"):
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
