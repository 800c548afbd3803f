"""Tokenizers that are read from a file: a run's, or any of the `tokenizers` library."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.sources.remote import Place
from gptlab.data.tokenizers.config import TokenizerFileConfig, sentinel
from gptlab.data.tokenizers.cutting import LONG_CHARACTERS, Tokens, recut
from gptlab.data.tokenizers.threads import forbid_threads
from gptlab.data.tokenizers.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    restore_tokenizer,
    valid_unicode,
    vocabulary_fingerprint,
)
from gptlab.errors import UserError
from gptlab.files import is_address

_CUT_ATTEMPTS = 8
_NEIGHBORHOOD_CHARACTERS = 300
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


class FileTokenizer(Tokenizer):
    """Any tokenizer.json of the `tokenizers` library, given as its text."""

    type = "file"

    def __init__(self, content: str, eot: str | None = None) -> None:
        # Documents are encoded in parallel already, and threads of the library would be in the way of later forks.
        forbid_threads()
        from tokenizers import Tokenizer as Loaded

        self._loaded = Loaded.from_str(content)
        self._loaded.no_truncation()
        self._loaded.no_padding()
        self._loaded.encode_special_tokens = True
        vocabulary = self._loaded.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError("its vocabulary is empty")
        self.vocab_size = max(vocabulary.values()) + 1
        if eot is not None and eot not in vocabulary:
            raise UserError(f"tokenizer.eot={eot} is not in its vocabulary")
        self._eot_token = eot or next((name for name in _END_OF_TEXT_NAMES if name in vocabulary), None)
        self.eot = None if self._eot_token is None else vocabulary[self._eot_token]
        parts = json.loads(self._loaded.to_str())
        # transformers, too, goes by this part of the file alone: add_bos_token beside it changes nothing.
        self.beginning = tuple(_beginning(parts["post_processor"]))
        self._merges = _merges_bytes(parts)
        self._prepends = _without_prepend(parts["normalizer"]) != parts["normalizer"]
        self._other = None
        marked = {token["id"] for token in parts["added_tokens"] if token["special"]}
        self._assign_roles(vocabulary, marked | _unknown(parts["model"], vocabulary))
        self.fingerprint = vocabulary_fingerprint(self.type, f"{self.eot}\n{self._loaded.to_str()}".encode())

    @property
    def notes(self) -> list[str]:
        if self.eot is not None:
            return []
        specials = ", ".join(sorted(self.special_ids)[:8])
        return [
            "the tokenizer names no end-of-text token: documents are joined with nothing between them, and generation "
            "ends by length only; name it with tokenizer.eot=TOKEN"
            + (f" (its special tokens: {specials})" if specials else "")
        ]

    @classmethod
    def read(cls, path: Path, eot: str | None = None) -> "FileTokenizer":
        """The tokenizer in a file; UserError where it holds none."""
        try:
            return cls(path.read_text(encoding="utf-8"), eot)
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path} is not a tokenizer.json of the tokenizers library ({error})") from error

    def without_beginning(self) -> "FileTokenizer":
        if not self.beginning:
            return self
        content = json.loads(self._loaded.to_str()) | {"post_processor": None}
        return FileTokenizer(json.dumps(content), self._eot_token)

    def encode(self, text: str) -> np.ndarray:
        text = valid_unicode(text)
        if len(text) <= LONG_CHARACTERS:
            return np.array(self._ids(text), dtype=np.uint32)
        # The library keeps a hundred bytes and more of each token of a text.
        first, *others = recut([text], self._cut_for_others) if self._prepends else self.chunks([text])
        ids = [self._ids(first), *map(self._other_ids, others)]
        return np.concatenate([np.array(part, dtype=np.uint32) for part in ids])

    def chunks(self, texts: Iterable[str]) -> Iterator[str]:
        return recut(texts, self.cut, self._tokens if self._merges else None, "L")

    def cut(self, text: str) -> int:
        """The last position before a space whose neighborhood has the same ids when it is encoded in two parts.

        What a tokenizer of the library does to a text reaches no further than the next spaces, where it cuts before
        spaces at all: then the parts of the neighborhood have these ids within the text, too.
        """
        return self._cut(text, self._ids)

    def _cut_for_others(self, text: str) -> int:
        return self._cut(text, self._other_ids)

    def _cut(self, text: str, ids_after: Callable[[str], list[int]]) -> int:
        end = len(text)
        for _ in range(_CUT_ATTEMPTS):
            at = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
            end = len(text[: at + 1].rstrip())
            if not end:
                return 0
            if text[end] in " \n\t\r":
                before = text[max(0, end - _NEIGHBORHOOD_CHARACTERS) : end]
                after = text[end : end + _NEIGHBORHOOD_CHARACTERS]
                enough = before.lstrip().count(" ") + before.count("\n") > 1 and len(after.split()) > 2
                if enough and self._ids(before) + ids_after(after) == self._ids(before + after):
                    return end
        return 0

    def _ids(self, text: str) -> list[int]:
        return self._loaded.encode(valid_unicode(text), add_special_tokens=False).ids

    def _other_ids(self, text: str) -> list[int]:
        """The ids of a part of a text that is not the first."""
        if self._prepends and self._other is None:
            from tokenizers import Tokenizer as Loaded

            content = json.loads(self._loaded.to_str())
            content["normalizer"] = _without_prepend(content["normalizer"])
            self._other = Loaded.from_str(json.dumps(content))
            self._other.encode_special_tokens = True
        return (self._other or self._loaded).encode(text, add_special_tokens=False).ids

    def _tokens(self, text: str) -> Tokens:
        encoded = self._loaded.encode(valid_unicode(text), add_special_tokens=False)
        starts = [start for start, _ in encoded.offsets[1:]] + [len(text)]
        ends = [end for _, end in encoded.offsets]
        return Tokens(encoded.ids, [end if end <= start else None for end, start in zip(ends, starts, strict=True)])

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        return self._loaded.decode(self.check_ids(ids).tolist(), skip_special_tokens=False)

    @property
    def eot_token(self) -> str | None:
        return self._eot_token

    @property
    def special_ids(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in json.loads(self._loaded.to_str())["added_tokens"]}

    def state(self) -> dict[str, Any]:
        return {"eot": self._eot_token, "tokenizer": json.loads(self._loaded.to_str())}


def read_tokenizer_file(config: TokenizerFileConfig) -> str:
    """The text of the tokenizer.json that a config names."""
    if config.path is None:
        raise UserError("tokenizer.path is not set; give the tokenizer.json to read")
    try:
        if is_address(config.path):
            return _content_at(config.path).decode("utf-8-sig")
        return Path(config.path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"tokenizer.path={config.path} does not exist; give a tokenizer.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"tokenizer.path={config.path} cannot be read as text ({error}); give a tokenizer.json"
        ) from None


@lru_cache(maxsize=8)
def _content_at(url: str) -> bytes:
    """A file at an address, fetched once by each process; FileNotFoundError where there is none."""
    folder, _, name = url.rpartition("/")
    content = Place(folder).read(name)
    if content is None:
        raise FileNotFoundError(url)
    return content


def end_of_text_beside(config: TokenizerFileConfig, text: str) -> str | None:
    """The end-of-text token that the files beside a tokenizer.json name, as transformers writes them; None without."""
    path = config.path or ""

    def read(name: str, key: str) -> Any:
        try:
            if is_address(path):
                content = json.loads(_content_at(f"{path.rpartition('/')[0]}/{name}"))
            else:
                content = json.loads((Path(path).expanduser().parent / name).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):  # they are not what was asked for
            return None
        return content.get(key) if isinstance(content, dict) else None

    try:
        content = json.loads(text)
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # of a unigram model: tokens and scores
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        ids = {**vocabulary, **added}
        spelled = {number: token for token, number in ids.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # not a tokenizer.json of the library, or one that it refuses
    token = read("tokenizer_config.json", "eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str) and token in ids:
        return token
    for name in ("generation_config.json", "config.json"):
        number = read(name, "eos_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and number in spelled:
            return spelled[number]
    return None


def open_tokenizer_file(config: TokenizerFileConfig) -> Tokenizer:
    """The tokenizer that a config names; UserError where the file holds none, or fewer sentinel tokens than asked."""
    text = read_tokenizer_file(config)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"tokenizer.path={config.path} is not JSON ({error}); give a tokenizer.json") from None
    if isinstance(content, dict) and "fingerprint" in content:
        if config.eot is not None:
            raise UserError(
                f"tokenizer.path={config.path} is a run's, whose end-of-text token is known, and takes no "
                f"tokenizer.eot={config.eot}; leave it out"
            )
        tokenizer = restore_tokenizer(content, f"tokenizer.path={config.path}", "give the file as the run wrote it")
    else:
        try:
            tokenizer = FileTokenizer(text, config.eot or end_of_text_beside(config, text))
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"tokenizer.path={config.path} is neither a tokenizer.json of the tokenizers library nor of a run "
                f"({error})"
                if "tokenizer.eot" not in str(error)
                else f"tokenizer.path={config.path}: {error}"
            ) from None
    n_sentinel_tokens = len(tokenizer.sentinels)
    if n_sentinel_tokens < config.n_sentinel_tokens:
        raise UserError(
            f"tokenizer.n_sentinel_tokens={config.n_sentinel_tokens}, but tokenizer.path={config.path} has "
            f"{n_sentinel_tokens or 'no'} sentinel token{'s' * (n_sentinel_tokens != 1)} ({sentinel(0)} and so on); "
            f"set tokenizer.n_sentinel_tokens={n_sentinel_tokens}, or give a file that has more"
        )
    return tokenizer


def _merges_bytes(parts: dict[str, Any]) -> bool:
    """Whether this is a byte-pair encoding that may be cut between two tokens of a word: nothing else is done to text,
    and no symbol depends on where in the word it is."""
    model = parts["model"]
    plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    return model["type"] == "BPE" and plain and parts["normalizer"] is None and _is_byte_level(parts["pre_tokenizer"])


def _without_prepend(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer that puts nothing before a text."""
    match normalizer:
        case {"type": "Prepend"}:
            return None
        case {"type": "Sequence", "normalizers": parts}:
            return {**normalizer, "normalizers": [part for part in map(_without_prepend, parts) if part is not None]}
    return normalizer


def _is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return True
        case {"type": "Sequence", "pretokenizers": parts}:
            return all(part["type"] == "Split" or _is_byte_level(part) for part in parts)
    return False


def _beginning(processor: dict[str, Any] | None) -> list[int]:
    """What a post-processor of the tokenizers library puts before a text."""
    match processor:
        case {"type": "TemplateProcessing", "single": template, "special_tokens": special}:
            first = takewhile(lambda piece: "SpecialToken" in piece, template)
            return [token_id for piece in first for token_id in special[piece["SpecialToken"]["id"]]["ids"]]
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [_, token_id]}:
            return [token_id]
        case {"type": "Sequence", "processors": processors}:  # the library applies the first that adds tokens
            return next(filter(None, map(_beginning, processors)), [])
    return []


def _unknown(model: dict[str, Any], vocabulary: Mapping[str, int]) -> set[int]:
    """The id of the unknown token of a model of the tokenizers library; empty where it has none."""
    number = model.get("unk_id", vocabulary.get(model.get("unk_token") or ""))
    return set() if number is None else {number}
