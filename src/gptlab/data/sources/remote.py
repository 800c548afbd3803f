"""Files at addresses of fsspec: read from beginning to end over connections that break, and written as a whole."""

import io
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gptlab.errors import UserError, first_line, without_password

BLOCK_BYTES = 1 << 20
# Seconds to wait before each further attempt without a byte of progress.
WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
FIRST_WAITS_SECONDS = WAITS_SECONDS[:3]  # before there is any sign that the address is right
_TIMEOUT_SECONDS = 60  # without a byte
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ImportError),
    *(AttributeError, TypeError, KeyError),
)
_AGAIN = (408, 425, 429)  # of the answers 400 to 499 of a server, those that ask to try again
# Stores in which an object appears under its name when all of it is there. Elsewhere a file is written beside its name.
_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "ocilake", "hf", "tos", "tosfs"}

Result = TypeVar("Result")


class UnreadableError(Exception):
    """A file at an address, after all attempts; `text` has no address and no secret."""

    def __init__(self, error: BaseException, n_attempts: int) -> None:
        self.is_missing = _is_missing(error)
        if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
            error = error.__cause__
        told = "it does not exist" if self.is_missing else without_password(first_line(error))
        self.text = told if n_attempts == 1 else f"{n_attempts} attempts, at last {told}"
        super().__init__(self.text)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it; UserError names a library that it lacks."""
    import fsspec
    import fsspec.config

    shown = without_password(url)
    options = {}
    if url.startswith(("http://", "https://")) and "client_kwargs" not in fsspec.config.conf.get("http", {}):
        import aiohttp

        # By default a request may take five minutes, which is less than a large file can need.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_TIMEOUT_SECONDS, sock_read=_TIMEOUT_SECONDS)
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(f"{shown}: {_missing_library(error)}") from None
    except ValueError as error:
        protocol = url.split("://")[0].split("::")[-1]
        if "not known" in str(error).lower():
            raise UserError(
                f"{shown}: fsspec knows no protocol {protocol}; use one such as s3, gs, az, hf, https, file or zip"
            ) from None
        raise UserError(f"{shown} cannot be opened ({without_password(first_line(error))})") from None


def _missing_library(error: ImportError) -> str:
    cause = error if error.name else error.__cause__ or error.__context__
    name = (getattr(cause, "name", None) or "").split(".")[0]
    install = f"; pip install {name}" if name else ""
    return f"its protocol needs a library that is not installed ({first_line(error)}){install}"


def is_final(error: BaseException) -> bool:
    """Whether another attempt would fail in the same way."""
    if isinstance(error, FileNotFoundError):
        return _is_missing(error)
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if type(status) is int and 400 <= status < 500:
        return status not in _AGAIN
    return isinstance(error, _FINAL) or "Credential" in type(error).__name__


def _is_missing(error: BaseException) -> bool:
    # Of the web fsspec reports any failure as a file that is not there; the cause tells which it was.
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    if type(cause).__module__.split(".")[0] == "aiohttp":
        return getattr(cause, "status", None) in (404, 410)
    return not isinstance(cause, TimeoutError | ConnectionError)


def retried(work: Callable[[], Result], waits: tuple[float, ...] | None = None) -> Result:
    """What a call returns, tried again after each of the waits; raises UnreadableError."""
    waits = WAITS_SECONDS if waits is None else waits
    for number, wait in enumerate([*waits, None], 1):
        try:
            return work()
        except Exception as error:  # each file system has its own
            if wait is None or is_final(error):
                raise UnreadableError(error, number) from error
            time.sleep(wait)
    raise AssertionError


class RemoteFile(io.RawIOBase):
    """A file at an address, read in blocks; where a connection breaks it goes on at the same byte.

    A server of the web is asked once for all of the file, so it need not know ranges; where it does, going on costs
    nothing, else what was read is read again. `seekable` files are read in ranges. Raises UnreadableError.
    """

    def __init__(
        self,
        system: Any,
        path: str,
        *,
        size_bytes: int = 0,
        seekable: bool = False,
        waits: tuple[float, ...] | None = None,
    ) -> None:
        self._system, self._path, self._size_bytes = system, path, size_bytes
        self._seekable, self._waits = seekable, WAITS_SECONDS if waits is None else waits
        self._file: Any = None
        self._position = self._n_failed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seekable

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        if not self._seekable:
            raise io.UnsupportedOperation("this file is read from beginning to end")
        if whence == 2 and not self._size_bytes:
            self._size_bytes = retried(lambda: self._system.info(self._path), self._waits)["size"] or 0
        self._position = offset + (0, self._position, self._size_bytes)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return self.readall()
        while True:
            try:
                file = self._opened()
                if self._seekable and file.tell() != self._position:
                    file.seek(self._position)
                data = bytes(file.read(size))
                if size and not data and self._position < self._size_bytes:
                    raise ConnectionError(f"it ended after {self._position:,} of {self._size_bytes:,} bytes")
            except Exception as error:  # each file system has its own
                self._drop()
                if is_final(error) or self._n_failed == len(self._waits):
                    raise UnreadableError(error, self._n_failed + 1) from error
                time.sleep(self._waits[self._n_failed])
                self._n_failed += 1
                continue
            self._n_failed = 0
            self._position += len(data)
            return data

    def _opened(self) -> Any:
        if self._file is None:
            self._open()
        return self._file

    def _open(self) -> None:
        if _is_web(self._system) and not self._seekable:
            # As one stream. fsspec would ask for blocks, and fail at the second where a server sends the whole file.
            options = {"headers": {"Range": f"bytes={self._position}-"}} if self._position else {}
            self._file = self._system.open(self._path, "rb", block_size=0, size=1, **options)
            n_skipped = self._position if self._position and self._file.r.status != 206 else 0
        else:
            self._file = self._system.open(self._path, "rb")
            n_skipped = 0
            if self._position:
                try:
                    self._file.seek(self._position)
                except (OSError, ValueError):  # a stream
                    if self._seekable:
                        raise
                    n_skipped = self._position
        while n_skipped:
            block = self._file.read(min(n_skipped, BLOCK_BYTES))
            if not block:
                raise ConnectionError("the file has become shorter")
            n_skipped -= len(block)

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):
                file.close()

    def close(self) -> None:
        self._drop()
        super().close()


def _is_web(system: Any) -> bool:
    return "http" in _protocols(system)


def _protocols(system: Any) -> set[str]:
    """What a file system is called, or the one within it."""
    within = getattr(system, "fs", None)
    if within is not None and hasattr(within, "protocol"):
        return _protocols(within)
    protocol = getattr(system, "protocol", ())
    return {protocol} if isinstance(protocol, str) else set(protocol)


class Place:
    """A folder at an address: its files are read as a whole, in blocks, and appear under their names when complete."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.shown = without_password(self.url)
        self.system, self._path = filesystem(self.url)
        self._is_made = False

    def __str__(self) -> str:
        return self.shown

    def path(self, name: str) -> str:
        """The path of a file for the file system."""
        return f"{self._path.rstrip('/')}/{name}"

    def open(self, name: str, size_bytes: int = 0, waits: tuple[float, ...] | None = None) -> RemoteFile:
        """A file, for reading from beginning to end."""
        return RemoteFile(self.system, self.path(name), size_bytes=size_bytes, waits=waits)

    def read(self, name: str, limit_bytes: int | None = None) -> bytes | None:
        """The content of a small file, or its beginning; None where it does not exist."""
        found = bytearray()
        try:
            with self.open(name, waits=FIRST_WAITS_SECONDS) as file:
                while limit_bytes is None or len(found) < limit_bytes:
                    block = file.read(BLOCK_BYTES if limit_bytes is None else limit_bytes - len(found))
                    if not block:
                        break
                    found += block
        except UnreadableError as error:
            if error.is_missing:
                return None
            raise UserError(f"{self.shown}/{name} cannot be read ({error.text}); run the same command again") from error
        return bytes(found)

    def sizes_bytes(self) -> dict[str, int | None]:
        """What is in the folder, by name, with the size of each file; nothing where the folder does not exist."""
        try:
            self.system.invalidate_cache()
            found = retried(lambda: self.system.ls(self._path, detail=True), FIRST_WAITS_SECONDS)
            names = {info["name"].rstrip("/").rsplit("/", 1)[-1]: info for info in found}
            own = self._path.rstrip("/")  # stores list an empty object that stands for the folder
            return {name: info.get("size") for name, info in names.items() if info["name"].rstrip("/") != own}
        except UnreadableError as error:
            if error.is_missing:
                return {}
            raise UserError(f"{self.shown} cannot be listed ({error.text})") from error

    def upload(self, file: Path, name: str) -> None:
        """Put a file of this machine there, under its name when all of it has arrived; raises UserError."""
        try:
            retried(lambda: self._upload(file, name))
        except UnreadableError as error:
            raise UserError(
                f"{name} cannot be written to {self.shown} ({error.text}); run the same command again, which goes on"
            ) from error

    def _upload(self, file: Path, name: str) -> None:
        path = self.path(name)
        if not self._is_made:
            self.system.makedirs(self._path, exist_ok=True)
            self._is_made = True
        if _protocols(self.system) & _STORES:
            self.system.put_file(str(file), path)
            return
        beside = self.path(f".{name}.tmp")
        try:
            self.system.put_file(str(file), beside)
            self.system.mv(beside, path)
        except Exception:
            with suppress(Exception):
                self.system.rm_file(beside)
            raise
