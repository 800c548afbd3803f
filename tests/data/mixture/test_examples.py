"""The examples of several sources as those of one, and which of them is sample i."""

import numpy as np
import pytest

from gptlab.data.examples.pairs import SegmentPairs
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.mixture.examples import MixedExamples, MixtureOrder
from gptlab.data.mixture.interleave import Interleave
from gptlab.data.order import ExampleOrder, example_index
from gptlab.data.sources.config import StdlibConfig
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.errors import UserError
from gptlab.steps import Steps

SIZES = (10, 0, 3)


class Listed:
    def __init__(self, name, n):
        self.name, self.n = name, n

    def __len__(self):
        return self.n

    def gather(self, indices):
        return [f"{self.name}{i}" for i in indices]


def order(weights, sizes=SIZES, seed=3, schedule=None, sample_tokens=1):
    names = [f"s{k}" for k in range(len(sizes))]
    data = MixtureConfig(
        sources=dict.fromkeys(names, StdlibConfig()),
        weights=dict(zip(names, weights, strict=True)),
        schedule=schedule or {},
    )
    offsets = tuple(np.cumsum([0, *sizes[:-1]]).tolist())
    interleave = Interleave(data.points(), sample_tokens)
    return MixtureOrder(
        names=tuple(names),
        interleave=interleave,
        orders=tuple(ExampleOrder(seed, size) for size in sizes),
        offsets=offsets,
    )


def test_examples_come_in_the_order_that_was_asked_for():
    mixed = MixedExamples([Listed("a", 10), None, Listed("c", 3)])
    assert len(mixed) == 13 and mixed.tail() is None
    assert mixed.gather(np.array([12, 0, 9, 10, 0])) == ["c2", "a0", "a9", "c0", "a0"]
    assert mixed.sources_of(np.array([12, 0, 9, 10])).tolist() == [2, 0, 0, 2]
    windows = MixedExamples([SlidingWindows(np.arange(100), 4, 4), SlidingWindows(np.arange(500, 600), 4, 4)])
    found = windows.gather(np.array([24, 1, 25]))
    assert found.tolist() == [[500, 501, 502, 503, 504], [4, 5, 6, 7, 8], [504, 505, 506, 507, 508]]


def test_segment_pairs_stay_within_their_source(tmp_path):
    sources = []
    for start in (10, 50):
        with TokenWriter(tmp_path / f"{start}.bin", vocab_size=100, tokenizer="t") as writer:
            for document in range(4):
                writer.write(np.array([*range(start + 8 * document, start + 8 * document + 8), 99]))
        sources.append(SegmentPairs(TokenFile.open(tmp_path / f"{start}.bin"), 99, 6, split="train"))
    mixed = MixedExamples(sources)
    indices = np.array([len(sources[0]), 0, len(mixed) - 1, 1])
    draws = np.random.default_rng(0).random((4, 3))
    own = [0, 0, len(sources[1]) - 1, 1]
    expected = [sources[k].pair(i, draw) for k, i, draw in zip((1, 0, 1, 0), own, draws, strict=True)]
    for (first, second, follows), (a, b, c) in zip(mixed.gather(indices).pairs(draws), expected, strict=True):
        assert first.tolist() == a.tolist() and second.tolist() == b.tolist() and follows == c


def test_each_source_is_read_in_the_order_of_a_run_on_it_alone():
    mixture = order((0.7, 0, 0.3))
    found = mixture.locate(np.arange(60))
    for name, size, offset in (("s0", 10, 0), ("s2", 3, 10)):
        own = [one for one in found if one["name"] == name]
        alone = example_index(3, np.arange(len(own)), size)
        assert [one["example"] for one in own] == alone.tolist()
        assert [one["epoch"] for one in own] == [i // size for i in range(len(own))]
        indices = mixture.indices(np.arange(60))
        assert [int(i) - offset for i, one in zip(indices, found, strict=True) if one["name"] == name] == alone.tolist()
    assert {one["name"] for one in found} == {"s0", "s2"}
    assert mixture.epochs(60) == {"s0": 4.2, "s1": 0.0, "s2": 6.0}


def test_more_epochs_than_allowed_are_refused_with_the_tokens_that_are_missing():
    mixture = order((0.7, 0, 0.3))
    mixture.check_epochs({"s2": 6, "s0": None}, n_steps=10, steps=Steps.of(100, 600))
    # Of 60 samples 18 are of s2, and 5 of its epochs are 15: three sequences of 100 tokens are missing. After 8 steps
    # there have been 48 samples, 14 of them of s2, and after 9 there are 16.
    with pytest.raises(UserError, match=r"data.max_epochs.s2=5 .*ask for 6 epochs of s2: 300 tokens are missing.*=8,"):
        mixture.check_epochs({"s2": 5}, n_steps=10, steps=Steps.of(100, 600))
    with pytest.raises(UserError, match=r"1,700 tokens are missing; use more text"):
        mixture.check_epochs({"s2": 0.5}, n_steps=10, steps=Steps.of(100, 600))


def test_a_schedule_asks_for_what_its_integral_is():
    mixture = order((None, None), sizes=(5, 5), schedule={"s0": [[0, 1], [100 * 40, 0]]}, sample_tokens=100)
    assert mixture.epochs(40) == {"s0": 4.0, "s1": 4.0}  # half of the way on average
    with pytest.raises(UserError, match=r"data.max_epochs.s0=3 .*ask for 4 epochs of s0: 500 tokens"):
        mixture.check_epochs({"s0": 3}, n_steps=40, steps=Steps.of(100, 100))
