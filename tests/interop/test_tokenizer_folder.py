"""A tokenizer's folder, opened by the libraries it is for."""

import re

import pytest
import tiktoken
import transformers
from tiktoken.load import load_tiktoken_bpe

from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.config import UnigramConfig, WordPieceConfig
from gptlab.data.tokenizers.split_pattern import split_pattern
from gptlab.errors import UserError
from gptlab.interop.tokenizer_folder import check_target, write_tokenizer

TEXT = "It was the best of times, it was the worst of times;\n\nthe age of 123456 -- naïve café, 東京!  \n" * 20
PATTERN = r"\p{L}+|\s"
MADE = {
    "gpt2": lambda: BPETokenizer.train(400, [TEXT], ["<mask>"]),
    "gpt4": lambda: BPETokenizer.train(400, [TEXT], ["<mask>"], "gpt4"),
    "own": lambda: BPETokenizer.train(400, [TEXT], ["<mask>"], PATTERN),
    "unigram": lambda: UnigramConfig(type="unigram", vocab_size=330).build(lambda: iter([TEXT])),
    "wordpiece": lambda: WordPieceConfig(type="wordpiece", vocab_size=200).build(lambda: iter([TEXT])),
}


@pytest.mark.parametrize("kind", MADE)
def test_other_libraries_give_the_same_ids(kind, tmp_path):
    tokenizer = MADE[kind]()
    folder = tmp_path / "my tokenizer"
    names = write_tokenizer(folder, tokenizer)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(names)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [TEXT, "  a 1234'LL don't\n\n \n", "xyz...\r\n(ok)"]
    for text in texts:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.eos_token_id == tokenizer.eot and len(theirs) == tokenizer.vocab_size
    if kind in ("unigram", "wordpiece"):
        assert "ranks.tiktoken" not in names
        return
    ranks = load_tiktoken_bpe(str(folder / "ranks.tiktoken"))
    pattern = split_pattern(PATTERN if kind == "own" else kind).expression
    encoding = tiktoken.Encoding("theirs", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in texts:
        assert encoding.encode(text) == tokenizer.encode(text).tolist()


def test_a_folder_with_anything_else_is_left_alone(tmp_path):
    folder = tmp_path / "out"
    check_target(folder, "to", overwrite=False)
    write_tokenizer(folder, MADE["gpt2"]())
    with pytest.raises(UserError, match=re.escape(f"to={folder} holds a tokenizer; name another folder, or replace")):
        check_target(folder, "to", overwrite=False)
    check_target(folder, "to", overwrite=True)
    names = write_tokenizer(folder, MADE["unigram"]())
    assert sorted(path.name for path in folder.iterdir()) == sorted(names), "no ranks of the one before"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no tokenizer's"):
        check_target(folder, "to", overwrite=True)
    with pytest.raises(UserError, match="is a file; name a folder"):
        check_target(folder / "notes.txt", "to", overwrite=True)
