"""The documents of a source, in a fixed order, and what identifies their content."""

import codecs
import glob
import gzip
import hashlib
import json
import os
import platform
import sysconfig
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.cache import cache_root, locked, replacing
from gptlab.data.progress import byte_progress
from gptlab.data.sources.config import DownloadConfig, HuggingFaceConfig, StdlibConfig, TextConfig
from gptlab.errors import UserError

_BLOCK_BYTES = 1 << 18
_DOWNLOAD_TIMEOUT_SECONDS = 60


class TextChunk(NamedTuple):
    """A stretch of one document's text; the pieces of a document follow each other."""

    document: int
    name: str
    text: str


class Corpus(ABC):
    """Documents in a fixed order; `fingerprint` is a sha256 that changes with their names or content."""

    description: str
    fingerprint: str
    n_bytes: int  # as stored, so less than the text's where it is compressed

    @abstractmethod
    def pieces(self) -> Iterator[TextChunk]:
        """All text in order, a large document in pieces of a quarter of a megabyte."""

    def documents(self) -> Iterator[tuple[str, str]]:
        """Name and text of each document."""
        for (_, name), pieces in groupby(self.pieces(), key=lambda piece: (piece.document, piece.name)):
            yield name, "".join(piece.text for piece in pieces)


class FileCorpus(Corpus):
    """Files as documents, gzipped ones by their name; an empty or binary file is refused by name, or skipped."""

    def __init__(self, files: list[tuple[str, Path]], description: str, *, skip_unreadable: bool = False) -> None:
        self.files = files
        self.description = description
        self._skip_unreadable = skip_unreadable
        digest = hashlib.sha256()
        self.n_bytes = 0
        for name, path in files:
            content = hashlib.sha256()
            for block in _blocks(path):
                content.update(block)
                self.n_bytes += len(block)
            digest.update(json.dumps([name, content.hexdigest()]).encode())
        self.fingerprint = digest.hexdigest()

    def pieces(self) -> Iterator[TextChunk]:
        document = 0
        for name, path in self.files:
            if self._skip_unreadable:
                try:
                    texts = list(_read_text(path))
                except ValueError:
                    continue
            else:
                texts = _read_text(path)
            for text in texts:
                yield TextChunk(document, name, text)
            document += 1


class HubTable:
    """The rows of a `datasets` data set: a name on the hub, or a local folder or file in `path`.

    `identity` is what its content goes by: the name and the revision, or the fingerprint of the local files. `word` is
    the group of settings that errors name, as in "data.path".
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        hub_split: str = "train",
        streaming: bool = True,
        word: str = "data",
    ) -> None:
        if dataset is None and path is None:
            raise UserError(f"{word}.dataset is not set; give a name on the hub, or a local folder with {word}.path=")
        self.path, self.dataset, self.subset, self.revision = path, dataset, subset, revision
        self.hub_split, self.streaming, self.word = hub_split, streaming, word
        self.identity: list[str | None]
        if path is None:
            self.identity = [dataset, revision]
            self.label = f"{word}.dataset={dataset}"
            self.description = f"data set {dataset} ({hub_split})"
        else:
            local = _existing(path, word)
            files = _walk(local) if local.is_dir() else [(local.name, local)]
            self.identity = [FileCorpus(files, "").fingerprint]
            self.label = f"{word}.path={path}"
            self.description = f"data set in {path} ({hub_split})"

    def rows(self, *, column: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows in order, the first `limit` of them; with `column`, other columns are not even decoded."""
        rows = iter(self._open(column, limit))
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # hub, network, parsers: each has its own
                raise UserError(f"{self.label}: reading row {number:,} failed: {_first_line(error)}") from error
            yield row
            number += 1

    def _open(self, column: str | None, limit: int | None) -> Iterable[dict[str, Any]]:
        try:
            import datasets
        except ImportError:
            raise UserError(f"{self.label} needs the datasets library; type: pip install datasets") from None
        try:
            rows = self._load(datasets)
            if limit is not None:
                rows = rows.take(limit)
            if rows.column_names and column in rows.column_names:
                rows = rows.select_columns([column])
        except Exception as error:
            raise UserError(
                f"{self.label} (subset={self.subset}, hub_split={self.hub_split}, revision={self.revision}) "
                f"cannot be opened: {_first_line(error)}; without a network give a local copy with "
                f"{self.word}.path=FOLDER"
            ) from error
        return rows

    def _load(self, datasets: Any) -> Any:
        wanted = {"split": self.hub_split, "streaming": self.streaming}
        if self.path is None:
            return datasets.load_dataset(self.dataset, self.subset, revision=self.revision, **wanted)
        path = Path(self.path).expanduser()
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
            return loaded[self.hub_split] if isinstance(loaded, dict) else loaded
        if path.is_dir():
            return datasets.load_dataset(str(path), self.subset, **wanted)
        formats = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
        suffix = next((end for end in reversed(path.suffixes) if end not in (".gz", ".zst", ".bz2", ".xz")), "")
        if suffix not in formats:
            raise UserError(f"files ending in {path.suffix!r} are unknown; use {', '.join(formats)}")
        # A bare file has one split, whatever it is called.
        return datasets.load_dataset(formats[suffix], data_files={self.hub_split: str(path)}, **wanted)


