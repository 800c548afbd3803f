"""Pieces of a text: each stands for what the text has at its place."""

import pytest
from tokenizers import Tokenizer as Loaded
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.pieces import columns, pieces, tokenize, visible

ODD = "a\ufffdb 🙂🙂\nnaïve\t\x00 中文 \u200d e\u0301 \ufffd"


def bpe():
    return BPETokenizer.train(300, ["the cat sat on the mat " * 9])


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), bpe()], ids=["byte", "bpe"])
def test_pieces_are_the_text(tokenizer):
    for text in (ODD, "the cat sat", "", "\ufffd\ufffd", "🙂"):
        found = tokenize(tokenizer, text)
        assert "".join(piece.text for piece in found.pieces if piece.part == 1) == text == found.decoded
        assert [piece.token for piece in found.pieces] == tokenizer.encode(text).tolist()
        assert found.is_lossless and found.n_bytes == len(text.encode())


def test_a_character_of_several_tokens_says_which_part_each_is():
    found = tokenize(ByteTokenizer(), "é\ufffd!")
    assert [str(piece) for piece in found.pieces] == [
        '"é" 1/2',
        '"é" 2/2',
        '"\ufffd" 1/3',
        '"\ufffd" 2/3',
        '"\ufffd" 3/3',
        '"!"',
    ]


def test_special_tokens_are_spelled():
    tokenizer = ByteTokenizer(["<mask>"])
    found = pieces(tokenizer, [104, tokenizer.eot, 257, 0xC3, tokenizer.eot, 0xA9])
    assert [piece.text for piece in found] == ["h", "<|endoftext|>", "<mask>", "\ufffd", "<|endoftext|>", "\ufffd"]
    assert [piece.text for piece in tokenize(tokenizer, "<mask>").pieces] == list("<mask>")  # text is never special
    char = CharTokenizer("ab", ["<pad>"])
    assert [piece.text for piece in pieces(char, [0, 2, 1])] == ["a", "<pad>", "b"]


def test_a_word_piece_is_what_it_adds_to_the_text():
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "play", "##ing", "the"])}
    made = Loaded(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    tokenizer = FileTokenizer(made.to_str())
    found = tokenize(tokenizer, "The  playing xyz")
    assert [piece.text for piece in found.pieces] == ["the", " play", "ing", "[UNK]"]
    assert not found.is_lossless and found.decoded == "the playing [UNK]"


def test_what_is_not_seen_is_escaped():
    assert visible('a\n\t\r\\"\x1b[0m\u200d\ud800é🙂') == "'a\\n\\t\\r\\\\\"\\x1b[0m\\u200d\\ud800é🙂'"
    assert visible("it's") == '"it\'s"' and visible("\"'") == '"\\"\'"'


def test_widths_on_a_terminal():
    assert [columns(text) for text in ("ab", "中文", "🙂", "e\u0301")] == [2, 4, 2, 1]
