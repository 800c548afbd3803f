"""What the C library does with memory that is freed, where it is glibc; elsewhere nothing changes."""

import ctypes
import sys
from contextlib import suppress
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h


def keep_freed_memory() -> None:
    """Let the C library reuse the large blocks that it frees, instead of giving each back to the system.

    A training step on a CPU allocates the same activations again and again: fetching their pages again took about
    a third of the step's time on small models.
    """
    _call("mallopt", MMAP_THRESHOLD, 1 << 30)
    _call("mallopt", TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Let the C library return each large block that it frees to the system.

    Tensors that are read and dropped lie between those that are kept; the gaps came to a quarter of the weights.
    """
    _call("mallopt", MMAP_THRESHOLD, 1 << 17)


def release_kept_memory() -> None:
    """Give what the C library has kept back to the system."""
    _call("malloc_trim", 0)


def _call(function: str, *values: Any) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            getattr(ctypes.CDLL("libc.so.6"), function)(*values)
