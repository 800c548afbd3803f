"""Drawing tokens from a model, one at a time."""

import torch
from torch import Tensor, nn


def next_token_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits (..., V) into probabilities (..., V); temperature 0 gives all of it to the likeliest word."""
    if temperature < 0:
        raise ValueError(f"temperature={temperature} is below 0; use 0 for the likeliest word, 1 for the model's own")
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, best, 1.0)
    return torch.softmax(logits.float() / temperature, -1)


@torch.no_grad()  # not inference_mode, whose tensors no later training step may use
def generate(
    model: nn.Module,
    tokens: Tensor,
    n_tokens: int,
    *,
    context_length: int,
    temperature: float = 1.0,
    n_words: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue a prompt: tokens (1, T) -> (1, T + n_tokens); the model sees the last `context_length` of them.

    Of the model's rows only the first `n_words` are drawn (null: all): a tokenizer may have fewer words.
    """
    if tokens.shape[-1] == 0:
        raise ValueError("the prompt has no tokens; give it at least one")
    for _ in range(n_tokens):
        hidden = model.hidden(tokens[:, -context_length:])[:, -1]  # (1, D)
        probabilities = next_token_probabilities(model.output.logits(hidden)[:, :n_words], temperature)  # (1, V)
        tokens = torch.cat((tokens, torch.multinomial(probabilities, 1, generator=generator)), 1)
    return tokens
