"""A model reading sequences: the logits after the newest token of each, with a cache or without."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.nn.cache import KVCache


def window_start(n_tokens: int, context_length: int) -> int:
    """Where the window that a model sees of a sequence begins.

    The window grows to `context_length` tokens. The next token makes it begin anew with the last
    `context_length // 2`, at position 0: every position is computed as in training, for every kind of position.
    """
    kept = max(1, context_length // 2)
    shift = context_length + 1 - kept
    return max(0, -(-(n_tokens - context_length) // shift)) * shift


class DecodingState:
    """A batch of sequences of any lengths and the logits (B, V) of the token after each.

    `n_more` bounds how many tokens will be appended, and with it the memory of the cache (None: a whole context).
    Without a cache each token costs its whole window. Logits cover the first `vocab_size` words (None: all rows).
    A model has `config`, `hidden(tokens, cache=...)` and `output`.

    One that can `encode` reads the prompts with its encoder, once: the sequences are then what its decoder writes, from
    the token that it begins with. Positions are relative there, so `n_more` may go beyond the context.
    """

    def __init__(
        self,
        model: nn.Module,
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
        self.memory = None
        if hasattr(model, "encode"):
            tokens, lengths = self._rows(prompts)
            filled = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]  # (B, S)
            self.memory = model.encode(tokens, None if filled.all() else filled)
            prompts = [[model.config.decoder_start_token_id]] * len(prompts)
            self.context_length = context_length or max(self.context_length, 1 + (n_more or 0))
        self.sequences = [list(prompt) for prompt in prompts]
        self.starts = self._window_starts()
        self.cache = None
        if cached:
            room = self.context_length
            if n_more is not None:
                room = min(room, max(len(prompt) for prompt in prompts) + n_more)
            self.cache = self._empty_cache(len(prompts), room)
        self.logits = self._encode(self._windows(), self.cache)

    def append(self, tokens: Sequence[int]) -> Tensor:
        """Read one token more of each sequence; returns the new logits."""
        for sequence, token in zip(self.sequences, tokens, strict=True):
            sequence.append(token)
        before, self.starts = self.starts, self._window_starts()
        if self.cache is None:
            self.logits = self._encode(self._windows(), None)
            return self.logits
        moved = [row for row, start in enumerate(self.starts) if start != before[row]]
        if moved:
            self._slide(moved)
        newest = torch.tensor(tokens, device=self.device)[:, None]  # (B, 1)
        self.logits = self._score(self._hidden(newest, self.cache)[:, -1])
        return self.logits

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Read several tokens of the only sequence, at once where its window holds them: logits (T, V) after each."""
        n_tokens = len(self.sequences[0]) + len(tokens)
        if self.cache is None or window_start(n_tokens, self.context_length) != self.starts[0]:
            return torch.cat([self.append([token]) for token in tokens])
        self.sequences[0].extend(tokens)
        logits = self._score(self._hidden(torch.tensor([tokens], device=self.device), self.cache)[0])
        self.logits = logits[-1:]
        return logits

    def truncate(self, n_tokens: int) -> None:
        """Forget what came after the first `n_tokens` of the only sequence; `logits` are those of before until more is
        read."""
        if n_tokens == len(self.sequences[0]):
            return
        del self.sequences[0][n_tokens:]
        before, self.starts = self.starts, self._window_starts()
        if self.cache is None:
            return
        if self.starts == before:
            self.cache.lengths = [n_tokens - self.starts[0]]
        else:  # what it read before its window moved is gone
            self.cache.lengths = [0]
            self._encode(self._windows(), self.cache)

    def select(self, rows: Sequence[int]) -> None:
        """Let the batch be these rows of itself: fewer, in another order, or several times the same."""
        rows = list(rows)
        self.sequences = [list(self.sequences[row]) for row in rows]
        self.starts = [self.starts[row] for row in rows]
        self.logits = self.logits[rows]
        if self.cache is not None:
            self.cache.select(rows)
        if self.memory is not None:
            self.memory = self.memory.select(rows)

    def _window_starts(self) -> list[int]:
        return [window_start(len(sequence), self.context_length) for sequence in self.sequences]

    def _windows(self) -> list[list[int]]:
        return [sequence[start:] for sequence, start in zip(self.sequences, self.starts, strict=True)]

    def _slide(self, rows: list[int]) -> None:
        """Put the windows of these rows, without their newest token, anew into the cache."""
        windows = [self.sequences[row][self.starts[row] : -1] for row in rows]
        whole = len(rows) == len(self.sequences)
        cache = self.cache
        if not windows[0]:  # a window of one token: they are all as long
            for row in rows:
                cache.lengths[row] = 0
            return
        if whole:
            cache.lengths = [0] * len(rows)
        else:
            cache = self._empty_cache(len(rows), len(windows[0]))
        self._hidden(torch.tensor(windows, device=self.device), cache)
        if not whole:
            self.cache.take(rows, cache)

    def _encode(self, windows: list[list[int]], cache: KVCache | None) -> Tensor:
        tokens, lengths = self._rows(windows)
        hidden = self._hidden(tokens, cache)
        if cache is not None:
            cache.lengths = [len(window) for window in windows]
        return self._score(hidden[torch.arange(len(windows), device=self.device), lengths - 1])

    def _rows(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T), and how many of them are each row's (B)."""
        longest = max(len(text) for text in texts)
        # Rows are filled up at their ends: no position before looks there, and the cache forgets it.
        tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self.device)
        return tokens, torch.tensor([len(text) for text in texts], device=self.device)

    def _hidden(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        options = {} if cache is None else {"cache": cache}
        if self.memory is not None:
            options["source"] = self.memory
        return self.model.hidden_states(tokens, **options)  # (B, T, D)

    def _empty_cache(self, batch_size: int, n_positions: int) -> KVCache:
        config = self.model.config
        n_layer = config.n_layer if self.memory is None else config.decoder_layers
        return KVCache(n_layer, batch_size=batch_size, n_positions=n_positions)

    def _score(self, hidden: Tensor) -> Tensor:
        return self.model.head.logits(hidden)[..., : self.vocab_size]  # (..., V)
