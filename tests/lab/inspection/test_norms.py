"""Sizes of activations and gradients."""

import pytest
import torch
from lab.inspection.subjects import MODELS, subject

from gptlab.lab.inspection.norms import norms


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_a_backward_pass(name):
    one = subject(name)
    found = norms(one)
    assert all(parameter.grad is None for parameter in one.model.parameters())
    loss = one.loss()
    assert (found["loss"] is None) == (loss is None) == (name == "bert without heads")
    assert all(layer["rms"] > 0 and layer["attn"] > 0 and layer["ffn"] > 0 for layer in found["activations"])
    assert len(found["activations"]) == len(one.model.blocks)
    if loss is None:
        assert all(part["gradient"] is None for part in found["parameters"])
        return
    loss.backward()
    for part in found["parameters"]:
        name = part["name"]
        own = [
            p
            for n, p in one.model.named_parameters()
            if n.rpartition(".")[0] == name or (name in one.block_names() and n.startswith(f"{name}."))
        ]
        assert part["n"] == sum(p.numel() for p in own)
        assert part["weights"] == pytest.approx(torch.cat([p.detach().flatten() for p in own]).norm().item(), rel=1e-5)
        gradients = torch.cat([p.grad.flatten() for p in own if p.grad is not None] or [torch.zeros(1)])
        assert part["gradient"] == pytest.approx(gradients.norm().item(), rel=1e-4, abs=1e-9)
    assert sum(part["n"] for part in found["parameters"]) == sum(p.numel() for p in one.model.parameters())
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_activations_of_a_block_and_their_gradient():
    one = subject("gpt2")
    found = norms(one)
    x = one.model.tok_emb(one.tokens) + one.model.pos_emb(torch.arange(one.tokens.shape[1]))
    states = []
    for block in one.model.blocks:
        x = block(x, causal=True)
        x.retain_grad()
        states.append(x)
    logits = one.model.head.logits(one.model.final_norm(x))
    torch.nn.functional.cross_entropy(logits[0, :-1], one.tokens[0, 1:]).backward()
    for state, layer in zip(states, found["activations"], strict=True):
        assert layer["rms"] == pytest.approx(state.square().mean().sqrt().item(), rel=1e-5)
        assert layer["gradient"] == pytest.approx(state.grad.norm().item(), rel=1e-4)
