"""Config schema: what every corpus has."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Union

from gptlab.data.curation.config import FilterConfig, filter_configs
from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds

if TYPE_CHECKING:
    from gptlab.data.sources.source import Corpus, RecordSource


class Split(Enum):
    """How a corpus is divided into train, val and test."""

    document = "document"
    fraction = "fraction"


class TargetKind(Enum):
    """What is predicted in an example made of a record."""

    label = "label"  # its class
    response = "response"  # a text after a prompt
    messages = "messages"  # the assistant's messages of a conversation


class Overlong(Enum):
    """What happens to an example with more tokens than the context."""

    error = "error"
    drop = "drop"
    truncate = "truncate"


class Packing(Enum):
    """What a sequence consists of."""

    stream = "stream"  # the documents one after the other, cut wherever a sequence ends
    best_fit = "best_fit"  # whole documents or records that fill it; only longer ones are cut
    none = "none"  # one document or record


class AttentionScope(Enum):
    """How far back a token of a sequence attends."""

    sequence = "sequence"
    document = "document"  # to its own document alone, in which positions begin at 0


@dataclass(kw_only=True, slots=True)
class RunDataConfig:
    """What a run reads: one corpus or a mixture of several."""

    type: str = ""
    context_length: int | None = bounded(None, ge=1)  # null: the model's
    packing: Packing | None = None  # null: stream; of a table none
    attention: AttentionScope = AttentionScope.sequence
    boundary_targets: bool = True  # whether the end of a document predicts the first token of the next
    shuffle: bool = True
    n_workers: int = bounded(0, ge=0)  # processes that gather batches; 0: the main process
    n_processes: int | None = bounded(None, ge=1)  # processes that tokenize; null: one per core
    cache_dir: str | None = None  # null: $GPTLAB_CACHE or ~/.cache/gptlab

    @property
    def corpora(self) -> "dict[str, DataConfig]":
        """The config of each corpus by its name: of a mixture its sources; one corpus alone has no name."""
        raise NotImplementedError

    @property
    def first(self) -> "DataConfig":
        """The corpus, or the first source of a mixture; all sources have the same kind of examples."""
        return next(iter(self.corpora.values()))

    @property
    def target_kind(self) -> TargetKind | None:
        """What is predicted in each example; None for plain text."""
        return None

    @property
    def has_validation(self) -> bool:
        """Whether a part of the text is left for validation."""
        raise NotImplementedError

    @property
    def packed(self) -> Packing:
        """The packing as it takes effect."""
        own = Packing.stream if self.target_kind is None else Packing.none
        return own if self.packing is None else Packing(self.packing)

    @property
    def by_document(self) -> bool:
        """Whether a token attends to its own document alone."""
        return AttentionScope(self.attention) is AttentionScope.document

    @property
    def confined(self) -> bool:
        """Whether sequences hold several documents, of which none sees another."""
        return self.by_document and self.packed is not Packing.none

    def check(self) -> None:
        """Refuse values that cannot work."""
        check_bounds(self, "data.")
        if self.target_kind is None:
            return
        if self.packed is Packing.stream:
            raise UserError("data.packing=stream would cut records; use data.packing=best_fit or none")
        if not self.boundary_targets:
            raise UserError("data.boundary_targets=false has no effect on records: their first token is no target")


@dataclass(kw_only=True, slots=True)
class DataConfig(RunDataConfig):
    """A corpus as sliding windows; each source registers a subclass with `build`."""

    path: str | None = None
    stride: int | None = bounded(None, ge=1)  # null: context_length, so each token is a target once an epoch
    split: Split = Split.fraction
    val_fraction: float | None = bounded(0.1, ge=0, lt=1, hint="use a fraction such as 0.1")
    test_fraction: float | None = bounded(0.0, ge=0, lt=1, hint="use a fraction such as 0.1")
    max_sequences: int | None = bounded(None, ge=1)  # null: all; a number keeps the first of the training split
    filters: dict[str, Any] = field(default_factory=dict)  # name -> its options, or null; documents pass all in order

    @property
    def corpora(self) -> "dict[str, DataConfig]":
        return {"": self}

    @property
    def has_validation(self) -> bool:
        return self.val_fraction != 0

    @property
    def held_out(self) -> tuple[float, float]:
        """The fractions for validation and for a test, where they are not those of shards."""
        return self.val_fraction or 0.0, self.test_fraction or 0.0

    @property
    def filter_configs(self) -> dict[str, FilterConfig]:
        """The filters by name, in the order in which documents pass them; UserError where one cannot be."""
        return filter_configs(self.filters)

    @property
    def filter_columns(self) -> tuple[str, ...]:
        """The columns beside the text that filters read."""
        return tuple(dict.fromkeys(name for one in self.filter_configs.values() for name in one.columns))

    def build(self, *, progress: bool = True) -> Union["Corpus", "RecordSource"]:
        """Open the documents, or the records of a table; `progress` shows a bar while downloading."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")

    def check(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that is written here.
        RunDataConfig.check(self)
        if self.path == "":
            raise UserError("data.path= is empty; name a file or a folder, or leave it out")
        if self.stride is not None and self.packed is not Packing.stream:
            raise UserError(
                f"data.stride={self.stride} is for sliding windows, and data.packing={self.packed.value} cuts none; "
                "leave one out"
            )
        self.check_fractions()
        for name, config in self.filter_configs.items():
            config.check(f"data.filters.{name}")

    def check_fractions(self) -> None:
        """Refuse splits that cannot be made."""
        for name in ("val_fraction", "test_fraction"):
            if getattr(self, name) is None:
                raise UserError(f"data.{name}=null must be a number; use a fraction such as 0.1, or 0 for none")
        if sum(self.held_out) >= 1:
            raise UserError(
                f"data.val_fraction={self.val_fraction} and data.test_fraction={self.test_fraction} leave nothing "
                "to train on; their sum must stay below 1"
            )
