"""Which example is sample i, and its random numbers: pure functions of the seed and i.

So the state of the data is one integer.
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np

from gptlab.errors import UserError

_ROUNDS = 4
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def example_index(seed: int, i: int | np.ndarray, n_examples: int, shuffle: bool = True) -> np.ndarray:
    """The example that sample number `i` reads, int64 in the shape of `i`.

    Epoch `i // n_examples` is its own permutation of all examples, keyed by (seed, epoch); nothing of the size of
    `n_examples` is ever stored. A Feistel network over a grid of about n_examples cells permutes the grid; the few
    cells beyond the last example are walked through it again (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002). Integer arithmetic alone, so that every platform gives the same order.
    """
    if n_examples < 1:
        raise UserError(f"n_examples={n_examples} must be at least 1")
    numbers = np.asarray(i)
    if numbers.dtype.kind not in "iu":
        raise UserError(f"sample numbers must be integers, not {numbers.dtype}")
    flat = numbers.astype(np.int64).ravel()
    if flat.size and int(flat.min()) < 0:
        raise UserError(f"sample number {int(flat.min())} is negative")
    epochs, positions = np.divmod(flat, np.int64(n_examples))
    if shuffle:
        positions = _permute(_epoch_keys(seed, epochs), positions, n_examples)
    return positions.reshape(numbers.shape)


@dataclass(frozen=True, slots=True)
class ExampleOrder:
    """The order of `n_examples` examples of one corpus."""

    seed: int
    n_examples: int
    shuffle: bool = True

    def indices(self, samples: np.ndarray) -> np.ndarray:
        """The examples of samples, int64 in their shape."""
        return example_index(self.seed, samples, self.n_examples, self.shuffle)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOrder:
    """An order of the sequences of a split in shards that reads `n_window` shards at a time.

    An epoch visits the shards in a permutation of its own. So many at a time are a window, whose sequences are permuted
    before those of the next begin. Shards have `shard_tokens` tokens, only the last may have fewer, and a sequence
    belongs to the shard in which it begins, at token `stride * example`. As `example_index`, this is a pure function of
    the seed and the sample in O(1) memory: of sample i neither the samples nor the shards before it are looked at.

    A shard has floor(shard_tokens / stride) sequences or one more. That sums of these over permuted shards need no
    list, shards trade places only with those that have as many: the k-th shard of an epoch has as many sequences as
    shard k. The last sequences, which do not fill up their shard, are the exception: they come at a random place.
    """

    seed: int
    n_examples: int
    shard_tokens: int
    stride: int
    n_window: int

    @property
    def _n_full(self) -> int:
        """The shards that have all their sequences among the examples."""
        return self.n_examples * self.stride // self.shard_tokens

    @property
    def _n_rest(self) -> int:
        """The sequences of the shard after these."""
        return self.n_examples - int(self._first(np.array(self._n_full)))

    @property
    def n_shards(self) -> int:
        """The shards in which an example begins, and those between them."""
        return self._n_full + (self._n_rest > 0)

    @property
    def n_windows(self) -> int:
        """The windows of an epoch."""
        return -(-self.n_shards // self.n_window)

    def indices(self, samples: np.ndarray) -> np.ndarray:
        """The examples of samples, int64 in their shape."""
        numbers = np.asarray(samples, dtype=np.int64)
        epochs, positions = np.divmod(numbers.ravel(), np.int64(self.n_examples))
        keys, places = self._epoch(epochs)
        windows = self._ranks(positions, places) // self.n_window
        begins = self._begins(windows * self.n_window, places)
        sizes = self._begins(np.minimum((windows + 1) * self.n_window, self.n_shards), places) - begins
        within = positions - begins
        keys_of_windows = _mix(keys ^ _mix(windows.astype(np.uint64) + np.uint64(_OF_WINDOWS)))
        for size in np.unique(sizes):  # two or three different ones, and that of an epoch's last window
            at = sizes == size
            within[at] = _permute(keys_of_windows[at], within[at], int(size))
        positions = begins + within
        ranks = self._ranks(positions, places)
        found = self._first(self._shards(ranks, keys, places)) + positions - self._begins(ranks, places)
        return found.reshape(numbers.shape)

    def window(self, sample: int) -> int:
        """The number of a sample's window, counted from the first epoch on."""
        epoch, position = divmod(sample, self.n_examples)
        _, places = self._epoch(np.array([epoch]))
        return epoch * self.n_windows + int(self._ranks(np.array([position]), places)[0]) // self.n_window

    def shards(self, window: int) -> list[int]:
        """The numbers of the shards of a window in which sequences begin."""
        epoch, number = divmod(window, self.n_windows)
        ranks = np.arange(number * self.n_window, min((number + 1) * self.n_window, self.n_shards))
        keys, places = self._epoch(np.full(len(ranks), epoch))
        counts = self._begins(ranks + 1, places) - self._begins(ranks, places)
        return self._shards(ranks, keys, places)[counts > 0].tolist()

    def _epoch(self, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The keys of epochs, and at which rank among the shards the rest comes."""
        keys = _mix(_epoch_keys(self.seed, epochs) + np.uint64(_OF_SHARDS))
        if not self._n_rest:
            return keys, np.full(len(epochs), np.iinfo(np.int64).max)
        return keys, (_mix(keys + np.uint64(_OF_REST)) % np.uint64(self._n_full + 1)).astype(np.int64)

    def _first(self, shards: np.ndarray) -> np.ndarray:
        """The first sequence that begins in a shard or after it."""
        whole, part = divmod(self.shard_tokens, self.stride)
        return shards * whole + -(-shards * part // self.stride)

    def _begins(self, ranks: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The positions in an epoch at which its shards begin, and after the last its end."""
        is_later = ranks > places
        return self._first(ranks - is_later) + is_later * self._n_rest

    def _ranks(self, positions: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Which of an epoch's shards positions belong to."""
        begin = self._first(np.minimum(places, self._n_full))
        is_later = (places <= self._n_full) & (positions >= begin + self._n_rest)
        ranks = (positions - is_later * self._n_rest) * self.stride // self.shard_tokens + is_later
        return np.where((positions >= begin) & ~is_later, places, ranks) if self._n_rest else ranks

    def _shards(self, ranks: np.ndarray, keys: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The numbers of an epoch's shards."""
        stride, part = self.stride, self.shard_tokens % self.stride
        full = ranks - (ranks > places)
        # Those with one sequence more are `longer`; of the first s shards there are ceil(s * part / stride).
        before = -(-full * part // stride)
        is_longer = -(-(full + 1) * part // stride) > before
        n_longer = -(-self._n_full * part // stride)
        found = np.full(len(ranks), self._n_full)
        for longer, n in ((True, n_longer), (False, self._n_full - n_longer)):
            at = (is_longer == longer) & (ranks != places)
            if not at.any():
                continue
            own_keys = _mix(keys[at] + np.uint64(_OF_LONGER if longer else _OF_SHORTER))
            number = _permute(own_keys, before[at] if longer else full[at] - before[at], n)
            # The shard before which there are `number` of its kind.
            found[at] = number * stride // part if longer else -(-(number + 1) * stride // (stride - part)) - 1
        return found


# What the keys of an epoch are for.
_OF_SHARDS, _OF_REST, _OF_LONGER, _OF_SHORTER, _OF_WINDOWS = range(1, 6)


def _epoch_keys(seed: int, epochs: np.ndarray) -> np.ndarray:
    return _mix(epochs.astype(np.uint64) ^ np.uint64(_folded(seed)))


def _permute(keys: np.ndarray, positions: np.ndarray, n: int) -> np.ndarray:
    n_rows = isqrt(n - 1) + 1
    n_columns = -(-n // n_rows)
    result = positions.astype(np.uint64)
    pending = np.arange(result.size)
    while pending.size:
        walked = _feistel(result[pending], keys[pending], n_rows, n_columns)
        result[pending] = walked
        pending = pending[walked >= n]
    return result.astype(np.int64)


def _feistel(cells: np.ndarray, keys: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    columns, rows = np.uint64(n_columns), np.uint64(n_rows)
    row, column = np.divmod(cells, columns)
    for number in range(_ROUNDS):
        # An odd factor gives each half round a key of its own: multiplication by it is a bijection.
        row = (row + _mix(column ^ keys * np.uint64(4 * number + 1)) % rows) % rows
        column = (column + _mix(row ^ keys * np.uint64(4 * number + 3)) % columns) % columns
    return row * columns + column


def uniforms(seed: int, numbers: np.ndarray, n: int) -> np.ndarray:
    """`n` uniform numbers in [0, 1) for each sample of `numbers` (B): float64 (B, n), the same on every device.

    They are independent of the order of the samples.
    """
    keys = _mix(np.asarray(numbers, dtype=np.int64).view(np.uint64) ^ np.uint64(_mix_int(~_folded(seed) & _MASK)))
    counter = np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix(keys[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _folded(seed: int) -> int:
    folded = 0  # a seed of any size or sign keeps all its bits
    for shift in range(0, max(seed.bit_length() + 1, 64), 64):
        folded = _mix_int(folded ^ (seed >> shift & _MASK))
    return folded


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014) over an array of uint64."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    return int(_mix(np.array([x], dtype=np.uint64))[0])
