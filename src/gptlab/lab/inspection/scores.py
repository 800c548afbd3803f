"""Sizes of attention scores, and what they do to softmax."""

import math
from typing import Any

import torch
from torch import Tensor

from gptlab.lab.inspection.subject import Subject
from gptlab.nn.attention_record import AttentionRecord, softmax


def scores(subject: Subject) -> dict[str, Any] | None:
    """The scores of each layer and head, unscaled, divided by sqrt(d_head), and as the layer has them.

    A layer has `d_head`, `sqrt_d_head`, its own `scale`, the largest entropy that its masks allow, and for each head
    `std`, of query times key over the pairs that may attend; `std_independent`, what it would be if the channels were
    independent of each other and centered, sqrt(d_head) rms(q) rms(k); and `softmax`, what softmax makes of the scores
    under each name of `scalings`.
    """
    if not subject.attention:
        return None
    return {"layers": [_layer(one, subject) for one in subject.attention]}


def _layer(one: AttentionRecord, subject: Subject) -> dict[str, Any]:
    d_head = one.queries.shape[-1]
    scalings = {"unscaled": 1.0, "divided by sqrt(d_head)": d_head**-0.5}
    if not any(math.isclose(one.scale, scale) for scale in scalings.values()):
        scalings[f"times {one.scale:.4g}, as the layer does"] = one.scale
    std, independent = qk_std(one.queries, one.keys, one.visible)
    effects = {name: softmax_effect(one.products * scale + one.bias) for name, scale in scalings.items()}
    visible = one.visible.sum(-1).clamp(min=1).float()
    kind = "cross" if one.crosses else "source" if subject.reads_source(one.name) else "self"
    return {
        "name": one.name,
        "kind": kind,
        "d_head": d_head,
        "sqrt_d_head": math.sqrt(d_head),
        "scale": one.scale,
        "scalings": scalings,
        "own": next(name for name, scale in scalings.items() if math.isclose(one.scale, scale)),
        "entropy_limit": float(visible.log().mean()),
        "heads": [
            {
                "std": float(std[h]),
                "std_independent": float(independent[h]),
                "softmax": {
                    name: {what: float(value[h]) for what, value in own.items()} for name, own in effects.items()
                },
            }
            for h in range(len(std))
        ],
    }


def qk_std(queries: Tensor, keys: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The standard deviation of query times key by head, and what independent centered channels would give.

    queries (B, H, T, K), keys (B, H, S, K), visible (B, H, T, S) is True for the pairs that count -> (H) and (H). Of
    independent channels of unit variance both are sqrt(K) (arXiv:1706.03762, section 3.2.1).
    """
    products = (queries @ keys.mT).double().movedim(1, 0)
    counted = visible.movedim(1, 0)
    std = torch.stack(
        [
            one[own].std(correction=0) if own.any() else one.new_zeros(())
            for one, own in zip(products, counted, strict=True)
        ]
    )
    rms = [part.double().square().mean((0, 2, 3)).sqrt() for part in (queries, keys)]
    return std, math.sqrt(queries.shape[-1]) * rms[0] * rms[1]


def softmax_effect(scores: Tensor) -> dict[str, Tensor]:
    """What softmax makes of scores (B, H, T, S), as means over the queries of each head (H).

    `entropy` in nats; `largest`, the largest probability; and `gradient`, the Frobenius norm of the Jacobian
    diag(p) - p p^T, by which gradients of the probabilities become those of the scores: 0 where one probability is 1.
    """
    p = softmax(scores.double())
    squares = p.square().sum(-1)
    jacobian = squares - 2 * p.pow(3).sum(-1) + squares.square()
    found = {
        "entropy": torch.special.entr(p).sum(-1),
        "largest": p.amax(-1),
        "gradient": jacobian.clamp(min=0).sqrt(),
    }
    return {name: value.mean((0, 2)) for name, value in found.items()}
