"""The page of a filtered corpus: its numbers and samples, and nothing of a document as markup."""

import json
import random
import re

import pytest

from gptlab import UserError
from gptlab.data.curation.corpus import open_source
from gptlab.data.sources.config import TextConfig
from gptlab.lab.curation import share, write_page

EVIL = '<script>alert("x")</script><img src=x onerror=y>'


def opened(path, texts, **filters):
    records = [{"text": text, "url": f"https://a.org/{EVIL}"} for text in texts]
    (path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    return open_source(TextConfig(path=str(path / "a.jsonl"), cache_dir=str(path), filters=filters), progress=False)


def text_of(page):
    return re.sub(r"<[^>]+>", " ", page.partition("<body>")[2].partition("<noscript>")[0])


def test_the_page_shows_counts_samples_and_pairs(tmp_path):
    draw = random.Random(0)
    long = " ".join(str(draw.randrange(10**6)) for _ in range(400))
    near = long.replace(" ", f" {EVIL} ", 1)
    texts = ["short", *(f"short {n}" for n in range(19)), long, near, long, f"A line that stays, as it is.\n{EVIL}"]
    corpus = opened(
        tmp_path,
        texts,
        length={"min_characters": 20},
        addresses={"deny_patterns": ["^$"]},
        exact_duplicates={},
        near_duplicates={},
        tidy={"type": "c4", "terminal_punctuation": False, "min_sentences": None, "line_phrases": ["ALERT"]},
    )
    page = write_page(corpus, tmp_path / "my page.html", n_shown=3).read_text()
    assert "<script>alert" not in page and "<img src" not in page
    shown = re.sub(r"\s+", " ", text_of(page))
    assert "length 24 20 83.3%" in shown and "min_characters 20" in shown
    assert "exact_duplicates 4 1 25.0%" in shown and "near_duplicates 3 1 33.3%" in shown
    assert "tidy (c4)" in shown and "1 document shortened" in shown
    (sections := re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    found = dict(sections)
    assert list(found) == ["length", "addresses", "exact_duplicates", "near_duplicates", "tidy"]
    assert found["length"].count('class="card sample"') == 3
    assert "min_characters: 5 characters, fewer than 20" in page or "characters, fewer than 20" in found["length"]
    assert "as a.jsonl#20" in found["exact_duplicates"]
    assert "a.jsonl#20, which stays" in found["near_duplicates"] and "a.jsonl#21, removed" in found["near_duplicates"]
    (marked,) = re.findall(r"<mark>(.*?)</mark>", found["near_duplicates"])
    assert marked.strip() == EVIL.replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    assert "words alike]" in found["near_duplicates"]
    assert "<del>&lt;script&gt;" in found["tidy"]
    assert write_page(corpus, tmp_path / "again.html", n_shown=3).read_text() == page


def test_a_page_without_samples_and_one_that_cannot_be_written(tmp_path):
    corpus = opened(tmp_path, ["some text"], length={"min_characters": 1})
    assert "0 of 1 document removed" in write_page(corpus, tmp_path / "a.html", n_shown=0).read_text()
    with pytest.raises(UserError, match=r"html=.*none/a\.html cannot be written"):
        write_page(corpus, tmp_path / "none" / "a.html")


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "0%"), (0, 5, "0%"), (1, 3, "33.3%"), (1, 10**4, "0.01%"), (5, 5, "100.0%")]
)
def test_shares(part, whole, text):
    assert share(part, whole) == text
