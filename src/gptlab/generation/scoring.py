"""How likely a model finds a given text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gptlab.data.tokenizer import Tokenizer
from gptlab.models.config import DecoderConfig

CHUNK_POSITIONS = 256  # whose logits are held at a time


@dataclass(slots=True)
class Score:
    """The tokens of a text, what each cost in nats, and the means over the text."""

    tokens: list[int]  # those that were predicted
    nats: list[float]
    n_bytes: int  # of text that these tokens stand for

    @property
    def loss(self) -> float:
        """Nats per token."""
        return math.fsum(self.nats) / len(self.nats)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return math.fsum(self.nats) / math.log(2) / self.n_bytes


def score(model: nn.Module, tokenizer: Tokenizer, text: str) -> Score:
    """Score a text of any length by all of the model's rows, as training does; ValueError where it predicts nothing.

    The first token is predicted from the tokenizer's beginning, else from the end-of-text word, or without either only
    read. Past the context the window moves by half of it, so that every later token is predicted from at least half a
    context.
    """
    ids = tokenizer.encode(text).tolist()
    skipped, before = 0, list(tokenizer.beginning)
    if not before and tokenizer.eot is not None:
        before = [tokenizer.eot]
    if not before and ids:
        before, ids = ids[:1], ids[1:]
        skipped = len(tokenizer.decode(before).encode())
    if not ids:
        raise ValueError("the text has no token to predict; give a longer one")
    nats = token_nats(model, [*before, *ids])[len(before) - 1 :]
    return Score(ids, nats, len(text.encode()) - skipped)


@torch.no_grad()
def token_nats(model: nn.Module, ids: Sequence[int]) -> list[float]:
    """-log p of each token but the first, given those before it in its window; ValueError where no decoder reads it."""
    if not isinstance(model.config, DecoderConfig):
        raise ValueError(
            f"a model with architecture={model.config.architecture} does not predict a text; use a decoder"
        )
    context_length = model.config.context_length
    device = next(model.parameters()).device
    inputs, targets = torch.tensor(ids[:-1], device=device), torch.tensor(ids[1:], device=device)
    nats: list[float] = []
    while len(nats) < len(targets):
        done = len(nats)
        start = 0 if done == 0 else done - context_length // 2
        end = min(start + context_length, len(targets))
        hidden = model.hidden(inputs[None, start:end])[0, done - start :]  # (T, D)
        output = model.output
        for part, words in zip(hidden.split(CHUNK_POSITIONS), targets[done:end].split(CHUNK_POSITIONS), strict=True):
            log_p = torch.log_softmax(output.logits(part).float(), -1)
            nats += (-log_p.gather(1, words[:, None])[:, 0]).tolist()
    return nats
