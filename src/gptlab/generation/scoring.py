"""How likely a model finds a given text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.models.decoder.config import DecoderConfig

CHUNK_POSITIONS = 256  # whose logits are held at a time
BATCH_TOKENS = 16_384  # read in one forward pass


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
        raise UserError("the text has no token to predict; give a longer one")
    nats = token_nats(model, [*before, *ids])[len(before) - 1 :]
    return Score(ids, nats, len(text.encode()) - skipped)


def token_nats(model: nn.Module, ids: Sequence[int]) -> list[float]:
    """-log p of each token but the first, given those before it in its window; ValueError where no decoder reads it."""
    return torch.cat([*strided_nats(model, ids), torch.empty(0)]).tolist()


def strided_nats(
    model: nn.Module, ids: Sequence[int] | np.ndarray, *, stride: int | None = None, context_length: int | None = None
) -> Iterator[Tensor]:
    """-log p of each token but the first, in their order and each once, a batch at a time.

    The window moves by `stride` (None: half the context, rounded up) and what is new in it is scored. So each token is
    predicted from `context_length - stride` tokens at least (None: the model's context), as far as there are so many
    before it. ValueError where no decoder reads it.
    """
    if not isinstance(model.config, DecoderConfig):
        raise UserError(f"a model of model.type={model.config.type} does not predict a text; use a decoder")
    context_length = context_length or model.config.context_length
    stride = stride or context_length - context_length // 2
    ids = np.asarray(ids)
    batch: list[Continuation] = []
    done = 1  # tokens that are scored, or never are
    while done < len(ids):
        n_new = context_length if done == 1 else stride
        context = ids[max(0, done + stride - 1 - context_length) if done > 1 else 0 : done]
        batch.append(Continuation(context.tolist(), ids[done : done + n_new].tolist()))
        done += n_new
        if done >= len(ids) or (len(batch) + 1) * context_length > BATCH_TOKENS:
            yield torch.cat([cost.nats for cost in _costs(model, batch)])
            batch = []


class Continuation(NamedTuple):
    """Tokens to score, and those that a model has read before: a decoder goes on from them, an encoder reads them."""

    context: Sequence[int]
    tokens: Sequence[int]


class Cost(NamedTuple):
    """What a continuation cost."""

    nats: Tensor  # -log p of each of its tokens (T), on the CPU
    is_greedy: bool  # whether each was the most likely word at its place


def continuation_costs(
    model: nn.Module, continuations: Sequence[Continuation], advance: Callable[[int], None] = lambda n: None
) -> list[Cost]:
    """What each continuation costs after its context, by all of the model's rows.

    Those of similar length are read together. `advance` is called with how many are done since its last call.
    """
    lengths = [len(one.context) + len(one.tokens) for one in continuations]
    order = sorted(range(len(continuations)), key=lambda i: -lengths[i])
    costs: list[Cost] = [None] * len(continuations)
    while order:
        n_rows = max(1, BATCH_TOKENS // lengths[order[0]])
        rows, order = order[:n_rows], order[n_rows:]
        for row, cost in zip(rows, _costs(model, [continuations[row] for row in rows]), strict=True):
            costs[row] = cost
        advance(len(rows))
    return costs


@torch.no_grad()
def _costs(model: nn.Module, batch: Sequence[Continuation]) -> list[Cost]:
    device = next(model.parameters()).device
    if hasattr(model, "encode"):
        read = [[model.config.decoder_start_token_id, *one.tokens[:-1]] for one in batch]
        source, filled = _filled_up([one.context for one in batch], device)
        beside = {"source": source, "source_mask": None if filled.all() else filled}
    else:
        # Rows are filled up at their ends, where no position before looks.
        read, beside = [[*one.context, *one.tokens[:-1]] for one in batch], {}
    hidden = model.hidden_states(_filled_up(read, device)[0], **beside)  # (B, T, D)
    lengths = [len(one.tokens) for one in batch]
    ends = [(row, len(tokens)) for row, tokens in enumerate(read)]
    places = [(row, at) for (row, end), n in zip(ends, lengths, strict=True) for at in range(end - n, end)]
    rows, columns = torch.tensor(places, device=device).T
    scored = hidden[rows, columns]  # (N, D)
    words = torch.tensor([word for one in batch for word in one.tokens], device=device)  # (N)
    nats, greedy, output = [], [], model.head
    for part, targets in zip(scored.split(CHUNK_POSITIONS), words.split(CHUNK_POSITIONS), strict=True):
        log_p = torch.log_softmax(output.logits(part).float(), -1)
        nats.append(-log_p.gather(1, targets[:, None])[:, 0])
        greedy.append(log_p.argmax(-1) == targets)
    nats, greedy = torch.cat(nats).cpu().split(lengths), torch.cat(greedy).cpu().split(lengths)
    return [Cost(row, bool(best.all())) for row, best in zip(nats, greedy, strict=True)]


def _filled_up(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of any lengths as one tensor (B, T), and where it holds them (B, T)."""
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
