"""Unigram pieces: learned alike every time, the likeliest segmentation, no text lost."""

import json
import math
import random
import string
import textwrap
from pathlib import Path

import pytest

from gptlab.data.tokenizers.bpe import byte_alphabet
from gptlab.data.tokenizers.config import BPEConfig, UnigramConfig
from gptlab.data.tokenizers.tokenizer import load_tokenizer
from gptlab.data.tokenizers.training import WORDS_WITH_SPACE, byte_level_split
from gptlab.errors import UserError

WORDS = ["low", "lower", "lowest", "new", "newer", "newest", "wide", "wider", "Widest", "café", "don't", "1859"]


def prose(seed, n=3000):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + draw.choice(("", "", ",", ".", " -- ", "\n")) for _ in range(n))


def made(**settings):
    config = UnigramConfig(**{"type": "unigram", "vocab_size": 300, **settings})
    config.check()
    return config.build(lambda: iter([prose(0)]))


def likeliest(word, score):
    """The greatest sum of the pieces' log-probabilities over all segmentations."""
    best = [0.0] + [-math.inf] * len(word)
    for end in range(1, len(word) + 1):
        best[end] = max(best[start] + score.get(word[start:end], -math.inf) for start in range(end))
    return best[-1]


def test_equal_texts_give_equal_tokenizers(tmp_path):
    first = made()
    assert {made().fingerprint for _ in range(3)} == {first.fingerprint}
    first.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.encode(prose(1)).tolist() == first.encode(prose(1)).tolist()


def test_the_segmentation_is_the_likeliest_one():
    tokenizer = made()
    model = json.loads(tokenizer._loaded.to_str())["model"]
    score = {piece: value for piece, value in model["vocab"]}
    split = byte_level_split(WORDS_WITH_SPACE)
    for word, _ in split.pre_tokenize_str(prose(1, 100) + " unseen wOrds"):
        text = bytes(byte_alphabet()[c] for c in word).decode()
        pieces = [model["vocab"][token][0] for token in tokenizer.encode(text).tolist()]
        assert "".join(pieces) == word
        assert math.fsum(score[piece] for piece in pieces) == pytest.approx(likeliest(word, score), abs=1e-4)


def test_no_text_is_unknown_or_lost():
    tokenizer = made(special_tokens=["<mask>"], n_sentinel_tokens=2)
    n = tokenizer.vocab_size
    assert 260 <= n <= 300
    assert (tokenizer.eot, tokenizer.mask, tokenizer.sentinels) == (n - 4, n - 3, (n - 2, n - 1))
    for text in ("Ωμέγα 東京 🙂\r\n\t\x00", "lower  lowest", " a", "", "<|endoftext|><mask>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not tokenizer.specials & set(ids.tolist())


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(UserError, match=r"=100 must be at least 257: the bytes and 1 special token"):
        UnigramConfig(type="unigram", vocab_size=100).check()


def test_it_is_no_worse_than_byte_pairs_on_real_text():
    text = "".join(Path(module.__file__).read_text() for module in (random, string, textwrap, json))
    n_tokens = {
        kind.__name__: len(kind(type="", vocab_size=1500).build(lambda: iter([text])).encode(text))
        for kind in (UnigramConfig, BPEConfig)
    }
    assert n_tokens["UnigramConfig"] < n_tokens["BPEConfig"]
