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


BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # the first of a word-piece vocabulary, in this order


def sentinel(n: int) -> str:
    """How T5 spells its n-th sentinel, the word that stands for a masked span."""
    return f"<extra_id_{n}>"


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """How text becomes token ids; one subclass per kind."""

    kind: str = "byte"
    special_words: list[str] = field(default_factory=list)  # added to the vocabulary; <mask> <pad> <cls> <sep> are used
    n_sentinel: int = 0  # words <extra_id_0>, <extra_id_1>, ... after these

    def check(self) -> None:
        """Refuse what cannot work."""
        if self.n_sentinel < 0:
            raise ValueError(f"tokenizer.n_sentinel={self.n_sentinel} must be 0 (none) or more")
        words = self.added_words
        for word in words:
            if not word:
                raise ValueError("tokenizer.special_words holds an empty word; leave it out")
            if words.count(word) > 1:
                raise ValueError(f"tokenizer.special_words holds {word!r} twice; name each word once")

    @property
    def added_words(self) -> list[str]:
        """The words that are added to the vocabulary, in the order of their ids."""
        return [*self.special_words, *map(sentinel, range(self.n_sentinel))]

    @property
    def known_vocab_size(self) -> int | None:
        """The number of words where it can be known before any text is read."""
        own = {"byte": 257, "gpt2": 50_257}.get(self.kind)
        return None if own is None else own + len(self.added_words)


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
        TokenizerConfig.check(self)
        least = 257 + len(self.added_words)
        if self.vocab_size < least:
            what = "an end of text" if least == 257 else f"{least - 256} special words"
            raise ValueError(f"tokenizer.vocab_size={self.vocab_size} must be at least {least}: the bytes and {what}")

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
        for name, value in (("special_words", self.special_words), ("n_sentinel", self.n_sentinel)):
            if value:
                raise ValueError(
                    f"tokenizer=file has its own special words and takes no tokenizer.{name}={value}; leave it out, "
                    "and use a tokenizer.json that has the words"
                )


@dataclass(kw_only=True, slots=True)
class WordPieceConfig(TokenizerConfig):
    """BERT's kind of word pieces, learned from the training split."""

    kind: str = "wordpiece"
    vocab_size: int = 4096
    lowercase: bool = True  # and without accents

    def check(self) -> None:
        TokenizerConfig.check(self)
        if self.special_words:
            raise ValueError(
                f"tokenizer=wordpiece has its own special words ({' '.join(BERT_WORDS)}) and takes no "
                f"tokenizer.special_words={self.special_words}; leave it out"
            )
        least = len(BERT_WORDS) + self.n_sentinel + 2
        if self.vocab_size < least:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least {least}: {least - 2} special words and a "
                "character at the beginning and within a word"
            )

    @property
    def known_vocab_size(self) -> int | None:
        return self.vocab_size


TOKENIZERS = {
    config().kind: config
    for config in (ByteConfig, CharConfig, Gpt2Config, BpeConfig, WordPieceConfig, TokenizerFileConfig)
}
