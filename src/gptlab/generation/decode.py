"""Continuing prompts token by token."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.sampling import Sampling


@dataclass(slots=True)
class Draw:
    """A token that was chosen for a row, its log-probability and those of the most likely words, by the model alone.

    That is before temperature and filters; both are left out where they were not asked for.
    """

    row: int
    token: int
    log_p: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


def seeded(seed: int, n_rows: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    """A generator for each row, so that what a row draws does not depend on the rows beside it."""
    seeds = torch.randint(2**62, (n_rows,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.Generator(device).manual_seed(row_seed) for row_seed in seeds]


def choose(logits: Tensor, sampling: Sampling, seen: Sequence[Sequence[int]], generators: Sequence) -> list[int]:
    """One token a row of logits (B, V); a generator of None is torch's global one."""
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return logits.argmax(-1).tolist()
    probabilities = sampling.probabilities(logits, seen)
    pairs = zip(probabilities, generators, strict=True)
    return [int(torch.multinomial(row, 1, generator=generator)) for row, generator in pairs]


@torch.no_grad()  # not inference_mode, whose tensors no later training step may use
def decode(
    reader: DecodingState,
    n_tokens: int,
    sampling: Sampling,
    *,
    generators: Sequence[torch.Generator | None] | None = None,
    ends: Callable[[int, int], bool] | None = None,
    n_top: int | None = None,
) -> Iterator[list[Draw]]:
    """Draw up to `n_tokens` for each sequence of `reader`; yields the newest draw of each row that goes on.

    `ends(row, token)` says, once for each draw, whether the row ends with it. Rows are numbered as they were given.
    `n_top` asks for log-probabilities, and for those of so many of the most likely words.
    """
    rows = list(range(len(reader.sequences)))
    generators = list(generators) if generators is not None else [None] * len(rows)
    for left in range(n_tokens, 0, -1):
        tokens = choose(reader.logits, sampling, reader.sequences, [generators[row] for row in rows])
        draws = [Draw(row, token) for row, token in zip(rows, tokens, strict=True)]
        if n_top is not None:
            annotate(draws, reader.logits, n_top)
        yield draws
        going = [i for i, draw in enumerate(draws) if ends is None or not ends(draw.row, draw.token)]
        if not going or left == 1:
            return
        if len(going) < len(rows):
            reader.select(going)
            rows, tokens = [rows[i] for i in going], [tokens[i] for i in going]
        reader.append(tokens)


def annotate(draws: list[Draw], logits: Tensor, n_top: int) -> None:
    """Write into each draw its log-probability and the most likely words', of the logits (B, V) it was drawn from."""
    log_p = torch.log_softmax(logits.float(), -1)
    best = log_p.topk(min(n_top, log_p.shape[-1]))
    for i, draw in enumerate(draws):
        draw.log_p = log_p[i, draw.token].item()
        draw.top = list(zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True))


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: Tensor,
    n_tokens: int,
    *,
    context_length: int | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts of one length: tokens (B, T) -> (B, T + n_tokens); an encoder-decoder's answers begin anew.

    Past `context_length` (None: the model's) the window moves as `window_start` says. Of the model's rows only the
    first `vocab_size` are drawn (None: all): a tokenizer may have fewer words.
    """
    sampling = Sampling(temperature=temperature)
    sampling.check()
    reader = DecodingState(
        model, tokens.tolist(), n_more=n_tokens, context_length=context_length, vocab_size=vocab_size
    )
    drawn = [
        [draw.token for draw in draws]
        for draws in decode(reader, n_tokens, sampling, generators=[generator] * len(tokens))
    ]
    answers = tokens.new_tensor(drawn).view(n_tokens, len(tokens)).T  # (B, n_tokens)
    return torch.cat((tokens, answers), 1) if reader.memory is None else answers
