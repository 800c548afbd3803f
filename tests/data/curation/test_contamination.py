"""Planted evaluation texts are found, and nothing else is."""

import json
import random

import pytest

from gptlab import UserError
from gptlab.data.curation.config import ContaminationConfig
from gptlab.data.curation.contamination import Contamination
from gptlab.data.curation.filter import Candidate

VOCABULARY = [f"{a}{b}" for a in "ba ce di fo gu ha je ki lo mu".split() for b in "r n st l mp ck".split()]


def words(draw, n):
    return draw.choices(VOCABULARY, k=n)


def is_removed(one, text):
    return one.check(Candidate(text)) is not None


@pytest.fixture
def tests(tmp_path):
    """Evaluation texts of 5 to 60 words, as JSON lines with a question and an answer."""
    draw = random.Random(0)
    texts = [" ".join(words(draw, n)) for n in range(5, 61)]
    records = [{"question": text, "answer": "yes", "id": n} for n, text in enumerate(texts)]
    path = tmp_path / "my tests.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path, texts


def test_planted_evaluation_text_is_found_and_a_clean_corpus_loses_nothing(tests):
    path, texts = tests
    one = Contamination(ContaminationConfig(paths=[str(path)], text_columns=["question"]))
    draw = random.Random(1)
    clean = [" ".join(words(draw, 400)) for _ in range(200)]
    grams = {tuple(text.split()[i : i + 8]) for text in texts for i in range(len(text.split()) - 7)}
    assert not any(tuple(text.split()[i : i + 8]) in grams for text in clean for i in range(393))  # by counting
    assert not any(is_removed(one, text) for text in clean)
    for text in texts:
        planted = clean[draw.randrange(200)].split()
        at = draw.randrange(len(planted))
        inner = text.split()
        length = min(13, len(inner))
        begin = draw.randrange(len(inner) - length + 1)
        planted[at:at] = inner[begin : begin + length]
        assert is_removed(one, " ".join(planted)) == (len(inner) >= 8)  # shorter texts are not looked for


def test_capitals_and_punctuation_do_not_count(tests):
    path, texts = tests
    one = Contamination(ContaminationConfig(paths=[str(path)], text_columns=["question"]))
    spelled = ", ".join(texts[20].title().split()) + "!"
    found = one.check(Candidate(f"Something before. {spelled} Something after."))
    assert found is not None and found.reason.startswith(
        f"'{' '.join(texts[20].split()[:13])}' is in my tests.jsonl#20"
    )


def test_twelve_of_thirteen_words_are_no_overlap(tests):
    path, texts = tests
    one = Contamination(ContaminationConfig(paths=[str(path)], text_columns=["question"]))
    inner = texts[30].split()
    assert not is_removed(one, " ".join(["start", *inner[:12], "end"]))
    assert is_removed(one, " ".join(["start", *inner[:13], "end"]))
    assert not is_removed(one, " ".join(inner[:12])) and is_removed(one, " ".join(inner[:13]))


def test_options(tests, tmp_path):
    path, texts = tests
    inner = texts[30].split()
    options = {"paths": [str(path)], "text_columns": ["question"]}
    three = Contamination(ContaminationConfig(**options, min_overlaps=3))
    assert not is_removed(three, " ".join(inner[:14])) and is_removed(three, " ".join(inner[:15]))
    five = Contamination(ContaminationConfig(**options, ngram=5, min_ngram=5))
    assert is_removed(five, " ".join(inner[:5])) and not is_removed(five, " ".join(inner[:4]))
    both = Contamination(ContaminationConfig(paths=[str(path)], text_columns=["question", "answer"], min_ngram=1))
    assert is_removed(both, "they say Yes, to it")
    (tmp_path / "plain.txt").write_text(" ".join(inner))
    assert is_removed(Contamination(ContaminationConfig(paths=[str(tmp_path / "plain.txt")])), " ".join(inner))


def test_what_counts_of_the_files_is_their_content(tests, tmp_path):
    path, _ = tests
    config = ContaminationConfig(paths=[str(path)], text_columns=["question"])
    before = config.identity(str(tmp_path))
    path.write_text(path.read_text() + '\n{"question": "a new one", "answer": "no"}')
    assert config.identity(str(tmp_path)) != before


def test_what_is_wrong_is_refused(tests, tmp_path):
    path, _ = tests
    for options, what in (
        ({"paths": [str(tmp_path / "none.txt")]}, r"data\.filters\.contamination\.paths.*none.txt does not exist"),
        ({"paths": [str(path)]}, r"text_columns=text is not a column; there are answer, id, question"),
        ({"paths": [str(path)], "text_columns": ["answer"]}, "has 8 words"),
    ):
        with pytest.raises(UserError, match=what):
            Contamination(ContaminationConfig(**options))
