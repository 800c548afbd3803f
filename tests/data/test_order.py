"""Sample i reads window f(seed, i): a fresh permutation each epoch, the same everywhere, in no memory."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from gptlab.data.order import ShardOrder, example_index

SIZES = [*range(1, 70), 97, 128, 255, 256, 257, 1000, 1024, 4097, 65_537, 99_999]
GOLDEN_TEN = [3, 8, 1, 0, 5, 4, 6, 7, 9, 2]
GOLDEN_ACROSS_EPOCHS = [150, 101, 259, 473, 653, 569, 235, 719, 869, 322]
GOLDEN_HUGE = [975205061714429, 841300863593701, 342150856310454]
GOLDEN_SHARDS = [53, 45, 16, 35, 25, 29, 55, 31]
GOLDEN_TRILLION_SHARDS = [508735229894, 836900318744, 691080131593, 49069029359]


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


def shard_order(n_tokens=4_000, length=16, shard_tokens=300, stride=None, n_window=3, seed=5, most=None):
    n_examples = (n_tokens - length - 1) // (stride or length) + 1
    return ShardOrder(
        seed=seed,
        n_examples=min(n_examples, most or n_examples),
        shard_tokens=shard_tokens,
        stride=stride or length,
        n_window=n_window,
    )


SHAPES = [
    {},
    {"shard_tokens": 320},  # a multiple of the stride
    {"stride": 7},
    {"stride": 40},
    {"shard_tokens": 10},  # less than a sequence, so some shards have none
    {"n_window": 1},
    {"n_window": 100},
    {"most": 101},
    {"n_tokens": 400},
    {"n_tokens": 17},
    {"n_tokens": 3_905, "shard_tokens": 300},  # the last shard has no sequence of its own
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shards_each_sequence_once_an_epoch_and_a_window_at_a_time(shape):
    order = shard_order(**shape)
    n = order.n_examples
    for epoch in (0, 1, 9):
        found = order.indices(np.arange(epoch * n, (epoch + 1) * n))
        assert np.array_equal(np.sort(found), np.arange(n))
        shards = found * order.stride // order.shard_tokens
        windows = np.array([order.window(epoch * n + i) for i in range(n)])
        assert np.all(np.diff(windows) >= 0) and windows[0] // order.n_windows == epoch
        for window in np.unique(windows):
            of_window = order.shards(int(window))
            assert set(shards[windows == window]) == set(of_window) and len(of_window) <= order.n_window
        visited = [shard for w in range(order.n_windows) for shard in order.shards(epoch * order.n_windows + w)]
        assert sorted(visited) == np.unique(shards).tolist()


def test_any_sample_of_shards_is_found_alone():
    order = shard_order()
    samples = np.array([[0, 700], [3, 99]])
    assert order.indices(samples).tolist() == [[int(order.indices(np.array(i))) for i in row] for row in samples]
    assert order.indices(np.empty(0, dtype=np.int64)).shape == (0,)


def test_golden_values_of_shards():
    """Resuming a run relies on these: they may never change."""
    assert shard_order().indices(np.arange(8)).tolist() == GOLDEN_SHARDS
    assert trillion().indices(np.array([0, 1, 10**11, 3 * TRILLION])).tolist() == GOLDEN_TRILLION_SHARDS


def trillion():
    return ShardOrder(seed=7, n_examples=TRILLION, shard_tokens=10**8, stride=1024, n_window=8)


def test_a_trillion_sequences_in_shards():
    order = trillion()
    for start in (0, 4 * TRILLION + 123_456_789_000, TRILLION - 10_000):
        found = order.indices(np.arange(start, start + 20_000))
        window = order.window(start)
        shards = set(order.shards(window)) | set(order.shards(order.window(start + 19_999)))
        assert set((found * 1024 // 10**8).tolist()) <= shards and len(shards) <= 16
        if start % TRILLION <= TRILLION - 20_000:
            assert len(np.unique(found)) == len(found)
    tracemalloc.start()
    order.indices(np.arange(1000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_within_a_window_any_order_is_as_likely():
    """Chi-square of where the sequences of a window come, over many windows, and of the shards over the epochs."""
    order = shard_order(n_tokens=16 * 8 * 30 + 1, shard_tokens=16 * 8, n_window=3)  # 30 shards of 8, in windows of 24
    n_epochs = 400
    found = order.indices(np.arange(n_epochs * order.n_examples)).reshape(n_epochs, 10, 24)
    shards = found // 8
    for cells, n in (
        (shards[:, :, 0] * 8 + found[:, :, 0] % 8, 240),  # which sequence begins a window
        (found % 8 * 24 + np.arange(24), 192),  # where in its window a shard's j-th sequence comes
        (shards[:, 4, 7], 30),  # which shard is read in the middle of an epoch
        ((shards[:, :, 1:] == shards[:, :, :-1]).sum(-1).ravel(), None),
    ):
        if n is None:  # neighbors of one shard: 23 of 24 pairs, each with probability 7 / 23
            assert abs(cells.mean() - 7) < 4.5 * np.sqrt(23 * 7 / 23 * 16 / 23 / cells.size)
            continue
        counts = np.bincount(cells.ravel(), minlength=n)
        expected = cells.size / n
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - (n - 1)) < 4.5 * np.sqrt(2 * (n - 1)), (n, chi_square)


def test_the_last_shard_comes_at_any_place_of_an_epoch():
    order, n_epochs = shard_order(n_window=1), 700  # 13 full shards of 300 tokens, and a part of one
    found = order.indices(np.arange(n_epochs * order.n_examples)).reshape(n_epochs, -1)
    places = (found * 16 // 300 == 13).argmax(axis=1) * 16 // 300
    counts = np.bincount(places, minlength=14)
    assert len(counts) == 14 and ((counts - 50) ** 2 / 50).sum() < 13 + 4.5 * np.sqrt(26)


def test_epochs_and_seeds_of_shards_differ():
    visits = {
        tuple(shard for w in range(5) for shard in shard_order(seed=seed).shards(5 * epoch + w))
        for seed in (0, 1, 2**64, -1)
        for epoch in range(3)
    }
    assert len(visits) == 12
