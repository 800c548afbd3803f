"""MinHash and banding against Jaccard similarities that are counted from sets of n-grams."""

import random
from collections import defaultdict

import numpy as np
import pytest

from gptlab.data.curation.banding import bands_for, chance
from gptlab.data.curation.config import NearDuplicatesConfig
from gptlab.data.curation.exact_duplicates import ExactDuplicates
from gptlab.data.curation.filter import Candidate
from gptlab.data.curation.near_duplicates import NearDuplicates


def columns_of(one, texts):
    """What a filter of all documents measures of texts, as arrays in memory."""
    found = {name: np.zeros(len(texts), dtype=dtype) for name, dtype in one.columns.items()}
    for row, text in enumerate(texts):
        for name, value in one.measure(Candidate(text)).items():
            found[name][row] = value
    return found


def duplicates(one, texts, ids=None):
    """The documents that are removed, each with the one that it resembles."""
    removed, like = one.duplicates(columns_of(one, texts), np.arange(len(texts)) if ids is None else np.array(ids))
    assert sorted(removed) == list(removed) and all(like < removed)
    return dict(zip(removed.tolist(), like.tolist(), strict=True))


def ngrams(text, n=5):
    """Counted independently: no hashes."""
    words = "".join(c for c in text.lower() if c.isalnum() or c.isspace()).split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def jaccard(one, other):
    a, b = ngrams(one), ngrams(other)
    return len(a & b) / len(a | b)


VOCABULARY = [f"{a}{b}" for a in "ba ce di fo gu ha je ki lo mu".split() for b in "r n st l mp ck".split()]


def document(draw, n):
    return " ".join(draw.choices(VOCABULARY, k=n)).capitalize() + "."


def edited(draw, text, share):
    """A copy in which so many of the words are replaced, left out or doubled."""
    words = []
    for word in text.split():
        kind = draw.randrange(3) if draw.random() < share else None
        words += {None: [word], 0: [draw.choice(VOCABULARY)], 1: [], 2: [word, word]}[kind]
    return " ".join(words)


def test_recall_and_precision_of_planted_duplicates(capsys):
    """600 documents, of each of 300 a copy with up to 4% of its words changed, and of 100 a copy that is half new.

    A pair is a near duplicate if its counted similarity is at least 0.8, and none below 0.7. What lies between may be
    decided either way.
    """
    draw, config = random.Random(0), NearDuplicatesConfig()
    originals = [document(draw, draw.randint(50, 250)) for _ in range(600)]
    copies = [(n, edited(draw, originals[n], draw.uniform(0, 0.04))) for n in range(300)]
    halves = [(n, f"{originals[n][: len(originals[n]) // 2]} {document(draw, 60)}") for n in range(300, 400)]
    texts = [*originals, *(text for _, text in (*copies, *halves))]
    truth = {600 + k: (n, jaccard(originals[n], text)) for k, (n, text) in enumerate([*copies, *halves])}
    found = duplicates(NearDuplicates(config), texts)
    planted = {copy for copy, (_, similarity) in truth.items() if similarity >= 0.8}
    others = {copy for copy, (_, similarity) in truth.items() if similarity < 0.7}
    assert len(planted) > 150 and len(others) > 80
    recall = len(planted & found.keys()) / len(planted)
    judged = [copy for copy in found if copy in planted or copy in others or copy not in truth]
    precision = sum(copy in planted for copy in judged) / len(judged)
    with capsys.disabled():
        counts = f"recall {recall:.3f} ({len(planted)}), precision {precision:.3f} ({len(judged)})"
        print(f"\nplanted near duplicates: {counts}")
    assert recall >= 0.95 and precision >= 0.95
    assert all(like == truth[copy][0] for copy, like in found.items() if copy in planted)
    assert not [number for number in found if number < 600]  # the first of a pair stays, and unlike documents do


def test_estimates_are_those_of_the_sets():
    """The share of equal hashes is the Jaccard similarity within 4 standard deviations, sqrt(J (1 - J) / 2048)."""
    draw = random.Random(1)
    one = NearDuplicates(NearDuplicatesConfig(n_hashes=2048))
    n = one.n_rows * one.n_bands
    for share in (0.0, 0.01, 0.05, 0.2):
        text = document(draw, 300)
        other = edited(draw, text, share)
        signatures = [one.signature(Candidate(text)) for text in (text, other)]
        expected = jaccard(text, other)
        assert one.similarity(Candidate(text), Candidate(other)) == pytest.approx(expected)
        assert abs((signatures[0] == signatures[1]).mean() - expected) <= 4 * (expected * (1 - expected) / n) ** 0.5


