"""Data sets of the `datasets` library, from the hub or a local copy."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gptlab.data.sources.config import HuggingFaceConfig
from gptlab.data.sources.source import (
    BYTE_ORDER_MARK,
    Corpus,
    Document,
    TextChunk,
    existing_path,
    files_below,
    fingerprint_of,
    records_without_text,
)
from gptlab.data.sources.table_file import fields_of, read_table, table_ending, text_of
from gptlab.errors import UserError, first_line

_SECTION_RECORDS = 10_000  # from the beginning of such a section reading goes on
REPOSITORY = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"  # the name of one on the hub
# Options that a data set's README may set for its files, and that `read_table` does not take.
UNKNOWN_TO_TABLES = ("sep", "delimiter", "names", "column_names", "skiprows", "header", "field")


class HubDataset:
    """The records of a `datasets` data set: a name on the hub, or a local folder or file in `path`.

    `identity` identifies the content: name and revision on the hub, the fingerprint of local files.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        hub_split: str = "train",
        streaming: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        if dataset is None and path is None:
            raise UserError("data.dataset is not set; give a name on the hub, or a local folder with data.path=")
        self.path, self.dataset, self.subset, self.revision = path, dataset, subset, revision
        self.hub_split, self.streaming = hub_split, streaming
        self.identity: list[str | None]
        if path is None:
            self.identity = [dataset, revision]
            self.label = f"data.dataset={dataset}"
            self.description = f"data set {dataset} ({hub_split})"
        else:
            local = existing_path(path)
            files = files_below(local).files if local.is_dir() else [(local.name, local)]
            self.identity = [fingerprint_of(files, cache_dir)]
            self.label = f"data.path={path}"
            self.description = f"data set in {path} ({hub_split})"

    def records(
        self, *, column: str | None = None, others: Sequence[str] = (), limit: int | None = None, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """The records in order from number `start` on, those below `limit`.

        With `column`, the one of the text, and `others` the rest is not decoded.
        """
        records = iter(self._open(column, others, limit, start))
        number = start
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except UserError:
                raise
            except Exception as error:  # hub, network, parsers: each has its own
                raise UserError(f"{self.label}: reading record {number + 1:,} failed: {first_line(error)}") from error
            yield record
            number += 1

    def _open(
        self, column: str | None, others: Sequence[str], limit: int | None, start: int
    ) -> Iterable[dict[str, Any]]:
        path = None if self.path is None else Path(self.path).expanduser()
        if path is not None and path.is_file() and table_ending(path) is not None:
            return islice(read_table(path), start, limit)
        try:
            import datasets
        except ImportError:
            raise UserError(f"{self.label} needs the datasets library; type: pip install datasets") from None
        try:
            if path is not None and (tables := self._tables(datasets, path)):
                return islice(chain.from_iterable(map(read_table, tables)), start, limit)
            loaded = self._load(datasets, column)
            if limit is not None:
                loaded = loaded.take(limit)
            if start:
                loaded = loaded.skip(start)
            if loaded.column_names and column in loaded.column_names:
                loaded = loaded.select_columns([name for name in loaded.column_names if name in (column, *others)])
        except Exception as error:
            advice = "; without a network give a local copy with data.path=FOLDER" if path is None else ""
            raise UserError(
                f"{self.label} (subset={self.subset}, hub_split={self.hub_split}, revision={self.revision}) "
                f"cannot be opened: {first_line(error)}{advice}"
            ) from error
        return loaded

    def _tables(self, datasets: Any, path: Path) -> list[Path]:
        """The files of a split where all are tables.

        `datasets` takes NA and None in a CSV for missing and 1.10 for a number, and ends at a field of a JSON file that
        changes its type late.
        """
        if not path.is_dir() or (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return []
        builder = datasets.load_dataset_builder(str(path), self.subset)
        usual = type(builder.config)()
        if any(getattr(builder.config, name, None) != getattr(usual, name, None) for name in UNKNOWN_TO_TABLES):
            return []
        files = [Path(file) for file in (builder.config.data_files or {}).get(self.hub_split, [])]
        return files if all(file.is_file() and table_ending(file) is not None for file in files) else []

    def _load(self, datasets: Any, column: str | None) -> Any:
        wanted = {"split": self.hub_split, "streaming": self.streaming}
        if self.path is None:
            builder = datasets.load_dataset_builder(self.dataset, self.subset, revision=self.revision)
            wanted |= _csv_options(builder, column)
            return datasets.load_dataset(self.dataset, self.subset, revision=self.revision, **wanted)
        path = Path(self.path).expanduser()
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
            return loaded[self.hub_split] if isinstance(loaded, dict) else loaded
        if path.is_dir():
            wanted |= _csv_options(datasets.load_dataset_builder(str(path), self.subset), column)
            return datasets.load_dataset(str(path), self.subset, **wanted)
        formats = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
        suffix = next((end for end in reversed(path.suffixes) if end not in (".gz", ".zst", ".bz2", ".xz")), "")
        if suffix not in formats:
            raise UserError(f"files ending in {path.suffix!r} are unknown; use {', '.join(formats)}")
        if formats[suffix] == "csv":
            wanted |= {"keep_default_na": False, "converters": {column: str} if column else None}
        # A bare file has one split, whatever it is called.
        return datasets.load_dataset(formats[suffix], data_files={self.hub_split: str(path)}, **wanted)


def _csv_options(builder: Any, column: str | None) -> dict[str, Any]:
    """What keeps NA, null and None of a CSV text instead of missing; nothing for other formats."""
    if not hasattr(builder.config, "keep_default_na"):
        return {}
    return {"keep_default_na": False, "converters": {column: str} if column else None}


class HubCorpus(Corpus):
    """One text column of a `datasets` data set, a document a record; empty ones are left out."""

    slow = True

    def __init__(self, config: HuggingFaceConfig) -> None:
        self._config = config
        self._dataset = HubDataset(
            path=config.path,
            dataset=config.dataset,
            subset=config.subset,
            revision=config.revision,
            hub_split=config.hub_split,
            streaming=config.streaming,
            cache_dir=config.cache_dir,
        )
        self.description = self._dataset.description
        key = [config.subset, config.hub_split, config.text_column, config.max_documents, *self._dataset.identity]
        self.fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def chunks(self) -> Iterator[TextChunk]:
        number = n_empty = 0
        for document in self.documents_from():
            for text in document.texts():
                yield TextChunk(number, str(number), text)
                number += 1
                break
            else:
                n_empty += 1
        if not number:
            raise UserError(
                f"{self._dataset.label} has no text in data.text_column={self._config.text_column} of "
                f"data.hub_split={self._config.hub_split}; name another column or split"
            )
        if n_empty:
            self.left_out = [records_without_text(n_empty)]

    def documents_from(self, section: int = 0) -> Iterator[Document]:
        column, start = self._config.text_column, section * _SECTION_RECORDS
        others, limit = self._config.filter_columns, self._config.max_documents
        records = self._dataset.records(column=column, others=others, limit=limit, start=start)
        for number, record in enumerate(records, start):
            where = f"record {number + 1:,} of {self.description}"
            text, fields = text_of(record, column, where), fields_of(record, others, where)
            text = (text or "").removeprefix(BYTE_ORDER_MARK)
            section, within = divmod(number, _SECTION_RECORDS)
            yield Document(section, within, str(number), partial(iter, [text] if text else []), fields)
