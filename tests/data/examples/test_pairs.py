"""Pairs of segments, held against the documents they come from."""

import pickle

import numpy as np
import pytest

from gptlab.data.examples.pairs import N_DRAWS, SegmentPairs
from gptlab.data.order import uniforms
from gptlab.data.token_file import TokenFile, TokenWriter

END = 0
DOCUMENTS = [list(range(100, 117)), list(range(200, 205)), [300], list(range(400, 409)), [500, 501]]


@pytest.fixture
def file(tmp_path):
    with TokenWriter(tmp_path / "train.bin", vocab_size=600, tokenizer="x") as writer:
        for i, document in enumerate(DOCUMENTS):
            writer.write(np.array(([END] if i else []) + document))
            writer.end_documents(1, n_bytes=1, n_characters=1)
    return TokenFile.open(tmp_path / "train.bin")


def drawn(pairs, numbers):
    chunks = pairs.gather(numbers % len(pairs))
    return list(chunks.pairs(uniforms(5, numbers, N_DRAWS)))


def test_first_parts_and_what_follows_them_are_all_of_the_text(file):
    pairs = SegmentPairs(file, END, 4, split="train")
    assert len(pairs) == 4 + 1 + 2 + 1, "17 tokens leave one over, 5 one, 9 one; one token makes no pair"
    seen = []
    for index in range(len(pairs)):
        first, second, follows = pairs.pair(index, np.array([0.5, 0.1, 0.3]))
        assert follows and len(first) and len(second)
        seen += [*first.tolist(), *second.tolist()]
    expected = [*range(100, 116), *range(200, 204), *range(400, 408), 500, 501]
    assert seen == expected


def test_half_of_the_second_parts_are_from_another_document(file):
    pairs = SegmentPairs(file, END, 4, split="train")
    numbers = np.arange(20_000)
    elsewhere = places = 0
    sources = {document: 0 for document in (1, 2, 4, 5)}
    for first, second, follows in drawn(pairs, numbers):
        assert END not in first and END not in second and len(first) + len(second) <= 4
        assert np.array_equal(np.diff(first), np.ones(len(first) - 1)), "parts are contiguous"
        assert np.array_equal(np.diff(second), np.ones(len(second) - 1))
        if follows:
            assert second[0] == first[-1] + 1
        else:
            elsewhere += 1
            assert second[0] // 100 != first[0] // 100
            if first[0] // 100 == 5:
                places += 1
                sources[second[0] // 100] += 1
    assert elsewhere / len(numbers) == pytest.approx(0.5, abs=0.012)
    for document, n_tokens in ((1, 17), (2, 5), (4, 9)):  # each place of the others is as likely
        assert sources[document] / places == pytest.approx(n_tokens / 31, abs=0.05)


def test_pairs_are_a_function_of_seed_and_number(file):
    pairs = SegmentPairs(file, END, 6, split="train")
    again = pickle.loads(pickle.dumps(pairs))
    whole = drawn(pairs, np.arange(50))
    parts = drawn(again, np.arange(50)[30:]), drawn(again, np.arange(50)[:30])
    for (a, b, c), (x, y, z) in zip(whole, parts[1] + parts[0], strict=True):
        assert np.array_equal(a, x) and np.array_equal(b, y) and c == z


def test_one_document_is_refused_with_what_to_do(file):
    with pytest.raises(ValueError, match=r"the val split has one document, .*set objective\.next_sentence=false"):
        SegmentPairs(file, None, 4, split="val")


def test_every_divide_is_as_likely(file):
    pairs = SegmentPairs(file, END, 4, split="train")
    lengths = [len(pairs.pair(0, np.array([(i + 0.5) / 30, 0, 0]))[0]) for i in range(30)]
    assert [lengths.count(n) for n in (1, 2, 3)] == [10, 10, 10]
