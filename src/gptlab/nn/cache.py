"""Key-value cache: keys and values of positions that were read before."""

from typing import Any

import torch
from torch import Tensor

from gptlab.errors import UserError
from gptlab.nn.mask import causal_band


class LayerCache:
    """One layer's keys and values, each (B, G, S_max, K), written in place; Attention needs `extend` alone."""

    def __init__(self, cache: "KVCache"):
        self.cache = cache
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store those of the positions being read, (B, T, G, K) each, and return all so far, (B, G, S, K) each."""
        if (
            self.keys is None or self.values is None
        ):  # only now is their dtype known: under autocast it is not the weights'
            self.keys, self.values = self._allocate(keys), self._allocate(values)
        cache = self.cache
        for held, new in ((self.keys, keys), (self.values, values)):
            if cache.uniform:
                held[:, :, cache.columns] = new.transpose(1, 2)
            else:
                held[cache.sequences, :, cache.columns] = new  # each sequence at its own positions
        return self.keys[:, :, : cache.end], self.values[:, :, : cache.end]

    def _allocate(self, like: Tensor) -> Tensor:
        batch, _, groups, width = like.shape
        # Zeros, not garbage: what is masked is still multiplied by 0, and 0 times NaN is NaN.
        return like.new_zeros(batch, groups, self.cache.n_positions, width)


class KVCache:
    """Keys and values of every layer for a batch of sequences, allocated once for `n_positions` each.

    Sequences are left-aligned: sequence b holds positions 0 to lengths[b] - 1. `read` decides where the next tokens go,
    before the layers run; `lengths` may be lowered at any time, which forgets the later positions.
    """

    def __init__(self, n_layer: int, *, batch_size: int, n_positions: int):
        self.n_positions = n_positions
        self.lengths = [0] * batch_size
        self.layers = [LayerCache(self) for _ in range(n_layer)]
        self.positions: Tensor  # of the tokens being read: (T,), or (B, T) where sequences differ in length

    def read(self, n_tokens: int, device: torch.device) -> None:
        """Reserve positions for the next `n_tokens` of each sequence; UserError where they do not fit."""
        starts = self.lengths
        longest = max(starts)
        self.end = longest + n_tokens
        if self.end > self.n_positions:
            raise UserError(f"{self.end} tokens do not fit a cache of {self.n_positions} positions; read fewer")
        self.uniform = min(starts) == longest
        if self.uniform:
            self.positions = torch.arange(longest, self.end, device=device)
            self.columns = slice(longest, self.end)
        else:
            first = torch.tensor(starts, device=device)
            self.positions = first[:, None] + torch.arange(n_tokens, device=device)  # (B, T)
            self.sequences, self.columns = torch.arange(len(starts), device=device)[:, None], self.positions
        self.n_tokens = n_tokens
        self.lengths = [start + n_tokens for start in starts]
        self._masks: dict[int | None, Tensor] = {}

    def attention_mask_args(self, layer: int, window: int | None) -> dict[str, Any]:
        """Arguments of that layer's `Attention`; a query attends to `window` positions with its own (None: to all)."""
        if self.uniform and (window is None or window >= self.end):
            if self.n_tokens == self.end:
                return {"cache": self.layers[layer], "causal": True}
            if self.n_tokens == 1:
                return {"cache": self.layers[layer]}
        if window not in self._masks:  # layers with the same window share one
            keys = torch.arange(self.end, device=self.positions.device)
            mask = causal_band(self.positions, keys, self.end if window is None else window)
            self._masks[window] = mask if mask.ndim == 2 else mask[:, None]  # (B, 1, T, S)
        return {"cache": self.layers[layer], "mask": self._masks[window]}

    def select(self, indices: list[int]) -> None:
        """Keep these sequences of the batch: fewer, in another order, or one several times."""
        if indices == list(range(len(self.lengths))):
            return
        self.lengths = [self.lengths[i] for i in indices]
        longest = max(self.lengths, default=0)
        for layer in self.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                if held is None:
                    continue
                chosen = held[:, :, :longest].index_select(0, torch.tensor(indices, device=held.device))
                if len(indices) != len(held):
                    held = held.new_zeros(len(indices), *held.shape[1:])
                    setattr(layer, name, held)
                held[:, :, :longest] = chosen

    def take(self, indices: list[int], other: "KVCache") -> None:
        """Replace these sequences by those of another cache of the same model."""
        for own, theirs in zip(self.layers, other.layers, strict=True):
            if theirs.keys is not None and theirs.values is not None:
                assert own.keys is not None and own.values is not None  # it holds these sequences already
                end = max(other.lengths)
                own.keys[indices, :, :end] = theirs.keys[:, :, :end]
                own.values[indices, :, :end] = theirs.values[:, :, :end]
        for i, length in zip(indices, other.lengths, strict=True):
            self.lengths[i] = length
