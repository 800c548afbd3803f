"""Compiled blocks: where torch keeps what it has compiled, and how long it took."""

import hashlib
import os
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

from gptlab.distributed.internals import internal

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled(cache: Path) -> None:
    """Let torch keep what it compiles below `cache`, where the next run finds it, unless CACHE names a folder.

    Torch's own choice is in the folder of temporary files, which is emptied at a restart. It is left where `cache` will
    not do: where nothing can be written, and below a path with a blank, which the compiler for CPUs does not take.
    What is there is code that a run loads, compiled for this processor: the folder is the user's alone, and a machine
    that shares it and has another processor has another one.
    """
    from torch._inductor.runtime import cache_dir_utils

    # Torch writes its own choice into CACHE when parts of it are imported.
    if os.environ.get(CACHE) not in (None, "", internal("torch", cache_dir_utils, "default_cache_dir")()):
        return
    os.environ.pop(CACHE, None)  # an empty one would be the working directory
    folder = cache / f"compiled-{_processor()}"
    if re.search(r"\s", str(folder)):
        return
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[CACHE] = str(folder)


def _processor() -> str:
    """What tells apart processors for which code differs."""
    kind = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return hashlib.sha256(kind.encode()).hexdigest()[:8]


def compiling_seconds() -> float:
    """How long this process has compiled, or read what was compiled before; 0 where nothing was."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return 0.0
    return internal("torch", utils, "calculate_time_spent")()["total_wall_time"]
