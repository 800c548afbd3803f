"""Log-likelihood of given texts."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptlab.data.tokenizers.tokenizer import Tokenizer, lost_text
from gptlab.errors import UserError
from gptlab.generation.prompt import has_encoder, pad
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability

CHUNK_POSITIONS = 256  # logits that are in memory at a time
BATCH_TOKENS = 16_384  # in one forward pass


@dataclass(slots=True)
class Score:
    """The tokens of a text, the loss of each in nats, and the means over the text."""

    tokens: list[int]  # those that were predicted
    nats: list[float]
    n_bytes: int | None  # of text that these tokens stand for; None: the tokenizer does not give the text back

    @property
    def loss(self) -> float:
        """Nats per token."""
        return math.fsum(self.nats) / len(self.nats)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """None where the tokens do not stand for the whole text."""
        return None if self.n_bytes is None else math.fsum(self.nats) / math.log(2) / self.n_bytes


def score(model: LanguageModel, tokenizer: Tokenizer, text: str) -> Score:
    """Score a text of any length over the model's whole vocabulary, as training does.

    The first token is predicted from the tokenizer's beginning-of-text token, else from its end-of-text token; without
    either it is context alone. Beyond the context the window moves by half of it, so that every later token is
    predicted from at least half a context. UserError where there is no token to predict.
    """
    ids = tokenizer.encode(text).tolist()
    lost = not tokenizer.is_lossless and lost_text(text, tokenizer.decode(ids))
    skipped, before = 0, list(tokenizer.beginning)
    if not before and tokenizer.eot is not None:
        before = [tokenizer.eot]
    if not before and ids:
        before, ids = ids[:1], ids[1:]
        skipped = len(tokenizer.decode(before).encode())
    if not ids:
        raise UserError("the text has no token to predict; give a longer one")
    nats = token_nats(model, [*before, *ids])[len(before) - 1 :]
    return Score(ids, nats, None if lost else len(text.encode()) - skipped)


def token_nats(model: LanguageModel, ids: Sequence[int]) -> list[float]:
    """-log p of each token but the first, given those before it in its window; UserError for a non-causal model."""
    return torch.cat([*strided_nats(model, ids), torch.empty(0)]).tolist()


def strided_nats(
    model: LanguageModel,
    ids: Sequence[int] | np.ndarray,
    *,
    stride: int | None = None,
    context_length: int | None = None,
    separator: int | None = None,
) -> Iterator[Tensor]:
    """-log p of each token but the first, in their order and each once, a batch at a time.

    The window moves by `stride` (None: half the context, rounded up) and its new tokens are scored. So each token is
    predicted from at least `context_length - stride` tokens (None: the model's context), where there are so many before
    it. With a `separator`, the token that ends each document, attention is confined to a document, in which positions
    begin at 0: as a model reads that was trained so. UserError for a model that is not causal.
    """
    if Capability.causal not in model.config.capabilities:
        raise UserError(
            f"a model of type {model.config.type} does not predict the next token of a text; use one with the "
            "capability causal"
        )
    context_length = context_length or model.config.context_length
    stride = stride or context_length - context_length // 2
    ids = np.asarray(ids)
    batch: list[Continuation] = []
    done = 1  # tokens that are scored, and the first, which never is
    while done < len(ids):
        n_new = context_length if done == 1 else stride
        context = ids[max(0, done + stride - 1 - context_length) if done > 1 else 0 : done]
        batch.append(Continuation(context.tolist(), ids[done : done + n_new].tolist()))
        done += n_new
        if done >= len(ids) or (len(batch) + 1) * context_length > BATCH_TOKENS:
            yield torch.cat([found.nats for found in _score_batch(model, batch, separator)])
            batch = []


class Continuation(NamedTuple):
    """Tokens to score and the context that they follow; of an encoder-decoder the context is what its encoder reads."""

    context: Sequence[int]
    tokens: Sequence[int]


class ContinuationScore(NamedTuple):
    """The log-likelihood of a continuation."""

    nats: Tensor  # -log p of each of its tokens (T), on the CPU
    is_greedy: bool  # whether each was the most likely token at its position


def score_continuations(
    model: LanguageModel, continuations: Sequence[Continuation], advance: Callable[[int], None] = lambda n: None
) -> list[ContinuationScore]:
    """Score each continuation given its context, over the model's whole vocabulary.

    Those of similar length are batched. `advance` is called with how many were done since its last call.
    """
    lengths = [len(one.context) + len(one.tokens) for one in continuations]
    order = sorted(range(len(continuations)), key=lambda i: -lengths[i])
    scores: list[ContinuationScore | None] = [None] * len(continuations)
    while order:
        size = max(1, BATCH_TOKENS // lengths[order[0]])
        batch, order = order[:size], order[size:]
        for i, found in zip(batch, _score_batch(model, [continuations[i] for i in batch]), strict=True):
            scores[i] = found
        advance(len(batch))
    return [found for found in scores if found is not None]


@torch.no_grad()
def _score_batch(
    model: LanguageModel, batch: Sequence[Continuation], separator: int | None = None
) -> list[ContinuationScore]:
    device = next(model.parameters()).device
    if has_encoder(model):
        read = [[model.config.decoder_start_token_id, *one.tokens[:-1]] for one in batch]
        source, mask = pad([one.context for one in batch], device)
        beside = {"source": source, "source_mask": None if mask.all() else mask}
    else:
        # Padding is on the right: no earlier position depends on it.
        read, beside = [[*one.context, *one.tokens[:-1]] for one in batch], {}
    tokens = pad(read, device)[0]
    if separator is not None:
        ends = tokens == separator
        beside["document_ids"] = ends.cumsum(-1) - ends.long()
    hidden = model.hidden_states(tokens, **beside)  # (B, T, D)
    lengths = [len(one.tokens) for one in batch]
    ends = [(i, len(tokens)) for i, tokens in enumerate(read)]
    positions = [(i, at) for (i, end), n in zip(ends, lengths, strict=True) for at in range(end - n, end)]
    indices, columns = torch.tensor(positions, device=device).T
    scored = hidden[indices, columns]  # (N, D)
    labels = torch.tensor([token for one in batch for token in one.tokens], device=device)  # (N)
    nats, greedy, head = [], [], model.head
    for part, targets in zip(scored.split(CHUNK_POSITIONS), labels.split(CHUNK_POSITIONS), strict=True):
        log_p = torch.log_softmax(head.logits(part).float(), -1)
        nats.append(-log_p.gather(1, targets[:, None])[:, 0])
        greedy.append(log_p.argmax(-1) == targets)
    nats, greedy = torch.cat(nats).cpu().split(lengths), torch.cat(greedy).cpu().split(lengths)
    return [ContinuationScore(own, bool(best.all())) for own, best in zip(nats, greedy, strict=True)]
