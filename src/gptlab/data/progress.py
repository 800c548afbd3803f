"""The progress bar of downloads, of learning a vocabulary and of tokenizing; the progress of token shards."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptlab.units import bytes_text, duration


@contextmanager
def byte_progress(what: str, total_bytes: int | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the bytes done since the last call.

    The bar goes to standard error; where that is no terminal, one line at the end does.
    """
    if not show:
        yield lambda n_bytes: None
        return
    if not sys.stderr.isatty():
        done: list[int] = []
        yield done.append
        print(f"{what}  {bytes_text(sum(done))}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)


class ShardProgress:
    """Text, tokens, MB/s and the time that is left, on standard error: one line on a terminal, else one a half minute.

    `total_bytes` is the size of the source as it is stored, 0 where it is unknown.
    """

    def __init__(self, total_bytes: int, n_tokens: int, *, show: bool) -> None:
        self._total_bytes, self._n_tokens, self._show = total_bytes, n_tokens, show
        self._terminal = show and sys.stderr.isatty()
        self._start = self._shown = time.monotonic()
        self._start_bytes: int | None = None
        self._n_bytes = 0.0

    def update(self, n_stored_bytes: int, n_bytes: float, n_tokens: int) -> None:
        """`n_stored_bytes` of the source are read; text and tokens are those since the last call."""
        self._n_bytes += n_bytes
        self._n_tokens += n_tokens
        if self._start_bytes is None:
            self._start_bytes = n_stored_bytes
        now = time.monotonic()
        if not self._show or now - self._shown < (0.2 if self._terminal else 30):
            return
        self._shown = now
        elapsed, done = now - self._start, n_stored_bytes - self._start_bytes
        parts = [f"{self._n_tokens:,} tokens", f"{self._n_bytes / elapsed / 1e6:.1f} MB/s"]
        if self._total_bytes:
            parts.insert(0, f"{n_stored_bytes / self._total_bytes:.1%}")
            if done > 0:
                parts.append(f"{duration((self._total_bytes - n_stored_bytes) / done * elapsed)} left")
        self._print(f"tokenizing  {'  '.join(parts)}")

    def _print(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r{line[:width]:<{width}}" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the line empty."""
        if self._terminal:
            self._print("")
            sys.stderr.write("\r")
            sys.stderr.flush()
