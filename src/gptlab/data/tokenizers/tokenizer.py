"""What every tokenizer is: text to token ids and back, saved as JSON and restored through the registry."""

import hashlib
import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.tokenizers.config import sentinel
from gptlab.data.tokenizers.cutting import recut
from gptlab.errors import UserError
from gptlab.files import write_text_atomic
from gptlab.registry import config_class

END_OF_TEXT = "<|endoftext|>"
TRAINING_CHARACTERS = 200_000_000  # of the corpus, from which a vocabulary is learned
_ROLES = {  # their names in BERT, T5 and RoBERTa
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
}
_PROBED_TOKENS = 2000


class Tokenizer(ABC):
    """Text to token ids and back.

    `type` is the name of the registered config whose `restore` takes `state()`. `fingerprint` is a SHA-256 over type
    and vocabulary: equal fingerprints give equal ids. `beginning` is the ids that models of this tokenizer read before
    a text; `encode` leaves them out. `special_tokens` are those added to a vocabulary made here.

    `eot` (end of text), `mask`, `pad`, `cls` and `sep` are the ids of these special tokens, None where the vocabulary
    has none; `sentinels` are those of <extra_id_0>, <extra_id_1> and so on. `specials` holds every id that stands for
    no text.
    """

    type: str
    vocab_size: int
    eot: int | None
    fingerprint: str
    is_lossless: bool = False  # whether decoding is known to give back every text; otherwise it is measured
    notes: Sequence[str] = ()  # what a person should know before training with it
    one_process: bool = False  # whether it encodes faster than text is sent to another process
    beginning: tuple[int, ...] = ()
    special_tokens: tuple[str, ...] = ()
    mask: int | None = None
    pad: int | None = None
    cls: int | None = None
    sep: int | None = None
    sentinels: tuple[int, ...] = ()
    specials: frozenset[int] = frozenset()

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, 1-D, nothing added; what looks like a special token is ordinary text."""

    @abstractmethod
    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """JSON values from which the config's `restore` makes this tokenizer again."""

    def cut(self, text: str) -> int:
        """The last position in `text` where encoding both sides separately gives the same ids; 0 where unknown."""
        return 0

    @property
    def eot_token(self) -> str | None:
        """How the end-of-text token is spelled."""
        return None if self.eot is None else END_OF_TEXT

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids of the special tokens by their spelling."""
        first = self.vocab_size - len(self.special_tokens)
        ids = {token: first + n for n, token in enumerate(self.special_tokens)}
        return ids if self.eot is None else {END_OF_TEXT: self.eot, **ids}

    @property
    def chat_tokens(self) -> dict[str, str]:
        """What chat templates know as `bos_token` and `eos_token`."""
        eos = self.eot_token or ""
        return {"bos_token": self.decode(self.beginning) or eos, "eos_token": eos}

    def save(self, path: str | Path) -> None:
        """Write one self-contained JSON file (GPT-2's vocabulary by its name), atomically."""
        content = {"type": self.type, "fingerprint": self.fingerprint, **self.state()}
        write_text_atomic(path, json.dumps(content))

    def portable(self) -> dict[str, Any]:
        """JSON values from which `from_portable` makes a tokenizer with the same ids in another process.

        `module` is the one that registers the tokenizer's config.
        """
        return {"type": self.type, "module": config_class("tokenizer", self.type).__module__, **self.state()}

    def without_beginning(self) -> "Tokenizer":
        """The same vocabulary for models that read nothing before a text."""
        return self

    def agrees_with(self, other: "Tokenizer") -> bool:
        """Whether each id of this tokenizer stands for the same text in `other`, and a text gets the same ids."""
        if self.fingerprint == other.fingerprint:
            return True
        if self.vocab_size > other.vocab_size:
            return False
        vocabulary = [self.decode([token_id]) for token_id in range(self.vocab_size)]
        if any(token != other.decode([token_id]) for token_id, token in enumerate(vocabulary)):
            return False
        text = "".join(vocabulary[:: 1 + len(vocabulary) // _PROBED_TOKENS])
        try:
            return self.encode(text).tolist() == other.encode(text).tolist()
        except UserError:  # it has characters unknown to one of them
            return False

    def chunks(self, texts: Iterable[str]) -> Iterator[str]:
        """One document's text, cut so that encoding chunk by chunk gives the ids of the whole."""
        return recut(texts, self.cut)

    def check_ids(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        """Ids as int64, 1-D; UserError for one outside the vocabulary."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids)).ravel()
        if not array.size:
            return array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise UserError(f"token ids must be integers, not {array.dtype}")
        outside = (array < 0) | (array >= self.vocab_size)
        if outside.any():
            wrong = int(array[outside][0])
            raise UserError(f"token id {wrong} is outside the vocabulary of {self.vocab_size:,}")
        return array.astype(np.int64)

    def _add_special_tokens(
        self, special_tokens: Iterable[str], vocabulary: Collection[str] | Collection[bytes]
    ) -> None:
        """Append special tokens to the vocabulary; UserError where one is in it already."""
        self.special_tokens = tuple(special_tokens)
        for token in self.special_tokens:
            if token in vocabulary or token.encode() in vocabulary or token == END_OF_TEXT:
                raise UserError(
                    f"tokenizer.special_tokens holds {token!r}, which is in the vocabulary already; choose another, "
                    "such as <mask>"
                )
        ids = {token: self.vocab_size + n for n, token in enumerate(self.special_tokens)}
        self.vocab_size += len(ids)
        if ids:  # none leave the fingerprint as it is
            content = json.dumps([self.fingerprint, *self.special_tokens])
            self.fingerprint = vocabulary_fingerprint(self.type, content.encode())
        self._assign_roles(ids, ids.values())

    def _assign_roles(self, ids: Mapping[str, int], specials: Iterable[int]) -> None:
        """Find mask, pad, cls, sep and sentinels by their usual names; `specials` are known to stand for no text."""
        for role, names in _ROLES.items():
            setattr(self, role, next((ids[name] for name in names if name in ids), None))
        self.sentinels = tuple(ids[token] for token in takewhile(ids.__contains__, map(sentinel, count())))
        named = {token_id for token_id in (self.eot, self.mask, self.pad, self.cls, self.sep) if token_id is not None}
        self.specials = frozenset({*named, *self.sentinels, *self.beginning, *specials})

    def _added_state(self) -> dict[str, Any]:
        return {"special_tokens": list(self.special_tokens)} if self.special_tokens else {}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote; UserError for a missing or altered file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"tokenizer {path} does not exist; run again to prepare it") from None
    except (ValueError, OSError) as error:
        raise UserError(f"tokenizer {path} cannot be read ({error}); delete it and run again") from None
    return restore_tokenizer(content, f"tokenizer {path}", "delete it and run again")


def restore_tokenizer(content: Any, name: str, advice: str) -> Tokenizer:
    """The tokenizer of the JSON values that `save` wrote; errors call it `name` and end with `advice`."""
    try:
        config = config_class("tokenizer", content["type"], name)
        tokenizer = config.restore(content)
        same = tokenizer.fingerprint == content["fingerprint"]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name} is not a tokenizer of gptlab ({error!r}); {advice}") from None
    if not same:
        raise UserError(f"{name} was altered (its fingerprint does not match); {advice}")
    return tokenizer


def from_portable(content: dict[str, Any]) -> Tokenizer:
    """The tokenizer of `Tokenizer.portable`; imports the module that registers it."""
    importlib.import_module(content["module"])
    return config_class("tokenizer", content["type"]).restore(content)


def split_at(tokens: Iterable[str], text: str) -> list[str]:
    """A text cut around each of the given special tokens; the longest is taken where several begin together."""
    spelled = sorted(filter(None, tokens), key=len, reverse=True)
    if not spelled:
        return [text]
    return [part for part in re.split(f"({'|'.join(map(re.escape, spelled))})", text) if part]


def lost_text(text: str, decoded: str) -> str | None:
    """An example of what encoding and decoding made of a text, None where it came back; a first space may be missing,
    which tokenizers add to a text of its own."""
    if text in (decoded, f" {decoded}") or decoded == f" {text}":
        return None
    before, after = text.removeprefix(" "), decoded.removeprefix(" ")
    shorter = min(len(before), len(after))
    at = next((n for n in range(shorter) if before[n] != after[n]), shorter)
    begin = max(0, before.rfind(" ", 0, at))
    begin = begin if at - begin < 20 else at
    shown = (repr(part[begin : at + 12].lstrip() or part[begin : at + 12]) for part in (before, after))
    return " becomes ".join(shown)


def vocabulary_fingerprint(tokenizer_type: str, vocabulary: bytes) -> str:
    """A SHA-256 over a tokenizer's type and vocabulary."""
    return hashlib.sha256(tokenizer_type.encode() + b"\0" + vocabulary).hexdigest()


def valid_unicode(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The first `limit` characters of texts, as valid Unicode."""
    for text in texts:
        yield valid_unicode(text[:limit])
        limit -= len(text)
        if limit <= 0:
            return