class HubCorpus(Corpus):
    """Rows of one text column of a `datasets` data set; empty rows are left out."""

    n_bytes = 0

    def __init__(self, config: HuggingFaceConfig) -> None:
        self._config = config
        self._table = HubTable(
            path=config.path,
            dataset=config.dataset,
            subset=config.subset,
            revision=config.revision,
            hub_split=config.hub_split,
            streaming=config.streaming,
        )
        self.description = self._table.description
        key = [config.subset, config.hub_split, config.text_column, config.max_documents, *self._table.identity]
        self.fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def pieces(self) -> Iterator[TextChunk]:
        column = self._config.text_column
        document = 0
        for row in self._table.rows(column=column, limit=self._config.max_documents):
            if column not in row:
                raise UserError(
                    f"data.text_column={column} is not a column of the data set; it has {', '.join(sorted(row))}"
                )
            text = row[column]
            if text is not None and not isinstance(text, str):
                raise UserError(f"data.text_column={column} holds {type(text).__name__}, not text")
            if text:
                yield TextChunk(document, str(document), text)
                document += 1
        if not document:
            raise UserError(
                f"{self._table.label} has no text in data.text_column={column}, data.hub_split={self._config.hub_split}"
            )


class SpooledCorpus(Corpus):
    """Another corpus's documents, read once into a file and from there as often as needed."""

    def __init__(self, corpus: Corpus, file: Path, *, progress: bool = False) -> None:
        self.description, self.fingerprint = corpus.description, corpus.fingerprint
        self._file = file
        self._sizes_bytes = array("q")
        with open(file, "wb") as spool, byte_progress("reading", None, show=progress) as advance:
            for _, text in corpus.documents():
                data = text.encode("utf-8", "surrogatepass")
                spool.write(data)
                self._sizes_bytes.append(len(data))
                advance(len(data))
        self.n_bytes = sum(self._sizes_bytes)

    def pieces(self) -> Iterator[TextChunk]:
        with open(self._file, "rb") as spool:
            for document, size_bytes in enumerate(self._sizes_bytes):
                yield TextChunk(document, str(document), spool.read(size_bytes).decode("utf-8", "surrogatepass"))


def open_stdlib(config: StdlibConfig) -> FileCorpus:
    root = Path(sysconfig.get_paths()["stdlib"]) if config.path is None else _existing(config.path)
    if not root.is_dir():
        raise UserError(
            f"data.path={config.path} is a file; data=stdlib reads the .py files of a folder (or data=text)"
        )
    files = _walk(root, {".py"}, skip={"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
    if not files:
        raise UserError(f"{root} holds no .py files; give a folder that does with data.path=, or use data=text")
    what = (
        f"the standard library of Python {platform.python_version()}"
        if config.path is None
        else f"the .py files of {root}"
    )
    return FileCorpus(files, what, skip_unreadable=True)


def open_text(config: TextConfig) -> FileCorpus:
    patterns = [*([] if config.path is None else [config.path]), *config.paths]
    if not patterns:
        raise UserError("data.path is not set; give a file, a folder or a glob")
    endings = {ending.lower() if ending.startswith(".") else f".{ending.lower()}" for ending in config.extensions}
    files: dict[str, tuple[str, Path]] = {}
    names: set[str] = set()
    for pattern in patterns:
        for name, path in _matches(pattern, endings):
            real = os.path.realpath(path) if len(patterns) > 1 else str(path)
            if real in files:
                continue
            unique, number = name, 1
            while unique in names:  # two folders may hold files of one name
                number += 1
                unique = f"{name}#{number}"
            names.add(unique)
            files[real] = (unique, path)
    what = patterns[0] if len(patterns) == 1 else f"{patterns[0]} and {len(patterns) - 1} more"
    return FileCorpus(list(files.values()), what)


def _matches(pattern: str, endings: set[str]) -> list[tuple[str, Path]]:
    path = Path(pattern).expanduser()
    if not path.exists() and glob.has_magic(pattern):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in found if match.is_file()]
        if not files:
            raise UserError(f"data.path={pattern} matches no file; give a file, a folder or a glob")
        parts = path.parts
        root = Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])
        return [(match.relative_to(root).as_posix(), match) for match in files]
    path = _existing(pattern)
    if not path.is_dir():
        return [(path.name, path)]
    files = _walk(path, endings)
    if not files:
        raise UserError(
            f"data.path={pattern} holds no file ending in {' '.join(sorted(endings))}; set data.extensions=[.ending]"
        )
    return files


