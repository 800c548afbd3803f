"""Characters as tokens."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gptlab.data.tokenizers.tokenizer import Tokenizer, valid_unicode, vocabulary_fingerprint
from gptlab.errors import UserError


class CharTokenizer(Tokenizer):
    """One id for each distinct character, in the order of their code points; no end-of-text token."""

    type = "char"
    is_lossless = True
    one_process = True
    eot = None

    def __init__(self, characters: str, special_tokens: Iterable[str] = ()) -> None:
        if not characters or list(characters) != sorted(set(characters)):
            raise UserError("a character vocabulary is at least one character, each once, in the order of code points")
        self.characters = characters
        self.vocab_size = len(characters)
        self._codes = _code_points(characters)
        self._ids = np.full(int(self._codes[-1]) + 1, -1, dtype=np.int32)
        self._ids[self._codes] = np.arange(self.vocab_size, dtype=np.int32)
        self.fingerprint = vocabulary_fingerprint(self.type, self._codes.astype("<u4").tobytes())
        self._add_special_tokens(special_tokens, list(characters))
        self._vocabulary = [*characters, *self.special_tokens]

    @classmethod
    def build(cls, texts: Iterable[str], special_tokens: Iterable[str] = ()) -> "CharTokenizer":
        """The tokenizer of all characters in `texts`."""
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts:
            seen[_code_points(valid_unicode(text))] = True
        return cls("".join(map(chr, np.flatnonzero(seen).tolist())), special_tokens)

    def encode(self, text: str) -> np.ndarray:
        codes = _code_points(valid_unicode(text))
        known = codes < len(self._ids)
        ids = self._ids[np.where(known, codes, 0)]
        unknown = ~known | (ids < 0)
        if unknown.any():
            code = int(codes[unknown][0])
            raise UserError(
                f"character {chr(code)!a} (U+{code:04X}) is not among the {len(self.characters)} characters of the "
                "vocabulary; leave it out, or train with tokenizer=byte, which knows all text"
            )
        return ids

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return "".join([self._vocabulary[token_id] for token_id in self.check_ids(ids).tolist()])

    def cut(self, text: str) -> int:
        return len(text)

    def state(self) -> dict[str, Any]:
        return {"characters": self.characters, **self._added_state()}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
