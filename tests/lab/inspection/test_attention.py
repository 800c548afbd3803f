"""Maps of the weights as the page holds them."""

import base64
import math

import numpy as np
import pytest
from lab.inspection.subjects import MODELS, plugin, subject

from gptlab.lab.inspection import attention as module
from gptlab.lab.inspection.attention import attention


def maps(group, layer):
    """The weights that the page shows, (H, T, S)."""
    raw = np.frombuffer(base64.b64decode(group["layers"][layer]["maps"]), dtype=np.uint8)
    n, m = group["n_queries"], group["n_keys"]
    if not group["causal"]:
        return (raw.reshape(-1, n, m) / 255.0) ** 2
    found = np.zeros((group["layers"][layer]["n_head"], n, m))
    found[:, *np.tril_indices(n)] = raw.reshape(len(found), -1)
    return (found / 255.0) ** 2


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_the_weights_within_eight_bits(name):
    one = subject(name, **({"target": "that is it"} if name == "t5" else {}))
    found = attention(one)
    titles = ["self-attention of the encoder", "self-attention", "cross-attention"]
    assert [group["title"] for group in found["groups"]] == (titles if name == "t5" else ["self-attention"])
    assert [group["causal"] for group in found["groups"]] == (
        [False, True, False] if name == "t5" else ["bert" not in name]
    )
    records = iter(sorted(one.attention, key=lambda r: (r.crosses, not one.reads_source(r.name))))
    sizes = {"tokens": one.tokens.shape[1], "source": 0 if one.source is None else one.source.shape[1]}
    for group in found["groups"]:
        assert group["n_queries"] == sizes[group["queries"]] and group["n_keys"] == sizes[group["keys"]]
        for layer in range(2):
            record = next(records)
            assert group["layers"][layer]["name"] == record.name
            weights = record.weights[0].numpy()
            # A byte is within half a step of 255 sqrt(w), so w within sqrt(w) / 255 and a little.
            assert (np.abs(maps(group, layer) - weights) <= np.sqrt(weights) / 255 + 1e-5).all()
            head = group["layers"][layer]["heads"][3]
            own = weights[3].astype(float)
            expected = -sum(w * math.log(w) for w in own.ravel() if w > 0) / len(own)
            assert head["entropy"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            assert head["first"] == pytest.approx(own[:, 0].mean(), rel=1e-4)
            if not record.crosses:
                assert head["previous"] == pytest.approx(np.diagonal(own, -1).mean(), rel=1e-4)


def test_a_window_is_not_seen_beyond():
    found = attention(subject("modern"))["groups"][0]
    weights = maps(found, 1)
    assert (np.tril(weights.max(0), -5) == 0).all() and (weights[:, 6, 2:7] > 0).all()


def test_maps_that_do_not_fit_are_cut(monkeypatch):
    monkeypatch.setattr(module, "MAP_BYTES", 8 * 55)  # eight heads of ten tokens
    one = subject("gpt2")
    found = attention(one)
    assert found["cut_to"] == found["groups"][0]["n_keys"] == 10
    assert np.abs(maps(found["groups"][0], 0) - one.attention[0].weights[0, :, :10, :10].numpy()).max() < 0.005


def test_a_model_without_attention_has_none():
    assert attention(plugin()) is None
