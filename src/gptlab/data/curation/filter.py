"""What a filter is: a judgment of one document, or of all documents by columns of numbers that each of them has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gptlab.data.curation.words import plain_words, word_hashes
from gptlab.errors import UserError


@dataclass
class Candidate:
    """A document as filters see it, with what several of them need of its text; not changed."""

    text: str
    fields: Mapping[str, str | None] = field(default_factory=dict)  # of its record, as the file spells them
    where: str = ""  # for messages

    def value(self, column: str, filter_name: str) -> str | None:
        """The value of a column, None where it is null or empty; UserError where there is no such column."""
        if column not in self.fields:
            raise UserError(
                f"{self.where} has no column {column}, which the filter {filter_name} reads; name another with "
                f"data.filters.{filter_name}.column=, or leave the filter out"
            )
        return self.fields[column] or None

    @cached_property
    def n_bytes(self) -> int:
        return len(self.text.encode("utf-8", "surrogatepass"))

    @cached_property
    def words(self) -> list[str]:
        """The text between spaces."""
        return self.text.split()

    @cached_property
    def plain_words(self) -> list[str]:
        """Words as `words.plain_words` has them."""
        return plain_words(self.text)

    @cached_property
    def word_hashes(self) -> np.ndarray:
        """A 64-bit hash of each plain word, uint64 (n,)."""
        return word_hashes(self.plain_words)


class Removal(NamedTuple):
    """Why a document is removed."""

    rule: str  # one of the filter's `rules`
    reason: str  # for a person


class DocumentFilter(ABC):
    """Judges each document by itself."""

    rules: ClassVar[tuple[str, ...]]  # the names of its rules, as its config has them
    rewrites: ClassVar[bool] = False  # whether `rewrite` may change a text

    def rewrite(self, text: str) -> str:
        """The text that stays of a document; `check` and later filters see this one."""
        return text

    @abstractmethod
    def check(self, candidate: Candidate) -> Removal | None:
        """Why a document is removed; None: it stays. UserError for a record that cannot be judged."""


class CorpusFilter(ABC):
    """Judges all documents together, by columns of numbers: what it makes of each, in files of fixed size."""

    rules: ClassVar[tuple[str, ...]] = ("duplicate",)

    @property
    @abstractmethod
    def columns(self) -> dict[str, np.dtype]:
        """The columns by name, with the type of an entry; an array is a type with a shape."""

    @abstractmethod
    def measure(self, candidate: Candidate) -> dict[str, Any]:
        """The entry of a document in each column."""

    @abstractmethod
    def duplicates(self, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which documents are removed, and of each an earlier one that it resembles, int64 (n,), both in `columns`.

        `columns` are mapped files with an entry for every document, of which those of `ids`, in their order, count.
        """

    def similarity(self, one: Candidate, other: Candidate) -> float:
        """How alike two documents are, from 0 to 1, computed from their texts, for a report."""
        return float(one.text == other.text)
