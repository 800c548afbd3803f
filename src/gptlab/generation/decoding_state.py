"""Incremental decoding: the logits after the newest token of each sequence, with a key-value cache or without."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import UserError
from gptlab.generation.prompt import has_encoder, pad
from gptlab.models.base import LanguageModel
from gptlab.nn.cache import KVCache


def window_start(n_tokens: int, context_length: int) -> int:
    """Where the window that a model reads of a sequence begins.

    The window grows to `context_length` tokens. The next token makes it begin again with the last
    `context_length // 2`, at position 0: every position is computed as in training, for every kind of position.
    """
    kept = max(1, context_length // 2)
    shift = context_length + 1 - kept
    return max(0, -(-(n_tokens - context_length) // shift)) * shift


class DecodingState:
    """A batch of sequences of any lengths and the logits (B, V) of the token after each.

    `n_more` bounds how many tokens will be appended, and with it the size of the cache (None: a whole context).
    Without a cache, or with a model that has none, each token costs a forward pass over its whole window. Logits cover
    the first `vocab_size` tokens of the vocabulary (None: all that the model has).

    The model needs `config`, `hidden_states(tokens)` and `head`; with a cache also `new_cache(batch_size, n_positions)`
    and `hidden_states(tokens, cache=...)`. An encoder-decoder encodes the prompts once, with `encode(tokens, mask)`:
    the sequences are then the decoder's, from its start token on. Positions are relative there, so `n_more` may go
    beyond the context.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        *,
        n_more: int | None = None,
        context_length: int | None = None,
        vocab_size: int | None = None,
        cached: bool = True,
    ):
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise UserError("the prompt has no tokens; give it at least one")
        self.model = model
        self.vocab_size = vocab_size
        self.context_length = context_length or model.config.context_length
        self.device = next(model.parameters()).device
        self.source: Any = None  # what `encode` made of the prompts
        if has_encoder(model):
            tokens, mask = pad(prompts, self.device)  # (B, S)
            self.source = model.encode(tokens, None if mask.all() else mask)
            prompts = [[model.config.decoder_start_token_id]] * len(prompts)
            self.context_length = context_length or max(self.context_length, 1 + (n_more or 0))
        self.sequences = [list(prompt) for prompt in prompts]
        self.starts = self._window_starts()
        self.cache = None
        if cached:
            n_positions = self.context_length
            if n_more is not None:
                n_positions = min(n_positions, max(len(prompt) for prompt in prompts) + n_more)
            self.cache = model.new_cache(len(prompts), n_positions)
        self.logits = self._prefill(self._windows(), self.cache)

    def append(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each sequence; returns the new logits."""
        for sequence, token in zip(self.sequences, tokens, strict=True):
            sequence.append(token)
        before, self.starts = self.starts, self._window_starts()
        if self.cache is None:
            self.logits = self._prefill(self._windows(), None)
            return self.logits
        moved = [i for i, start in enumerate(self.starts) if start != before[i]]
        if moved:
            self._slide(moved, self.cache)
        newest = torch.tensor(tokens, device=self.device)[:, None]  # (B, 1)
        self.logits = self._score(self._hidden_states(newest, self.cache)[:, -1])
        return self.logits

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Append several tokens to the only sequence, in one forward pass where its window holds them: logits (T, V)
        after each."""
        n_tokens = len(self.sequences[0]) + len(tokens)
        if window_start(n_tokens, self.context_length) != self.starts[0]:
            return torch.cat([self.append([token]) for token in tokens])
        self.sequences[0].extend(tokens)
        if self.cache is None:
            window = torch.tensor(self._windows(), device=self.device)
            hidden = self._hidden_states(window, None)[0, -len(tokens) :]
        else:
            hidden = self._hidden_states(torch.tensor([tokens], device=self.device), self.cache)[0]
        logits = self._score(hidden)
        self.logits = logits[-1:]
        return logits

    def truncate(self, n_tokens: int) -> None:
        """Keep the first `n_tokens` of the only sequence; `logits` stay as they are until a token is appended."""
        if n_tokens == len(self.sequences[0]):
            return
        del self.sequences[0][n_tokens:]
        before, self.starts = self.starts, self._window_starts()
        if self.cache is None:
            return
        if self.starts == before:
            self.cache.lengths = [n_tokens - self.starts[0]]
        else:  # the cache no longer holds the window from before it moved
            self.cache.lengths = [0]
            self._prefill(self._windows(), self.cache)

    def select(self, indices: Sequence[int]) -> None:
        """Keep these sequences of the batch: fewer, in another order, or several times the same."""
        indices = list(indices)
        self.sequences = [list(self.sequences[i]) for i in indices]
        self.starts = [self.starts[i] for i in indices]
        self.logits = self.logits[indices]
        if self.cache is not None:
            self.cache.select(indices)
        if self.source is not None:
            self.source = self.source.select(indices)

    def _window_starts(self) -> list[int]:
        return [window_start(len(sequence), self.context_length) for sequence in self.sequences]

    def _windows(self) -> list[list[int]]:
        return [sequence[start:] for sequence, start in zip(self.sequences, self.starts, strict=True)]

    def _slide(self, indices: list[int], cache: KVCache) -> None:
        """Fill the cache again with the windows of these sequences, without their newest token."""
        windows = [self.sequences[i][self.starts[i] : -1] for i in indices]
        whole = len(indices) == len(self.sequences)
        if not windows[0]:  # a window of one token: they are all as long
            for i in indices:
                cache.lengths[i] = 0
            return
        if whole:
            cache.lengths = [0] * len(indices)
            part = cache
        else:
            part = self.model.new_cache(len(indices), len(windows[0]))
            assert part is not None
        self._hidden_states(torch.tensor(windows, device=self.device), part)
        if not whole:
            cache.take(indices, part)

    def _prefill(self, windows: list[list[int]], cache: KVCache | None) -> Tensor:
        # Padding is on the right: no earlier position depends on it, and the cache forgets it.
        tokens, mask = pad(windows, self.device)
        hidden = self._hidden_states(tokens, cache)
        if cache is not None:
            cache.lengths = [len(window) for window in windows]
        return self._score(hidden[torch.arange(len(windows), device=self.device), mask.sum(1) - 1])

    def _hidden_states(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        options: dict[str, Any] = {} if cache is None else {"cache": cache}
        if self.source is not None:
            options["source"] = self.source
        return self.model.hidden_states(tokens, **options)  # (B, T, D)

    def _score(self, hidden: Tensor) -> Tensor:
        return self.model.head.logits(hidden)[..., : self.vocab_size]  # (..., V)
