"""Beam search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gptlab.errors import UserError
from gptlab.generation.decoding_state import DecodingState


@dataclass(slots=True)
class Beam:
    """What beam search found: the tokens after the prompt and their score."""

    tokens: list[int]
    score: float  # log-probability / len(tokens)^length_penalty


@torch.no_grad()
def beam_search(
    model: nn.Module,
    prompt: Sequence[int],
    n_tokens: int,
    *,
    n_beams: int,
    length_penalty: float = 1.0,
    n_best: int = 1,
    ends: Callable[[list[int]], bool] | None = None,
    context_length: int | None = None,
    vocab_size: int | None = None,
    cached: bool = True,
) -> list[Beam]:
    """The `n_best` most likely continuations that a search with `n_beams` finds, best first.

    `ends(tokens)` says whether a continuation is complete. The search ends when `n_beams` are complete and the best of
    those still growing, scored as if it ended now, is no better than the worst of them: transformers' default.
    """
    if n_beams < 1:
        raise UserError(f"beams={n_beams} is below 1; use at least 1")
    if n_best > n_beams:
        raise UserError(f"n_samples={n_best} is more than beams={n_beams} can give; raise beams")
    reader = DecodingState(
        model, [prompt], n_more=n_tokens, context_length=context_length, vocab_size=vocab_size, cached=cached
    )
    growing, complete = [Beam([], 0.0)], []  # the score of a growing one is its log-probability
    for length in range(1, n_tokens + 1):
        log_p = torch.log_softmax(reader.logits.float(), -1)  # (n growing, V)
        totals = log_p + log_p.new_tensor([beam.score for beam in growing])[:, None]
        best = totals.flatten().topk(min(2 * n_beams, totals.numel()))
        candidates, growing_next, parents = [], [], []
        for total, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            parent, token = divmod(index, log_p.shape[1])
            candidates.append((parent, Beam([*growing[parent].tokens, token], total)))
        for rank, (parent, beam) in enumerate(candidates):
            if length == n_tokens or (ends is not None and ends(beam.tokens)):
                if rank < n_beams:  # the others are there to go on with
                    complete.append(Beam(beam.tokens, beam.score / length**length_penalty))
            elif len(growing_next) < n_beams:
                growing_next.append(beam)
                parents.append(parent)
        complete = sorted(complete, key=lambda beam: -beam.score)[:n_beams]
        if not growing_next:
            break
        full = len(complete) == n_beams
        if full and growing_next[0].score / length**length_penalty <= complete[-1].score:
            break
        growing = growing_next
        reader.select(parents)
        reader.append([beam.tokens[-1] for beam in growing])
    return complete[:n_best]
