"""Decoding loop: continues prompts token by token."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.sampling import Sampling
from gptlab.models.base import LanguageModel


@dataclass(slots=True)
class Draw:
    """A token chosen for a sequence, its log-probability and the most likely tokens with theirs.

    Log-probabilities are the model's own, before temperature and filters; None and empty where not asked for. `stages`
    has probabilities of the chosen token and the most likely ones after each setting, as `Sampling.stages` names them.
    """

    index: int  # of the sequence in the batch, as it was given
    token: int
    log_p: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    stages: dict[str, dict[int, float]] = field(default_factory=dict)


def seeded(seed: int, n_sequences: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """A generator for each sequence, so that what it draws does not depend on the rest of the batch."""
    seeds = torch.randint(2**62, (n_sequences,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.Generator(device).manual_seed(own) for own in seeds]


def choose(logits: Tensor, sampling: Sampling, seen: Sequence[Sequence[int]], generators: Sequence) -> list[int]:
    """One token for each sequence, from logits (B, V); a generator of None is torch's global one."""
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return logits.argmax(-1).tolist()
    probabilities = sampling.probabilities(logits, seen)
    pairs = zip(probabilities, generators, strict=True)
    return [int(torch.multinomial(p, 1, generator=generator)) for p, generator in pairs]


@torch.no_grad()  # not inference_mode, whose tensors no later training step may use
def decode(
    state: DecodingState,
    max_new_tokens: int,
    sampling: Sampling,
    *,
    generators: Sequence[torch.Generator | None] | None = None,
    ends: Callable[[int, int], bool] | None = None,
    n_top: int | None = None,
    n_stages: int | None = None,
) -> Iterator[list[Draw]]:
    """Draw up to `max_new_tokens` for each sequence of `state`; yields the newest draw of each unfinished sequence.

    `ends(index, token)` is asked once for each draw whether the sequence ends with it. Sequences keep the index that
    they were given with. `n_top` asks for log-probabilities, also of so many most likely tokens, and `n_stages` for the
    probabilities of so many after each setting.
    """
    indices = list(range(len(state.sequences)))
    generators = list(generators) if generators is not None else [None] * len(indices)
    for left in range(max_new_tokens, 0, -1):
        tokens = choose(state.logits, sampling, state.sequences, [generators[i] for i in indices])
        draws = [Draw(i, token) for i, token in zip(indices, tokens, strict=True)]
        if n_top is not None:
            annotate(draws, state.logits, n_top)
        if n_stages is not None:
            add_stages(draws, state.logits, sampling, state.sequences, n_stages)
        yield draws
        unfinished = [i for i, draw in enumerate(draws) if ends is None or not ends(draw.index, draw.token)]
        if not unfinished or left == 1:
            return
        if len(unfinished) < len(indices):
            state.select(unfinished)
            indices, tokens = [indices[i] for i in unfinished], [tokens[i] for i in unfinished]
        state.append(tokens)


def annotate(draws: list[Draw], logits: Tensor, n_top: int) -> None:
    """Add to each draw its log-probability and the most likely tokens, of the logits (B, V) it was drawn from."""
    log_p = torch.log_softmax(logits.float(), -1)
    best = log_p.topk(min(n_top, log_p.shape[-1]))
    for i, draw in enumerate(draws):
        draw.log_p = log_p[i, draw.token].item()
        draw.top = list(zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True))


def add_stages(
    draws: list[Draw], logits: Tensor, sampling: Sampling, seen: Sequence[Sequence[int]], n_tokens: int
) -> None:
    """Add to each draw the probabilities of its token and of the `n_tokens` most likely ones of the model.

    Before and after each setting, of the logits (B, V) that the draw was made from.
    """
    stages = [(name, torch.softmax(values, -1)) for name, values in sampling.stages(logits, seen)]
    best = stages[0][1].topk(min(n_tokens, logits.shape[-1])).indices.tolist()
    for i, draw in enumerate(draws):
        shown = [*best[i], *[draw.token] * (draw.token not in best[i])]
        for name, probabilities in stages:
            draw.stages[name] = dict(zip(shown, probabilities[i, shown].tolist(), strict=True))


@torch.no_grad()
def generate_tokens(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    context_length: int | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts of one length: tokens (B, T) -> (B, T + max_new_tokens).

    Of an encoder-decoder it gives the decoder's tokens alone, (B, max_new_tokens). Beyond `context_length` (None: the
    model's) the window moves as in `window_start`. Only the first `vocab_size` tokens of the vocabulary are drawn
    (None: all): a tokenizer may have fewer than the model.
    """
    sampling = Sampling(temperature=temperature)
    state = DecodingState(
        model, tokens.tolist(), n_more=max_new_tokens, context_length=context_length, vocab_size=vocab_size
    )
    drawn = [
        [draw.token for draw in draws]
        for draws in decode(state, max_new_tokens, sampling, generators=[generator] * len(tokens))
    ]
    new = tokens.new_tensor(drawn).view(max_new_tokens, len(tokens)).T  # (B, max_new_tokens)
    return torch.cat((tokens, new), 1) if state.source is None else new
