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
        positions = _permute(seed, epochs, positions, n_examples)
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


def _permute(seed: int, epochs: np.ndarray, positions: np.ndarray, n: int) -> np.ndarray:
    n_rows = isqrt(n - 1) + 1
    n_columns = -(-n // n_rows)
    keys = _mix(epochs.astype(np.uint64) ^ np.uint64(_folded(seed)))
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
