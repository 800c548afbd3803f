"""Files of other places in a bounded cache on this machine: one download per machine, the least recently used out."""

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptlab.data.cache import cache_lock
from gptlab.errors import UserError
from gptlab.files import is_locked
from gptlab.units import bytes_text

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open
    fcntl = None

FOLDER = "shards"  # in the cache folder
_PARTIAL = ".partial"
_N_LOCKS = 256  # for all files, since locks are files that stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A file of the cache: its name there, which no other content has, and how it is made.

    `fetch` writes `size_bytes` bytes, or raises.
    """

    name: str
    size_bytes: int
    fetch: Callable[[BinaryIO], None]


class ShardCache:
    """The folder `shards` of a cache folder, which holds at most `limit_bytes`.

    An open file is in use, by a lock that the system frees when a process ends. What is in use is never removed: where
    it leaves too little room for a file that is needed now, the limit is exceeded until it is closed. A file appears
    under its name when it is whole; what a killed process left of one is removed by the next that needs room.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root, self.folder, self.limit_bytes = root, root / FOLDER, limit_bytes

    def open(self, file: Cached, *, needed: bool = True) -> BinaryIO | None:
        """A file for reading, fetched where it is not there; None where it is not needed and there is no room for it.

        Of several processes that want it, one fetches it and the others wait. UserError on a full disk.
        """
        try:
            found = self._existing(file)
            if found is not None:
                return found
            self.folder.mkdir(exist_ok=True)
            with cache_lock(self.root, _lock_of(file.name)):
                found = self._existing(file)
                if found is not None:
                    return found
                return self._fetched(file, needed)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk of the cache folder {self.folder} is full; free {bytes_text(file.size_bytes)}, set a "
                    "lower data.cache_gib, or another folder with data.cache_dir"
                ) from None
            raise UserError(
                f"the cache folder {self.folder} cannot be used ({error.strerror or error}); set data.cache_dir or "
                "GPTLAB_CACHE"
            ) from None

    def _existing(self, file: Cached) -> BinaryIO | None:
        path = self.folder / file.name
        try:
            opened = open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return None
        if fcntl is not None:
            fcntl.flock(opened, fcntl.LOCK_SH)
        found = os.fstat(opened.fileno())
        if not found.st_nlink or found.st_size != file.size_bytes:  # removed before it was locked; or damaged
            opened.close()
            if found.st_nlink:
                path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # of somebody else
            os.utime(path)
        return opened

    def _fetched(self, file: Cached, needed: bool) -> BinaryIO | None:
        path, partial = self.folder / file.name, self.folder / f"{file.name}{_PARTIAL}"
        if not self._make_room(file, partial, needed):
            return None
        try:
            try:
                self._write(file, partial)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not needed:
                    return None
                with cache_lock(self.root, FOLDER):  # others need the disk too
                    self._remove_unused(self._entries(), self.limit_bytes, partial)
                self._write(file, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return self._existing(file) or self._fetched(file, needed)

    def _write(self, file: Cached, partial: Path) -> None:
        with open(partial, "r+b") as opened:
            file.fetch(opened)
            opened.flush()
            os.fsync(opened.fileno())

    def _make_room(self, file: Cached, partial: Path, needed: bool) -> bool:
        with cache_lock(self.root, FOLDER):
            entries = self._entries()
            others = sum(size for _, size, path in entries if path != partial)
            excess = others + file.size_bytes - self.limit_bytes
            if excess > 0:
                excess = self._remove_unused(entries, excess, partial)
            if excess > 0 and not needed:
                return False
            with open(partial, "wb") as opened:
                opened.truncate(file.size_bytes)  # others count it as what it will be
        return True

    def _entries(self) -> list[tuple[int, int, Path]]:
        """When each file was last used, and its size."""
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                about = path.stat()
                found.append((about.st_mtime_ns, about.st_size, path))
        return sorted(found)

    def _remove_unused(self, entries: list[tuple[int, int, Path]], excess: int, own: Path) -> int:
        """Remove files until so many bytes are free; returns how many are missing. `own` is being fetched here."""
        for _, size, path in entries:
            if excess <= 0:
                break
            if path.suffix == _PARTIAL:
                lock = _lock_of(path.stem)
                if path == own or (lock != _lock_of(own.stem) and is_locked(self.root / "locks" / f"{lock}.lock")):
                    continue  # on its way
            elif _is_in_use(path):
                continue
            with suppress(OSError):
                path.unlink()
                excess -= size
        return excess


def _lock_of(name: str) -> str:
    return f"{FOLDER}-{int(name[:8], 16) % _N_LOCKS:02x}"


def _is_in_use(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        with open(path, "r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, io.UnsupportedOperation):
        return True
    return False
