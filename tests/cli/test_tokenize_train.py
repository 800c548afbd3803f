"""`gptlab tokenize train`, in this process."""

import pytest

from gptlab.data.prepare import prepare
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.config import BPEConfig
from gptlab.runs.named_tokenizer import tokenizer_named


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my text.txt"
    file.write_text("".join(f"{n} green bottles, hanging on the wall of {n % 7} houses.\n" for n in range(3000)))
    return file


def arguments(text, *more):
    return ["data=text", f"data.path={text}", f"data.cache_dir={text.parent / 'cache'}", "to=my tokenizer", *more]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_it_is_written_and_read_by_name(say, text, kind):
    out = say(*arguments(text, f"tokenizer={kind}", "tokenizer.vocab_size=300"))
    assert "my tokenizer: tokenizer.json, tokenizer_config.json" in out and "'tokenizer=my tokenizer'" in out
    tokenizer = tokenizer_named("my tokenizer")
    assert tokenizer.vocab_size <= 300 and tokenizer.decode(tokenizer.encode("green bottles")) == "green bottles"
    assert not list((text.parent / "cache").glob(".tokenizer-*")), "nothing is kept"


def test_it_is_the_one_that_a_run_learns(say, text):
    say(*arguments(text, "tokenizer=bpe", "tokenizer.vocab_size=300", "tokenizer.pattern=gpt4"))
    data = TextConfig(type="text", path=str(text), cache_dir=str(text.parent / "cache"))
    own = prepare(data, BPEConfig(type="bpe", vocab_size=300, pattern="gpt4"), progress=False).tokenizer
    sample = text.read_text()[:5000]
    assert tokenizer_named("my tokenizer").encode(sample).tolist() == own.encode(sample).tolist()


def test_a_second_call_is_refused_before_any_work(say, text):
    given = arguments(text, "tokenizer=bpe", "tokenizer.vocab_size=300")
    say(*given)
    assert "or replace it with overwrite=true" in say(*given, expect=2)
    say(*given, "overwrite=true")


@pytest.mark.parametrize(
    "more, message",
    [
        (["tokenizer=gpt2"], "tokenizer=gpt2 is not learned from text; use tokenizer="),
        (["tokenizer=bpe", "model=gpt124m"], "model has no effect on a tokenizer"),
        (["tokenizer=bpe", "tokenizer.patern=gpt4"], "tokenizer.pattern"),
        (["tokenizer=bpe", "tokenizer.vocab_size=3"], "must be at least 257"),
        (["tokenizer=bpe", "-m"], "-m is not an option of gptlab tokenize train"),
        (["tokenizer=bpe", "data.path=none.txt"], "none.txt does not exist"),
    ],
)
def test_wrong_arguments_are_answered(say, text, more, message):
    given = [one for one in arguments(text) if one.partition("=")[0] not in {m.partition("=")[0] for m in more}]
    assert message in say(*given, *more, expect=2)
    assert not (text.parent / "my tokenizer").exists()


def test_it_needs_a_folder(say):
    assert "needs to=FOLDER" in say("tokenizer=bpe", expect=2)
