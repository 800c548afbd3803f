"""What an objective is: how examples become a batch, and which losses of a batch are learned and measured."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.models.base import LanguageModel

Batch = dict[str, Tensor]  # the first dimension of each is that of the examples

SEQUENCES = "sequences"  # the kind of target that models' auxiliary losses are means over


class LossTerm(NamedTuple):
    """A sum over a batch's targets of one kind, which is divided once by their number in the whole step."""

    sum: Tensor
    over: str = "targets"  # the kind
    weight: float = 1.0  # of the mean in the loss; 0: only measured
    logged: bool = True


class Predictions(NamedTuple):
    """The states from which a batch's target tokens are predicted, and these: states (..., D), targets (...).

    A target that is not learned is `IGNORE_INDEX`.
    """

    states: Tensor
    targets: Tensor


class Examples(Protocol):
    """The examples of a split by index."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> Any: ...

    def tail(self) -> Any: ...


class PreviewContext(NamedTuple):
    """What a preview is made of: a model in training, and the first examples of its evaluation."""

    model: LanguageModel
    examples: Any  # as `gather` returned them
    tokenizer: Tokenizer
    prompt: list[int]  # of the user, to be continued; empty: none
    write: Callable[[list[int]], list[int]]  # generates the continuation of a prompt
    to_device: Callable[[Batch], Batch]


class Objective(ABC):
    """How a model is trained and evaluated; the model never sees targets."""

    names: tuple[str, ...] = ("loss",)  # of the terms that are logged; "loss" is always the first
    perplexity_of: str | None = "loss"  # the term of which perplexity is the exponential
    unused_parameters: tuple[str, ...] = ()  # prefixes of the names of parameters that it does not use
    scored_fraction = 1.0  # of the positions, whose logits are computed
    target_length: int | None = None  # target tokens beside a source of the context's length; None: as many
    n_preview = 1  # examples that `preview` wants
    per_byte = False  # whether every token of the text is a target, so that the loss can be given per byte

    def measures(self, *, whole: bool) -> list[str]:
        """The names of the metrics of an evaluation of a split, or of a part of one."""
        derived = ["perplexity"] * (self.perplexity_of is not None) + ["bits_per_byte"] * (self.per_byte and whole)
        return ["loss", *derived, *self.names[1:]]

    def metrics(self, means: dict[str, float], counts: dict[str, float], *, n_bytes: float | None) -> dict[str, float]:
        """The metrics of an evaluation: its terms' means and what follows from them; `n_bytes` are the split's."""
        derived = {}
        if self.perplexity_of is not None:
            derived["perplexity"] = math.exp(min(means[self.perplexity_of], 700))
        if self.per_byte and n_bytes is not None:
            derived["bits_per_byte"] = means["loss"] * counts["targets"] / math.log(2) / n_bytes
        return {"loss": means["loss"], **derived, **means}

    @abstractmethod
    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> Examples:
        """The examples of `split`: for training, or in order and complete for an evaluation."""

    @abstractmethod
    def collate(self, examples: Any, sample_ids: np.ndarray) -> Batch:
        """A batch of what `gather` returned.

        `sample_ids` (B) are unique within a run and negative in an evaluation. Whatever is drawn at random is a
        function of them and the seed.
        """

    @abstractmethod
    def counts(self, batch: Batch) -> Mapping[str, int | Tensor]:
        """The number of targets of each kind that `loss` sums over."""

    @abstractmethod
    def loss(self, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
        """The terms of a batch by name, without the model's auxiliary losses."""

    def predictions(self, model: LanguageModel, batch: Batch) -> Predictions | None:
        """What is predicted of a batch token by token, through `model.head`; None where no token is."""
        return None

    def token_ranges(
        self, examples: Examples, indices: np.ndarray, sample_ids: np.ndarray
    ) -> list[list[tuple[int, int]]] | None:
        """Which tokens of the split each example of `indices` (B) reads: [begin, end) of one stretch or several.

        `sample_ids` (B) are as in `collate`. None where it is not known.
        """
        ranges = getattr(examples, "ranges", None)
        return None if ranges is None else [[(begin, end)] for begin, end in ranges(indices).tolist()]

    @abstractmethod
    def preview(self, context: PreviewContext) -> str:
        """What the model predicts for a few examples, as text for a person."""

    def mean_loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The loss of a batch that is a whole step; in training mode with the model's auxiliary losses."""
        counts = training_counts(self, batch)
        return total(training_terms(self, model, batch), {kind: 1 / n for kind, n in counts.items()})


def training_terms(objective: Objective, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
    """The objective's terms and, in training mode, what the model adds to any objective: means over the sequences."""
    terms, added = objective.loss(model, batch), model.auxiliary
    if added is None:
        return terms
    measured = {name: LossTerm(value, SEQUENCES, weight=0.0) for name, value in added.terms.items()}
    return {**terms, **measured, "auxiliary": LossTerm(added.loss, SEQUENCES, logged=False)}


def training_counts(objective: Objective, batch: Batch) -> dict[str, int | Tensor]:
    """The number of targets of each kind that `training_terms` sum over."""
    return {**objective.counts(batch), SEQUENCES: len(next(iter(batch.values())))}


def total(terms: Mapping[str, LossTerm], scales: Mapping[str, float | Tensor]) -> Tensor:
    """What to differentiate: every sum times its weight and the scale of its kind."""
    weighted = (term.sum * (term.weight * scales[term.over]) for term in terms.values() if term.weight)
    return cast(Tensor, sum(weighted))  # 0 where nothing has a weight, which no objective does


def logged_means(terms: Mapping[str, LossTerm], scales: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
    """What to log, detached: every sum times the scale of its kind, and first the loss, if it is not a term itself."""
    logged = {name: term for name, term in terms.items() if term.logged}
    values = {name: term.sum.detach() * scales[term.over] for name, term in logged.items()}
    if "loss" in values:
        return values
    loss = cast(Tensor, sum(term.weight * values[name] for name, term in logged.items() if term.weight))
    return {"loss": loss} | values


def pad(texts: Sequence[np.ndarray], value: int) -> tuple[Tensor, Tensor]:
    """Sequences as one tensor (B, T), padded with `value` at their ends, and its attention mask (B, T)."""
    tokens = [torch.from_numpy(np.asarray(text, dtype=np.int64)) for text in texts]
    padded = pad_sequence(tokens, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(text) for text in tokens])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def annotate(tokenizer: Tokenizer, tokens: list[int], guesses: Mapping[int, tuple]) -> str:
    """A text with "[truth > guess]" at the positions of `guesses`, each of one or several tokens."""
    parts, since = [], 0
    for position, (truth, guess) in sorted(guesses.items()):
        parts.append(tokenizer.decode(tokens[since:position]))
        both = [tokenizer.decode(ids if isinstance(ids, list) else [ids]) for ids in (truth, guess)]
        parts.append(f"[{both[0]} > {both[1]}]")
        since = position + 1
    return "".join([*parts, tokenizer.decode(tokens[since:])])
