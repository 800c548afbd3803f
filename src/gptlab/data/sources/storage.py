"""Files to read: on this machine or at an address of fsspec, also compressed."""

import glob
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from gptlab.data.sources.remote import FIRST_WAITS_SECONDS, RemoteFile, UnreadableError, filesystem, retried
from gptlab.errors import UserError, first_line, without_password

BLOCK_BYTES = 1 << 18
COMPRESSED = {".gz": "gzip", ".zst": "Zstandard"}  # ending: format

Seen = Callable[[int], None]  # is called with the position in a file as it is stored


# What file systems call the things that change with a file's content, in small letters.
CHANGING = (
    *("etag", "md5hash", "md5", "content-md5", "digest", "checksum", "crc32c", "generation", "versionid", "version_id"),
    *("last-modified", "lastmodified", "last_modified", "updated", "modified", "mtime", "created"),
)


@dataclass(frozen=True, slots=True)
class Address:
    """A file that fsspec reaches, such as s3://bucket/text.jsonl.zst."""

    url: str
    system: Any  # fsspec's file system, and the path in it
    path: str
    size_bytes: int

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def key(self) -> str:
        """What changes with the content, as the file system tells; where it tells nothing, the content's SHA-256."""
        try:
            # Not fsspec's `ukey`, which takes files of the web for unchanging.
            told = {name.lower(): value for name, value in retried(lambda: self.system.info(self.path)).items()}
            told = {name: str(told[name]) for name in CHANGING if told.get(name)}
            if told:
                return json.dumps([self.size_bytes, told])
            content = hashlib.sha256()
            with RemoteFile(self.system, self.path, size_bytes=self.size_bytes) as file:
                while block := file.read(BLOCK_BYTES):
                    content.update(block)
            return content.hexdigest()
        except UnreadableError as error:
            raise UserError(f"{self} cannot be read ({error.text})") from error

    def __str__(self) -> str:
        return without_password(self.url)


Stored = Path | Address


def find(url: str, is_wanted: Callable[[str], bool]) -> tuple[list[tuple[str, Address]], int]:
    """The files at an address, with their names: of a folder or a glob those that are wanted, and how many are not.

    UserError where nothing is there, or the library of its protocol is missing.
    """
    shown = without_password(url)
    system, path = filesystem(url)
    try:
        return retried(lambda: _found(system, path, is_wanted), FIRST_WAITS_SECONDS)
    except UnreadableError as error:
        if error.is_missing or isinstance(error.__cause__, NotADirectoryError):
            raise UserError(f"{shown} does not exist; give a file, a folder or a glob") from None
        raise UserError(f"{shown} cannot be opened ({error.text})") from error


def _found(system: Any, path: str, is_wanted: Callable[[str], bool]) -> tuple[list[tuple[str, Address]], int]:
    if glob.has_magic(path) and not system.exists(path):
        fixed = path[: next(i for i, character in enumerate(path) if character in "*?[")]
        root = fixed[: fixed.rfind("/") + 1]
        matches = system.glob(path, detail=True)
        if not matches:  # or it failed, which fsspec does not say
            system.invalidate_cache()
            system.ls(root)
            matches = system.glob(path, detail=True)
        found = {name: info for name, info in matches.items() if info["type"] == "file"}
    else:
        info = system.info(path)
        if info["type"] != "directory":
            return [(path.rstrip("/").rsplit("/", 1)[-1], _address(system, path, info))], 0
        found, root = system.find(path, detail=True), path.rstrip("/") + "/"
    named = sorted((name.removeprefix(root), name) for name in found)
    visible = [(short, name) for short, name in named if not any(part.startswith(".") for part in short.split("/"))]
    files = [(short, _address(system, name, found[name])) for short, name in visible if is_wanted(short)]
    return files, len(named) - len(files)


def _address(system: Any, path: str, info: dict[str, Any]) -> Address:
    size_bytes = info.get("size")
    if size_bytes is None:  # of the web a list has names alone
        size_bytes = system.info(path).get("size")
    return Address(system.unstrip_protocol(path), system, path, size_bytes or 0)


def ending(name: str) -> tuple[str, str]:
    """The ending of a file's name in small letters, and that of its compression after it: (".jsonl", ".zst")."""
    name = name.lower()
    packed = next((end for end in COMPRESSED if name.endswith(end)), "")
    return Path(name.removesuffix(packed)).suffix, packed


def size_bytes(file: Stored) -> int:
    """Its size as it is stored."""
    return file.size_bytes if isinstance(file, Address) else file.stat().st_size


@contextmanager
def opened(file: Stored, seen: Seen | None = None, *, seekable: bool = True) -> Iterator[BinaryIO]:
    """A file as it is stored, for reading; UserError where it cannot be read, by the block too.

    One at an address is read again where its connection breaks; what is not `seekable` is read in one go.
    """
    try:
        with ExitStack() as stack:
            if isinstance(file, Address):
                raw = RemoteFile(file.system, file.path, size_bytes=file.size_bytes, seekable=seekable)
            else:
                raw = open(file, "rb", buffering=0)  # noqa: SIM115
            stack.enter_context(raw)
            yield cast(BinaryIO, io.BufferedReader(_Watched(raw, seen), BLOCK_BYTES) if seen else raw)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from None
    except UnreadableError as error:
        raise UserError(f"{file} cannot be read ({error.text})") from error


@contextmanager
def unpacked(file: Stored, seen: Seen | None = None) -> Iterator[BinaryIO]:
    """A file's content for reading, of .gz and .zst decompressed; UserError where it is damaged."""
    packed = ending(file.name)[1]
    with opened(file, seen or (lambda position: None), seekable=False) as raw:
        try:
            match packed:
                case ".gz":
                    with gzip.open(raw) as stream:
                        yield cast(BinaryIO, stream)
                case ".zst":
                    yield cast(BinaryIO, io.BufferedReader(_Zstandard(raw), BLOCK_BYTES))
                case _:
                    yield raw
        except (gzip.BadGzipFile, EOFError, zlib.error, _DamagedError) as error:
            what = COMPRESSED[packed]
            raise UserError(f"{file} is not a valid {what} file ({error}); compress it again or leave it out") from None


class _DamagedError(Exception):
    """Of a file in Zstandard."""


class _Watched(io.RawIOBase):
    """Tells the position after each read."""

    def __init__(self, raw: Any, seen: Seen) -> None:
        self._raw, self._seen = raw, seen

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        n = self._raw.readinto(buffer)
        self._seen(self._raw.tell())
        return n


class _Zstandard(io.RawIOBase):
    """The content of a file in Zstandard, of one or several frames, by pyarrow: Python 3.11 has no module for it."""

    def __init__(self, raw: BinaryIO) -> None:
        import pyarrow

        self._raw = raw
        self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if error.errno is not None:
                raise
            raise _DamagedError(first_line(error)) from None
        buffer[: len(data)] = data
        return len(data)
