"""Tokenizers that are read from a file: a run's, or any of the `tokenizers` library."""

import json
import os
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.tokenizers.config import TokenizerFileConfig, sentinel
from gptlab.data.tokenizers.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    restore_tokenizer,
    valid_unicode,
    vocabulary_fingerprint,
)
from gptlab.errors import UserError

_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


class FileTokenizer(Tokenizer):
    """Any tokenizer.json of the `tokenizers` library, given as its text."""

    type = "file"

    def __init__(self, content: str, eot: str | None = None) -> None:
        # Documents are encoded in parallel already, and threads of the library would be in the way of later forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
        marked = {token["id"] for token in parts["added_tokens"] if token["special"]}
        self._assign_roles(vocabulary, marked | _unknown(parts["model"], vocabulary))
        self.fingerprint = vocabulary_fingerprint(self.type, f"{self.eot}\n{self._loaded.to_str()}".encode())

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
        encoded = self._loaded.encode(valid_unicode(text), add_special_tokens=False)
        return np.array(encoded.ids, dtype=np.uint32)

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
    path = Path(config.path).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"tokenizer.path={config.path} does not exist; give a tokenizer.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"tokenizer.path={config.path} cannot be read as text ({error}); give a tokenizer.json"
        ) from None


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
            tokenizer = FileTokenizer(text, config.eot)
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
