"""Attention masks: True where a query may attend."""

import torch
from torch import Tensor


def causal_band(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Let each query attend to its own position and the `window` - 1 before it: (..., T) and (..., S) -> (..., T, S).

    Locally banded attention (arXiv:1904.10509, section 4), which later models call a sliding window.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    return (distance >= 0) & (distance < window)


def same_document(document_ids: Tensor) -> Tensor:
    """Confine attention to a document: ids (..., T), equal in a document -> (..., T, T)."""
    return document_ids[..., :, None] == document_ids[..., None, :]


def as_scores(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to scores, 0 and -inf, in the dtype that attention over hidden states `like` has.

    PyTorch's kernels make the same of a bool mask: in each layer again, and each keeps its own for the backward pass.
    """
    kind = like.device.type
    casts = kind != "meta" and torch.is_autocast_enabled(kind)
    scores = torch.zeros_like(mask, dtype=torch.get_autocast_dtype(kind) if casts else like.dtype)
    return scores.masked_fill_(~mask, -torch.inf)


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Positions that begin at 0 in each document: ids (..., T), equal in a run of tokens -> (..., T)."""
    places = torch.arange(document_ids.shape[-1], device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[..., 1:] = document_ids[..., 1:] != document_ids[..., :-1]
    return places - torch.where(begins, places, 0).cummax(-1).values
