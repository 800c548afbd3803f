"""Word pieces: learned alike every time, read as BERT reads them."""

import random
import string
import unicodedata

import pytest

from gptlab.data.tokenizers.config import WordPieceConfig
from gptlab.data.tokenizers.tokenizer import load_tokenizer

WORDS = [
    "low",
    "lower",
    "lowest",
    "new",
    "newer",
    "newest",
    "wide",
    "wider",
    "Widest",
    "café",
    "naïve",
    "don't",
    "1859",
]


def prose(seed, vocab_size=2000):
    draw = random.Random(seed)
    return " ".join(
        draw.choice(WORDS) + draw.choice(("", "", ",", ".", " -- ", "\n", "漢字")) for _ in range(vocab_size)
    )


TEXT = prose(0) + " don't (low): high"


def made(texts=(TEXT,), **settings):
    config = WordPieceConfig(**{"vocab_size": 200, **settings})
    config.check()
    return config.build(lambda: iter(texts))


def vocabulary(tokenizer):
    return tokenizer.portable()["tokenizer"]["model"]["vocab"]


def test_equal_texts_give_equal_vocabularies():
    # Many ties, and each training has hash tables of its own: an order that came from one would differ.
    draw = random.Random(1)
    text = " ".join("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(500))
    first, *others = (made([text], vocab_size=150) for _ in range(5))
    assert {tokenizer.fingerprint for tokenizer in others} == {first.fingerprint}
    assert first.vocab_size == 150
    assert made([text[:1200], text[1200:]], vocab_size=150).fingerprint == first.fingerprint  # 1200: after a space


def test_the_words_are_berts():
    tokenizer = made(n_sentinel_tokens=2)
    assert tokenizer.decode([1]) == "[UNK]"
    assert (tokenizer.pad, tokenizer.cls, tokenizer.sep, tokenizer.mask) == (0, 2, 3, 4)
    assert tokenizer.eot == tokenizer.sep and tokenizer.beginning == (tokenizer.cls,)
    assert tokenizer.sentinels == (5, 6) and tokenizer.specials == set(range(7))
    ids = vocabulary(tokenizer)
    assert sorted(ids.values()) == list(range(tokenizer.vocab_size)) and tokenizer.vocab_size <= 200
    assert {"low", "newest", "##e", "cafe", "naive"} <= set(ids) and "Widest" not in ids
    assert "Widest" in vocabulary(made(lowercase=False)) and "café" in vocabulary(made(lowercase=False))


def longest_match(word, ids):
    """Devlin's wordpiece.tokenize: the longest piece that fits, again and again."""
    pieces, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else "##" + word[start:end]
            if piece in ids:
                pieces.append(ids[piece])
                start = end
                break
        else:
            return [ids["[UNK]"]]
    return pieces


def test_ids_are_those_of_the_longest_match_first():
    tokenizer = made(vocab_size=60)
    ids = vocabulary(tokenizer)
    text = prose(2) + " lowestnewer widened zzz low[MASK] new er."
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    spaced = "".join(f" {c} " if c in string.punctuation or c in "漢字" else c for c in plain)
    expected = [number for word in spaced.split() for number in longest_match(word, ids)]
    assert tokenizer.encode(text).tolist() == expected
    assert ids["[UNK]"] in expected and tokenizer.mask not in expected


def test_rare_characters_make_room():
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    tokenizer = made([prose(3), many], vocab_size=100)
    assert tokenizer.vocab_size <= 100
    assert tokenizer.encode("low").tolist() != [1] and tokenizer.encode(many[-1]).tolist() == [1]


def test_a_lone_surrogate_is_no_obstacle():
    assert made([prose(0), "low \ud800 new"]).encode("low\ud800").size


@pytest.mark.parametrize("lowercase", [True, False])
def test_saved_and_loaded_is_the_same(tmp_path, lowercase):
    tokenizer = made(lowercase=lowercase)
    tokenizer.save(tmp_path / "t.json")
    again = load_tokenizer(tmp_path / "t.json")
    assert again.fingerprint == tokenizer.fingerprint and again.specials == tokenizer.specials
    assert again.encode(prose(5)).tolist() == tokenizer.encode(prose(5)).tolist()
    said = again.decode(again.encode("Widest, lower: newest."))
    assert said == ("widest, lower : newest." if lowercase else "Widest, lower : newest.")
