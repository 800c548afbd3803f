"""What a source is built into: documents or records, in a fixed order, and what identifies their content."""

import codecs
import gzip
import hashlib
import json
import os
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.cache import checksums
from gptlab.data.progress import byte_progress
from gptlab.errors import UserError

BLOCK_BYTES = 1 << 18


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
        cache_dir: str | None = None,
    ) -> None:
        self.files = files
        self.description = description
        self._skip_unreadable = skip_unreadable
        self.fingerprint = fingerprint_of(files, cache_dir)
        self.n_bytes = sum(path.stat().st_size for _, path in files)

    def chunks(self) -> Iterator[TextChunk]:
        document = 0
        for name, path in self.files:
            if self._skip_unreadable:
                try:
                    texts = list(_read_text(path))
                except UserError:
                    continue
            else:
                texts = _read_text(path)
            for text in texts:
                yield TextChunk(document, name, text)
            document += 1


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

    def chunks(self) -> Iterator[TextChunk]:
        with open(self._file, "rb") as spool:
            for document, (name, size_bytes) in enumerate(zip(self._names, self._sizes_bytes, strict=True)):
                yield TextChunk(document, name, spool.read(size_bytes).decode("utf-8", "surrogatepass"))


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


def files_below(root: Path, extensions: set[str] | None = None, skip: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """Files below a folder with their names relative to it, sorted by these; hidden ones are left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in names:
            if not name.startswith(".") and (extensions is None or os.path.splitext(name)[1].lower() in extensions):
                found.append((prefix + name, Path(folder, name)))
    return sorted(found)


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
    n_bytes = 0
    try:
        for block in _blocks(path, unzip=path.suffix.lower() == ".gz"):
            if b"\0" in block:
                at = n_bytes + block.index(b"\0")
                raise UserError(f"{path} is binary, not text (a NUL at byte {at:,}); leave it out")
            if text := decoder.decode(block):
                yield text
            n_bytes += len(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} after byte {n_bytes:,}); convert it or leave it out"
        ) from None
    if not n_bytes:
        raise UserError(f"{path} is empty; give a file with text or leave it out")


def first_line(error: BaseException) -> str:
    """An error of another library in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
