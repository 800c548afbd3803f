"""Speculative decoding: a small model proposes, the large one decides."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gptlab.generation.config import N_DRAFT
from gptlab.generation.decode import Draw, annotate
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.sampling import Sampling


@torch.no_grad()
def speculate(
    target: nn.Module,
    draft: nn.Module,
    prompt: Sequence[int],
    n_tokens: int,
    sampling: Sampling,
    *,
    n_draft: int = N_DRAFT,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
    n_top: int | None = None,
) -> Iterator[Draw]:
    """Draw up to `n_tokens` with exactly the distribution of `target` alone (arXiv:2211.17192, section 2.3).

    Each round the draft proposes up to `n_draft` tokens, which the target reads at once. A proposal x stands with
    probability min(1, p(x) / q(x)); the first that falls is replaced by a draw from what p has over q. Both models see
    a sequence as `window_start` says, each by its own context.
    """
    options = {"n_more": n_tokens + n_draft, "vocab_size": vocab_size}
    reader, proposer = DecodingState(target, [prompt], **options), DecodingState(draft, [prompt], **options)

    def probabilities(logits: Tensor, seen: list[int]) -> Tensor:
        return sampling.probabilities(logits[None], [seen])[0]

    def draw(weights: Tensor) -> int:
        return int(torch.multinomial(weights, 1, generator=generator))

    def result(token: int, logits: Tensor) -> Draw:
        chosen = [Draw(0, token)]
        if n_top is not None:
            annotate(chosen, logits[None], n_top)
        return chosen[0]

    sequence = list(reader.sequences[0])
    if n_tokens < 1:
        return
    newest = draw(probabilities(reader.logits[0], sequence))
    yield result(newest, reader.logits[0])
    sequence.append(newest)
    left = n_tokens - 1
    while left:
        proposals, offers = [], []
        proposer.extend(sequence[len(proposer.sequences[0]) :])
        for i in range(min(n_draft, left - 1)):
            if i:
                proposer.append(proposals[-1:])
            offers.append(probabilities(proposer.logits[0], sequence + proposals))
            proposals.append(draw(offers[-1]))
        logits = reader.extend([newest, *proposals])  # (1 + proposals, V)
        for i in range(len(proposals) + 1):
            p = probabilities(logits[i], sequence)
            if i == len(proposals):  # all stood: one more comes for free
                newest, stands = draw(p), False
            else:
                q, proposed = offers[i], proposals[i]
                chance = torch.rand((), generator=generator, device=p.device)
                stands = bool(chance * q[proposed] < p[proposed])
                rest = (p - q).clamp_(min=0)
                # Where rounding leaves nothing over, p and q are one distribution.
                newest = proposed if stands else draw(rest if rest.sum() > 0 else p)
            yield result(newest, logits[i])
            sequence.append(newest)
            left -= 1
            if not stands:
                break
        for model in (reader, proposer):
            model.truncate(min(len(model.sequences[0]), len(sequence) - 1))
