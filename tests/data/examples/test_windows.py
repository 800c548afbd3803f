"""Sliding windows equal naive slices, predict every token once and copy nothing."""

import pickle
import tracemalloc

import numpy as np
import pytest

from gptlab.data.examples.windows import SlidingWindows, parts_of_sequences
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.token_shards import MappedTokens


@pytest.fixture
def mapped(tmp_path):
    with TokenWriter(tmp_path / "t.bin", vocab_size=1000, tokenizer="x") as writer:
        writer.write(np.random.default_rng(0).integers(0, 1000, 20_000))
    return TokenFile.open(tmp_path / "t.bin").tokens


def test_gather_equals_slicing():
    rng = np.random.default_rng(1)
    for _ in range(200):
        n, context, stride = int(rng.integers(2, 300)), int(rng.integers(1, 40)), int(rng.integers(1, 60))
        tokens = rng.integers(0, 70_000, n).astype(rng.choice(["<u2", "<u4"]))
        if n <= context:
            continue
        starts = [start for start in range(0, n, stride) if start + context + 1 <= n]
        windows = SlidingWindows(tokens, context, stride)
        assert len(windows) == len(starts)
        assert windows.n_targets == len(starts) * context
        chosen = rng.integers(0, len(starts), 5)
        got = windows.gather(chosen)
        assert got.dtype == np.int64 and got.shape == (5, context + 1)
        for row, number in zip(got, chosen, strict=True):
            assert row.tolist() == tokens[starts[number] : starts[number] + context + 1].tolist()


def test_every_token_but_the_first_is_a_target_once():
    for n in range(2, 60):
        for context in range(1, n):
            windows = SlidingWindows(np.arange(n), context, context)
            targets = windows.gather(np.arange(len(windows)))[:, 1:].ravel().tolist()
            tail = windows.tail()
            if tail is not None:
                assert tail.dtype == np.int64 and tail.shape[0] == 1 and 2 <= tail.shape[1] <= context
                targets += tail[0, 1:].tolist()
            assert targets == list(range(1, n)), (n, context)


def test_overlapping_windows_and_tail_leave_no_token_out():
    for n in range(5, 40):
        for stride in (1, 2, 3):
            windows = SlidingWindows(np.arange(n), 4, stride)
            seen = set(windows.gather(np.arange(len(windows)))[:, 1:].ravel().tolist())
            rest = [] if windows.tail() is None else windows.tail()[0, 1:].tolist()
            assert seen.isdisjoint(rest) and seen | set(rest) == set(range(1, n))


def test_the_tail_never_exceeds_the_context():
    for n in range(5, 60):
        tail = SlidingWindows(np.arange(n), 4, 11).tail()
        assert tail is None or 2 <= tail.shape[1] <= 4


def test_building_and_overlap_take_no_memory(mapped):
    for stride in (1, 256):
        tracemalloc.start()
        windows = SlidingWindows(mapped, 256, stride)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 20_000
        assert np.shares_memory(windows._windows, mapped)


def test_gathered_windows_are_writable_copies(mapped):
    windows = SlidingWindows(mapped, 8, 8)
    windows.gather([0])[:] = 5
    assert windows.gather([0]).tolist() == [mapped[:9].tolist()]


def test_pickling_maps_the_file_again(mapped):
    windows = SlidingWindows(mapped, 16, 4, split="train")
    content = pickle.dumps(windows)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content).gather([3, 7]), windows.gather([3, 7]))
    part = SlidingWindows(mapped[100:200], 16, 4)
    assert np.array_equal(pickle.loads(pickle.dumps(part)).gather([3]), part.gather([3]))


def test_too_short_a_corpus_names_what_to_change():
    with pytest.raises(ValueError, match=r"the val split has 8 tokens.*needs 9.*data\.context_length=7"):
        SlidingWindows(np.arange(8), 8, 8, split="val")
    assert len(SlidingWindows(np.arange(9), 8, 8)) == 1
    with pytest.raises(ValueError, match=r"data\.stride=0"):
        SlidingWindows(np.arange(9), 8, 0)


@pytest.mark.parametrize(("context_length", "stride"), [(7, 7), (7, 3), (30, 11)])
def test_sequences_over_shards_are_those_of_one_file(tmp_path, context_length, stride):
    tokens = np.random.default_rng(0).integers(0, 60_000, 500).astype("<u2")
    paths, lengths = [], [90, 1, 9, 300, 100]
    for number, part in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
        paths.append(tmp_path / f"{number}.bin")
        paths[-1].write_bytes(bytes(4096) + part.tobytes())
    sharded = MappedTokens(paths, lengths, np.dtype("<u2"))
    for make in (
        lambda of: SlidingWindows(of, context_length, stride),
        lambda of: SlidingWindows.each_token_once(of, 7),
    ):
        one = make(tokens)
        for many in (make(sharded), pickle.loads(pickle.dumps(make(sharded)))):
            indices = np.random.default_rng(1).permutation(len(one))
            assert len(many) == len(one) and many.n_targets == one.n_targets
            assert np.array_equal(many.gather(indices), one.gather(indices))
            assert many.gather(indices[:0]).shape == (0, one.context_length + 1)
            tails = many.tail(), one.tail()
            assert np.array_equal(*tails) if tails[1] is not None else tails[0] is None
    assert np.array_equal(sharded[85:405], tokens[85:405]) and not len(sharded[9:9])


def test_parts_of_sequences_have_each_target_once():
    sequences = np.arange(26).reshape(2, 13)
    parts = parts_of_sequences(sequences, 4)
    assert parts.shape == (2, 3, 5) and not np.shares_memory(parts, sequences)
    assert parts[1].tolist() == [[13, 14, 15, 16, 17], [17, 18, 19, 20, 21], [21, 22, 23, 24, 25]]
    assert parts[:, :, 1:].reshape(2, 12).tolist() == sequences[:, 1:].tolist()
    with pytest.raises(ValueError, match="parts of 5 do not make up sequences of 12"):
        parts_of_sequences(sequences, 5)
