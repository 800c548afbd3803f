"""Segment pairs for next-sentence prediction: the second follows the first in the text, or is from elsewhere."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptlab.data.token_file import TokenFile
from gptlab.data.token_shards import TokenShards
from gptlab.errors import UserError

N_DRAWS = 3  # for each pair: where it is split, whether its second segment follows, and where else that is from


class SegmentPairs:
    """The documents of a token file in chunks of at most `n_tokens`, each of which makes one pair.

    `separator` is the token between documents; None where the tokenizer has none. A document's last chunk may be
    shorter; a single token at its end is in none.
    """

    def __init__(self, file: TokenFile | TokenShards, separator: int | None, n_tokens: int, *, split: str) -> None:
        if n_tokens < 2:
            raise UserError(f"a pair needs two tokens and the context has {n_tokens} for it; raise data.context_length")
        self._tokens = file.tokens
        ends = np.array([len(file.tokens)])
        if separator is not None:
            ends = np.append(file.positions(separator), ends)
        starts = np.append(0, ends[:-1] + 1)
        lengths = ends - starts
        self._starts, self._lengths = starts[lengths > 1], lengths[lengths > 1]
        n_documents = len(self._starts)
        if n_documents < 2:
            found = "has one document" if n_documents else "has no document of two tokens"
            raise UserError(
                f"the {split} split {found}, and objective.next_sentence=true draws every second pair from two; "
                "give more documents (files; and a tokenizer with an end-of-text token between them), or set "
                "objective.next_sentence=false"
            )
        self._n_tokens = n_tokens
        self._before = np.append(0, np.cumsum(self._lengths))  # tokens of the documents before
        self._chunks = np.append(0, np.cumsum((self._lengths + n_tokens - 2) // n_tokens))

    def __len__(self) -> int:
        return int(self._chunks[-1])

    def gather(self, indices: np.ndarray) -> "Chunks":
        """The chunks of `indices` (B), not yet split into pairs."""
        indices = np.asarray(indices)
        return Chunks([self] * len(indices), indices)

    def tail(self) -> None:
        """None: no chunk is left over."""

    def pair(self, index: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Both segments of a chunk, and whether the second follows the first in the text.

        `draws` (3) are uniform. A second segment that does not follow is as long, from a random position of another
        document, or shorter where that document ends.
        """
        first, second, follows = self.pair_ranges(index, draws)
        return self._tokens[slice(*first)], self._tokens[slice(*second)], follows

    def pair_ranges(self, index: int, draws: np.ndarray) -> tuple[tuple[int, int], tuple[int, int], bool]:
        """Which tokens of the file both segments are, [begin, end), and whether the second follows the first."""
        document = int(np.searchsorted(self._chunks, index, side="right")) - 1
        offset = (index - int(self._chunks[document])) * self._n_tokens
        start = int(self._starts[document]) + offset
        n = min(self._n_tokens, int(self._lengths[document]) - offset)
        first = 1 + int(draws[0] * (n - 1))
        follows = bool(draws[1] < 0.5)
        begin, length = (start + first, n - first) if follows else self._elsewhere(document, n - first, draws[2])
        return (start, start + first), (begin, begin + length), follows

    def _elsewhere(self, document: int, length: int, draw: float) -> tuple[int, int]:
        own = int(self._lengths[document])
        position = int(draw * (int(self._before[-1]) - own))  # among the tokens of all other documents
        if position >= self._before[document]:
            position += own
        other = int(np.searchsorted(self._before, position, side="right")) - 1
        into = position - int(self._before[other])
        return int(self._starts[other]) + into, min(length, int(self._lengths[other]) - into)


class Chunks(NamedTuple):
    """Some chunks, each of a SegmentPairs."""

    sources: list[SegmentPairs]  # B
    indices: np.ndarray  # (B)

    @classmethod
    def joined(cls, several: "Sequence[Chunks]", order: np.ndarray) -> "Chunks":
        """Chunks of several sources: those at `order` (B) of all, one after the other."""
        sources = [source for chunks in several for source in chunks.sources]
        indices = np.concatenate([chunks.indices for chunks in several])
        return cls([sources[at] for at in order], indices[order])

    def pairs(self, draws: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
        """Their segments by `draws` (B, 3), as `SegmentPairs.pair` gives them."""
        for source, index, draw in zip(self.sources, self.indices, draws, strict=True):
            yield source.pair(int(index), draw)
