"""Sliding windows over a token file: a view, never a copy."""

import mmap

import numpy as np

from gptlab.data.token_shards import ShardedTokens
from gptlab.errors import UserError


class SlidingWindows:
    """Sequences of `context_length` tokens and the token after them, one every `stride` tokens.

    `tokens` is 1-D, in memory, mapped or in shards; nothing is read before `gather`. `split` is named in errors.
    """

    def __init__(
        self, tokens: np.ndarray | ShardedTokens, context_length: int, stride: int, *, split: str = ""
    ) -> None:
        for name, value in (("context_length", context_length), ("stride", stride)):
            if value < 1:
                raise UserError(f"data.{name}={value} must be at least 1")
        if tokens.ndim != 1:
            raise UserError(f"tokens must have one dimension, not {tokens.ndim}")
        if len(tokens) <= context_length:
            part = f"the {split} split has" if split else "the text has"
            raise UserError(
                f"{part} {len(tokens):,} tokens and one sequence needs {context_length + 1:,} "
                f"(context_length={context_length} and the token after); set data.context_length="
                f"{max(1, len(tokens) - 1)} or less, give more text, or give this split a larger fraction"
            )
        self.context_length = context_length
        self.stride = stride
        self.split = split
        self._source = tokens
        self._n = (len(tokens) - context_length - 1) // stride + 1
        self._tokens, self._windows = tokens, None
        if isinstance(tokens, np.ndarray):
            # A plain array: slicing a memmap builds a Python object each time.
            self._tokens = tokens.view(np.ndarray)
            self._windows = np.lib.stride_tricks.sliding_window_view(self._tokens, context_length + 1)[::stride]

    @classmethod
    def each_token_once(
        cls, tokens: np.ndarray | ShardedTokens, context_length: int, *, split: str = ""
    ) -> "SlidingWindows":
        """Sequences that predict every token but the first once; shorter ones where there are too few tokens."""
        length = min(context_length, max(1, len(tokens) - 1))
        return cls(tokens, length, length, split=split)

    def __len__(self) -> int:
        return self._n

    @property
    def n_targets(self) -> int:
        """Targets in one epoch of full sequences; with overlap a token counts once for each sequence it is in."""
        return len(self) * self.context_length

    @property
    def sharded(self) -> ShardedTokens | None:
        """The shards that the sequences are in; None for one token file."""
        return self._source if isinstance(self._source, ShardedTokens) else None

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """The sequences of `indices` (B,) as int64 (B, T+1): inputs are `[:, :-1]`, targets `[:, 1:]`."""
        wanted = np.asarray(indices)
        if self._windows is not None:
            return self._windows[wanted].astype(np.int64)
        assert isinstance(self._source, ShardedTokens)
        return self._source.windows(wanted * self.stride, self.context_length + 1)

    def ranges(self, indices: np.ndarray) -> np.ndarray:
        """Which tokens each sequence of `indices` (B,) reads, [begin, end): int64 (B, 2)."""
        starts = np.asarray(indices, dtype=np.int64) * self.stride
        return np.stack([starts, starts + self.context_length + 1], axis=1)

    def tail(self) -> np.ndarray | None:
        """What the full sequences leave unpredicted at the end, int64 (1, r+1) with r targets; None where r is 0."""
        start = (len(self) - 1) * self.stride + max(self.stride, self.context_length)
        rest = self._tokens[start:]
        return rest.astype(np.int64)[None] if len(rest) > 1 else None

    def __reduce__(self):
        """Pickled by the file's name where there is one, so that a loader's worker maps it again instead of copying."""
        source = self._source
        if isinstance(source, np.memmap) and isinstance(source.base, mmap.mmap):
            where = (str(source.filename), source.dtype.str, source.offset, source.shape)
            return _reopen, (where, self.context_length, self.stride, self.split)
        return _rebuild, (self._tokens, self.context_length, self.stride, self.split)


def _reopen(where: tuple, context_length: int, stride: int, split: str) -> SlidingWindows:
    filename, dtype, offset, shape = where
    tokens = np.memmap(filename, dtype=dtype, mode="r", offset=offset, shape=shape)
    return SlidingWindows(tokens, context_length, stride, split=split)


def _rebuild(tokens: np.ndarray | ShardedTokens, context_length: int, stride: int, split: str) -> SlidingWindows:
    return SlidingWindows(tokens, context_length, stride, split=split)


def parts_of_sequences(examples: np.ndarray, length: int) -> np.ndarray:
    """Sequences (B, T+1) in parts of `length` tokens and the one after them, (B, T / length, length + 1)."""
    if (examples.shape[1] - 1) % length:
        raise ValueError(f"parts of {length} do not make up sequences of {examples.shape[1] - 1}")
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(examples, length + 1, axis=1)[:, ::length])
