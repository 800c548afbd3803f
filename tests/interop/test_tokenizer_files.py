"""transformers reads from our files the tokenizer that we trained with."""

import json
import random

import pytest
import transformers

from gptlab.data.tokenizer import BpeTokenizer, ByteTokenizer, CharTokenizer, FileTokenizer
from gptlab.interop.tokenizer_files import tokenizer_files

TEXT = "It was the best of times, it was  the worst of times;\n\tthe age of wisdom's 1859 -- naïve café, 東京, 🙂!  \n"
SAMPLES = [
    TEXT,
    "the the the",
    " the",
    "\n\n \n",
    "aaaaaaaaaaaaaaa",
    "I'll they're 'tis",
    "\u00a0\u2003x",
    "e\u0301 \u200d\U0001f468",
]


def random_texts():
    draw = random.Random(0)
    pieces = [*"theaosinr  \n\t'.,0é東", "the", "'s", " of", "times", "\r\n"]
    return ["".join(draw.choices(pieces, k=draw.randint(1, 60))) for _ in range(300)]


def opened(tokenizer, folder):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')  # as it lies beside a model
    for name, content in tokenizer_files(tokenizer, 128).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def bpe():
    return BpeTokenizer.train(400, [TEXT * 20, *random_texts()])


@pytest.mark.parametrize("kind", ["bpe", "byte", "file"])
def test_same_ids_and_the_same_text_back(kind, bpe, tmp_path):
    ours = {
        "bpe": bpe,
        "byte": ByteTokenizer(),
        "file": FileTokenizer(json.dumps(tokenizer_files(bpe, 128)["tokenizer.json"])),
    }[kind]
    theirs = opened(ours, tmp_path)
    assert len(theirs) == ours.vocab_size and theirs.eos_token_id == theirs.bos_token_id == ours.eot
    assert theirs.model_max_length == 128
    for text in SAMPLES + random_texts():
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids) == ours.decode(ids) == text
    assert theirs.decode([ours.eot]) == "<|endoftext|>"


def test_characters(tmp_path):
    ours = CharTokenizer.build([TEXT])
    theirs = opened(ours, tmp_path)
    assert len(theirs) == ours.vocab_size and theirs.eos_token is None
    for text in (TEXT, "the best", "  \n\t", "東京 times"):
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids) == text
    with pytest.raises(Exception, match="WordLevel error"):  # the tokenizers library raises plain Exception
        theirs("Zebra")


def test_merges_are_those_that_were_learned():
    tokenizer = BpeTokenizer.train(300, ["the cat sat on the mat, the hat" * 9])
    model = tokenizer_files(tokenizer, 8)["tokenizer.json"]["model"]
    assert len(model["merges"]) == tokenizer.vocab_size - 257
    assert list(model["vocab"].values()) == list(range(tokenizer.vocab_size - 1))
