"""Filter: documents by the value of a column, such as the data set that they come from."""

from gptlab.data.curation.config import SourceConfig
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal


class Source(DocumentFilter):
    """Allow and deny lists of values, compared as the file spells them; null is in no list."""

    rules = ("allow", "deny")

    def __init__(self, config: SourceConfig) -> None:
        self._column = config.column
        self._allow, self._deny = set(config.allow), set(config.deny)

    def check(self, candidate: Candidate) -> Removal | None:
        name = candidate.value(self._column, "source")
        if name in self._deny:
            return Removal("deny", f"{self._column} is {name}")
        if self._allow and name not in self._allow:
            return Removal("allow", f"{self._column} is {name or 'empty'}")
        return None
