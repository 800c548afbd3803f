"""Histograms of norms."""

from itertools import pairwise

import pytest
import torch
from lab.inspection.subjects import MODELS, subject
from torch import nn

from gptlab.lab.inspection.norm_weights import is_norm, norm_weights


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_all_values(name):
    one = subject(name)
    with torch.no_grad():
        for parameter in one.model.parameters():
            if parameter.ndim == 1:
                parameter.normal_()
    found = norm_weights(one)
    assert ("shift" in found) == (name not in ("t5", "modern"))
    for kind, attribute in (("scale", "weight"), ("shift", "bias")):
        for layer in found.get(kind, {"layers": []})["layers"]:
            values = getattr(one.model.get_submodule(layer["name"]), attribute)
            assert sum(layer["counts"]) == layer["n"] == values.numel() == 16
            assert layer["mean"] == pytest.approx(values.mean().item(), abs=1e-6)
            edges = found[kind]["edges"]
            inside = [((values >= a) & (values < b)).sum().item() for a, b in pairwise(edges)]
            inside[-1] += (values == edges[-1]).sum().item()
            assert layer["counts"] == inside
    expected = {m for m, module in one.model.named_modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)}
    assert {layer["name"] for layer in found["scale"]["layers"]} == expected


def test_a_norm_of_a_plugin_is_known_by_its_form():
    class OwnNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    assert (
        is_norm(OwnNorm()) and not is_norm(nn.Linear(2, 2)) and not is_norm(nn.LayerNorm(2, elementwise_affine=False))
    )
