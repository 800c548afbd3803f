"""What an objective is: how examples become a batch, and what of a batch is learned and measured."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.tokenizer import Tokenizer

Batch = dict[str, Tensor]  # the first dimension of each is that of the examples


class LossTerm(NamedTuple):
    """A sum over a batch's targets of one kind, which is divided by their number in the whole step, once."""

    sum: Tensor
    over: str = "targets"  # which kind
    weight: float = 1.0  # of its mean in what is learned from; 0: only measured
    logged: bool = True


class Examples(Protocol):
    """What a split is made of, by number."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray): ...

    def tail(self): ...


class PreviewContext(NamedTuple):
    """What an objective may show of: a model in training, and the first of its evaluation's examples."""

    model: nn.Module
    examples: Any  # as `gather` returned them
    tokenizer: Tokenizer
    prompt: list[int]  # what a person wants to see continued; empty: nothing
    write: Callable[[list[int]], list[int]]  # what a decoder says after a prompt
    to_device: Callable[[Batch], Batch]


class Objective(ABC):
    """One file holds a whole objective; a model never sees targets."""

    names: tuple[str, ...] = ("loss",)  # of the terms that are logged; "loss" is always the first
    perplexity_of: str | None = "loss"  # the term whose exponential is one
    unused_parameters: tuple[str, ...] = ()  # how the names of parameters begin that it does not use
    scored_fraction = 1.0  # of the positions, to be scored
    target_length: int | None = None  # tokens that a decoder reads beside the context, at most; None: as many
    n_preview = 1  # examples that `preview` wants
    per_byte = False  # whether the loss is of every token of the text, and so can be given per byte

    def measures(self, *, whole: bool) -> list[str]:
        """The names of what an evaluation of a split, or of a part of one, shows."""
        derived = ["perplexity"] * (self.perplexity_of is not None) + ["bits_per_byte"] * (self.per_byte and whole)
        return ["loss", *derived, *self.names[1:]]

    def metrics(self, means: dict[str, float], counts: dict[str, float], *, n_bytes: int | None) -> dict[str, float]:
        """What an evaluation shows: the means of its terms and what follows from them; `n_bytes` are the split's."""
        derived = {}
        if self.perplexity_of is not None:
            derived["perplexity"] = math.exp(min(means[self.perplexity_of], 700))
        if self.per_byte and n_bytes is not None:
            derived["bits_per_byte"] = means["loss"] * counts["targets"] / math.log(2) / n_bytes
        return {"loss": means["loss"], **derived, **means}

    @abstractmethod
    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> Examples:
        """What `split` is made of: for training, or in order and whole for an evaluation."""

    @abstractmethod
    def collate(self, examples, numbers: np.ndarray) -> Batch:
        """A batch of what `gather` returned.

        `numbers` (B) are those of the samples, never twice the same in a run: whatever is drawn is a function of
        them and the seed. An evaluation's are negative.
        """

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        """How many targets of each kind `loss` will sum over."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        """The terms of a batch by name."""

    @abstractmethod
    def preview(self, context: PreviewContext) -> str:
        """What the model makes of examples, for a person."""

    def mean_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a batch that is a whole step is learned by."""
        return total(self.loss(model, batch), {kind: 1 / n for kind, n in self.counts(batch).items()})


def total(terms: Mapping[str, LossTerm], scales: Mapping[str, float | Tensor]) -> Tensor:
    """What to differentiate: every sum times its weight and the scale of its kind."""
    return sum(term.sum * (term.weight * scales[term.over]) for term in terms.values() if term.weight)


def logged_means(terms: Mapping[str, LossTerm], scales: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
    """What to log, detached: every sum times the scale of its kind, and first the loss, if it is not a term itself."""
    logged = {name: term for name, term in terms.items() if term.logged}
    values = {name: term.sum.detach() * scales[term.over] for name, term in logged.items()}
    if "loss" in values:
        return values
    return {"loss": sum(term.weight * values[name] for name, term in logged.items() if term.weight)} | values


def auxiliary(model: nn.Module, n: int | Tensor, over: str = "targets") -> dict[str, LossTerm]:
    """What a model adds to its objective in training: means per token, of which each of the `n` targets bears one."""
    added = model.auxiliary
    if added is None:
        return {}
    terms = {name: LossTerm(value * n, over, weight=0.0) for name, value in added.terms.items()}
    return {**terms, "auxiliary": LossTerm(added.loss * n, over, logged=False)}


def pad(texts: list[np.ndarray], value: int) -> tuple[Tensor, Tensor]:
    """Texts as one tensor (B, T), padded with `value` at their ends, and their lengths (B)."""
    lengths = torch.tensor([len(text) for text in texts])
    rows = torch.full((len(texts), int(lengths.max())), value)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.from_numpy(np.asarray(text, dtype=np.int64))
    return rows, lengths


def marked(tokenizer: Tokenizer, tokens: list[int], told: Mapping[int, tuple]) -> str:
    """A text in which `told` replaces places: the true words there, and those that a model guessed."""
    parts, since = [], 0
    for place, (truth, guess) in sorted(told.items()):
        parts.append(tokenizer.decode(tokens[since:place]))
        both = [tokenizer.decode(words if isinstance(words, list) else [words]) for words in (truth, guess)]
        parts.append(f"[{both[0]} > {both[1]}]")
        since = place + 1
    return "".join([*parts, tokenizer.decode(tokens[since:])])
