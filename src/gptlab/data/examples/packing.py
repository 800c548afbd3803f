"""Whole documents or records packed into sequences: few are cut, and little is padding."""

from typing import NamedTuple

import numpy as np

from gptlab.data.config import Packing
from gptlab.data.examples.example_table import ExampleTable, TokenizedExample
from gptlab.data.token_file import TokenFile
from gptlab.data.token_shards import TokenShards
from gptlab.errors import UserError
from gptlab.units import plural

NO_TOKEN = -1  # in a sequence, after its last document


class Packed(NamedTuple):
    """What packing made of a split."""

    n_sequences: int
    n_documents: int
    n_cut: int  # documents longer than a sequence, which are cut
    padding: float  # the share of positions without a token

    def text(self, what: str = "document") -> str:
        """It as a person reads it."""
        cut = f", {self.n_cut:,} longer than a sequence and cut" if what == "document" else ""
        return f"{plural(self.n_documents, what)}{cut}; {self.padding:.2%} of the positions are padding"


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each item, int64 (n,): best-fit decreasing bin packing, each bin of `capacity`.

    From the longest item on, each goes into the fullest bin that has room for it, or opens one (Ding et al. 2024,
    "Fewer Truncations Improve Language Modeling", arXiv:2404.10830, section 3). Items of one length are placed
    together: as many as fit go into the fullest bin, which stays the fullest that has room until it has none.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"items of {lengths.min()} to {lengths.max()} do not fit bins of {capacity}")
    bins = np.empty(len(lengths), dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    with_room: dict[int, list[np.ndarray]] = {}  # bins by the room that they have left
    rooms = 0  # as bits, those of which there are bins
    n_bins = done = 0

    def put(room: int, numbers: np.ndarray) -> None:
        nonlocal rooms
        if room and len(numbers):
            with_room.setdefault(room, []).append(numbers)
            rooms |= 1 << room

    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = done + count
        while done < end:
            enough = rooms >> size
            if enough:
                room = size + (enough & -enough).bit_length() - 1
                held = with_room[room]
                numbers = held.pop()
                if not held:
                    del with_room[room]
                    rooms ^= 1 << room
            else:
                room = capacity
                numbers = np.arange(n_bins, n_bins + -(-(end - done) // (room // size)))
                n_bins += len(numbers)
            each = room // size
            used = min(len(numbers), -(-(end - done) // each))
            n_items = min(end - done, used * each)
            bins[order[done : done + n_items]] = np.repeat(numbers[:used], each)[:n_items]
            done += n_items
            last = n_items - (used - 1) * each  # items in the last of them
            put(room, numbers[used:])
            put(room - each * size, numbers[: used - 1])
            put(room - last * size, numbers[used - 1 : used])
    return bins


def in_order(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items bin by bin, and where each bin begins among them, (n,) and (n bins + 1,).

    Bins are in the order of their first items, and the items of a bin in their own.
    """
    n_bins = int(bins.max()) + 1 if len(bins) else 0
    first = np.full(n_bins, len(bins), dtype=np.int64)
    np.minimum.at(first, bins, np.arange(len(bins)))
    rank = np.empty(n_bins, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(n_bins)
    ranked = rank[bins]
    return np.argsort(ranked, kind="stable"), np.append(0, np.cumsum(np.bincount(ranked, minlength=n_bins)))


class PackedDocuments:
    """Sequences of `context_length` + 1 tokens that hold whole documents, each with its end-of-text token.

    A document with more tokens is cut into pieces that share a token, so that each token but its first is a target
    once; all but the last piece fill a sequence. `packing` says whether a sequence holds several. A document without a
    target, as an empty one, is in none. The index takes memory by the number of documents, and is kept beside the token
    file.
    """

    def __init__(
        self,
        file: TokenFile | TokenShards,
        separator: int,
        context_length: int,
        packing: Packing,
        *,
        split: str = "",
    ) -> None:
        self._arguments = file, separator, context_length, packing, split
        self._tokens = file.tokens.view(np.ndarray) if isinstance(file.tokens, np.ndarray) else file.tokens
        self._n_tokens = context_length + 1
        index = file.remembered(f"{separator}.{packing.value}-{context_length}", self._index)
        n_pieces, n_sequences, n_documents, n_cut = index[:4].tolist()
        if not n_sequences:
            raise UserError(f"the {split} split has no document of two tokens; give more text")
        self._starts, self._lengths, self._bounds = np.split(index[4:], [n_pieces, 2 * n_pieces])
        ends = np.append(0, np.cumsum(self._lengths))[self._bounds]
        filled = int(np.minimum(np.diff(ends), context_length).sum())
        self.packed = Packed(n_sequences, n_documents, n_cut, 1 - filled / (n_sequences * context_length))

    def _index(self) -> np.ndarray:
        file, separator, context_length, packing, _ = self._arguments
        ends = np.append(file.positions(separator) + 1, len(file.tokens))  # the last document has no separator
        starts = np.append(0, ends[:-1])
        sizes = ends - starts
        starts, sizes = starts[sizes > 1], sizes[sizes > 1]
        n_pieces = -(-(sizes - 1) // context_length)
        offsets = np.arange(n_pieces.sum()) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
        offsets *= context_length
        lengths = np.minimum(np.repeat(sizes, n_pieces) - offsets, context_length + 1)
        starts = np.repeat(starts, n_pieces) + offsets
        if packing is Packing.none:
            order, bounds = np.arange(len(lengths)), np.arange(len(lengths) + 1)
        else:
            order, bounds = in_order(best_fit(lengths, context_length + 1))
        counts = [len(lengths), len(bounds) - 1, len(sizes), int((n_pieces > 1).sum())]
        return np.concatenate([counts, starts[order], lengths[order], bounds])

    def __len__(self) -> int:
        return self.packed.n_sequences

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """The sequences of `indices` (B,) as int64 (B, T+1), `NO_TOKEN` after their last document."""
        indices = np.asarray(indices)
        found = np.full((len(indices), self._n_tokens), NO_TOKEN, dtype=np.int64)
        for sequence, index in zip(found, indices.tolist(), strict=True):
            at = 0
            for piece in range(*self._bounds[index : index + 2].tolist()):
                start, length = int(self._starts[piece]), int(self._lengths[piece])
                sequence[at : at + length] = self._tokens[start : start + length]
                at += length
        return found

    def tail(self) -> None:
        """None: no document is left over."""

    def __reduce__(self):
        """Pickled by the file's name: a worker maps the index again."""
        return _reopen, self._arguments


def _reopen(file: TokenFile | TokenShards, separator: int, length: int, packing: Packing, split: str):
    return PackedDocuments(file, separator, length, packing, split=split)


class PackedExamples:
    """The examples of a table, several to a sequence of at most `n_tokens`; none is cut."""

    def __init__(self, table: ExampleTable, n_tokens: int) -> None:
        self._table, self._capacity = table, n_tokens
        lengths = table.lengths
        self._order, self._bounds = in_order(best_fit(lengths, n_tokens))
        n_sequences = len(self._bounds) - 1
        filled = int(np.minimum(np.add.reduceat(lengths[self._order], self._bounds[:-1]), n_tokens - 1).sum())
        self.packed = Packed(n_sequences, len(lengths), 0, 1 - filled / (n_sequences * (n_tokens - 1)))

    def __len__(self) -> int:
        return self.packed.n_sequences

    def gather(self, indices: np.ndarray) -> list[list[TokenizedExample]]:
        """The examples of each of the sequences `indices` (B,)."""
        bounds = [self._bounds[index : index + 2].tolist() for index in np.asarray(indices).tolist()]
        return [self._table.gather(self._order[begin:end]) for begin, end in bounds]

    def tail(self) -> None:
        """None: no example is left over."""

    def __reduce__(self):
        return PackedExamples, (self._table, self._capacity)
