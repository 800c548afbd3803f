"""Packing: the bins of best-fit decreasing, whole documents, and every token but a document's first a target once."""

import pickle

import numpy as np
import pytest

from gptlab.data.config import Packing
from gptlab.data.examples.packing import NO_TOKEN, PackedDocuments, best_fit, in_order
from gptlab.data.token_file import TokenFile, TokenWriter

END = 99


def naive(lengths, capacity):
    """Best-fit decreasing, item by item: the sum of each bin."""
    loads = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, load in enumerate(loads) if load + length <= capacity]
        if fitting:
            loads[max(fitting, key=lambda i: loads[i])] += length
        else:
            loads.append(length)
    return sorted(loads)


def test_bins_are_those_of_item_by_item():
    rng = np.random.default_rng(0)
    for _ in range(200):
        capacity = int(rng.integers(1, 40))
        lengths = rng.integers(1, capacity + 1, int(rng.integers(1, 60)))
        if rng.random() < 0.5:  # many short ones
            lengths = np.minimum(lengths, rng.integers(1, 5))
        bins = best_fit(lengths, capacity)
        loads = np.bincount(bins, weights=lengths)
        assert loads.min() > 0 and sorted(loads.astype(int).tolist()) == naive(lengths, capacity)
    assert best_fit(np.array([], dtype=np.int64), 5).tolist() == []
    with pytest.raises(ValueError, match="do not fit bins of 5"):
        best_fit(np.array([6]), 5)


def test_bins_in_the_order_of_their_first_items():
    order, bounds = in_order(np.array([2, 0, 2, 1, 0]))
    assert order.tolist() == [0, 2, 1, 4, 3] and bounds.tolist() == [0, 2, 4, 5]


def file_of(path, lengths):
    """Documents of so many tokens, all different, with a separator between them."""
    with TokenWriter(path, vocab_size=10_000, tokenizer="x") as writer:
        token = 100
        for number, length in enumerate(lengths):
            writer.write(np.array([END] * (number > 0) + list(range(token, token + length)), dtype=np.int64))
            token += length
    return TokenFile.open(path)


def sequences_of(packed):
    return [[int(t) for t in row if t != NO_TOKEN] for row in packed.gather(np.arange(len(packed)))]


@pytest.mark.parametrize("packing", [Packing.best_fit, Packing.none])
def test_documents_are_whole_and_each_token_but_the_first_is_a_target_once(tmp_path, packing):
    rng = np.random.default_rng(1)
    for number in range(30):
        context = int(rng.integers(1, 12))
        lengths = rng.integers(0, 20, int(rng.integers(1, 25))).tolist()
        if max(lengths) < 2:
            continue
        file = file_of(tmp_path / f"{number}.bin", lengths)
        documents = np.split(file.tokens, file.positions(END) + 1)
        packed = PackedDocuments(file, END, context, packing, split="train")
        found = sequences_of(packed)
        assert packed.gather(np.arange(2) % len(packed)).shape == (2, context + 1)
        expected = sorted(int(t) for document in documents for t in document[1:])
        pieces = []
        for sequence in found:
            ends = [i + 1 for i, token in enumerate(sequence) if token == END]
            parts = [part for part in np.split(np.array(sequence), ends) if len(part)]
            if packing is Packing.none:
                assert len(parts) == 1
            pieces += parts
        assert sorted(int(t) for piece in pieces for t in piece[1:]) == expected
        whole = {tuple(d.tolist()) for d in documents if 2 <= len(d) <= context + 1}
        assert whole <= {tuple(piece.tolist()) for piece in pieces}
        n_cut = sum(len(d) > context + 1 for d in documents)
        assert (packed.packed.n_cut, packed.packed.n_documents) == (n_cut, sum(len(d) > 1 for d in documents))
        filled = sum(min(len(sequence), context) for sequence in found)
        assert packed.packed.padding == pytest.approx(1 - filled / (len(found) * context))
        assert packed.tail() is None


def test_a_packing_by_hand(tmp_path):
    # With their separators 4, 9 and 3 tokens, and 2 of the last, which has none: 9 is cut into 6 and 4, one shared.
    packed = PackedDocuments(file_of(tmp_path / "t.bin", [3, 8, 2, 2]), END, 5, Packing.best_fit)
    assert sequences_of(packed) == [
        [100, 101, 102, END],
        [103, 104, 105, 106, 107, 108],
        [108, 109, 110, END, 113, 114],
        [111, 112, END],
    ]
    assert packed.packed.text() == "4 documents, 1 longer than a sequence and cut; 15.00% of the positions are padding"


def test_the_index_is_kept_beside_the_file_and_belongs_to_its_ids(tmp_path):
    file = file_of(tmp_path / "t.bin", [3, 8, 2, 5])
    first = PackedDocuments(file, END, 5, Packing.best_fit)
    names = {path.name for path in tmp_path.iterdir()}
    assert f"t.bin.{END}.best_fit-5.npy" in names
    again = pickle.loads(pickle.dumps(first))
    assert np.array_equal(again.gather(np.arange(len(first))), first.gather(np.arange(len(first))))
    other = PackedDocuments(file_of(tmp_path / "t.bin", [7, 1]), END, 5, Packing.best_fit)
    assert sum(map(len, sequences_of(other))) == 6 + 3
