"""Sample i reads window f(seed, i): a fresh permutation each epoch, the same everywhere, in no memory."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from gptlab.data.order import example_index

SIZES = [*range(1, 70), 97, 128, 255, 256, 257, 1000, 1024, 4097, 65_537, 99_999]
GOLDEN_TEN = [3, 8, 1, 0, 5, 4, 6, 7, 9, 2]
GOLDEN_ACROSS_EPOCHS = [150, 101, 259, 473, 653, 569, 235, 719, 869, 322]
GOLDEN_HUGE = [975205061714429, 841300863593701, 342150856310454]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_each_window_once_an_epoch(epoch):
    for n in SIZES:
        order = example_index(3, np.arange(epoch * n, (epoch + 1) * n), n)
        assert np.array_equal(np.sort(order), np.arange(n)), n


def test_epochs_and_seeds_differ():
    n = 1000
    orders = [example_index(seed, np.arange(e * n, (e + 1) * n), n) for seed in (0, 1, 2**64, -1) for e in range(3)]
    for a in range(len(orders)):
        for b in range(a):
            # Two unrelated permutations agree in one place on average.
            assert (orders[a] == orders[b]).sum() < 12


def test_neighbors_do_not_stay_neighbors():
    n = 100_000
    order = example_index(0, np.arange(n), n)
    assert (np.abs(np.diff(order)) == 1).mean() < 1e-3
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("n", [3, 4, 5])
def test_small_permutations_are_all_about_as_likely(n):
    n_epochs = 24_000
    orders = example_index(11, np.arange(n_epochs * n), n).reshape(n_epochs, n)
    counts = Counter(map(tuple, orders.tolist()))
    n_permutations = [6, 24, 120][n - 3]
    assert len(counts) == n_permutations
    expected = n_epochs / n_permutations
    assert max(abs(count - expected) for count in counts.values()) < 0.5 * expected


def test_golden_values():
    """Resuming a run relies on these: they may never change."""
    assert example_index(0, np.arange(10), 10).tolist() == GOLDEN_TEN
    assert example_index(1337, np.arange(995, 1005), 1000).tolist() == GOLDEN_ACROSS_EPOCHS
    assert example_index(-1, np.array([0, 2**40, 2**62]), 10**15).tolist() == GOLDEN_HUGE


def test_one_number_is_the_same_as_many():
    many = example_index(5, np.arange(300), 77)
    one = example_index(5, 123, 77)
    assert one.shape == () and one.dtype == np.int64 and one == many[123]
    assert np.array_equal(example_index(5, np.arange(300).reshape(3, 100), 77), many.reshape(3, 100))
    assert example_index(5, np.empty(0, dtype=np.int64), 77).shape == (0,)


def test_huge_corpora_take_no_memory():
    tracemalloc.start()
    order = example_index(0, 2**62 - np.arange(1, 1001), 2**61 + 1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
    assert len(set(order.tolist())) == 1000 and order.min() >= 0 and order.max() <= 2**61


TRILLION = 10**12  # sequences


def test_no_sequence_comes_twice_among_a_trillion():
    """In ranges anywhere in an epoch, the border between two epochs among them, and in all of them together."""
    starts = [0, 10**6, 123_456_789_012, TRILLION // 2, TRILLION - 20_000]
    for epoch in (0, 3):
        samples = np.concatenate([np.arange(start, start + 20_000) for start in starts])
        order = example_index(7, epoch * TRILLION + samples, TRILLION)
        assert len(np.unique(order)) == len(samples)
        assert order.min() >= 0 and order.max() < TRILLION
    border = example_index(7, np.arange(TRILLION - 500, TRILLION + 500), TRILLION)
    assert np.array_equal(border[:500], example_index(7, np.arange(TRILLION - 500, TRILLION), TRILLION))
    assert len(np.unique(border[500:])) == 500


@pytest.mark.parametrize("start", [0, 987_654_321_000, 5 * TRILLION + 17])
def test_a_range_of_a_trillion_is_spread_evenly(start):
    """Chi-square of 100,000 samples over 1,000 equal parts of the corpus, and of their residues, with 999 degrees of
    freedom: within 4.5 standard deviations of its mean. So are the distances of neighbors."""
    n, bins = 100_000, 1_000
    order = example_index(11, np.arange(start, start + n), TRILLION)
    gaps = (order[1:] - order[:-1]) % TRILLION
    for values in (order // (TRILLION // bins), order % bins, gaps // (TRILLION // bins)):
        counts = np.bincount(values, minlength=bins)
        expected = len(values) / bins
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - (bins - 1)) < 4.5 * np.sqrt(2 * (bins - 1)), chi_square


def test_any_sample_of_a_trillion_is_found_alone():
    samples = np.array([0, 10**11, TRILLION - 1, TRILLION, 17 * TRILLION + 5])
    together = example_index(1, samples, TRILLION)
    assert [int(example_index(1, sample, TRILLION)) for sample in samples] == together.tolist()
    assert len({*together[:3].tolist()}) == 3


def test_without_shuffling_windows_follow_each_other():
    assert example_index(9, np.arange(7), 3, shuffle=False).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="n_examples=0"):
        example_index(0, 1, 0)
    with pytest.raises(ValueError, match="-1 is negative"):
        example_index(0, -1, 5)
    with pytest.raises(ValueError, match="integers"):
        example_index(0, 1.5, 5)
