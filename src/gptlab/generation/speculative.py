"""Speculative decoding: a small model proposes, the large one decides."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gptlab.errors import UserError
from gptlab.generation.config import NUM_DRAFT_TOKENS
from gptlab.generation.decode import Draw, add_stages, annotate
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.prompt import WRITES
from gptlab.generation.sampling import Sampling
from gptlab.models.base import LanguageModel


@torch.no_grad()
def check_draft(target: LanguageModel, draft: LanguageModel, vocab_size: int, what: str = "draft_model") -> None:
    """Refuse a draft model with another capability than the target's, or without part of its vocabulary, of which the
    first `vocab_size` tokens count; `what` names it in the error."""
    kinds = [WRITES & model.config.capabilities for model in (target, draft)]
    if kinds[0] != kinds[1]:
        names = [" and ".join(sorted(capability.value for capability in kind)) or "none" for kind in kinds]
        raise UserError(f"{what} is a {names[1]} model and the model a {names[0]} one; use two of the same capability")
    sizes = [DecodingState(model, [[0]], vocab_size=vocab_size).logits.shape[-1] for model in (target, draft)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{what} has a vocabulary of {sizes[1]:,} and the model one of {sizes[0]:,}; use two trained with the same "
            "tokenizer"
        )


@torch.no_grad()
def speculate(
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    num_draft_tokens: int = NUM_DRAFT_TOKENS,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
    n_top: int | None = None,
    n_stages: int | None = None,
) -> Iterator[Draw]:
    """Draw up to `max_new_tokens` with exactly the distribution of `target` alone (arXiv:2211.17192, section 2.3).

    Each round the draft model proposes up to `num_draft_tokens` tokens, which the target scores in one forward pass. A
    proposal x is accepted with probability min(1, p(x) / q(x)); the first that is rejected is replaced by a draw from
    the normalized max(0, p - q). The window over a sequence is `window_start`'s, for each model by its own context.
    """
    options = {"n_more": max_new_tokens + num_draft_tokens, "vocab_size": vocab_size}
    state, proposer = DecodingState(target, [prompt], **options), DecodingState(draft, [prompt], **options)

    def probabilities(logits: Tensor, seen: list[int]) -> Tensor:
        return sampling.probabilities(logits[None], [seen])[0]

    def draw(weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=generator))

    def result(token: int, logits: Tensor) -> Draw:
        chosen = [Draw(0, token)]
        if n_top is not None:
            annotate(chosen, logits[None], n_top)
        if n_stages is not None:
            add_stages(chosen, logits[None], sampling, [sequence], n_stages)
        return chosen[0]

    sequence = list(state.sequences[0])
    if max_new_tokens < 1:
        return
    newest = draw(probabilities(state.logits[0], sequence))
    yield result(newest, state.logits[0])
    sequence.append(newest)
    left = max_new_tokens - 1
    while left:
        proposals, offers = [], []
        proposer.extend(sequence[len(proposer.sequences[0]) :])
        for i in range(min(num_draft_tokens, left - 1)):
            if i:
                proposer.append(proposals[-1:])
            offers.append(probabilities(proposer.logits[0], sequence + proposals))
            proposals.append(draw(offers[-1]))
        logits = state.extend([newest, *proposals])  # (1 + proposals, V)
        for i in range(len(proposals) + 1):
            p = probabilities(logits[i], sequence)
            if i == len(proposals):  # all were accepted: one more comes for free
                newest, accepted = draw(p), False
            else:
                q, proposed = offers[i], proposals[i]
                chance = torch.rand((), generator=generator, device=p.device)
                accepted = bool(chance * q[proposed] < p[proposed])
                rest = (p - q).clamp_(min=0)
                # Where rounding leaves nothing, p and q are one distribution.
                newest = proposed if accepted else draw(rest if rest.sum() > 0 else p)
            yield result(newest, logits[i])
            sequence.append(newest)
            left -= 1
            if not accepted:
                break
        for own in (state, proposer):
            own.truncate(min(len(own.sequences[0]), len(sequence) - 1))
