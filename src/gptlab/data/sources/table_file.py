"""Tables in a file: JSON lines, JSON, CSV, TSV, and the text of Parquet."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptlab.data.sources.storage import Seen, Stored, ending, opened, size_bytes, unpacked
from gptlab.errors import UserError, first_line

TABLE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
_PARQUET = ".parquet"
_BATCH_RECORDS = 16  # of Parquet, decoded together
_BUFFER_BYTES = 1 << 20  # of a column of Parquet as it is stored


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


def read_table(path: str | Stored, seen: Seen | None = None) -> Iterator[dict[str, Any]]:
    """The records of a .jsonl, .json (a list of objects), .csv or .tsv file, also compressed (.gz, .zst), as dicts.

    Values have their JSON types, and a number with a fraction is a `SpelledFloat`. In CSV and TSV, whose first line
    names the columns, all are text, "NA" and the empty one too. Blank lines are skipped. A .json file may hold JSON
    lines instead. UserError names file and line of what cannot be read, and a file without records.
    """
    path = Path(path).expanduser() if isinstance(path, str) else path
    if isinstance(path, Path) and not path.exists():
        raise UserError(f"{path} does not exist; give a table: a file ending in {', '.join(TABLE_ENDINGS)} or .parquet")
    read = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv, ".tsv": _tsv}.get(table_ending(path) or "")
    if read is None:
        raise UserError(
            f"{path} is not a table; give a file ending in {', '.join(TABLE_ENDINGS)}, or these with .gz or .zst"
        )
    return _at_least_one(path, read(path, seen))


def table_ending(path: Stored) -> str | None:
    """Which of TABLE_ENDINGS a file's name has, before a .gz or .zst; None where it has none."""
    found = ending(path.name)[0]
    return found if found in TABLE_ENDINGS else None


def is_text_table(file: Stored) -> bool:
    """Whether `read_texts` reads the file, by its name."""
    return table_ending(file) is not None or ending(file.name)[0] == _PARQUET


def read_texts(
    file: Stored, column: str, others: Sequence[str] = (), seen: Seen | None = None
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """A column of a table, of Parquet too, in order, and with each value those of other columns of its record.

    UserError for a record whose value is not text, and for one without one of the columns.

    Memory is that of a few records, but for .json that of the file.
    """
    if ending(file.name)[0] == _PARQUET:
        yield from _parquet_texts(file, column, others, seen)
        return
    for number, record in enumerate(read_table(file, seen), 1):
        where = f"record {number:,} of {file}"
        yield text_of(record, column, where), fields_of(record, others, where)


def text_of(record: dict[str, Any], column: str, where: str) -> str | None:
    """The text in `data.text_column` of a record; UserError where it is no text."""
    if column not in record:
        raise UserError(f"{where}: {_no_column(column, record)}")
    text = record[column]
    if text is not None and not isinstance(text, str):
        kind = "float" if isinstance(text, float) else type(text).__name__
        raise UserError(f"{where}: data.text_column={column} holds {kind}, not text")
    return text


def fields_of(record: dict[str, Any], columns: Sequence[str], where: str) -> dict[str, Any]:
    """The values of the columns that filters read; UserError for a record without one of them."""
    for column in columns:
        if column not in record:
            raise UserError(f"{where}: {_no_filter_column(column, record)}")
    return {column: record[column] for column in columns}


def _no_filter_column(column: str, columns: Any) -> str:
    return (
        f"{column} is not a column, and a filter reads it; there are {', '.join(sorted(columns))}; name one of these "
        "as data.filters.NAME.column=, NAME being the filter, or leave the filter out"
    )


def _no_column(column: str, columns: Any) -> str:
    return (
        f"data.text_column={column} is not a column; there are {', '.join(sorted(columns))}; name one of these, or "
        "null to read the file as plain text"
    )


def _parquet_texts(
    file: Stored, column: str, others: Sequence[str], seen: Seen | None
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    if ending(file.name)[1]:
        raise UserError(f"{file} is a compressed Parquet file, which has its own compression; decompress it")
    with opened(file) as raw:
        try:
            # Buffered and not before it is asked for: a group of records may be as large as the file.
            table = pyarrow.parquet.ParquetFile(raw, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            schema = table.schema_arrow
            if column not in schema.names:
                raise UserError(f"{file}: {_no_column(column, schema.names)}")
            kind = schema.field(column).type
            of_text = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_null)
            value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if not any(is_kind(value) for is_kind in (*of_text, pyarrow.types.is_string_view)):
                raise UserError(f"{file}: data.text_column={column} holds {kind}, not text")
            for other in others:
                if other not in schema.names:
                    raise UserError(f"{file}: {_no_filter_column(other, schema.names)}")
            n_read, n_all = 0, table.metadata.num_rows
            wanted = list(dict.fromkeys([column, *others]))
            for batch in table.iter_batches(_BATCH_RECORDS, columns=wanted, use_threads=False):
                values = {name: batch.column(name).to_pylist() for name in wanted}
                for number, text in enumerate(values[column]):
                    yield text, {name: values[name][number] for name in others}
                n_read += len(batch)
                if seen is not None:
                    seen(size_bytes(file) * n_read // n_all)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not a valid Parquet file ({first_line(error)}); write it again") from None


def _at_least_one(path: Stored, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    first = next(records, None)
    if first is None:
        raise UserError(f"{path} has no records; give a table with at least one")
    yield first
    yield from records


def _lines(path: Stored, seen: Seen | None = None) -> Iterator[str]:
    number = 0
    try:
        with unpacked(path, seen) as file:
            for number, line in enumerate(file, 1):
                # Spreadsheets begin their files with a byte order mark.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 text ({error.reason}); convert the file") from None
    if not number:
        raise UserError(f"{path} is empty; give a table with at least one record")


def _json_lines(path: Stored, seen: Seen | None = None) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path, seen), 1):
        if line := line.strip():
            yield _object(_parsed(line, path, number), f"{path}, line {number}")


def _json_list(path: Stored, seen: Seen | None = None) -> Iterator[dict[str, Any]]:
    lines = (line for line in _lines(path) if line.strip())
    try:
        # Data sets also give this name to files of JSON lines.
        is_lines = isinstance(json.loads(next(lines, "")), dict) and next(lines, None) is not None
    except ValueError:
        is_lines = False
    if is_lines:
        yield from _json_lines(path, seen)
        return
    content = _parsed("".join(_lines(path, seen)), path, 1)
    if not isinstance(content, list):
        raise UserError(
            f"{path}, line 1: holds {_kind(content)}, not a list of objects; put its records into [...], or write one "
            "object per line and call the file .jsonl"
        )
    for number, value in enumerate(content, 1):
        yield _object(value, f"{path}, object {number} of its list")


def _parsed(text: str, path: Stored, first_line: int) -> Any:
    line = first_line
    try:
        return json.loads(text, object_pairs_hook=_columns, parse_float=SpelledFloat)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        what = f"not JSON ({error.msg} at column {error.colno})"
        if ending(path.name)[0] != ".jsonl" and error.msg == "Extra data":
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


def _tsv(path: Stored, seen: Seen | None = None) -> Iterator[dict[str, Any]]:
    return _csv(path, seen, delimiter="\t")


def _csv(path: Stored, seen: Seen | None = None, *, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a text may be as long as it is
    reader = csv.reader(_lines(path, seen), delimiter=delimiter, strict=True)
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
