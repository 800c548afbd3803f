"""The records of a table or a data set, as training reads them, by the options of an evaluation."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.data.sources.config import TableConfig
from gptlab.data.sources.huggingface import REPOSITORY
from gptlab.data.sources.table import open_table
from gptlab.data.sources.table_file import read_table, table_ending
from gptlab.errors import UserError

SPLIT = "train"
# What training calls the same, which its errors name.
NAMES = {"data.path=": "data=", "data.dataset=": "data=", "data.hub_split": "hub_split", "data.revision": "revision"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """Where records come from: a file, the folder of a data set, or its name on the hub."""

    name: str  # as it was typed
    key: str = "data"  # the option that it was typed for
    subset: str | None = None
    revision: str | None = None
    split: str | None = None  # None: train, and of a table in a file the whole

    @property
    def title(self) -> str:
        """The name, with the split where there is one."""
        return self.name if self._is_file and self.split is None else f"{self.name} ({self.split or SPLIT})"

    @property
    def _is_file(self) -> bool:
        return table_ending(Path(self.name)) is not None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The records in their order; UserError where there are none, or one cannot be read."""
        path = Path(self.name).expanduser()
        if self._is_file and not path.is_dir():
            for option, value in (("subset", self.subset), ("revision", self.revision), ("hub_split", self.split)):
                if value is not None:
                    raise UserError(
                        f"{option}={value} is for a data set, and {self.key}={self.name} is a table in a file; leave "
                        "one of them out"
                    )
            yield from read_table(path)
            return
        local = path.exists()
        if not local and (path.suffix == ".parquet" or not re.fullmatch(REPOSITORY, self.name)):
            raise UserError(
                f"{self.key}={self.name} does not exist; give a table, the folder of a data set or its name on the hub"
            )
        config = TableConfig(
            path=self.name if local else None,
            dataset=None if local else self.name,
            subset=self.subset,
            revision=self.revision,
            hub_split=self.split or SPLIT,
        )
        try:
            found = False
            for record in open_table(config).records():
                found = True
                yield record
        except UserError as error:
            message = str(error)
            for theirs, ours in NAMES.items():
                message = message.replace(theirs, ours if ours != "data=" else f"{self.key}=")
            if not local:
                message += f"; {self.name} is no file or folder here, so it was looked for on the hub"
            raise UserError(message) from error
        if not found:
            raise UserError(f"{self.key}={self.name} has no records in hub_split={self.split or SPLIT}; name another")
