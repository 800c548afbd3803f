"""From logits to the probabilities of the next token: pure functions of logits (..., V)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gptlab.errors import UserError
from gptlab.generation.config import GenerateConfig

COLD = 1e-30  # a temperature below which a logit may become infinite, unless the largest is made 0 first


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature; at 0 only the most likely word is left, the first of several."""
    if not temperature >= 0:
        raise UserError(f"temperature={temperature} is below 0; use 0 for the most likely word, 1 for the model's own")
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
    if temperature < COLD:  # the same probabilities
        logits, temperature = logits - logits.amax(-1, keepdim=True), max(temperature, torch.finfo(logits.dtype).tiny)
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Rule out all but the `k` most likely words and those tied with the last of them (arXiv:1805.04833, section 5.4)."""
    if k < 1:
        raise UserError(f"top_k={k} is below 1; use at least 1, or null for all words")
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely words whose mass reaches `p` (arXiv:1904.09751, section 3.1)."""
    if not 0 < p <= 1:
        raise UserError(f"top_p={p} is outside (0, 1]; use 1, or null, for all words")
    if p == 1:
        return logits
    ordered, words = torch.softmax(logits, -1).sort(descending=True, stable=True)
    reached = ordered.cumsum(-1) - ordered >= p  # by the words before
    return logits.masked_fill(reached.scatter(-1, words, reached), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the words that are at least `p` times as likely as the most likely (arXiv:2407.01082, section 3)."""
    if not 0 <= p <= 1:
        raise UserError(f"min_p={p} is outside [0, 1]; use 0, or null, for all words")
    probabilities = torch.softmax(logits, -1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def penalize_repetition(logits: Tensor, seen: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make each row's seen words less likely: logits (B, V) above 0 are divided, below 0 multiplied by the penalty.

    arXiv:1909.05858, section 4.1; `seen` is the words of each row, the prompt's included.
    """
    if not penalty > 0:
        raise UserError(f"repetition_penalty={penalty} must be above 0; use 1 for none, more for less repetition")
    if penalty == 1:
        return logits
    logits, limits = logits.clone(), torch.finfo(logits.dtype)
    penalty = max(penalty, limits.tiny)
    for row, words in zip(logits, seen, strict=True):
        known = torch.tensor(sorted(set(words)), device=logits.device)
        known = known[known < len(row)]
        penalized = torch.where(row[known] < 0, row[known] * penalty, row[known] / penalty)
        row[known] = penalized.clamp(limits.min, limits.max)  # infinite logits have no probabilities
    return logits


@dataclass(kw_only=True, slots=True)
class Sampling:
    """How a token is chosen."""

    repetition_penalty: float = 1.0
    temperature: float = 1.0  # 0: the most likely word
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @classmethod
    def of(cls, config: GenerateConfig) -> "Sampling":
        """As the words of `gptlab generate` say; what is not said stays."""
        said = {f.name: getattr(config, f.name) for f in fields(cls)}
        return cls(**{name: value for name, value in said.items() if value is not None})

    def probabilities(self, logits: Tensor, seen: Sequence[Sequence[int]] = ()) -> Tensor:
        """Probabilities (B, V) of logits (B, V); `seen` is needed for the repetition penalty alone."""
        return torch.softmax(self.filtered(logits, seen), -1)

    def filtered(self, logits: Tensor, seen: Sequence[Sequence[int]] = ()) -> Tensor:
        """The logits after penalty, temperature and filters, in that order."""
        logits = logits.float()
        if self.repetition_penalty != 1:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.temperature != 1:
            logits = apply_temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def check(self) -> None:
        """Refuse values outside their range, before any model is read."""
        self.filtered(torch.zeros(1, 2), [[0]])


def next_token_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits (..., V) into probabilities (..., V); temperature 0 gives all of it to the most likely word."""
    return torch.softmax(apply_temperature(logits.float(), temperature), -1)
