"""Files, folders, globs and addresses of text, and of tables with text."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from gptlab.data.sources.config import TextConfig
from gptlab.data.sources.source import FileCorpus, FoundFiles, existing_path, files_below
from gptlab.data.sources.storage import COMPRESSED, Stored, ending, find
from gptlab.data.sources.table_file import is_text_table
from gptlab.errors import UserError
from gptlab.fields import shown
from gptlab.files import is_address

_TEXT = (".txt", ".md", ".py")
_TABLES = (".jsonl", ".csv", ".tsv", ".parquet")


def open_text(config: TextConfig) -> FileCorpus:
    """The files that `data.path` and `data.paths` name, each once."""
    patterns = [*([] if config.path is None else [config.path]), *config.paths]
    if not patterns:
        raise UserError("data.path is not set; give a file, a folder or a glob")
    extensions = {
        extension.lower() if extension.startswith(".") else f".{extension.lower()}" for extension in config.extensions
    }
    files: dict[str, tuple[str, Stored]] = {}
    names: set[str] = set()
    left_out: list[str] = []
    for pattern in patterns:
        found, others = _matches(pattern, extensions, config.text_column is not None)
        left_out += others
        for name, file in found:
            # Of a folder alone each file is there once.
            several = isinstance(file, Path) and (len(patterns) > 1 or glob.has_magic(pattern))
            real = os.path.realpath(str(file)) if several else str(file)
            if real in files:
                if len(patterns) == 1:  # else the paths were meant to overlap
                    left_out.append(f"{name}, which is {files[real][0]} again")
                continue
            unique, number = name, 1
            while unique in names:  # two folders may hold files of one name
                number += 1
                unique = f"{name}#{number}"
            names.add(unique)
            files[real] = (unique, file)
    what = patterns[0] if len(patterns) == 1 else f"{patterns[0]} and {len(patterns) - 1} more"
    return FileCorpus(
        list(files.values()),
        what,
        text_column=config.text_column,
        columns=config.filter_columns,
        left_out=left_out,
        cache_dir=config.cache_dir,
    )


def _matches(pattern: str, extensions: set[str], tables: bool) -> tuple[Sequence[tuple[str, Stored]], list[str]]:
    """The files of a pattern, and what else is there; `tables`: whether tables are read as such."""
    if is_address(pattern):
        chosen = _chooser(extensions, tables)
        is_folder = not glob.has_magic(pattern)
        remote, n_other = find(pattern, chosen if is_folder else lambda name: True)
        _refuse_none_and_both(pattern, [name for name, _ in remote], extensions, tables)
        return remote, FoundFiles(files=[], n_other=n_other).left_out
    path = Path(pattern).expanduser()
    if not path.exists() and glob.has_magic(pattern):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise UserError(f"data.path={pattern} matches no file; give a file, a folder or a glob")
        parts = path.parts
        root = Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])
        return [(match.relative_to(root).as_posix(), match) for match in files], []
    path = existing_path(pattern)
    if not path.is_dir():
        return [(path.name, path)], []
    found = files_below(path, _chooser(extensions, tables))
    _refuse_none_and_both(pattern, [name for name, _ in found.files], extensions, tables)
    return found.files, found.left_out


def _chooser(extensions: set[str], tables: bool) -> Callable[[str], bool]:
    """Which files of a folder are read, by their names; an ending stands for its compressed forms too."""
    chosen = extensions or {*_TEXT, *(_TABLES if tables else ()), *COMPRESSED}

    def is_chosen(name: str) -> bool:
        inner, packed = ending(name)
        return inner in chosen or (packed in chosen and packed != "") or os.path.splitext(name)[1].lower() in chosen

    return is_chosen


def _refuse_none_and_both(pattern: str, names: list[str], extensions: set[str], tables: bool) -> None:
    if not names:
        listed = " ".join(sorted(extensions or {*_TEXT, *(_TABLES if tables else ()), *COMPRESSED}))
        raise UserError(f"data.path={pattern} holds no file ending in {listed}; set data.extensions=[.ending]")
    if extensions or not tables:
        return
    of_tables = [name for name in names if is_text_table(Path(name))]
    others = sorted(set(names) - set(of_tables))
    if of_tables and others and len(names) > 1:
        endings = [sorted({ending(name)[0] or ending(name)[1] for name in group}) for group in (of_tables, others)]
        raise UserError(
            f"data.path={pattern} holds tables, such as {of_tables[0]}, and text, such as {others[0]}; say which are "
            f"read with data.extensions={shown(endings[0])}, data.extensions={shown(endings[1])} or both"
        )
