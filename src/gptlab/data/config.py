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


class RowForm(Enum):
    """What an example of a table holds beside its prompt; named as the setting that gives it."""

    label = "label"
    response = "response"
    messages = "messages"


class TooLong(Enum):
    """What happens to an example that has more tokens than the context."""

    refuse = "refuse"
    drop = "drop"
    cut = "cut"


CHAT = {"system": "System:\n{content}\n\n", "user": "User:\n{content}\n\n", "assistant": "Assistant:\n{content}"}


@dataclass(kw_only=True, slots=True)
class RowsConfig(DataConfig):
    """The rows of a table, each an example with a label, a response or a conversation.

    `path` is a file (JSON lines, JSON, CSV, TSV, Parquet) or a folder of a `datasets` data set, `dataset` its name on
    the hub.
    """

    source: str = "rows"
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    hub_split: str = "train"
    prompt: str = "{text}"  # a template with fields named as columns
    response: str | None = None  # a template of what is to be answered
    label: str | None = None  # the column with the class
    classes: list[str] = field(default_factory=list)  # the labels there may be, in the order of their numbers
    only_classes: bool = False  # leave out rows with other labels, instead of refusing them
    messages: str | None = None  # the column with a list of {"role", "content"}
    chat: dict[str, str] = field(default_factory=lambda: dict(CHAT))  # the template of each role, with {content}
    too_long: TooLong = TooLong.refuse
    split: Split = Split.document  # a row is a document

    @property
    def _presets(self) -> str:
        return ""

    @property
    def form(self) -> RowForm:
        """Which of label, response and messages is given."""
        return next(form for form in RowForm if getattr(self, form.value) is not None)

    def check(self) -> None:
        DataConfig.check(self)
        self._check_source()
        if Split(self.split) is not Split.document:
            raise ValueError(f"data.split=fraction would cut rows; data={self.source} takes data.split=document only")
        if self.stride is not None:
            raise ValueError(
                f"data.stride={self.stride} is of sliding windows, and data={self.source} has rows; leave it out"
            )
        given = [form.value for form in RowForm if getattr(self, form.value) is not None]
        if len(given) != 1:
            said = " and ".join(f"data.{name}={getattr(self, name)}" for name in given) or "none is set"
            raise ValueError(
                f"an example has one of data.label=COLUMN, data.response=TEMPLATE and data.messages=COLUMN: {said}; "
                + ("leave one out" if given else f"set one of them{self._presets}")
            )
        self._check_form()

    def _check_source(self) -> None:
        if self.path is None and self.dataset is None:
            raise ValueError(
                "data=rows reads a table; say which with data.path=FILE, or with data.dataset=NAME of one on the hub"
            )

    def _check_form(self) -> None:
        labelled = self.form is RowForm.label
        if labelled and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError(
                f"data.classes={self.classes} must list the labels of the column {self.label}, at least two and each "
                "once, as data.classes=[yes,no]"
            )
        unused = {
            "classes": not labelled and self.classes,
            "only_classes": not labelled and self.only_classes,
            "chat": self.form is not RowForm.messages and self.chat != CHAT,
            "prompt": self.form is RowForm.messages and self.prompt != "{text}",
        }
        for name, value in unused.items():
            if value:
                raise ValueError(
                    f"data.{name} is set, which examples with data.{self.form.value} do not use; leave it out"
                )
        if "assistant" not in self.chat:
            raise ValueError("data.chat has no template for the assistant, whose answers are learned; add one")


@dataclass(kw_only=True, slots=True)
class FunctionsConfig(RowsConfig):
    """The functions of the Python standard library on this machine: `module package name code summary`.

    `path` is a folder of other Python files.
    """

    source: str = "functions"
    prompt: str = "{code}"

    @property
    def _presets(self) -> str:
        return ", as data=function_packages and data=function_summaries do"

    def _check_source(self) -> None:
        for name in ("dataset", "subset", "revision", "hub_split", "messages"):
            if getattr(self, name) not in (None, "train"):
                raise ValueError(
                    f"data=functions reads Python files and takes no data.{name}={getattr(self, name)}; leave it out, "
                    "or use data=rows"
                )


SOURCES = {
    config().source: config
    for config in (StdlibConfig, TextConfig, DownloadConfig, HuggingFaceConfig, RowsConfig, FunctionsConfig)
}


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
    """The tokenizer.json of a run, or any of the `tokenizers` library; `n_sentinel` is how many it has at least."""

    kind: str = "file"
    path: str | None = None
    eot: str | None = None  # the library's end-of-text word; null: the usual names are looked for

    def check(self) -> None:
        if self.path is None:
            raise ValueError("tokenizer=file reads a tokenizer.json; say which with tokenizer.path=FILE")
        if self.special_words:
            raise ValueError(
                f"tokenizer=file has its own special words and takes no tokenizer.special_words={self.special_words}; "
                "leave it out, and use a tokenizer.json that has the words"
            )
        TokenizerConfig.check(self)


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
