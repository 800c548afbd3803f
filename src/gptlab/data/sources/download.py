"""One file from a fixed address."""

import hashlib
from pathlib import Path
from typing import Any

from gptlab.data.cache import cache_lock, cache_root
from gptlab.data.progress import byte_progress
from gptlab.data.sources.config import DownloadConfig
from gptlab.data.sources.source import FileCorpus, checksums_of, existing_path
from gptlab.data.sources.storage import BLOCK_BYTES
from gptlab.errors import UserError, first_line
from gptlab.files import replacing

_TIMEOUT_SECONDS = 60


def open_download(config: DownloadConfig, *, progress: bool) -> FileCorpus:
    """The file at `data.url`, fetched if the cache does not hold it, or its copy `data.path`."""
    if config.path is not None:
        path = existing_path(config.path)
        if path.is_dir():
            raise UserError(f"data.path={config.path} is a folder; give the file itself, or use data=text for a folder")
        note = "" if checksums_of([path], config.cache_dir)[0] == config.sha256 else ", not the published file"
        return FileCorpus([(path.name, path)], f"{config.path} (a local copy{note})", cache_dir=config.cache_dir)
    if not config.url.startswith(("http://", "https://")):
        raise UserError(f"data.url={config.url} is not an http or https address; give one, or data.path=FILE")
    name, path = _place(config)
    path.parent.mkdir(exist_ok=True)
    with cache_lock(cache_root(config.cache_dir), path.name):
        if not path.is_file() or (config.sha256 and checksums_of([path], config.cache_dir)[0] != config.sha256):
            _fetch(config, path, progress=progress)
    return FileCorpus([(name, path)], config.url, cache_dir=config.cache_dir)


def is_downloaded(config: DownloadConfig) -> bool:
    """Whether the file is on this machine."""
    return config.path is not None or _place(config)[1].is_file()


def _place(config: DownloadConfig) -> tuple[str, Path]:
    """The name of the file, and where the cache holds it."""
    name = config.url.rstrip("/").rsplit("/", 1)[-1].partition("?")[0] or "file"
    address = hashlib.sha256(config.url.encode()).hexdigest()[:16]
    return name, cache_root(config.cache_dir) / "downloads" / f"{address}-{name}"


def _fetch(config: DownloadConfig, path: Path, *, progress: bool) -> None:
    from http.client import HTTPException
    from urllib.request import urlopen

    digest = hashlib.sha256()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            with urlopen(config.url, timeout=_TIMEOUT_SECONDS) as response:
                total_bytes = int(response.headers.get("Content-Length") or 0) or None
                n_bytes = 0
                with byte_progress(f"downloading {path.name[17:]}", total_bytes, show=progress) as advance:
                    while block := response.read(BLOCK_BYTES):
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
                f"{config.url} cannot be downloaded ({first_line(error)}); fetch it on another machine and "
                f"either put it at {path} or give it with data.path=FILE"
            ) from error
        if config.sha256 and digest.hexdigest() != config.sha256:
            raise UserError(
                f"{config.url} has sha256 {digest.hexdigest()}, not {config.sha256}: the file or what a "
                "proxy makes of it has changed; check it and give it with data.path=FILE"
            )


class _DiskError(OSError):
    """Writing failed, rather than the network."""


def _write(file: Any, block: bytes, path: Path) -> None:
    try:
        file.write(block)
    except OSError as error:
        raise _DiskError(error.errno, f"cannot write {path}: {error.strerror}; free some space") from error
