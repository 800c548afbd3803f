"""Which document of a split a token is of: separators near it, and a binary search for the document's number.

A token file keeps no list of its documents: the end-of-text token stands between them. Where it stands is searched once
in each file that is asked for, and kept beside it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptlab.data.token_file import TokenFile, TokenPart
from gptlab.data.token_shards import TokenShards


class DocumentSpan(NamedTuple):
    """A document of a split: its number, from 0, and its tokens [begin, end), without the separator after them."""

    number: int
    begin: int
    end: int


def document_of(separators: Sequence[int] | np.ndarray, position: int) -> int:
    """The number of the document that a position is in, by those of all separators before the end, in order.

    A separator belongs to the document that it ends. So many steps as a binary search takes: `separators` may be a
    memory map.
    """
    return bisect_left(separators, position)


class Documents:
    """The documents of a split."""

    def __init__(self, file: TokenFile | TokenShards, separator: int | None) -> None:
        self.file = file
        self.separator = separator
        self._separators: dict[int, np.ndarray] = {}  # of the files that were asked for, by where they begin

    @property
    def are_known(self) -> bool:
        """Whether it can be told where documents begin.

        A tokenizer without end-of-text token leaves nothing there, and shards at an address are not searched.
        """
        return not self.is_remote and (self.separator is not None or self.file.n_documents <= 1)

    @property
    def is_remote(self) -> bool:
        """Whether the tokens are at an address."""
        return not isinstance(self.file.path, Path)

    def at(self, position: int) -> DocumentSpan:
        """The document with a token of the split."""
        if self.separator is None:
            assert self.are_known
            return DocumentSpan(0, 0, self.file.n_tokens)
        part, separators = self._part(position, self.separator)
        number = document_of(separators, position - part.begin)
        begin = part.begin + int(separators[number - 1]) + 1 if number else self._begin(part.begin)
        is_last = number == len(separators)
        end = self._end(part.begin + part.file.n_tokens) if is_last else part.begin + int(separators[number])
        return DocumentSpan(part.n_separators + number, begin, end)

    def within(self, begin: int, end: int) -> list[DocumentSpan]:
        """The documents that have tokens in [begin, end), separators among them, in order."""
        found = []
        while begin < end:
            span = self.at(begin)
            found.append(span)
            begin = span.end + 1
        return found

    def _part(self, position: int, separator: int) -> tuple[TokenPart, np.ndarray]:
        part = self.file.part_at(position)
        found = self._separators.get(part.begin)
        if found is None:
            found = self._separators[part.begin] = part.file.positions(separator)
        return part, found

    def _begin(self, before: int) -> int:
        """Where a document begins that goes on at `before`, the beginning of a file."""
        assert self.separator is not None
        while before > 0:
            part, separators = self._part(before - 1, self.separator)
            if len(separators):
                return part.begin + int(separators[-1]) + 1
            before = part.begin
        return 0

    def _end(self, after: int) -> int:
        """Where a document ends that goes on at `after`, the end of a file."""
        assert self.separator is not None
        while after < self.file.n_tokens:
            part, separators = self._part(after, self.separator)
            if len(separators):
                return part.begin + int(separators[0])
            after = part.begin + part.file.n_tokens
        return self.file.n_tokens
