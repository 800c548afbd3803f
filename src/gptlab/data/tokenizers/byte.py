"""UTF-8 bytes as tokens."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gptlab.data.tokenizers.tokenizer import END_OF_TEXT, Tokenizer, valid_unicode, vocabulary_fingerprint


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255 and one end-of-text token."""

    type = "byte"
    is_lossless = True
    one_process = True
    eot = 256

    def __init__(self, special_tokens: Iterable[str] = ()) -> None:
        self.vocab_size = 257
        self.fingerprint = vocabulary_fingerprint(self.type, b"")
        self._add_special_tokens(special_tokens, [bytes([byte]) for byte in range(256)])

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(valid_unicode(text).encode(), dtype=np.uint8)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        array = self.check_ids(ids)
        tokens = (END_OF_TEXT, *self.special_tokens)
        first, *others = np.split(array, np.flatnonzero(array >= self.eot))
        # Every run but the first begins with the special token it was split at.
        parts = [_text(first), *(tokens[run[0] - self.eot] + _text(run[1:]) for run in others)]
        return "".join(parts)

    def cut(self, text: str) -> int:
        return len(text)

    def state(self) -> dict[str, Any]:
        return self._added_state()


def _text(data: np.ndarray) -> str:
    return data.astype(np.uint8).tobytes().decode("utf-8", "replace")
