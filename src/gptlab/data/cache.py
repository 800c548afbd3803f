"""Where prepared data lies, and how several processes share it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptlab.errors import UserError


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
def locked(root: Path, name: str) -> Iterator[None]:
    """Holds the lock `name` under `root`; other processes wait. The system frees it even after a kill."""
    import fcntl

    folder = root / "locks"
    folder.mkdir(exist_ok=True)
    # The file stays: removing it would let a waiting and a new process hold "the" lock at once.
    with open(folder / name, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` when the block ends well and vanishes when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
