"""Hooks and peft's adapters on a whole model: what people attach to a module has its effect."""

import peft
import pytest
import torch

from gptlab.generation.layout import lay_out
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.nn.loss import linear_cross_entropy

CONFIG = DecoderConfig(n_layer=2, n_head=2, d_model=16, context_length=8, init_std=0.3)
TOKENS = torch.randint(20, (2, 8), generator=torch.Generator().manual_seed(0))


def with_adapters(model):
    """peft's LoRA on q and v, with random values."""
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q", "v"]), model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5, generator=generator)
    return model


def merged(model, adapted):
    """The same model with the adapters added to its weights by hand: scale lora_alpha / r = 4."""
    own = dict(adapted.named_parameters())
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for name in ("q", "v"):
                prefix = f"blocks.{i}.attn.{name}.lora"
                b, a = own[f"{prefix}_B.default.weight"], own[f"{prefix}_A.default.weight"]
                getattr(block.attn, name).weight.add_(4 * b @ a)
    return model


def decoded(model):
    """Logits token by token through the cache."""
    cache = model.new_cache(2, 8)
    with torch.inference_mode():
        steps = [model.hidden_states(TOKENS[:, t : t + 1], cache=cache) for t in range(8)]
        return model.head.logits(torch.cat(steps, 1))


def near(a, b):
    assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_pefts_adapters_change_training():
    plain, model = build_model(CONFIG, 20, seed=0), with_adapters(build_model(CONFIG, 20, seed=0))
    assert (plain(TOKENS) - model(TOKENS)).abs().max() > 0.1
    near(model(TOKENS), merged(plain, model)(TOKENS))
    linear_cross_entropy(model.hidden_states(TOKENS), model.head, TOKENS).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name) == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.any(), name


@pytest.mark.parametrize("laid_out", ["", "before", "after"])
def test_pefts_adapters_change_generation(laid_out):
    plain, model = build_model(CONFIG, 20, seed=0).eval(), build_model(CONFIG, 20, seed=0).eval()
    if laid_out == "before":
        lay_out(model)
    model = with_adapters(model)
    if laid_out == "after":
        lay_out(model)
    before = decoded(plain)
    expected = decoded(merged(plain, model))
    assert (expected - before).abs().max() > 0.1
    near(decoded(model), expected)


@pytest.mark.parametrize("laid_out", [False, True])
def test_a_hook_on_a_projection_fires_in_training_and_in_generation(laid_out):
    model = build_model(CONFIG, 20, seed=0)
    if laid_out:
        lay_out(model)
    seen = []
    handle = model.blocks[1].attn.q.register_forward_hook(lambda layer, args, result: seen.append(result.shape))
    model(TOKENS)
    assert seen == [(2, 8, 16)]
    seen.clear()
    decoded(model.eval())
    assert seen == [(2, 1, 16)] * 8
    handle.remove()
    seen.clear()
    decoded(model)
    assert not seen
