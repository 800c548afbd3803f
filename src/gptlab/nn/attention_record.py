"""Attention weights of unmodified modules, computed only where they are asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.nn.attention import Attention


@dataclass(slots=True)
class AttentionRecord:
    """What one call of an `Attention` computed, in float32; grouped keys are repeated for each query head."""

    name: str  # of the module in the model
    queries: Tensor  # (B, H, T, K), as the scores have them: normalized, rotated
    keys: Tensor  # (B, H, S, K)
    scale: float  # of their products
    bias: Tensor  # (B, H, T, S) or what broadcasts to it, added to the scores: -inf where a query may not attend
    crosses: bool  # whether the keys are those of another sequence

    @property
    def products(self) -> Tensor:
        """Each query times each key, unscaled and unmasked: (B, H, T, S)."""
        return self.queries @ self.keys.mT

    @property
    def visible(self) -> Tensor:
        """True where a query may attend: (B, H, T, S)."""
        shape = (*self.queries.shape[:-1], self.keys.shape[-2])
        return (self.bias > -torch.inf).expand(shape)

    @property
    def weights(self) -> Tensor:
        """The attention weights (B, H, T, S); each query's sum to 1, or to 0 where it may attend to nothing."""
        return softmax(self.products * self.scale + self.bias)


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, 0 where all scores are -inf."""
    return torch.softmax(scores, -1).nan_to_num(0.0)


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[list[AttentionRecord]]:
    """Record every call of an `Attention` in `model` within the context, in the order of the calls.

    A forward hook computes queries and keys again from what the module was called with: the module itself computes what
    it always does, and nothing is slower outside the context. Calls with a cache, and subclasses that attend in a way
    of their own, are left out.
    """
    found: list[AttentionRecord] = []
    handles = []
    for name, module in model.named_modules():
        if is_recordable(module):

            @torch.no_grad()
            def record(module: Attention, args: Any, kwargs: dict[str, Any], _: Any, name: str = name) -> None:
                if kwargs.get("cache") is None:
                    found.append(_record(name, module, *args, **kwargs))

            handles.append(module.register_forward_hook(record, with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def is_recordable(module: nn.Module) -> bool:
    """Whether a module is an `Attention` that attends as the class does."""
    own = ("forward", "queries_keys_values", "_heads")
    return isinstance(module, Attention) and all(
        getattr(type(module), name) is getattr(Attention, name) for name in own
    )


def _record(
    name: str, module: Attention, x: Tensor, *, mask: Tensor | None = None, causal: bool = False, **of_keys: Any
) -> AttentionRecord:
    queries, keys, _ = module.queries_keys_values(x, **of_keys)
    queries, keys = queries.float(), keys.float().repeat_interleave(module.n_head // module.n_kv_head, 1)
    bias = torch.zeros(queries.shape[-2], keys.shape[-2], device=queries.device)
    if causal:
        bias = bias.masked_fill(torch.ones_like(bias, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else bias + mask.float()
    scale = module.d_head**-0.5 if module.scale is None else module.scale
    return AttentionRecord(name, queries, keys, scale, bias, crosses=of_keys.get("source") is not None)
