"""Byte-level byte-pair encoding behind GPT-2's split, trained by the `tokenizers` library and run by tiktoken."""

import base64
import os
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from gptlab.data.tokenizers.tokenizer import (
    END_OF_TEXT,
    TRAINING_CHARACTERS,
    Tokenizer,
    first_characters,
    recut,
    valid_unicode,
    vocabulary_fingerprint,
)
from gptlab.errors import UserError

# GPT-2's split (Radford et al. 2019). Looking ahead is kept out of the group: the engine behind tiktoken then runs the
# group as one automaton, 1.7 times as fast as tiktoken's own spelling, which gives the same pieces.
_GPT2_SPLIT = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s"
_SPACES = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_LONG_RUN_CHARACTERS = 500_000
_LONG_RUN = re.compile(f"(?<!{_SPACES}){_SPACES}{{{_LONG_RUN_CHARACTERS},}}")
_CUT_ATTEMPTS = 32


class TiktokenTokenizer(Tokenizer):
    """Byte-pair encoding run by tiktoken behind GPT-2's split: `vocabulary` by rank, end-of-text, special tokens."""

    def __init__(self, vocabulary: list[bytes], special_tokens: Iterable[str], fingerprint: str) -> None:
        import tiktoken

        self._vocabulary = vocabulary
        self.eot = len(vocabulary)
        self.vocab_size = len(vocabulary) + 1
        self.fingerprint = fingerprint
        self._add_special_tokens(special_tokens, set(vocabulary))
        self._encoding = tiktoken.Encoding(
            self.type,
            pat_str=_GPT2_SPLIT,
            mergeable_ranks={token: rank for rank, token in enumerate(vocabulary)},
            special_tokens={token: self.eot + n for n, token in enumerate((END_OF_TEXT, *self.special_tokens))},
        )

    def encode(self, text: str) -> np.ndarray:
        text = valid_unicode(text)
        if len(text) < _LONG_RUN_CHARACTERS:
            return self._encode(text)
        # tiktoken panics where a million spaces go before a word: all but the last of them are a separate piece.
        parts = []
        start = 0
        for run in _LONG_RUN.finditer(text):
            if run.end() < len(text):
                parts += [text[start : run.start()], text[run.start() : run.end() - 1]]
                start = run.end() - 1
        return np.concatenate([self._encode(part) for part in (*parts, text[start:])])

    def _encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return self._encoding.decode(self.check_ids(ids).tolist(), errors="replace")

    def cut(self, text: str) -> int:
        return gpt2_cut(text)


class BPETokenizer(TiktokenTokenizer):
    """A byte-level byte-pair encoding trained on a corpus: `vocabulary` by rank, end-of-text, special tokens."""

    type = "bpe"

    def __init__(self, vocabulary: list[bytes], special_tokens: Iterable[str] = ()) -> None:
        if len(set(vocabulary)) != len(vocabulary) or not {bytes([byte]) for byte in range(256)} <= set(vocabulary):
            raise ValueError("a byte-pair vocabulary has distinct tokens, all 256 bytes among them")
        spelling = b"".join(len(token).to_bytes(4, "little") + token for token in vocabulary)
        super().__init__(vocabulary, special_tokens, vocabulary_fingerprint(self.type, spelling))

    @classmethod
    def train(cls, vocab_size: int, texts: Iterable[str], special_tokens: Collection[str] = ()) -> "BPETokenizer":
        """Learn the merges of a text; `vocab_size` counts the end-of-text token and the special tokens.

        Reads the first 200M characters. A text too small for that many merges gives a smaller vocabulary.
        """
        others = 1 + len(special_tokens)
        if vocab_size < 256 + others:
            what = f"{others} special tokens" if special_tokens else "the end-of-text token"
            raise UserError(f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes and {what} need {256 + others}")
        from tokenizers import Tokenizer as Trained
        from tokenizers import models, pre_tokenizers, trainers

        trained = Trained(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - others,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[],
            show_progress=False,
        )
        trained.train_from_iterator(first_characters(texts, TRAINING_CHARACTERS), trainer)
        # Otherwise a later fork (a loader's workers) is warned about the threads that training used.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        byte_of = byte_alphabet()
        by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
        return cls([bytes(byte_of[character] for character in token) for token, _ in by_id], special_tokens)

    def state(self) -> dict[str, Any]:
        return {"vocabulary": encode_bytes(self._vocabulary), **self._added_state()}


def gpt2_cut(text: str) -> int:
    """The last position in `text` where GPT-2's split always cuts; 0 where none is found."""
    # No piece of GPT-2's split goes on from a non-space to a space, and none looks behind itself. Python's spaces
    # include all of the split's, which makes `end` follow a non-space.
    end = len(text)
    for _ in range(_CUT_ATTEMPTS):
        at = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
        end = len(text[: at + 1].rstrip())
        if not end or text[end] in " \n\t\r":
            return end
    return 0


def between_words(texts: Iterable[str]) -> Iterator[str]:
    """One document's text, cut only where GPT-2's split cuts too."""
    return recut(texts, gpt2_cut)


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
