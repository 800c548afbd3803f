"""How many tokens a text has."""

import pytest

from gptlab.data.sources.source import TextChunk
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.compression import Compression, compression
from gptlab.data.tokenizers.config import WordPieceConfig
from gptlab.errors import UserError

CHUNKS = [TextChunk(0, "a", "naïve "), TextChunk(0, "a", "text"), TextChunk(1, "b", "東京")]


def test_counts_are_those_of_the_text():
    done = []
    found = compression(ByteTokenizer(), CHUNKS, done.append)
    assert found == Compression(n_documents=2, n_tokens=17, n_characters=12, n_bytes=17) and sum(done) == 17
    assert found.bytes_per_token == 1 and found.characters_per_token == pytest.approx(12 / 17)
    characters = compression(CharTokenizer.build(iter(["naïve text東京"])), CHUNKS)
    assert characters.n_tokens == 12 and characters.bytes_per_token == pytest.approx(17 / 12)


def test_what_is_lost_is_shown_and_what_fails_is_named():
    lowered = WordPieceConfig(vocab_size=60).build(lambda: iter(["some text with letters"]))
    assert "Text" in (compression(lowered, [TextChunk(0, "a", "Some Text")]).lost or "")
    with pytest.raises(UserError, match=r"^b: "):
        compression(CharTokenizer.build(iter(["naïve text"])), CHUNKS)


def test_no_text_has_no_ratio():
    assert compression(ByteTokenizer(), []).bytes_per_token == 0