def test_pairs_share_a_band_as_often_as_the_formula_says():
    draw, rows, bands = random.Random(2), 4, 8
    one = NearDuplicates(NearDuplicatesConfig())
    one.n_rows, one.n_bands = rows, bands
    one._factors, one._terms = one._factors[: rows * bands], one._terms[: rows * bands]
    expected = n_found = 0.0
    n = 300
    for _ in range(n):
        text = document(draw, 60)
        other = edited(draw, text, 0.06)
        a, b = (one.measure(Candidate(text)) for text in (text, other))
        n_found += any(a[f"band{k}"] == b[f"band{k}"] for k in range(bands))
        expected += chance(jaccard(text, other), rows, bands)
    assert abs(n_found - expected) < 4 * (n * 0.25) ** 0.5


@pytest.mark.parametrize("jaccard", [0.5, 0.7, 0.75, 0.8, 0.9, 1.0])
def test_bands_find_what_is_as_alike_as_asked_for(jaccard):
    rows, bands = bands_for(jaccard, 256)
    assert rows * bands <= 256
    assert 1 - (1 - jaccard**rows) ** bands >= 0.99
    longer = rows + 1
    assert longer > 32 or 1 - (1 - jaccard**longer) ** (256 // longer) < 0.99


def test_clusters_keep_their_first_document():
    draw = random.Random(3)
    texts = []
    for number in range(6):  # of each document three alike, which do not follow each other
        texts.append(document(draw, 200 + number))
    texts += [edited(draw, text, 0.004) for text in texts] + [f"{text} The end." for text in texts]
    found = duplicates(NearDuplicates(NearDuplicatesConfig()), texts)
    assert set(found) == set(range(6, 18)) and {removed % 6 == like % 6 for removed, like in found.items()} == {True}
    # Only the documents that came so far count.
    assert set(duplicates(NearDuplicates(NearDuplicatesConfig()), texts, [0, 2, 7, 12, 14])) == {12, 14}


def test_a_chain_is_one_cluster():
    """Each is like the one before it, and the last is unlike the first."""
    draw = random.Random(4)
    texts = [document(draw, 400)]
    for number in range(8):
        words = texts[-1].split()
        begin = 40 * number
        words[begin : begin + 20] = document(draw, 20).split()
        texts.append(" ".join(words))
    assert jaccard(texts[0], texts[-1]) < 0.6 and min(map(jaccard, texts, texts[1:])) > 0.85
    found = duplicates(NearDuplicates(NearDuplicatesConfig(n_hashes=1024)), texts)
    assert set(found) == set(range(1, 9))


def test_documents_in_one_bucket_that_are_unlike_are_told_apart():
    """All documents share a band, as happens by chance; what decides are all hashes."""
    draw, one = random.Random(5), NearDuplicates(NearDuplicatesConfig())
    texts = [document(draw, 100) for _ in range(5)]
    texts += texts[2:]
    columns = columns_of(one, texts)
    for name in columns:
        if name.startswith("band"):
            columns[name][:] = 7
    removed, like = one.duplicates(columns, np.arange(len(texts)))
    assert dict(zip(removed.tolist(), like.tolist(), strict=True)) == {5: 2, 6: 3, 7: 4}


def test_short_documents_other_scripts_and_documents_without_words():
    one = NearDuplicates(NearDuplicatesConfig())
    texts = [
        "Hello, world!",
        "hello world",
        "Hello",
        "...",
        "---",
        "...",
        "委员会同意在下次会议之前修改提案并发送给成员",
    ]
    texts.append(texts[-1].replace("员", "員"))
    assert duplicates(one, texts) == {1: 0, 5: 3}
    assert duplicates(one, [texts[-2] * 9, texts[-2] * 9 + "同意"]) == {1: 0}
    assert duplicates(one, []) == {} and duplicates(one, ["one"]) == {}


def test_exact_duplicates_are_equal_texts():
    draw = random.Random(6)
    texts = [draw.choice("abcdefgh") * draw.randint(1, 3) for _ in range(200)]
    first, expected = {}, {}
    for number, text in enumerate(texts):
        if text in first:
            expected[number] = first[text]
        first.setdefault(text, number)
    assert duplicates(ExactDuplicates(), texts) == expected
    some = [number for number in range(200) if number % 3]
    by_text = defaultdict(list)
    for number in some:
        by_text[texts[number]].append(number)
    again = {number: group[0] for group in by_text.values() for number in group[1:]}
    assert duplicates(ExactDuplicates(), texts, some) == again
    assert duplicates(ExactDuplicates(), []) == {}
