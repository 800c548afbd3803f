"""Texts of any length are cut where the ids stay those of the whole, which the library encodes at once."""

import random

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from gptlab.data.tokenizers import cutting
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.cutting import gpt2_cut
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.wordpiece import train_wordpiece

PROSE = "It was the best of times; it's the worst.\n\n\tWe'll say 1789! naïve — 東京 🙂\r\n" * 40
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def drawn(alphabet, length, seed=0):
    return "".join(random.Random(seed).choices(alphabet, k=length))


VARIED = " ".join(drawn("etaoinshrdlu", 2 + n % 7, n) for n in range(2000)) + PROSE[:100]
RUNS = {
    "dna": drawn("acgt", 90_000),
    "a": "a" * 90_001,
    "base64": drawn("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789+/", 90_000),
    "digits": drawn("0123456789", 80_000),
    "han": drawn("漢字日本語中文的一是不", 50_000),
    "spaces": "x" + " " * 90_000 + "x",
    "line breaks": "\n" * 80_000,
    "dashes": "-" * 80_000,
    "apostrophes": "'" * 70_000 + "s" + "'" * 900 + "ll",
    "prose around": PROSE + drawn("etaoin", 60_000) + "'s " + PROSE + drawn("abc", 70_000) + " end",
}


@pytest.mark.parametrize("name", RUNS)
def test_a_long_run_is_cut_between_its_tokens(name):
    text = RUNS[name]
    tokenizer = BPETokenizer.train(400, [text[:3000], PROSE])
    chunks = list(tokenizer.chunks([text]))
    assert "".join(chunks) == text
    if name in ("dna", "a", "digits", "han", "line breaks", "dashes"):  # nowhere else to cut
        assert max(map(len, chunks)) <= 2 * cutting.WINDOW_CHARACTERS
    whole = tokenizer._encoding.encode_ordinary(text)
    assert [number for chunk in chunks for number in tokenizer._encoding.encode_ordinary(chunk)] == whole
    assert tokenizer.encode(text).tolist() == whole
    # The same where the text comes in pieces, as a file does.
    pieces = [text[at : at + 5000] for at in range(0, len(text), 5000)]
    parts = list(tokenizer.chunks(pieces))
    assert "".join(parts) == text
    assert [number for part in parts for number in tokenizer._encoding.encode_ordinary(part)] == whole


def test_a_run_may_hold_surrogates():
    tokenizer = BPETokenizer.train(300, [PROSE])
    text = "ab" * 30_000 + "\ud83d\ude00" + "ab" * 30_000 + "\ud800"
    assert "".join(tokenizer.chunks([text])) == text
    ids = [number for chunk in tokenizer.chunks([text]) for number in tokenizer.encode(chunk).tolist()]
    assert tokenizer.decode(ids) == "ab" * 30_000 + "\U0001f600" + "ab" * 30_000 + "\ufffd"


def test_pieces_of_gpt2_are_known_without_spaces():
    assert gpt2_cut("abc123") == 3 and gpt2_cut("12ab") == 2 and gpt2_cut("ab,") == 2
    assert gpt2_cut("'s") == gpt2_cut("''") == gpt2_cut("abc") == gpt2_cut(" abc") == 0


def bpe(pre_tokenizer=None, normalizer=None, **settings):
    made = tokenizers.Tokenizer(models.BPE(**settings))
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["<unk>"], show_progress=False
    )
    made.train_from_iterator([VARIED], trainer)
    return made.to_str()


def unigram():
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    made.train_from_iterator([PROSE], trainer)
    return made.to_str()


LIBRARY = {
    "GPT-2": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "Llama 3": lambda: bpe(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(GPT4), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "Llama 2": lambda: bpe(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        unk_token="<unk>",
        fuse_unk=True,
    ),
    "Metaspace": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="first"), unk_token="<unk>"),
    "T5": unigram,
    "BERT": lambda: train_wordpiece(lambda: iter([PROSE]), 300, lowercase=True),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_a_tokenizer_of_the_library_never_sees_a_long_text(name, monkeypatch):
    tokenizer = FileTokenizer(LIBRARY[name]())
    text = (PROSE + VARIED) * 24 + (RUNS["prose around"] if name in ("GPT-2", "Llama 3") else "") + PROSE
    whole = tokenizer._loaded.encode(text, add_special_tokens=False).ids
    seen = []
    for method in ("_ids", "_other_ids"):
        encode = getattr(tokenizer, method)
        monkeypatch.setattr(tokenizer, method, lambda part, encode=encode: seen.append(len(part)) or encode(part))
    assert tokenizer.encode(text).tolist() == whole
    assert max(seen) <= cutting.BLOCK_CHARACTERS + cutting.LONG_CHARACTERS + len(PROSE) < len(text)
    if name != "Llama 2":  # whose first part alone has a space put before it
        assert [n for chunk in tokenizer.chunks([text]) for n in tokenizer._ids(chunk)] == whole
