import random

import pytest

from gptlab.data.tokenizers.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer
from gptlab.generation.stream import TextStream

TEXT = "Grüße an alle — 你好, 世界! 🙂🙃 “quoted” naïve\n\tÆther\u0301"


def fed(stream, ids):
    pieces = []
    for token in ids:
        pieces.append(stream.feed(int(token)))
        if stream.finished:
            return pieces
    pieces.append(stream.close())
    return pieces


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPETokenizer.train(300, [TEXT])], ids=["byte", "bpe"])
def test_pieces_are_whole_characters_and_add_up(tokenizer):
    ids = tokenizer.encode(TEXT).tolist()
    stream = TextStream(tokenizer, tokenizer.encode("before ").tolist())
    pieces = fed(stream, ids)
    assert "".join(pieces) == stream.text == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(map(bool, pieces)) >= len(ids) / 3  # as they come, not all at the end


def test_bytes_that_are_no_text_are_shown_at_the_end_at_the_latest():
    draw, tokenizer = random.Random(0), ByteTokenizer()
    for _ in range(50):
        ids = [draw.choice([0xE4, 0xBD, 0xA0, 0x41, 0xF0, 0xFF, draw.randrange(256)]) for _ in range(30)]
        assert "".join(fed(TextStream(tokenizer, [65]), ids)) == tokenizer.decode(ids)


def test_stop_strings_across_tokens():
    tokenizer = ByteTokenizer()
    for stop, expected in (
        (["END"], "one ENE two "),
        (["two", "END"], "one ENE "),
        (["ENE two E"], "one "),
        (["absent"], "one ENE two END three"),
        (["three!"], "one ENE two END three"),
        (["three"], "one ENE two END "),
    ):
        stream = TextStream(tokenizer, [65], stop=stop)
        pieces = fed(stream, tokenizer.encode("one ENE two END three").tolist())
        assert "".join(pieces) == stream.text == expected
        assert stream.finished == (None if expected.endswith("three") else "stop")


def test_stop_strings_within_one_token():
    tokenizer = BPETokenizer.train(400, ["alpha beta gamma " * 20])
    ids = tokenizer.encode("alpha beta gamma alpha").tolist()
    assert any(len(tokenizer.decode([token])) > 4 for token in ids)
    stream = TextStream(tokenizer, ids[:1], stop=["ta g"])
    assert "".join(fed(stream, ids)) == "alpha be" and stream.finished == "stop"


def test_end_of_text():
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer, [65], stop=["hij"])
    assert fed(stream, [104, 105, 256, 104]) == ["", "", "hi"]
    assert stream.finished == "end_of_text" and stream.close() == ""


def test_stops_that_cannot_be():
    with pytest.raises(ValueError, match="stop has an empty text"):
        TextStream(ByteTokenizer(), [65], stop=[""])
    with pytest.raises(ValueError, match=r"stop='x' can never be generated: character 'x'"):
        TextStream(CharTokenizer("abc"), [0], stop=["x"])
