"""Byte-level byte-pair encoding behind a split into pieces, trained by the `tokenizers` library and run by tiktoken."""

import base64
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from gptlab.data.tokenizers.cutting import LONG_CHARACTERS, Tokens, recut
from gptlab.data.tokenizers.split_pattern import split_pattern
from gptlab.data.tokenizers.tokenizer import (
    END_OF_TEXT,
    TRAINING_CHARACTERS,
    Tokenizer,
    first_characters,
    valid_unicode,
    vocabulary_fingerprint,
)
from gptlab.data.tokenizers.training import learn
from gptlab.errors import UserError


class TiktokenTokenizer(Tokenizer):
    """Byte-pair encoding run by tiktoken: `vocabulary` by rank, end-of-text, special tokens.

    `pattern` names the split into pieces, or is a regular expression of one's own.
    """

    is_lossless = True

    def __init__(
        self, vocabulary: list[bytes], special_tokens: Iterable[str], fingerprint: str, pattern: str = "gpt2"
    ) -> None:
        import tiktoken

        self._vocabulary = vocabulary
        self.pattern = pattern
        self._split = split_pattern(pattern)
        self.eot = len(vocabulary)
        self.vocab_size = len(vocabulary) + 1
        self.fingerprint = fingerprint
        self._add_special_tokens(special_tokens, set(vocabulary))
        self._encoding = tiktoken.Encoding(
            self.type,
            pat_str=self._split.expression,
            mergeable_ranks={token: rank for rank, token in enumerate(vocabulary)},
            special_tokens={token: self.eot + n for n, token in enumerate((END_OF_TEXT, *self.special_tokens))},
        )

    def encode(self, text: str) -> np.ndarray:
        text = valid_unicode(text)
        if len(text) <= LONG_CHARACTERS:
            return self._encode(text)
        # tiktoken panics at a million spaces before a word, and takes longer a character the longer a run of letters.
        return np.concatenate([self._encode(part) for part in self.chunks([text])])

    def chunks(self, texts: Iterable[str]) -> Iterator[str]:
        return recut(texts, self.cut, self._tokens if self._split.classes else None, self._split.classes)

    def _tokens(self, text: str) -> Tokens:
        valid = valid_unicode(text)
        ids = self._encode(valid).tolist()
        if len(valid) < len(text):  # surrogates in pairs, which are one character
            return Tokens(ids, [None] * len(ids))
        return Tokens(ids, _character_ends(valid, [len(self._vocabulary[token_id]) for token_id in ids]))

    def _encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return self._encoding.decode(self.check_ids(ids).tolist(), errors="replace")

    def cut(self, text: str) -> int:
        return self._split.cut(text)


class BPETokenizer(TiktokenTokenizer):
    """A byte-level byte-pair encoding trained on a corpus: `vocabulary` by rank, end-of-text, special tokens."""

    type = "bpe"

    def __init__(self, vocabulary: list[bytes], special_tokens: Iterable[str] = (), pattern: str = "gpt2") -> None:
        if len(set(vocabulary)) != len(vocabulary) or not {bytes([byte]) for byte in range(256)} <= set(vocabulary):
            raise ValueError("a byte-pair vocabulary has distinct tokens, all 256 bytes among them")
        spelling = b"".join(len(token).to_bytes(4, "little") + token for token in vocabulary)
        if pattern != "gpt2":
            spelling += b"\0" + pattern.encode()
        super().__init__(vocabulary, special_tokens, vocabulary_fingerprint(self.type, spelling), pattern)

    @classmethod
    def train(
        cls, vocab_size: int, texts: Iterable[str], special_tokens: Collection[str] = (), pattern: str = "gpt2"
    ) -> "BPETokenizer":
        """Learn the merges of a text; `vocab_size` counts the end-of-text token and the special tokens.

        Reads the first 200M characters. A text too small for that many merges gives a smaller vocabulary.
        """
        others = 1 + len(special_tokens)
        if vocab_size < 256 + others:
            what = f"{others} special tokens" if special_tokens else "the end-of-text token"
            raise UserError(f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes and {what} need {256 + others}")
        byte_of = byte_alphabet()
        learned = learn(
            "bpe",
            first_characters(texts, TRAINING_CHARACTERS),
            vocab_size=vocab_size - others,
            expression=split_pattern(pattern).expression,
        )
        return cls([bytes(byte_of[character] for character in token) for token in learned], special_tokens, pattern)

    def state(self) -> dict[str, Any]:
        pattern = {} if self.pattern == "gpt2" else {"pattern": self.pattern}
        return {"vocabulary": encode_bytes(self._vocabulary), **pattern, **self._added_state()}


def _character_ends(text: str, sizes_bytes: list[int]) -> list[int | None]:
    """Where in a text its tokens end, from their sizes as UTF-8."""
    after = np.cumsum([len(character.encode()) for character in text])
    places = np.searchsorted(after, ends := np.cumsum(sizes_bytes))
    return [int(n) + 1 if after[n] == end else None for n, end in zip(places, ends, strict=True)]


def encode_bytes(vocabulary: list[bytes]) -> list[str]:
    """Byte tokens as JSON holds them."""
    return [base64.b64encode(token).decode() for token in vocabulary]


def decode_bytes(spelled: list[str]) -> list[bytes]:
    """The inverse of `encode_bytes`."""
    return [base64.b64decode(token) for token in spelled]


def byte_alphabet() -> dict[str, int]:
    """The byte of each character in GPT-2's byte alphabet: printable bytes stand for themselves, the others follow from
    U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
