"""A model folder of another library, with its weights under our names."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.interop.architecture import Architecture, class_head_locations, shapes


class Weights(ABC):
    """The tensors of one file."""

    shapes: Mapping[str, tuple[int, ...]]
    integers: frozenset[str] = frozenset()  # names of tensors that hold no floating-point numbers

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor; valid until the next is read."""


class ExternalFolder(ABC):
    """The weights of a folder under our names; opening it checks names and shapes and reads no weights.

    UserError where our config cannot express the model, and where tensors are missing, unknown or of another shape.
    """

    config_file: str  # which determines the model

    def __init__(
        self, path: Path, architecture: Architecture, options: Mapping[str, Any], files: Iterable[Weights]
    ) -> None:
        self.path, self.architecture, self._options = path, architecture, options
        self._home = {name: file for file in files for name in file.shapes}
        try:
            seen = architecture.seen(options, self._home.keys(), lambda name: self._home[name].read(name))
            self.config, self.vocab_size = architecture.read_config({**options, **seen})
        except (ValueError, TypeError) as error:
            raise UserError(f"{path / self.config_file}: {error}") from error
        self._locations = architecture.locations(self.config)
        head = None if architecture.class_head is None else self._home.get(f"{architecture.class_head}.weight")
        self.n_class = None if head is None else head.shapes[f"{architecture.class_head}.weight"][0]
        if self.n_class is not None:
            self._locations |= class_head_locations(architecture)
        self._check()

    @property
    @abstractmethod
    def tokenizer_file(self) -> Path | None:
        """The file with the vocabulary of its tokenizer, None where it has none that can be read."""

    @property
    def special_tokens(self) -> Mapping[str, Mapping[str, Any]]:
        """The special tokens that its files name, by file."""
        return {}

    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, None where none can be read; UserError where its vocabulary is larger than the model's."""
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            assert self.tokenizer_file is not None
            check_vocab_size(tokenizer, self.vocab_size, self.tokenizer_file)
        return tokenizer

    @abstractmethod
    def _tokenizer(self) -> Tokenizer | None: ...

    def read(self, name: str) -> Tensor:
        """One of our tensors, in the type of the file."""
        location = self._locations[name]
        parts = [location.take(self._home[theirs].read(theirs)) for theirs in location.names]
        return parts[0] if location.stacked is None else torch.stack(parts)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All of our tensors by name, one at a time."""
        for name in self._locations:
            yield name, self.read(name)

    def _check(self) -> None:
        """Compare the files' names and shapes with those that the config implies."""
        kind = self.architecture.model_type
        ours = shapes(self.config, self.vocab_size, self.n_class)
        needed = {
            theirs: tuple(location.shape(ours[name]))
            for name, location in self._locations.items()
            for theirs in location.names
        }
        missing = sorted(needed.keys() - self._home.keys())
        if missing:
            saved = self._options.get("architectures")
            instead = self.architecture.class_name
            advice = f"; it was saved as {saved[0]}: save it as {instead}" if saved and saved != [instead] else ""
            raise UserError(f"{self.path} lacks {_counted(missing)} of a {kind} model: {_some(missing)}{advice}")
        extra = [name for name in self._home.keys() - needed.keys() if not name.endswith(self.architecture.buffers)]
        if extra:
            raise UserError(f"{self.path} has {_counted(extra)} that a {kind} model does not: {_some(sorted(extra))}")
        for name, shape in needed.items():
            there = tuple(self._home[name].shapes[name])
            if there != shape:
                raise UserError(f"{self.path}: {name} has the shape {there}, and {self.config_file} implies {shape}")
        whole = sorted(name for name in needed if name in self._home[name].integers)
        if whole:
            raise UserError(
                f"{self.path} holds {_counted(whole)} as integers: {_some(whole)}; gptlab reads floating-point weights"
            )


def check_vocab_size(tokenizer: Tokenizer, vocab_size: int, path: Path) -> None:
    """Refuse the tokenizer of a file where the model has fewer embeddings than it has tokens."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {tokenizer.vocab_size:,} and the model one of {vocab_size:,}; "
            "put the tokenizer.json there that the model was trained with"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; UserError where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _counted(names: list[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"
