"""What a run may say about its corpus and its tokenizer."""

from dataclasses import dataclass, field
from enum import Enum


class Split(Enum):
    """How a corpus is divided into train, val and test."""

    document = "document"
    fraction = "fraction"


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """A corpus as sliding windows; one subclass per source adds what that source needs."""

    source: str = "text"
    path: str | None = None
    context_length: int | None = None  # null: the model's
    stride: int | None = None  # null: context_length, so each token is a target once an epoch
    shuffle: bool = True
    split: Split = Split.fraction
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    max_windows: int | None = None  # null: all; a number keeps the first ones of the training split
    n_workers: int = 0  # processes that gather batches
    n_processes: int | None = None  # processes that tokenise; null: one per core
    cache_dir: str | None = None  # null: $GPTLAB_CACHE or ~/.cache/gptlab

    def check(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"data.{name}={value} is outside [0, 1); use a fraction such as 0.1")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} leave nothing "
                "to train on; their sum must stay below 1"
            )
        for name in ("context_length", "stride", "max_windows", "n_processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1, or null for the default")
        if self.n_workers < 0:
            raise ValueError(f"data.n_workers={self.n_workers} must be 0 (gather in the main process) or more")


@dataclass(kw_only=True, slots=True)
class StdlibConfig(DataConfig):
    """The source of the Python standard library on this machine: real text without a download."""

    source: str = "stdlib"
    split: Split = Split.document


@dataclass(kw_only=True, slots=True)
class TextConfig(DataConfig):
    """Files, folders and globs of text, also gzipped; each file is a document."""

    source: str = "text"
    paths: list[str] = field(default_factory=list)  # more than one; `path` is the short form for one
    extensions: list[str] = field(default_factory=lambda: [".txt", ".md", ".py", ".gz"])  # what to read in folders

    def check(self) -> None:
        DataConfig.check(self)
        if self.path is None and not self.paths:
            raise ValueError(
                "data=text reads your own text; say which with data.path=FILE (a file, a folder or a glob)"
            )


@dataclass(kw_only=True, slots=True)
class DownloadConfig(DataConfig):
    """One file from a fixed address, fetched once and checked; `path` points at a copy instead."""

    source: str = "download"
    url: str = ""
    sha256: str = ""


@dataclass(kw_only=True, slots=True)
class HuggingFaceConfig(DataConfig):
    """Any data set of the `datasets` library: a hub name, or a local folder in `path`."""

    source: str = "huggingface"
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    hub_split: str = "train"
    text_column: str = "text"
    streaming: bool = True
    max_documents: int | None = None
    split: Split = Split.document


SOURCES = {config().source: config for config in (StdlibConfig, TextConfig, DownloadConfig, HuggingFaceConfig)}


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """How text becomes token ids; one subclass per kind."""

    kind: str = "byte"

    def check(self) -> None:
        """Refuse what cannot work."""

    @property
    def known_vocab_size(self) -> int | None:
        """The number of words where it can be known before any text is read."""
        return {"byte": 257, "gpt2": 50_257}.get(self.kind)


@dataclass(kw_only=True, slots=True)
class ByteConfig(TokenizerConfig):
    """UTF-8 bytes and one end-of-text word."""

    kind: str = "byte"


@dataclass(kw_only=True, slots=True)
class CharConfig(TokenizerConfig):
    """The distinct characters of the corpus."""

    kind: str = "char"


@dataclass(kw_only=True, slots=True)
class Gpt2Config(TokenizerConfig):
    """GPT-2's byte-pair encoding through tiktoken."""

    kind: str = "gpt2"


@dataclass(kw_only=True, slots=True)
class BpeConfig(TokenizerConfig):
    """A byte-level byte-pair encoding trained on the training split."""

    kind: str = "bpe"
    vocab_size: int = 4096

    def check(self) -> None:
        if self.vocab_size < 257:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least 257: the bytes and an end of text"
            )

    @property
    def known_vocab_size(self) -> int | None:
        return self.vocab_size


@dataclass(kw_only=True, slots=True)
class TokenizerFileConfig(TokenizerConfig):
    """Any tokenizer.json of the `tokenizers` library."""

    kind: str = "file"
    path: str | None = None
    eot: str | None = None  # the end-of-text word; null: the usual names are looked for

    def check(self) -> None:
        if self.path is None:
            raise ValueError("tokenizer=file reads a tokenizer.json; say which with tokenizer.path=FILE")


TOKENIZERS = {config().kind: config for config in (ByteConfig, CharConfig, Gpt2Config, BpeConfig, TokenizerFileConfig)}
