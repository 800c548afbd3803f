"""The source code of the Python standard library on this machine."""

import platform
import sysconfig
from pathlib import Path

from gptlab.data.config import DataConfig
from gptlab.data.sources.source import FileCorpus, existing_path, files_below
from gptlab.errors import UserError


def open_stdlib(config: DataConfig) -> FileCorpus:
    """The .py files of this Python's standard library, without its tests, or of the folder `data.path`."""
    root = Path(sysconfig.get_paths()["stdlib"]) if config.path is None else existing_path(config.path)
    if not root.is_dir():
        raise UserError(
            f"data.path={config.path} is a file; data=stdlib reads the .py files of a folder (or data=text)"
        )
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    found = files_below(root, lambda name: name.lower().endswith(".py"), skip=skipped)
    if not found.files:
        raise UserError(f"{root} holds no .py files; give a folder that does with data.path=, or use data=text")
    what = (
        f"the standard library of Python {platform.python_version()}"
        if config.path is None
        else f"the .py files of {root}"
    )
    return FileCorpus(found.files, what, skip_unreadable=True, cache_dir=config.cache_dir)
