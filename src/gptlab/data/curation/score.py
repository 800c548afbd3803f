"""Filter: documents whose link has too low a score."""

import math

from gptlab.data.curation.config import ScoreConfig
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal
from gptlab.errors import UserError


class Score(DocumentFilter):
    """The least score, such as the karma of the post that linked to a page; a document without one has too little."""

    rules = ("min_score",)

    def __init__(self, config: ScoreConfig) -> None:
        self._config = config

    def check(self, candidate: Candidate) -> Removal | None:
        value, least = candidate.value(self._config.column, "score"), self._config.min_score
        if value is None:
            return Removal("min_score", "it has no score")
        try:
            score = float(value)
        except ValueError:
            score = math.nan
        if math.isnan(score):
            raise UserError(f"{candidate.where}: the score {self._config.column}={value} is no number")
        return Removal("min_score", f"a score of {score:g}, less than {least:g}") if score < least else None
