"""Compiled blocks: where torch keeps what it has compiled, and how long it took."""

import os
import sys
from pathlib import Path

from gptlab.distributed.internals import internal

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled(folder: Path) -> None:
    """Let torch keep what it compiles in `folder`, where the next run finds it, unless CACHE names another.

    Torch's own choice is the folder of temporary files: emptied at a restart, and open to other users of the machine,
    though what it holds is code that a run loads. Torch writes that choice into CACHE when parts of it are imported.
    """
    from torch._inductor.runtime import cache_dir_utils

    if os.environ.get(CACHE) in (None, internal("torch", cache_dir_utils, "default_cache_dir")()):
        os.environ[CACHE] = str(folder)


def compiling_seconds() -> float:
    """How long this process has compiled, or read what was compiled before; 0 where nothing was."""
    utils = sys.modules.get("torch._dynamo.utils")
    if utils is None:
        return 0.0
    return internal("torch", utils, "calculate_time_spent")()["total_wall_time"]
