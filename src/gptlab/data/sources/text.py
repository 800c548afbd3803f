"""Files, folders and globs of text."""

import glob
import os
from pathlib import Path

from gptlab.data.sources.config import TextConfig
from gptlab.data.sources.source import FileCorpus, FoundFiles, existing_path, files_below
from gptlab.errors import UserError


def open_text(config: TextConfig) -> FileCorpus:
    """The files that `data.path` and `data.paths` name, each once."""
    patterns = [*([] if config.path is None else [config.path]), *config.paths]
    if not patterns:
        raise UserError("data.path is not set; give a file, a folder or a glob")
    extensions = {
        extension.lower() if extension.startswith(".") else f".{extension.lower()}" for extension in config.extensions
    }
    files: dict[str, tuple[str, Path]] = {}
    names: set[str] = set()
    left_out: list[str] = []
    for pattern in patterns:
        found = _matches(pattern, extensions)
        left_out += found.left_out
        for name, path in found.files:
            # Of a folder alone each file is there once.
            real = os.path.realpath(path) if len(patterns) > 1 or glob.has_magic(pattern) else str(path)
            if real in files:
                if len(patterns) == 1:  # else the paths were meant to overlap
                    left_out.append(f"{name}, which is {files[real][0]} again")
                continue
            unique, number = name, 1
            while unique in names:  # two folders may hold files of one name
                number += 1
                unique = f"{name}#{number}"
            names.add(unique)
            files[real] = (unique, path)
    what = patterns[0] if len(patterns) == 1 else f"{patterns[0]} and {len(patterns) - 1} more"
    return FileCorpus(list(files.values()), what, left_out=left_out, cache_dir=config.cache_dir)


def _matches(pattern: str, extensions: set[str]) -> FoundFiles:
    path = Path(pattern).expanduser()
    if not path.exists() and glob.has_magic(pattern):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in found if match.is_file()]
        if not files:
            raise UserError(f"data.path={pattern} matches no file; give a file, a folder or a glob")
        parts = path.parts
        root = Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])
        return FoundFiles(files=[(match.relative_to(root).as_posix(), match) for match in files])
    path = existing_path(pattern)
    if not path.is_dir():
        return FoundFiles(files=[(path.name, path)])
    found = files_below(path, extensions)
    if not found.files:
        raise UserError(
            f"data.path={pattern} holds no file ending in {' '.join(sorted(extensions))}; set data.extensions=[.ending]"
        )
    return found
