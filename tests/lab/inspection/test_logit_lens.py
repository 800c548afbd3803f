"""What each layer would predict."""

import pytest
import torch
from lab.inspection.subjects import MODELS, TEXT, plugin, subject

from gptlab.lab.inspection.logit_lens import layer_states, logit_lens

WITH_HEAD = [name for name in MODELS if name != "bert without heads"]


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_HEAD)
def test_the_last_layer_gives_the_logits_of_the_model(name):
    one = subject(name)
    names, states = layer_states(one)
    blocks = "decoder.blocks" if name == "t5" else "blocks"
    assert names == ["embedding", f"{blocks}.0", f"{blocks}.1"]
    logits = one.model(one.read, **one.inputs)[0].float()
    assert torch.allclose(one.logits(states[-1]), logits, atol=1e-5)
    found = logit_lens(one)
    last = found["layers"][-1]
    assert last["token"] == logits.argmax(-1).tolist() and max(last["kl"]) == 0
    assert last["probability"] == pytest.approx(logits.softmax(-1).amax(-1).tolist(), abs=2e-5)
    known = [n for n in last["loss"] if n is not None]
    assert sum(known) / len(known) == pytest.approx(one.loss().item(), abs=1e-3)


@torch.no_grad()
def test_an_earlier_layer_is_as_if_the_later_ones_were_not_there():
    one = subject("gpt2")
    model = one.model
    x = model.tok_emb(one.tokens) + model.pos_emb(torch.arange(len(TEXT)))
    found, last = logit_lens(one), model(one.tokens)[0].log_softmax(-1)
    for layer, block in zip(found["layers"], [*model.blocks, None], strict=True):
        log_p = model.head.logits(model.final_norm(x))[0].log_softmax(-1)
        assert layer["token"] == log_p.argmax(-1).tolist()
        assert layer["entropy"] == pytest.approx((-(log_p.exp() * log_p).sum(-1)).tolist(), abs=1e-4)
        kl = torch.nn.functional.kl_div(log_p, last, log_target=True, reduction="none").sum(-1)
        assert layer["kl"] == pytest.approx(kl.tolist(), abs=1e-4)
        x = x if block is None else block(x, causal=True)


def test_it_applies_to_a_plugin_whose_blocks_follow_each_other_and_not_without_a_head():
    one = plugin()
    assert [layer["name"] for layer in logit_lens(one)["layers"]] == ["embedding", "blocks.0", "blocks.1"]
    assert logit_lens(plugin(adds=True)) is None
    # Even of a single block: the head reads more than its output.
    assert logit_lens(plugin(adds=True, n_layer=1)) is None
    assert logit_lens(subject("bert without heads")) is None
