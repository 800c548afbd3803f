"""Filter: documents of too few or too many characters or words."""

from gptlab.data.curation.config import LengthConfig
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal


class Length(DocumentFilter):
    """Bounds of a document's characters, and of its words between spaces."""

    rules = ("min_characters", "max_characters", "min_words", "max_words")

    def __init__(self, config: LengthConfig) -> None:
        self._config = config

    def check(self, candidate: Candidate) -> Removal | None:
        config = self._config
        found = self._outside("characters", len(candidate.text), config.min_characters, config.max_characters)
        if found is None and (config.min_words, config.max_words) != (None, None):
            found = self._outside("words", len(candidate.words), config.min_words, config.max_words)
        return found

    @staticmethod
    def _outside(unit: str, n: int, least: int | None, most: int | None) -> Removal | None:
        if least is not None and n < least:
            return Removal(f"min_{unit}", f"{n:,} {unit}, fewer than {least:,}")
        if most is not None and n > most:
            return Removal(f"max_{unit}", f"{n:,} {unit}, more than {most:,}")
        return None
