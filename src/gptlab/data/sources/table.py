"""Records of a table: a JSON, JSON lines, CSV or TSV file, or a data set of the `datasets` library."""

import hashlib
import json
from pathlib import Path

from gptlab.data.sources.config import TableConfig
from gptlab.data.sources.huggingface import HubDataset
from gptlab.data.sources.source import RecordSource, fingerprint_of
from gptlab.data.sources.table_file import TABLE_ENDINGS, read_table, table_ending
from gptlab.errors import UserError


def open_table(config: TableConfig) -> RecordSource:
    """The table that a config names; UserError for a bad path."""
    path = None if config.path is None else Path(config.path).expanduser()
    if path is not None and path.is_file() and table_ending(path) is not None:
        for name in ("dataset", "subset", "revision", "hub_split"):
            if getattr(config, name) not in (None, "train"):
                raise UserError(
                    f"data.{name}={getattr(config, name)} is for a data set, and data.path={config.path} is a table in "
                    "a file; leave one of them out"
                )
        return RecordSource(
            description=str(config.path),
            fingerprint=fingerprint_of([(path.name, path)], config.cache_dir),
            records=lambda: read_table(path),
        )
    if path is not None and path.is_file() and path.suffix != ".parquet":
        raise UserError(
            f"data.path={config.path} is not a table; give a file ending in {', '.join(TABLE_ENDINGS)} or .parquet, "
            "or the folder of a data set"
        )
    table = HubDataset(
        path=config.path,
        dataset=config.dataset,
        subset=config.subset,
        revision=config.revision,
        hub_split=config.hub_split,
        cache_dir=config.cache_dir,
    )
    key = json.dumps([config.subset, config.hub_split, *table.identity])
    return RecordSource(
        description=table.description, fingerprint=hashlib.sha256(key.encode()).hexdigest(), records=table.records
    )