def _existing(text: str, word: str = "data") -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"{word}.path={text} does not exist; give a file, a folder or a glob")
    return path


def _walk(root: Path, endings: set[str] | None = None, skip: Iterable[str] = ()) -> list[tuple[str, Path]]:
    """Files below a folder with their names relative to it, sorted by these; hidden ones are left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        below = Path(folder).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in names:
            if not name.startswith(".") and (endings is None or os.path.splitext(name)[1].lower() in endings):
                found.append((prefix + name, Path(folder, name)))
    return sorted(found)


def _blocks(path: Path, *, unzip: bool = False) -> Iterator[bytes]:
    try:
        with gzip.open(path) if unzip else open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a sound gzip file ({error}); repair it or leave it out") from None
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


def open_download(config: DownloadConfig, *, progress: bool) -> FileCorpus:
    if config.path is not None:
        path = _existing(config.path)
        if path.is_dir():
            raise UserError(f"data.path={config.path} is a folder; give the file itself, or use data=text for a folder")
        note = "" if _sha256(path) == config.sha256 else ", other than the published file"
        return FileCorpus([(path.name, path)], f"{config.path} (a local copy{note})")
    if not config.url.startswith(("http://", "https://")):
        raise UserError(f"data.url={config.url} is not an http or https address; give one, or data.path=FILE")
    name = config.url.rstrip("/").rsplit("/", 1)[-1].partition("?")[0] or "file"
    root = cache_root(config.cache_dir)
    folder = root / "downloads"
    folder.mkdir(exist_ok=True)
    path = folder / f"{hashlib.sha256(config.url.encode()).hexdigest()[:16]}-{name}"
    with locked(root, f"{path.name}.lock"):
        if not path.is_file() or (config.sha256 and _sha256(path) != config.sha256):
            _fetch(config, path, progress=progress)
    return FileCorpus([(name, path)], config.url)


def _fetch(config: DownloadConfig, path: Path, *, progress: bool) -> None:
    from http.client import HTTPException
    from urllib.request import urlopen

    digest = hashlib.sha256()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            with urlopen(config.url, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as answer:
                total_bytes = int(answer.headers.get("Content-Length") or 0) or None
                n_bytes = 0
                with byte_progress(f"downloading {path.name[17:]}", total_bytes, show=progress) as advance:
                    while block := answer.read(_BLOCK_BYTES):
                        n_bytes += len(block)
                        digest.update(block)
                        _write(file, block, path)
                        advance(len(block))
                if total_bytes and n_bytes < total_bytes:
                    raise ConnectionError(f"ended after {n_bytes:,} of {total_bytes:,} bytes")
        except _DiskError:
            raise
        except (OSError, HTTPException) as error:
            raise UserError(
                f"{config.url} cannot be downloaded ({_first_line(error)}); fetch it on another machine and "
                f"either put it at {path} or give it with data.path=FILE"
            ) from error
        if config.sha256 and digest.hexdigest() != config.sha256:
            raise UserError(
                f"{config.url} has sha256 {digest.hexdigest()}, not {config.sha256}: the file has changed or something "
                "stands between; check it and give it with data.path=FILE"
            )


class _DiskError(OSError):
    """Writing failed, rather than the network."""


def _write(file: Any, block: bytes, path: Path) -> None:
    try:
        file.write(block)
    except OSError as error:
        raise _DiskError(error.errno, f"cannot write {path}: {error.strerror}; free some space") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
