"""Tokenized examples: which tokens are targets in each, or its label.

Beside the token file of a split lie three arrays: where its examples begin, which spans are targets, and the labels.
"""

import hashlib
import json
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptlab.data.cache import is_verified, mark_verified
from gptlab.data.config import Overlong, TargetKind
from gptlab.data.token_file import TokenFile
from gptlab.errors import UserError
from gptlab.files import stat_key

_VERSION = 1
_FORMAT = "examples.json"
_ARRAYS = ("offsets", "spans", "labels")


class TokenizedExample(NamedTuple):
    """One example as tokens."""

    tokens: np.ndarray  # int64 (n,)
    scored: np.ndarray  # bool (n,): the token is a target
    label: int  # the number of its class, -1 where it has none


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleFormat:
    """What all examples of a table have in common."""

    form: str  # of TargetKind
    n_beginning: int  # tokens before every text
    has_end: bool  # the last token is the end-of-text token


class ExampleTableWriter:
    """Collects where the examples of a split begin, their spans and labels."""

    def __init__(self) -> None:
        self._offsets = array("q", [0])
        self._spans = array("q")
        self._labels = array("q")

    def add(self, n_tokens: int, spans: list[tuple[int, int]], label: int) -> None:
        """Append an example; `spans` are its targets, [begin, end) from its first token on, in order."""
        begin = self._offsets[-1]
        self._offsets.append(begin + n_tokens)
        for span in spans:
            self._spans.extend(begin + position for position in span)
        self._labels.append(label)

    def save(self, folder: Path, part: str) -> dict[str, str]:
        """Write the arrays of a split; returns their checksums."""
        arrays = {
            "offsets": np.array(self._offsets, dtype="<i8"),
            "spans": np.array(self._spans, dtype="<i8").reshape(-1, 2),
            "labels": np.array(self._labels, dtype="<i8"),
        }
        for name, values in arrays.items():
            np.save(_path(folder, part, name), values, allow_pickle=False)
        return {name: _checksum(values) for name, values in arrays.items()}


def write_example_format(folder: Path, about: ExampleFormat, checksums: dict[str, dict[str, str]]) -> None:
    """Write what `open_example_tables` checks the arrays against; `checksums` are by split."""
    content = {"version": _VERSION, **asdict(about), "checksums": checksums}
    (folder / _FORMAT).write_text(json.dumps(content), encoding="utf-8")


def open_example_tables(
    folder: Path, files: dict[str, TokenFile], *, verify: bool | None = None
) -> dict[str, "ExampleTable"]:
    """The examples of each split's token file; `verify` is as in `TokenFile.open`.

    UserError for a missing or altered file says what to delete.
    """
    try:
        content = json.loads((folder / _FORMAT).read_text(encoding="utf-8"))
        checksums = content.pop("checksums")
        if content.pop("version") != _VERSION:
            raise UserError("another version")
        about = ExampleFormat(**content)
        TargetKind(about.form)
        tables = {part: ExampleTable(file, folder, part, about) for part, file in files.items()}
        for part, table in tables.items():
            if verify or (verify is None and not table.is_verified(checksums[part])):
                table.verify(checksums[part])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the examples in {folder} are missing or altered ({error}); delete it and run again") from None
    return tables


