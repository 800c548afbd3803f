"""`gptlab tokenize`, in this process."""

import io
import json
import sys

import pytest
import transformers
from small_runs import write_run
from tokenizers import Tokenizer as Loaded
from tokenizers import decoders, models, pre_tokenizers

from gptlab.cli.tokenize import HELP, OPTIONS
from gptlab.data.tokenizers.bpe import BPETokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("a run") / "run")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizers") / "my tokenizer.json"
    BPETokenizer.train(300, ["the cat sat on the mat " * 9]).save(file)
    return file


def test_pieces_ids_and_counts(say, run):
    out = say("hé\\n", f"run={run}")
    assert out.splitlines() == [
        '0  104  "h"',
        '1  195  "é" 1/2',
        '2  169  "é" 2/2',
        '3   10  "\\n"',
        f"{run}: 4 tokens, 3 characters, 4 bytes, 1.00 bytes per token, vocabulary 257",
    ]
    assert say("text=hé\\n", f"run={run}") == out


def test_side_by_side(say, run, bpe):
    out = say("the cat 中", f"run={run}", f"tokenizer={bpe}", "tokenizer=byte")
    header, first, *_ = out.splitlines()
    assert header.split() == str(run).split() + str(bpe).split() + ["byte"]
    assert first.split()[:3] == ["0", "116", '"t"'] and '"the"' in first
    assert len(out.split("\n\n")[1].splitlines()) == 3


def test_json(say, run, bpe):
    found = json.loads(say("the cat", f"tokenizer={bpe}", f"run={run}", "output=json"))
    ours, bytes_ = sorted(found["tokenizers"], key=lambda one: one["n_tokens"])
    tokenizer = BPETokenizer.train(300, ["the cat sat on the mat " * 9])
    assert ours["ids"] == tokenizer.encode("the cat").tolist() and bytes_["ids"] == list(b"the cat")
    assert "".join(piece["text"] for piece in ours["pieces"]) == found["text"] == ours["decoded"] == "the cat"
    assert ours["lossless"] and ours["n_bytes"] == 7


def test_standard_input_is_read_as_it_is(say, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\r\n\\n")))
    (found,) = json.loads(say(f"run={run}", "output=json"))["tokenizers"]
    assert found["ids"] == list(b"a\r\n\\n")


def test_ids_are_decoded(say):
    assert '1  256  "<|endoftext|>"' in say("ids=[104,256,105]", "tokenizer=byte")
    assert "token id 257 is outside the vocabulary of 257" in say("ids=[257]", "tokenizer=byte", expect=2)


def test_a_transformers_folder_has_the_ids_of_transformers(say, tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Loaded(models.BPE({letter: i for i, letter in enumerate(alphabet)} | {"ab": 256}, [("a", "b")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    theirs.save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        (found,) = json.loads(say("ab é 🙂", f"tokenizer={place}", "output=json"))["tokenizers"]
        assert found["ids"] == theirs.encode("ab é 🙂")


def test_help_has_every_option():
    assert all(f"{option}=" in HELP or f"\n    {option} " in HELP for option in OPTIONS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["x"], "needs run=PATH or tokenizer=NAME"),
        (["two", "words", "tokenizer=byte"], "there are 2 texts, 'two' and 'words'; put one in quotes"),
        (["x", "tokenizr=byte"], "unknown option tokenizr of gptlab tokenize; did you mean tokenizer?"),
        (["x", "model=byte"], "unknown option model of gptlab tokenize; did you mean run?"),
        (["x", "tokenizer=bpe"], "tokenizer=bpe is made of a corpus when a run is trained; name that run"),
        (["x", "tokenizer=gtp2"], "tokenizer=gtp2 is neither a tokenizer.json nor a preset; did you mean gpt2?"),
        (["x", "run=./none"], "run=./none does not exist"),
        (["x", "ids=[1]", "tokenizer=byte"], "a text and ids= are both given"),
    ],
)
def test_wrong_arguments_are_answered(say, arguments, message):
    assert message in say(*arguments, expect=2)


def test_a_file_is_counted(say, bpe, tmp_path):
    text = tmp_path / "my text.txt"
    text.write_text("The cat sat on the mat — " * 40, encoding="utf-8")
    lines = say(f"path={text}", "tokenizer=byte", f"tokenizer={bpe}").splitlines()
    assert lines[0] == "my text.txt: 1 document, 1,080 bytes".replace("my text.txt", str(text))
    assert lines[1].split() == "tokenizer vocabulary tokens bytes per token characters per token".split()
    assert lines[2].split() == ["byte", "257", "1,080", "1.000", f"{1000 / 1080:.3f}"]
    (rows,) = [json.loads(say(f"path={text}", f"tokenizer={bpe}", "output=json"))["tokenizers"]]
    assert rows[0]["n_bytes"] == 1080 and rows[0]["bytes_per_token"] == 1080 / rows[0]["n_tokens"] > 1.5
    assert "a text and path= are both given" in say("text", f"path={text}", "tokenizer=byte", expect=2)
    assert "does not exist" in say("path=none.txt", "tokenizer=byte", expect=2)
