"""Config schema: where text and tables come from."""

from dataclasses import field

from gptlab.data.config import DataConfig, Overlong, Split, TargetKind
from gptlab.errors import UserError
from gptlab.fields import bounded, shown
from gptlab.files import is_address
from gptlab.registry import register


@register("data", "stdlib")
class StdlibConfig(DataConfig):
    """The source code of the Python standard library on this machine: real text without a download."""

    split: Split = Split.document

    def build(self, *, progress=True):
        from gptlab.data.sources.stdlib import open_stdlib

        return open_stdlib(self)


@register("data", "text")
class TextConfig(DataConfig):
    """Files, folders, globs and addresses of text, also compressed; each file is a document, or of a table each record.

    An address is what fsspec reaches, as s3://bucket/folder.
    """

    paths: list[str] = field(default_factory=list)  # more than one; `path` is the short form for one
    extensions: list[str] = field(default_factory=list)  # what to read in folders; empty: text, or else tables
    text_column: str | None = "text"  # of tables (JSON lines, JSON, CSV, TSV, Parquet); null: they are plain text

    def build(self, *, progress=True):
        from gptlab.data.sources.text import open_text

        return open_text(self)

    def check(self) -> None:
        super().check()
        if self.path is None and not self.paths:
            raise UserError("data=text reads your own text; name it with data.path=FILE (a file, a folder or a glob)")


@register("data", "download")
class DownloadConfig(DataConfig):
    """One file from a fixed address, fetched once and checked; `path` points at a copy instead."""

    url: str = ""
    sha256: str = ""

    def build(self, *, progress=True):
        from gptlab.data.sources.download import open_download

        return open_download(self, progress=progress)


@register("data", "huggingface")
class HuggingFaceConfig(DataConfig):
    """Any data set of the `datasets` library: a hub name, or a local folder in `path`."""

    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    hub_split: str = "train"
    text_column: str = "text"
    streaming: bool = True
    max_documents: int | None = None
    split: Split = Split.document

    def build(self, *, progress=True):
        from gptlab.data.sources.huggingface import HubCorpus

        return HubCorpus(self)


SHUFFLE_SHARDS = 8  # of data.shuffle_shards, at an address


