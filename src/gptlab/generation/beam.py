"""Beam search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptlab.generation.decoding_state import DecodingState
from gptlab.models.base import LanguageModel


@dataclass(slots=True)
class Beam:
    """A sequence that beam search found: the tokens after the prompt and their score."""

    tokens: list[int]
    score: float  # log-probability / len(tokens)^length_penalty


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    num_return_sequences: int = 1,
    ends: Callable[[list[int]], bool] | None = None,
    context_length: int | None = None,
    vocab_size: int | None = None,
    cached: bool = True,
) -> list[Beam]:
    """The `num_return_sequences` most likely continuations that a search with `num_beams` finds, best first.

    `ends(tokens)` tells whether a continuation is complete. The search ends when `num_beams` are complete and the best
    unfinished one, scored as if it ended now, is no better than the worst of them, as transformers has it by default.
    """
    if not 1 <= num_return_sequences <= num_beams:
        raise ValueError(f"num_return_sequences={num_return_sequences} must be 1 to num_beams={num_beams}")
    state = DecodingState(
        model, [prompt], n_more=max_new_tokens, context_length=context_length, vocab_size=vocab_size, cached=cached
    )
    unfinished, complete = [Beam([], 0.0)], []  # the score of an unfinished one is its log-probability
    for length in range(1, max_new_tokens + 1):
        log_p = torch.log_softmax(state.logits.float(), -1)  # (n unfinished, V)
        totals = log_p + log_p.new_tensor([beam.score for beam in unfinished])[:, None]
        best = totals.flatten().topk(min(2 * num_beams, totals.numel()))
        candidates, survivors, parents = [], [], []
        for total, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            parent, token = divmod(index, log_p.shape[1])
            candidates.append((parent, Beam([*unfinished[parent].tokens, token], total)))
        for rank, (parent, beam) in enumerate(candidates):
            if length == max_new_tokens or (ends is not None and ends(beam.tokens)):
                if rank < num_beams:  # the others are spare candidates
                    complete.append(Beam(beam.tokens, beam.score / length**length_penalty))
            elif len(survivors) < num_beams:
                survivors.append(beam)
                parents.append(parent)
        complete = sorted(complete, key=lambda beam: -beam.score)[:num_beams]
        if not survivors:
            break
        full = len(complete) == num_beams
        if full and survivors[0].score / length**length_penalty <= complete[-1].score:
            break
        unfinished = survivors
        state.select(parents)
        state.append([beam.tokens[-1] for beam in unfinished])
    return complete[:num_return_sequences]