class ExampleTable:
    """The examples of one split, read-only and memory-mapped; `lengths` is int64 (n examples,), in tokens.

    Scored are all tokens of an example with a label; otherwise the response, or of a conversation the assistant's
    messages, each with its end-of-text token.
    """

    def __init__(self, file: TokenFile, folder: Path, part: str, about: ExampleFormat) -> None:
        self.part = part
        self.format = about
        self._file = file
        self._folder = folder
        # Plain arrays: slicing a memmap builds a Python object each time.
        self._tokens = file.tokens.view(np.ndarray)
        self._offsets, self._spans, self._labels = (
            np.load(_path(folder, part, name), mmap_mode="r", allow_pickle=False).view(np.ndarray) for name in _ARRAYS
        )
        self._kept: np.ndarray | None = None  # the examples that are left; None: all
        self._limit: int | None = None  # tokens of an example
        self._fits: tuple[tuple[int, Overlong], ...] = ()

    def is_verified(self, checksums: dict[str, str]) -> bool:
        """Whether `verify` passed for these files, and they were not touched since."""
        return all(is_verified(_path(self._folder, self.part, name), checksums[name]) for name in _ARRAYS)

    def verify(self, checksums: dict[str, str]) -> None:
        """Compare the arrays with their checksums, with each other and with the tokens; UserError where they differ."""
        keys = {name: stat_key(_path(self._folder, self.part, name)) for name in _ARRAYS}
        for name, values in zip(_ARRAYS, (self._offsets, self._spans, self._labels), strict=True):
            if values.dtype != np.dtype("<i8") or _checksum(values) != checksums[name]:
                raise UserError(f"{_path(self._folder, self.part, name).name} has other contents")
        if self._offsets[0] != 0 or self._offsets[-1] != self._file.n_tokens or (np.diff(self._offsets) < 1).any():
            raise UserError(f"{_path(self._folder, self.part, 'offsets').name} does not fit {self._file.path.name}")
        if len(self._labels) != len(self._offsets) - 1 or self._spans.ndim != 2:
            raise UserError(f"the arrays of {self.part} do not fit each other")
        for name, key in keys.items():
            mark_verified(_path(self._folder, self.part, name), checksums[name], key)

    def __len__(self) -> int:
        return len(self._labels) if self._kept is None else len(self._kept)

    @property
    def lengths(self) -> np.ndarray:
        lengths = np.diff(self._offsets)
        if self._kept is not None:
            lengths = lengths[self._kept]
        return lengths if self._limit is None else np.minimum(lengths, self._limit)

    @property
    def labels(self) -> np.ndarray:
        """The number of each example's class, int64 (n examples,), -1 where it has none."""
        return np.array(self._labels if self._kept is None else self._labels[self._kept])

    def gather(self, indices: np.ndarray) -> list[TokenizedExample]:
        """The examples of `indices` (B,)."""
        numbers = np.asarray(indices)
        return [self._example(int(number)) for number in (numbers if self._kept is None else self._kept[numbers])]

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """Of the examples of `indices` (B,) the numbers among all of the split: int64 (B,)."""
        numbers = np.asarray(indices, dtype=np.int64)
        return numbers if self._kept is None else self._kept[numbers]

    def ranges(self, indices: np.ndarray) -> np.ndarray:
        """Which tokens of the split the examples of `indices` (B,) are, [begin, end): int64 (B, 2).

        One that was truncated lacks some of them.
        """
        numbers = self.numbers(indices)
        return np.stack([self._offsets[numbers], self._offsets[numbers + 1]], axis=1)

    def _example(self, number: int) -> TokenizedExample:
        begin, end = self._offsets[number : number + 2].tolist()
        tokens = self._tokens[begin:end].astype(np.int64)
        scored = np.zeros(len(tokens), dtype=bool)
        first, last = np.searchsorted(self._spans[:, 0], (begin, end))
        for start, stop in (self._spans[first:last] - begin).tolist():
            scored[start:stop] = True
        if self._limit is not None and len(tokens) > self._limit:
            cut = slice(*self._cut(len(tokens), self._limit))
            tokens, scored = np.delete(tokens, cut), np.delete(scored, cut)
        return TokenizedExample(tokens, scored, int(self._labels[number]))

    def _cut(self, length: int, limit: int) -> tuple[int, int]:
        """What an overlong example loses, [begin, end): the end of a text with a label, or a prompt's beginning."""
        if self.format.form == TargetKind.label.value:
            return limit - self.format.has_end, length - self.format.has_end
        return self.format.n_beginning, self.format.n_beginning + length - limit

    def tail(self) -> None:
        """None: no example is left over."""

    def fit(self, n_tokens: int, overlong: Overlong) -> "ExampleTable":
        """The same examples with at most `n_tokens` tokens each; `overlong` says what happens to longer ones.

        A text with a label loses its end, but keeps the end-of-text token. A prompt or conversation loses its
        beginning, but keeps the tokens before every text. UserError where examples are too long and
        `overlong=error`, where none is left, and where a response alone is too long.
        """
        overlong = Overlong(overlong)
        lengths = self.lengths
        excess = lengths - n_tokens
        long = np.flatnonzero(excess > 0)
        if not len(long):
            return self
        found = f"{len(long):,} of the {len(self):,} examples of the {self.part} split have"
        more = f"allow {excess.max():,} tokens more with data.context_length (and model.context_length)"
        if overlong is Overlong.error:
            raise UserError(
                f"{found} more than {n_tokens:,} tokens, the longest {excess.max():,} more; {more}, leave them "
                "out with data.overlong=drop, or shorten them with data.overlong=truncate"
            )
        numbers = np.arange(len(self._labels)) if self._kept is None else self._kept
        fitted = ExampleTable(self._file, self._folder, self.part, self.format)
        fitted._fits = (*self._fits, (n_tokens, overlong))
        fitted._kept, fitted._limit = self._kept, self._limit
        if overlong is Overlong.drop:
            if len(long) == len(self):
                raise UserError(
                    f"{found} more than {n_tokens:,} tokens, and data.overlong=drop leaves none; {more}, or shorten "
                    "them with data.overlong=truncate"
                )
            fitted._kept = numbers[excess <= 0]
            return fitted
        self._check_cut(numbers[long], n_tokens, more)
        fitted._limit = n_tokens
        return fitted

    def _check_cut(self, numbers: np.ndarray, n_tokens: int, more: str) -> None:
        if self.format.form == TargetKind.label.value:
            least = self.format.n_beginning + 1 + self.format.has_end
            if n_tokens < least:
                raise UserError(f"data.overlong=truncate leaves no text in {n_tokens} tokens; {more}")
            return
        last = self._spans[np.searchsorted(self._spans[:, 0], self._offsets[numbers + 1]) - 1]
        whole = last[:, 1] - last[:, 0] + max(1, self.format.n_beginning)
        if (whole > n_tokens).any():
            raise UserError(
                f"{(whole > n_tokens).sum():,} examples of the {self.part} split have a response that does not fit "
                f"into {n_tokens:,} tokens, the longest by {whole.max() - n_tokens:,}, and data.overlong=truncate "
                f"shortens prompts alone; {more}, or leave long examples out with data.overlong=drop"
            )

    def __reduce__(self):
        """Pickled by the files' names, so that a loader's worker maps them again instead of copying."""
        return _reopen, (self._file, self._folder, self.part, self.format, self._fits)


def _reopen(file: TokenFile, folder: Path, part: str, about: ExampleFormat, fits: tuple) -> ExampleTable:
    table = ExampleTable(file, folder, part, about)
    for n_tokens, overlong in fits:
        table = table.fit(n_tokens, overlong)
    return table


def _path(folder: Path, part: str, name: str) -> Path:
    return folder / f"{part}.{name}.npy"


def _checksum(values: np.ndarray) -> str:
    return hashlib.sha256(f"{values.shape}\n".encode() + np.ascontiguousarray(values).tobytes()).hexdigest()
