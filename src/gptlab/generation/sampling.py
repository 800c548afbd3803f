"""From logits to the probabilities of the next token: pure functions of logits (..., V)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gptlab.fields import bounded, check_bounds
from gptlab.generation.config import MIN_P, REPETITION_PENALTY, TEMPERATURE, TOP_K, TOP_P, DecodingConfig

COLD = 1e-30  # a temperature below which a logit may become infinite, unless the largest is made 0 first


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature; at 0 only the most likely token is left, the first of several."""
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
    if temperature < COLD:  # the same probabilities
        logits, temperature = logits - logits.amax(-1, keepdim=True), max(temperature, torch.finfo(logits.dtype).tiny)
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` most likely tokens and those tied with the last of them (arXiv:1805.04833, section 5.4)."""
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches `p` (arXiv:1904.09751, section 3.1)."""
    if p == 1:
        return logits
    ordered, tokens = torch.softmax(logits, -1).sort(descending=True, stable=True)
    reached = ordered.cumsum(-1) - ordered >= p  # by the more likely tokens
    return logits.masked_fill(reached.scatter(-1, tokens, reached), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least `p` times as likely as the most likely one (arXiv:2407.01082, section 3)."""
    probabilities = torch.softmax(logits, -1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def penalize_repetition(logits: Tensor, seen: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make earlier tokens less likely: logits (B, V) above 0 are divided by the penalty, below 0 multiplied.

    `seen` are the tokens of each sequence, the prompt included (arXiv:1909.05858, section 4.1).
    """
    if penalty == 1:
        return logits
    logits, limits = logits.clone(), torch.finfo(logits.dtype)
    penalty = max(penalty, limits.tiny)
    for own, tokens in zip(logits, seen, strict=True):
        known = torch.tensor(sorted(set(tokens)), device=logits.device)
        known = known[known < len(own)]
        penalized = torch.where(own[known] < 0, own[known] * penalty, own[known] / penalty)
        own[known] = penalized.clamp(limits.min, limits.max)  # infinite logits have no probabilities
    return logits


@dataclass(kw_only=True, slots=True)
class Sampling:
    """How a token is chosen; UserError for a value out of bounds."""

    repetition_penalty: float = bounded(1.0, **REPETITION_PENALTY)
    temperature: float = bounded(1.0, **TEMPERATURE)  # 0: greedy
    top_k: int | None = bounded(None, **TOP_K)
    top_p: float | None = bounded(None, **TOP_P)
    min_p: float | None = bounded(None, **MIN_P)

    def __post_init__(self) -> None:
        check_bounds(self)

    @classmethod
    def of(cls, config: DecodingConfig) -> "Sampling":
        """The sampling settings of a config, with this class's defaults where it has null."""
        given = {f.name: getattr(config, f.name) for f in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def probabilities(self, logits: Tensor, seen: Sequence[Sequence[int]] = ()) -> Tensor:
        """Probabilities (B, V) of logits (B, V); `seen` is needed for the repetition penalty alone."""
        return torch.softmax(self.filtered(logits, seen), -1)

    def filtered(self, logits: Tensor, seen: Sequence[Sequence[int]] = ()) -> Tensor:
        """The logits after penalty, temperature and filters, in that order."""
        return self.stages(logits, seen)[-1][1]

    def stages(self, logits: Tensor, seen: Sequence[Sequence[int]] = ()) -> list[tuple[str, Tensor]]:
        """The logits of the model and after each setting that changes them, by name: "model", "temperature=0.7" ..."""
        stages = [("model", logits.float())]

        def add(name: str, change: Callable[..., Tensor], *arguments: Any) -> None:
            stages.append((f"{name}={getattr(self, name):g}", change(stages[-1][1], *arguments)))

        if self.repetition_penalty != 1:
            add("repetition_penalty", penalize_repetition, seen, self.repetition_penalty)
        if self.temperature != 1:
            add("temperature", apply_temperature, self.temperature)
        if self.top_k is not None:
            add("top_k", keep_top_k, self.top_k)
        if self.top_p is not None:
            add("top_p", keep_top_p, self.top_p)
        if self.min_p is not None:
            add("min_p", keep_min_p, self.min_p)
        return stages
