"""The cache folder: where prepared data lies, and what is remembered of files so that they are not read again."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gptlab.errors import UserError
from gptlab.files import locked, sha256_of, stat_key, write_text_atomic

# The clock of a file system ticks every few milliseconds, or seconds on some. A file changed so recently may change
# again without a new ctime.
_SETTLED_NS = 2_000_000_000


def cache_root(cache_dir: str | None) -> Path:
    """The folder of all caches: `data.cache_dir`, else $GPTLAB_CACHE, else ~/.cache/gptlab; made if missing."""
    root = Path(cache_dir or os.environ.get("GPTLAB_CACHE") or "~/.cache/gptlab").expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {root} cannot be made ({error.strerror}); set data.cache_dir or GPTLAB_CACHE"
        ) from None
    return root


@contextmanager
def cache_lock(root: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of a cache folder; other processes wait."""
    folder = root / "locks"
    folder.mkdir(exist_ok=True)
    with locked(folder / f"{name}.lock"):
        yield


def checksums(files: Sequence[Path], cache_dir: str | None = None) -> list[str]:
    """The SHA-256 of each file, read again only if its size, mtime or ctime changed since the last call.

    Known checksums lie in `fingerprints/` of the cache folder. Of several processes that call at once one reads the
    files and the others wait. Without a usable cache folder the files are read. Raises OSError for an unreadable file.
    """
    files = [Path(os.path.abspath(file)) for file in files]
    if not files:
        return []
    try:
        root = cache_root(cache_dir)
        (root / "fingerprints").mkdir(exist_ok=True)
    except (UserError, OSError):
        return [sha256_of(file) for file in files]
    name = hashlib.sha256(os.path.commonpath(files).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    remembered = root / "fingerprints" / f"{name}.json"
    found = _look_up(files, _read(remembered))
    if None not in found:
        return [checksum for checksum in found if checksum is not None]
    with ExitStack() as stack:
        with suppress(OSError):  # a file system without locks: at worst several processes read the same files
            stack.enter_context(cache_lock(root, f"fingerprints-{name}"))
        return _hash_missing(files, remembered)


def _hash_missing(files: list[Path], remembered: Path) -> list[str]:
    known = _read(remembered)  # again: another process may have added to it
    result: list[str] = []
    added: dict[str, list] = {}
    for file, checksum in zip(files, _look_up(files, known), strict=True):
        if checksum is None:
            start_ns, before = time.time_ns(), stat_key(file)
            checksum = sha256_of(file)
            if stat_key(file) == before and start_ns - max(before[1:]) > _SETTLED_NS:
                added[str(file)] = [*before, checksum]
        result.append(checksum)
    if added:
        kept = {path: entry for path, entry in known.items() if path not in added and os.path.exists(path)}
        with suppress(OSError, UnicodeError):  # a full or read-only disk: they are read again next time
            _write(remembered, kept | added)
    return result


def _look_up(files: list[Path], known: dict[str, list]) -> list[str | None]:
    found: list[str | None] = []
    for file in files:
        entry = known.get(str(file))
        found.append(entry[3] if entry is not None and entry[:3] == stat_key(file) else None)
    return found


def _read(path: Path) -> dict[str, list]:
    """What `_write` wrote; nothing where the file is missing or damaged."""
    try:
        checksum, content = path.read_bytes().split(b"\n", 1)
        return json.loads(content) if hashlib.sha256(content).hexdigest().encode() == checksum else {}
    except (OSError, ValueError):
        return {}


def _write(path: Path, entries: dict[str, list]) -> None:
    content = json.dumps(entries)
    write_text_atomic(path, f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")


def is_verified(path: Path, checksum: str) -> bool:
    """Whether `mark_verified` was called for this file and checksum, and the file was not touched since."""
    try:
        return json.loads(_marker(path).read_text(encoding="utf-8")) == [*stat_key(path), checksum]
    except (OSError, ValueError):
        return False


def mark_verified(path: Path, checksum: str, key: list[int]) -> None:
    """Remember that the content of `path` has `checksum`; `key` is its `stat_key` from before it was read."""
    with suppress(OSError):  # a read-only cache: it is verified again next time
        write_text_atomic(_marker(path), json.dumps([*key, checksum]))


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")