@register("data", "shards")
class ShardsConfig(DataConfig):
    """The token shards that `gptlab prepare` wrote into the folder `path`, with their splits and their tokenizer.

    `path` may be an address of fsspec, from which they are fetched into the cache.
    """

    split: Split = Split.document
    # null: as they were prepared; 0: the split is not used
    val_fraction: float | None = None
    test_fraction: float | None = None
    # sequences are shuffled among those of so many shards; null: of all, and of 8 where they are at an address
    shuffle_shards: int | None = bounded(None, ge=1)
    cache_gib: float = bounded(16.0, gt=0)  # the most that fetched shards may take on this machine

    @property
    def is_remote(self) -> bool:
        """Whether the shards are at an address."""
        return self.path is not None and is_address(self.path)

    @property
    def window_shards(self) -> int | None:
        """Among how many shards sequences are shuffled; None: among all, or not at all."""
        return (
            SHUFFLE_SHARDS if self.shuffle_shards is None and self.is_remote and self.shuffle else self.shuffle_shards
        )

    def build(self, *, progress=True):
        raise UserError("data=shards is tokenized already; give text, as with data=text data.path=FOLDER")

    def check(self) -> None:
        super().check()
        if self.path is None:
            raise UserError("data=shards reads a folder that gptlab prepare wrote; name it with data.path=FOLDER")
        options = {
            "split": Split(self.split) is not Split.document,
            "n_processes": self.n_processes,
            "filters": self.filters,
        }
        for key in (name for name, value in options.items() if value not in (None, False, {})):
            raise UserError(f"data.{key} is an option of gptlab prepare, and data=shards is prepared; leave it out")
        if not self.shuffle and self.shuffle_shards is not None:
            raise UserError(
                f"data.shuffle_shards={self.shuffle_shards} has no effect with data.shuffle=false; leave one out"
            )
        if not self.is_remote and self.cache_gib != 16.0:
            raise UserError(
                f"data.cache_gib={self.cache_gib:g} is for shards at an address and data.path={self.path} is a folder; "
                "leave it out"
            )

    def check_fractions(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if getattr(self, name):
                raise UserError(
                    f"data.{name}={getattr(self, name)}: the shards were split when they were prepared; leave it out "
                    f"(data.{name}=null where a preset such as debug=smoke has it), or set data.{name}=0 to leave that "
                    "split alone"
                )


CHAT = {"system": "System:\n{content}\n\n", "user": "User:\n{content}\n\n", "assistant": "Assistant:\n{content}"}
KEYS = {
    TargetKind.label: "data.label_column=COLUMN",
    TargetKind.response: "data.response=TEMPLATE",
    TargetKind.messages: "data.messages=COLUMN",
}


@register("data", "table")
class TableConfig(DataConfig):
    """The records of a table, each an example with a label, a response or a conversation.

    `path` is a file (JSON lines, JSON, CSV, TSV, Parquet) or a folder of a `datasets` data set, `dataset` its name on
    the hub.
    """

    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    hub_split: str = "train"
    prompt: str = "{text}"  # a template with fields named as columns
    response: str | None = None  # a template of the response
    label_column: str | None = None  # the column with the class
    class_names: list[str] = field(default_factory=list)  # the possible labels, in the order of their numbers
    drop_unknown_classes: bool = False  # leave out records with other labels, instead of refusing them
    messages: str | None = None  # the column with a list of {"role", "content"}
    chat: dict[str, str] = field(default_factory=lambda: dict(CHAT))  # the template of each role, with {content}
    chat_template: str | None = None  # a Jinja chat template, or a file with one, instead of `chat`
    overlong: Overlong = Overlong.error
    split: Split = Split.document  # a record is a document

    def build(self, *, progress=True):
        from gptlab.data.sources.table import open_table

        return open_table(self)

    @property
    def _presets(self) -> str:
        return ""

    @property
    def _given(self) -> dict[TargetKind, str]:
        values = {
            TargetKind.label: self.label_column,
            TargetKind.response: self.response,
            TargetKind.messages: self.messages,
        }
        return {kind: value for kind, value in values.items() if value is not None}

    @property
    def target_kind(self) -> TargetKind:
        return next(iter(self._given), TargetKind.label)

    def check(self) -> None:
        super().check()
        self._check_source()
        if Split(self.split) is not Split.document:
            raise UserError(f"data.split=fraction would cut records; data={self.type} takes data.split=document only")
        if self.filters:
            raise UserError(
                f"data.filters is for documents, and data={self.type} has records; leave it out, or use data=text"
            )
        if self.stride is not None:
            raise UserError(
                f"data.stride={self.stride} is for sliding windows, and data={self.type} has records; leave it out"
            )
        given = self._given
        if len(given) != 1:
            found = " and ".join(f"{KEYS[kind].split('=')[0]}={value}" for kind, value in given.items())
            raise UserError(
                f"an example has one of {', '.join(KEYS.values())}: {found or 'none is set'}; "
                + ("leave one out" if given else f"set one of them{self._presets}")
            )
        self._check_keys()

    def _check_source(self) -> None:
        if self.path is None and self.dataset is None:
            raise UserError(
                "data=table reads a table; name it with data.path=FILE, or with data.dataset=NAME of one on the hub"
            )

    def _check_keys(self) -> None:
        kind = self.target_kind
        labeled = kind is TargetKind.label
        if labeled and (len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names)):
            raise UserError(
                f"data.class_names={shown(self.class_names)} must list the labels of the column {self.label_column}, "
                "at least two and each once, as data.class_names=[yes,no]"
            )
        unused = {
            "class_names": not labeled and self.class_names,
            "drop_unknown_classes": not labeled and self.drop_unknown_classes,
            "chat": kind is not TargetKind.messages and self.chat != CHAT,
            "chat_template": kind is not TargetKind.messages and self.chat_template is not None,
            "prompt": kind is TargetKind.messages and self.prompt != "{text}",
        }
        for name, value in unused.items():
            if value:
                raise UserError(f"data.{name} is set, which {KEYS[kind]} does not use; leave it out")
        if self.chat_template is not None and self.chat != CHAT:
            raise UserError("data.chat and data.chat_template both say how a conversation is written; leave one out")
        if "assistant" not in self.chat:
            raise UserError("data.chat has no template for the assistant, whose messages are the targets; add one")


@register("data", "functions")
class FunctionsConfig(TableConfig):
    """The functions of the Python standard library on this machine: `module package name code summary`.

    `path` is a folder of other Python files.
    """

    prompt: str = "{code}"

    def build(self, *, progress=True):
        from gptlab.data.sources.functions import open_functions

        return open_functions(self)

    @property
    def _presets(self) -> str:
        return ", as data=function_packages and data=function_summaries do"

    def _check_source(self) -> None:
        for name in ("dataset", "subset", "revision", "hub_split", "messages"):
            if getattr(self, name) not in (None, "train"):
                raise UserError(
                    f"data=functions reads Python files and takes no data.{name}={getattr(self, name)}; leave it out, "
                    "or use data=table"
                )
