"""transformers reads from our files the tokenizer that we trained with."""

import json
import random

import pytest
import transformers
from interop.external import Case, gpt2, write_older_tokenizer

from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.config import BPEConfig, ByteConfig, CharConfig, WordPieceConfig
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.interop.tokenizer_files import tokenizer_files
from gptlab.interop.transformers_folder import TransformersFolder

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
    return BPETokenizer.train(400, [TEXT * 20, *random_texts()])


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


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "wordpiece"])
def test_special_words_are_special_there(kind, tmp_path):
    options = {"special_tokens": ["<mask>", "<pad>", "<|user|>"], "n_sentinel_tokens": 2}
    config = {
        "byte": ByteConfig(**options),
        "char": CharConfig(**options),
        "bpe": BPEConfig(vocab_size=300, **options),
        "wordpiece": WordPieceConfig(vocab_size=100, n_sentinel_tokens=2),
    }[kind]
    ours = config.build(lambda: iter([TEXT * 20]))
    theirs = opened(ours, tmp_path)
    assert len(theirs) == ours.vocab_size
    assert (theirs.mask_token_id, theirs.pad_token_id) == (ours.mask, ours.pad) and ours.mask is not None
    assert (theirs.cls_token_id, theirs.sep_token_id) == (ours.cls, ours.sep)
    assert theirs.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_1>"]) == list(ours.sentinels)
    for text in (TEXT, TEXT[5:20]):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    marked = {number for number, word in theirs.added_tokens_decoder.items() if word.special}
    assert marked == ours.specials
    ids = [*ours.encode("best of"), ours.mask, ours.sentinels[0]]
    assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ours.encode("best of"))


def test_word_pieces_begin_and_end_as_berts(tmp_path):
    ours = WordPieceConfig(vocab_size=100).build(lambda: iter([TEXT * 20]))
    theirs = opened(ours, tmp_path)
    assert theirs("the best")["input_ids"] == [*ours.beginning, *ours.encode("the best"), ours.eot]
    assert theirs("the", "best", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1, 1]


def test_merges_are_those_that_were_learned():
    tokenizer = BPETokenizer.train(300, ["the cat sat on the mat, the hat" * 9])
    model = tokenizer_files(tokenizer, 8)["tokenizer.json"]["model"]
    assert len(model["merges"]) == tokenizer.vocab_size - 257
    assert list(model["vocab"].values()) == list(range(tokenizer.vocab_size - 1))


@pytest.fixture
def older(bpe, tmp_path):
    """GPT-2 as it was saved before there was tokenizer.json."""
    folder = Case("GPT2Config", gpt2(vocab_size=402)).save(tmp_path / "older")
    write_older_tokenizer(folder, bpe, "vocab.json", "merges.txt")
    return folder


@pytest.mark.parametrize(
    "settings, added",
    [
        (None, {}),
        ({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}, {"<|pad|>": 401, "<|end|>": 400}),
        ({"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}, {}),
    ],
    ids=str,
)
def test_words_and_merges_without_tokenizer_json(settings, added, older):
    if settings is not None:
        (older / "tokenizer_config.json").write_text(json.dumps(settings))
    if added:
        (older / "added_tokens.json").write_text(json.dumps(added))
    ours, theirs = TransformersFolder(older).tokenizer(), transformers.AutoTokenizer.from_pretrained(older)
    assert ours.vocab_size == len(theirs) == 400 + len(added) and ours.eot == theirs.eos_token_id
    for text in SAMPLES + random_texts():
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids, text
        assert ours.decode(ids) == theirs.decode(ids)


def test_words_and_merges_of_another_kind_are_not_taken_for_gpt2s(older):
    (older / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    assert TransformersFolder(older).tokenizer() is None
    (older / "tokenizer_config.json").unlink()
    (older / "merges.txt").unlink()
    assert TransformersFolder(older).tokenizer() is None


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("vocab.json", "[]", r"vocab\.json is not a JSON object"),
        ("vocab.json", '{"a": "b"}', r"vocab\.json and .*merges\.txt are not the files of a GPT-2 tokenizer \("),
        ("merges.txt", "one two three", r"are not the files of a GPT-2 tokenizer"),
        ("merges.txt", "one two", r"are not the files of a GPT-2 tokenizer"),
        ("added_tokens.json", '{"<|pad|>": 500}', r"tokenizer \(<\|pad\|> cannot have the id 500\)"),
    ],
    ids=str,
)
def test_older_files_that_do_not_go_together(name, content, message, older):
    (older / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        TransformersFolder(older).tokenizer()
