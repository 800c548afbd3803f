"""Files that are never half written, their checksums, and locks between processes."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
FOLDER_LOCK = ".lock"
LOOK_SECONDS = 0.2


def is_address(path: str) -> bool:
    """Whether a path is an address of fsspec, as s3://bucket/folder."""
    return "://" in path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block ends without an error.

    At every moment `path` is absent, the old file or the whole new one. The temporary file `.NAME.PID.tmp`, which may
    be a link too, is synced before it is renamed; after an error it is removed, after a kill it stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    temporary.unlink(missing_ok=True)  # of a killed process with the same number
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replace a file by `text` as UTF-8, atomically, and synced before it is renamed."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder `new` to `path`; a folder that has this name is first moved aside, to `new` ending in `.old`.

    A kill in between leaves `path` absent and both folders whole.
    """
    aside = new.with_suffix(".old")
    if path.is_dir():
        os.replace(path, aside)
    os.replace(new, path)
    if aside.is_dir():
        shutil.rmtree(aside)


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's entries to the disk, so that files renamed into it are there after a power failure."""
    _sync(folder)


def _sync(path: str | Path) -> None:
    if os.name == "nt" and os.path.isdir(path):
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # where only a writer may flush
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_key(path: str | Path) -> list[int]:
    """Size in bytes, mtime and ctime in nanoseconds: another value wherever a file was written or replaced.

    A person can set mtime back; ctime is set by the system alone.
    """
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


@contextmanager
def locked(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the exclusive lock `path`, a file that is made if missing and holds nothing else, or one within a folder.

    Other processes and threads wait, or with `wait=False` soon get a BlockingIOError. The system frees the lock when
    the process ends, by a kill too. The file stays: removing it would let two processes hold the lock.
    """
    from filelock import FileLock, Timeout  # configs need the standard library alone

    path = Path(path)
    try:
        lock = FileLock(path / FOLDER_LOCK if path.is_dir() else path, mode=0o666)
        # `is_locked` holds it for an instant, which must not turn away the process whose lock it is.
        lock.acquire(timeout=-1 if wait else LOOK_SECONDS)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(path)) from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


def is_locked(path: str | Path) -> bool:
    """Whether a process holds the lock `path`, as far as this one may read the file; nothing is made."""
    try:
        import fcntl
    except ImportError:  # Windows, where nobody can read a locked file
        try:
            if Path(path).is_file():
                with locked(path, wait=False):
                    pass
        except OSError:
            return True
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)  # a folder of somebody else is read too
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
