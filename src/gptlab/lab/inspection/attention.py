"""Attention maps by layer and head."""

import base64
from typing import Any

import torch
from torch import Tensor

from gptlab.lab.inspection.subject import Subject
from gptlab.nn.attention_record import AttentionRecord

MAP_BYTES = 2_400_000  # of all maps; base64 makes them a third larger
SELF, ENCODER, CROSS = "self-attention", "self-attention of the encoder", "cross-attention"


def attention(subject: Subject) -> dict[str, Any] | None:
    """The weights of each head over the text, a byte each: 255 sqrt(weight), rounded.

    `groups` are of one kind of attention each: `queries` and `keys` say whose tokens, "tokens" or "source", and
    `n_queries` and `n_keys` how many; where they are `causal`, only weights up to the diagonal are kept, row by row.
    A layer's `maps` are its heads' bytes one after the other, in base64, and `heads` what is measured of each, over all
    tokens: mean entropy in nats, and the mean weight of the `first` token, of the `own` and of the `previous` one.
    """
    groups: dict[str, list[AttentionRecord]] = {}
    for one in subject.attention:
        kind = CROSS if one.crosses else ENCODER if subject.reads_source(one.name) else SELF
        groups.setdefault(kind, []).append(one)
    if not groups:
        return None
    limit = _limit(groups)
    longest = max(max(one.queries.shape[2], one.keys.shape[2]) for one in subject.attention)
    return {
        "cut_to": limit if limit < longest else None,
        "groups": [_group(kind, records, limit) for kind, records in groups.items()],
    }


def _group(kind: str, records: list[AttentionRecord], limit: int) -> dict[str, Any]:
    causal = all(map(_is_causal, records))
    n_queries, n_keys = (min(limit, max(sizes)) for sizes in zip(*map(_sizes, records), strict=True))
    return {
        "title": kind,
        "queries": "source" if kind == ENCODER else "tokens",
        "keys": "tokens" if kind == SELF else "source",
        "causal": causal,
        "n_queries": n_queries,
        "n_keys": n_keys,
        "layers": [_layer(one, n_queries, n_keys, causal) for one in records],
    }


def _layer(one: AttentionRecord, n_queries: int, n_keys: int, causal: bool) -> dict[str, Any]:
    weights = one.weights[0]  # (H, T, S)
    kept = (weights[:, :n_queries, :n_keys].clamp(min=0).sqrt() * 255).round().to(torch.uint8).cpu()
    if causal:
        rows, columns = torch.tril_indices(n_queries, n_keys)
        kept = kept[:, rows, columns]
    return {
        "name": one.name,
        "n_head": len(weights),
        "heads": _measured(weights, one.crosses),
        "maps": base64.b64encode(kept.contiguous().numpy().tobytes()).decode(),
    }


def _measured(weights: Tensor, crosses: bool) -> list[dict[str, float | None]]:
    entropy = torch.special.entr(weights).sum(-1).mean(-1)  # (H)
    found: dict[str, list[float]] = {"entropy": entropy.tolist(), "first": weights[..., 0].mean(-1).tolist()}
    if not crosses:
        found["own"] = weights.diagonal(dim1=-2, dim2=-1).mean(-1).tolist()
        if weights.shape[-1] > 1:
            found["previous"] = weights.diagonal(-1, dim1=-2, dim2=-1).mean(-1).tolist()
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _is_causal(one: AttentionRecord) -> bool:
    return not one.crosses and not one.visible.triu(1).any()


def _sizes(one: AttentionRecord) -> tuple[int, int]:
    return one.queries.shape[2], one.keys.shape[2]


def _limit(groups: dict[str, list[AttentionRecord]]) -> int:
    """How many tokens the maps may have, so that all of them fit the page."""
    maps = [
        (one.queries.shape[1], _sizes(one), causal)
        for records in groups.values()
        for causal in [all(map(_is_causal, records))]
        for one in records
    ]

    def n_bytes(limit: int) -> int:
        total = 0
        for n_head, sizes, causal in maps:
            n_queries, n_keys = (min(limit, size) for size in sizes)
            total += n_head * (n_queries * (n_queries + 1) // 2 if causal else n_queries * n_keys)
        return total

    limit = max(max(sizes) for _, sizes, _ in maps)
    while limit > 1 and n_bytes(limit) > MAP_BYTES:
        limit -= 1
    return limit
