"""Histograms of the scales and shifts that LayerNorm and RMSNorm have learned."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from gptlab.lab.inspection.subject import Subject

N_BINS = 48


def norm_weights(subject: Subject) -> dict[str, Any] | None:
    """The distribution of each norm's weights: `scale` and `shift`, each with `edges` that all layers share.

    Counts are of the values from one edge to the next, and sum to the number of values.
    """
    norms = [(name, module) for name, module in subject.model.named_modules() if is_norm(module)]
    found = {
        kind: _histograms([(name, getattr(module, attribute, None)) for name, module in norms])
        for kind, attribute in (("scale", "weight"), ("shift", "bias"))
    }
    return {kind: one for kind, one in found.items() if one is not None} or None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a scale for each channel, or has that form under a norm's name."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.weight is not None
    parameters = dict(module.named_parameters())
    return (
        "norm" in type(module).__name__.lower()
        and "weight" in parameters
        and parameters.keys() <= {"weight", "bias"}
        and all(parameter.ndim == 1 for parameter in parameters.values())
    )


def _histograms(weights: list[tuple[str, Tensor | None]]) -> dict[str, Any] | None:
    values = {name: value.detach().float().cpu().numpy().ravel() for name, value in weights if value is not None}
    if not values:
        return None
    everything = np.concatenate(list(values.values()))
    finite = everything[np.isfinite(everything)]
    edges = np.histogram_bin_edges(finite if finite.size else np.zeros(1), N_BINS)
    layers = [
        {
            "name": name,
            "n": int(one.size),
            "mean": float(one.mean()),
            "std": float(one.std()),
            "least": float(one.min()),
            "most": float(one.max()),
            "counts": np.histogram(one, edges)[0].tolist(),
        }
        for name, one in values.items()
    ]
    return {"edges": edges.tolist(), "layers": layers}
