"""Data sets of the `datasets` library, from the hub or a local copy."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gptlab.data.sources.config import HuggingFaceConfig
from gptlab.data.sources.source import Corpus, TextChunk, existing_path, files_below, fingerprint_of, first_line
from gptlab.errors import UserError


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
            files = files_below(local) if local.is_dir() else [(local.name, local)]
            self.identity = [fingerprint_of(files, cache_dir)]
            self.label = f"data.path={path}"
            self.description = f"data set in {path} ({hub_split})"

    def records(self, *, column: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The records in order, at most `limit`; with `column`, other columns are not decoded."""
        records = iter(self._open(column, limit))
        number = 0
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # hub, network, parsers: each has its own
                raise UserError(f"{self.label}: reading record {number:,} failed: {first_line(error)}") from error
            yield record
            number += 1

    def _open(self, column: str | None, limit: int | None) -> Iterable[dict[str, Any]]:
        try:
            import datasets
        except ImportError:
            raise UserError(f"{self.label} needs the datasets library; type: pip install datasets") from None
        try:
            loaded = self._load(datasets)
            if limit is not None:
                loaded = loaded.take(limit)
            if loaded.column_names and column in loaded.column_names:
                loaded = loaded.select_columns([column])
        except Exception as error:
            raise UserError(
                f"{self.label} (subset={self.subset}, hub_split={self.hub_split}, revision={self.revision}) "
                f"cannot be opened: {first_line(error)}; without a network give a local copy with "
                "data.path=FOLDER"
            ) from error
        return loaded

    def _load(self, datasets: Any) -> Any:
        wanted = {"split": self.hub_split, "streaming": self.streaming}
        if self.path is None:
            return datasets.load_dataset(self.dataset, self.subset, revision=self.revision, **wanted)
        path = Path(self.path).expanduser()
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
            return loaded[self.hub_split] if isinstance(loaded, dict) else loaded
        if path.is_dir():
            return datasets.load_dataset(str(path), self.subset, **wanted)
        formats = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
        suffix = next((end for end in reversed(path.suffixes) if end not in (".gz", ".zst", ".bz2", ".xz")), "")
        if suffix not in formats:
            raise UserError(f"files ending in {path.suffix!r} are unknown; use {', '.join(formats)}")
        # A bare file has one split, whatever it is called.
        return datasets.load_dataset(formats[suffix], data_files={self.hub_split: str(path)}, **wanted)


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
        column = self._config.text_column
        document = 0
        for record in self._dataset.records(column=column, limit=self._config.max_documents):
            if column not in record:
                raise UserError(
                    f"data.text_column={column} is not a column of the data set; it has {', '.join(sorted(record))}"
                )
            text = record[column]
            if text is not None and not isinstance(text, str):
                raise UserError(f"data.text_column={column} holds {type(text).__name__}, not text")
            if text:
                yield TextChunk(document, str(document), text)
                document += 1
        if not document:
            raise UserError(
                f"{self._dataset.label} has no text in data.text_column={column} of "
                f"data.hub_split={self._config.hub_split}; name another column or split"
            )
