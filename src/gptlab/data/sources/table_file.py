"""Tables in a file: JSON lines, JSON, CSV or TSV."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptlab.errors import UserError

TABLE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")


class SpelledFloat(float):
    """A number that is written as in the file it came from, as 1.10."""

    __slots__ = ("_spelling",)

    def __new__(cls, spelling: str) -> "SpelledFloat":
        number = super().__new__(cls, spelling)
        number._spelling = spelling
        return number

    def __str__(self) -> str:
        return self._spelling


def spelled(value: Any) -> str:
    """A value of a record as its file spells it: true and not True, 1.10 and not 1.1."""
    return ("false", "true")[value] if isinstance(value, bool) else str(value)


def read_table(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl, .json (a list of objects), .csv or .tsv file, also gzipped (.gz), as dicts.

    Values have their JSON types, and a number with a fraction is a `SpelledFloat`. In CSV and TSV, whose first line
    names the columns, all are text, "NA" and the empty one too. Blank lines are skipped. A .json file may hold JSON
    lines instead. UserError names file and line of what cannot be read, and a file without records.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist; give a table: a file ending in {', '.join(TABLE_ENDINGS)}")
    ending = table_ending(path)
    if ending is None:
        raise UserError(f"{path} is not a table; give a file ending in {', '.join(TABLE_ENDINGS)}, or these with .gz")
    return _at_least_one(path, {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv, ".tsv": _tsv}[ending](path))


def table_ending(path: Path) -> str | None:
    """Which of TABLE_ENDINGS a file's name has, before a .gz; None where it has none."""
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in TABLE_ENDINGS if name.endswith(ending)), None)


def _at_least_one(path: Path, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    first = next(records, None)
    if first is None:
        raise UserError(f"{path} has no records; give a table with at least one")
    yield first
    yield from records


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                # Spreadsheets begin their files with a byte order mark.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 text ({error.reason}); convert the file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a valid gzip file ({error}); compress it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if not number:
        raise UserError(f"{path} is empty; give a table with at least one record")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if line := line.strip():
            yield _object(_parsed(line, path, number), f"{path}, line {number}")


def _json_list(path: Path) -> Iterator[dict[str, Any]]:
    lines = (line for line in _lines(path) if line.strip())
    try:
        # Data sets also give this name to files of JSON lines.
        is_lines = isinstance(json.loads(next(lines, "")), dict) and next(lines, None) is not None
    except ValueError:
        is_lines = False
    if is_lines:
        yield from _json_lines(path)
        return
    content = _parsed("".join(_lines(path)), path, 1)
    if not isinstance(content, list):
        raise UserError(
            f"{path}, line 1: holds {_kind(content)}, not a list of objects; put its records into [...], or write one "
            "object per line and call the file .jsonl"
        )
    for number, value in enumerate(content, 1):
        yield _object(value, f"{path}, object {number} of its list")


def _parsed(text: str, path: Path, first_line: int) -> Any:
    line = first_line
    try:
        return json.loads(text, object_pairs_hook=_columns, parse_float=SpelledFloat)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        what = f"not JSON ({error.msg} at column {error.colno})"
        if path.suffixes[-1:] != [".jsonl"] and error.msg == "Extra data":
            what += "; a file with one object per line ends in .jsonl"
    except RecursionError:
        what = "JSON nested too deeply"
    except ValueError as error:
        what = str(error)
    raise UserError(f"{path}, line {line}: {what}")


def _columns(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise UserError(f"an object has {max(names, key=names.count)!r} twice; name each column once")
    return record


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f'{where}: holds {_kind(value)}, not an object such as {{"text": "..."}}')
    return value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
    return "an object"


def _tsv(path: Path) -> Iterator[dict[str, Any]]:
    return _csv(path, delimiter="\t")


def _csv(path: Path, *, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a text may be as long as it is
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        begin = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {begin}: {error}; fix the quotes, or give the table as .jsonl") from None
        if values is None:
            return
        if not values:
            continue
        if columns is None:
            columns = values
            if len(set(columns)) < len(columns):
                twice = max(columns, key=columns.count)
                raise UserError(f"{path}, line {begin}: the column {twice!r} appears twice; name each column once")
            continue
        if len(values) != len(columns):
            raise UserError(
                f"{path}, line {begin}: {len(values)} values for {len(columns)} columns ({', '.join(columns)}); quote "
                f"a value that holds {'a tab' if delimiter == chr(9) else 'a comma'} or a line break"
            )
        yield dict(zip(columns, values, strict=True))
