"""The split of a text before merging, and where the text may be cut."""

import random

import pytest
import regex
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gptlab.data.tokenizers.bpe import BPETokenizer, byte_alphabet
from gptlab.data.tokenizers.config import BPEConfig
from gptlab.data.tokenizers.split_pattern import NAMES, split_pattern
from gptlab.data.tokenizers.tokenizer import restore_tokenizer
from gptlab.data.tokenizers.training import byte_level_split
from gptlab.errors import UserError

# As tiktoken 0.14 publishes them.
PUBLISHED = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s"
    ),
}
PIECES = ["a", "Be", "'s", "'LL", "é", "\u017f", "1", "2345", " ", "  ", "\n", "\r\n", "\t", "!", "...", "(", "_", "語"]
PIECES += ["٣", "\u00a0", "😀", "'", "½"]


def random_texts(seed, n):
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 14))) for _ in range(n)]


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_those_of_the_published_pattern(name):
    published = regex.compile(PUBLISHED[name].replace("$", r"\Z"))
    byte_of = byte_alphabet()
    library = byte_level_split(split_pattern(name).expression)
    tokenizer = BPETokenizer([bytes([byte]) for byte in range(256)], pattern=name)
    for text in random_texts(0, 2000):
        expected = published.findall(text)
        learned = [bytes(byte_of[c] for c in piece).decode() for piece, _ in library.pre_tokenize_str(text)]
        assert learned == expected
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_text_are_split_as_the_whole_is(name):
    published, cut = regex.compile(PUBLISHED[name].replace("$", r"\Z")), split_pattern(name).cut
    cuts = 0
    for text in random_texts(1, 3000):
        at = cut(text)
        cuts += at > 0
        assert published.findall(text[:at]) + published.findall(text[at:]) == published.findall(text), (text, at)
    assert cuts > 1500, "most texts can be cut somewhere"


@pytest.mark.parametrize("pattern", [*NAMES, r"\p{L}+|\d"])
def test_a_long_text_has_the_ids_of_the_library(pattern):
    draw = random.Random(2)
    words = ["The", " cat", " 12345", "\n\n", " don't", "...\n", "x" * 50, " ", "("]
    text = "".join(draw.choices(words, k=15_000)) + "y" * 40_000 + "7" * 40_001 + "!" * 40_002
    ours = BPETokenizer.train(400, [text[:50_000]], pattern=pattern)
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = byte_level_split(split_pattern(pattern).expression)
    library.train_from_iterator(
        [text[:50_000]],
        trainers.BpeTrainer(
            vocab_size=399, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        ),
    )
    ids = ours.encode(text)
    assert ids.tolist() == library.encode(text).ids
    assert ours.decode(ids) == text
    assert [t for chunk in ours.chunks([text]) for t in ours.encode(chunk).tolist()] == ids.tolist()
    again = restore_tokenizer({"type": "bpe", "fingerprint": ours.fingerprint, **ours.state()}, "it", "no")
    assert again.encode(text).tolist() == ids.tolist()


def test_a_pattern_makes_another_tokenizer_and_gpt2_the_one_it_was():
    vocabulary = [bytes([byte]) for byte in range(256)]
    prints = {BPETokenizer(vocabulary, pattern=pattern).fingerprint for pattern in (*NAMES, "a", "b")}
    assert len(prints) == 4 and BPETokenizer(vocabulary).fingerprint in prints
    assert "pattern" not in BPEConfig(type="bpe").identity() and "pattern" not in BPETokenizer(vocabulary).state()
    assert BPEConfig(type="bpe", pattern="gpt4").identity()["pattern"] == "gpt4"


@pytest.mark.parametrize(
    "pattern, message",
    [("gpt-4(", "is neither gpt2 nor gpt4 nor a regular expression"), (r"\p{L}*", "matches the empty text")],
)
def test_what_is_no_pattern_is_refused(pattern, message):
    with pytest.raises(UserError, match=r"tokenizer\.pattern=") as refused:
        BPEConfig(type="bpe", pattern=pattern).check()
    assert message in str(refused.value)
