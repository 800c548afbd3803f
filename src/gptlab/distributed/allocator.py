"""What the C library does with memory that is freed, where it is glibc; elsewhere nothing changes."""

import ctypes
import os
import sys
import threading
from contextlib import suppress
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MXFAST = -1, -3, 1  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MXFAST of malloc.h
# Measured with glibc 2.36 (benchmarks/memory.py).
FRAGMENTATION, FRAGMENTATION_WITH_THREAD_CACHE = 0.15, 0.3
LARGEST_KEPT, LARGEST_KEPT_WITH_THREAD_CACHE = 2**26, 2**25  # bytes
TUNABLES, NO_THREAD_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"


def keep_freed_memory() -> None:
    """Let the C library reuse the blocks that it frees, instead of giving each back to the system.

    A training step on a CPU allocates the same activations again and again: fetching their pages again took about
    a third of the step's time on small models. Blocks below 64 MiB are kept, a chunk of logits among them. Larger
    ones are given back: where they were kept, smaller tensors split them, and the peak of an encoder-decoder was 16%
    higher. With the cache of small blocks on it is 32 MiB, for the same reason, and where the C library takes no more.
    """
    if _has_thread_cache() or not _call("mallopt", MMAP_THRESHOLD, LARGEST_KEPT):
        _call("mallopt", MMAP_THRESHOLD, LARGEST_KEPT_WITH_THREAD_CACHE)
    _call("mallopt", TRIM_THRESHOLD, (1 << 31) - 1)
    _call("mallopt", MXFAST, 0)  # see `without_thread_cache`


def without_thread_cache(program: str) -> None:
    """Start `program`, as it was called, again with the C library's cache of small blocks off; at its start alone.

    An aligned block, which every tensor is, leaves some 48 bytes before and behind it. The cache keeps these for small
    objects, which then lie between the large blocks, so that what these leave free cannot be joined: the peak of
    resident memory of a training run was twice what it had allocated. The cache can be turned off by the environment
    of a starting process alone. Other ranks and the trials of a sweep inherit it.
    """
    main = getattr(sys.modules["__main__"], "__file__", None)
    is_program = main is not None and os.path.realpath(main) == os.path.realpath(program)
    watched = sys.gettrace() is not None or "torch" in sys.modules or threading.active_count() > 1
    if is_program and not watched and _is_glibc() and TUNABLES not in os.environ:
        with suppress(OSError):  # an interpreter that may not be started again: it goes on with the cache
            os.execve(sys.executable, sys.orig_argv, {**os.environ, TUNABLES: NO_THREAD_CACHE})


def expected_fragmentation() -> float:
    """What lies free between tensors that come and go, as a fraction of these, in a process like this one."""
    return FRAGMENTATION_WITH_THREAD_CACHE if _has_thread_cache() else FRAGMENTATION


def _has_thread_cache() -> bool:
    return NO_THREAD_CACHE not in os.environ.get(TUNABLES, "")


def _is_glibc() -> bool:
    return sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names


def return_freed_memory() -> None:
    """Let the C library return each large block that it frees to the system.

    Tensors that are read and dropped lie between those that are kept; the gaps came to a quarter of the weights.
    """
    _call("mallopt", MMAP_THRESHOLD, 1 << 17)


def release_kept_memory() -> None:
    """Give what the C library has kept back to the system."""
    _call("malloc_trim", 0)


def _call(function: str, *values: Any) -> int:
    """What the function of the C library returns; 0 where there is none, as mallopt returns for a value it refuses."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            return getattr(ctypes.CDLL("libc.so.6"), function)(*values)
    return 0
