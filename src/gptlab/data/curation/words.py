"""Words without punctuation, and 64-bit hashes of their n-grams, the same on every machine."""

import re
from hashlib import blake2b

import numpy as np

_KEPT_HASHES = 1 << 20
# Characters of scripts without spaces are words of their own: Chinese, Japanese, Thai, Lao, Khmer, Burmese.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_has_unspaced = re.compile(f"[{_UNSPACED}]")
_PUNCTUATION = re.compile(r"[^\w\s]+|_+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

_hashes: dict[str, int] = {}


def plain_words(text: str) -> list[str]:
    """The words of a text in small letters and without punctuation, as Brown et al. 2020 compare texts (appendix C)."""
    text = _PUNCTUATION.sub("", text.lower())
    if _has_unspaced.search(text):
        text = re.sub(f"([{_UNSPACED}])", r" \1 ", text)
    return text.split()


def word_hashes(words: list[str]) -> np.ndarray:
    """A 64-bit hash of each word, uint64 (n,)."""
    if len(_hashes) > _KEPT_HASHES:
        _hashes.clear()
    found = []
    for word in words:
        value = _hashes.get(word)
        if value is None:
            value = int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
            _hashes[word] = value
        found.append(value)
    return np.array(found, dtype=np.uint64)


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of each n consecutive words, uint64 (m - n + 1,), none where there are fewer words."""
    size = len(hashes) - n + 1
    if size <= 0:
        return np.empty(0, dtype=np.uint64)
    combined = np.zeros(size, dtype=np.uint64)
    for start in range(n):
        combined = combined * _MULTIPLIER + hashes[start : start + size]
    return mixed(combined)


def mixed(values: np.ndarray) -> np.ndarray:
    """Each 64-bit number scrambled so that every bit depends on all of it (splitmix64, Steele et al. 2014)."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
