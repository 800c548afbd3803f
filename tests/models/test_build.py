import math
from dataclasses import replace

import pytest
import torch

from gptlab.errors import UserError
from gptlab.models.build import build_model, init_weights, initial_values, shape_model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import AttentionPattern, DecoderConfig, Init, NormPlacement, Position, RouterSoftmax
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

VOCAB_SIZE = 50
CONFIG = DecoderConfig(n_layer=3, n_head=4, d_model=64, context_length=16, init_std=0.1)
each_init = pytest.mark.parametrize("init", Init)


def values(config, seed=0):
    return {name: p.detach() for name, p in build_model(config, VOCAB_SIZE, seed=seed).named_parameters()}


@each_init
def test_values_depend_on_seed_and_name_alone(init):
    config = replace(CONFIG, init=init, tie_embeddings=False)
    torch.manual_seed(1)
    first = values(config)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = values(config)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = values(config, seed=1)
    drawn = [name for name in first if first[name].std() > 0]
    assert drawn and all(not torch.equal(first[name], other[name]) for name in drawn)
    assert not torch.equal(first["blocks.0.attn.q.weight"], first["blocks.1.attn.q.weight"])
    assert not torch.equal(first["blocks.0.attn.q.weight"], first["blocks.0.attn.k.weight"])


@each_init
def test_values_do_not_depend_on_what_else_there_is(init):
    config = replace(CONFIG, init=init, tie_embeddings=False)
    first = values(config)
    other = values(replace(config, feedforward=Feedforward.swiglu, position=Position.rotary))
    shared = [name for name in first if name in other and "ffn" not in name]
    assert len(shared) > 30 and all(torch.equal(first[name], other[name]) for name in shared)
    model = build_model(config, VOCAB_SIZE, seed=3)
    model.blocks = torch.nn.ModuleList(reversed(model.blocks))
    init_weights(model, 0)
    assert all(torch.equal(first[name], p) for name, p in model.named_parameters())


def near(tensor, std, mean=0.0):
    n = tensor.numel()
    assert abs(tensor.mean() - mean) < 5 * std / math.sqrt(n)
    assert abs(tensor.std() / std - 1) < 5 / math.sqrt(n)


def test_gpt2():
    for name, value in values(replace(CONFIG, tie_embeddings=False)).items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            residual = name.endswith(("out.weight", "down.weight"))
            near(value, 0.1 / math.sqrt(6) if residual else 0.1)


def test_normal():
    for name, value in values(replace(CONFIG, init=Init.normal, tie_embeddings=False)).items():
        if not name.endswith("bias") and "norm" not in name:
            near(value, 0.1)


def test_torch():
    torch.manual_seed(0)
    for name, value in values(replace(CONFIG, init=Init.torch, tie_embeddings=False)).items():
        if "norm" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all(), name
        elif "emb" in name:
            near(value, 1.0)
        else:
            width = 256 if "down" in name else 64
            default = torch.nn.Linear(width, len(value))
            reference = (default.bias if name.endswith("bias") else default.weight).detach()
            bound = 1 / math.sqrt(width)
            near(value, bound / math.sqrt(3))
            for drawn in (value, reference):
                assert 0.8 * bound < drawn.abs().max() <= bound, name


@pytest.mark.parametrize("tied", [True, False])
def test_zero(tied):
    config = replace(CONFIG, init=Init.zero, tie_embeddings=tied)
    for name, value in values(config).items():
        if name.endswith(("out.weight", "down.weight", "bias", "lm_head.weight")):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        elif "emb" in name:
            near(value, 0.1 if tied else 1.0)
        else:
            near(value, 1 / math.sqrt(3 * 64))
    model = build_model(config, VOCAB_SIZE, seed=0)
    x = torch.randn(2, 5, 64)
    assert torch.equal(model.blocks[1](x, causal=True), x)
    if not tied:
        assert not model(torch.zeros(1, 3, dtype=torch.int64)).any()


@each_init
def test_each_expert_starts_as_a_feedforward_does(init):
    """The same distribution, by the width that an expert reads, and residual projections as others."""
    dense = values(replace(CONFIG, init=init))
    sparse = values(replace(CONFIG, init=init, n_expert=3, n_shared_expert=1))
    for part in ("up", "down"):
        for kind in ("weight", "bias"):
            expected = dense[f"blocks.1.ffn.{part}.{kind}"].std().item()
            stack = sparse[f"blocks.1.ffn.experts.{part}.{kind}"]
            assert len(stack) == 3
            for own in (*stack, sparse[f"blocks.1.ffn.shared.{part}.{kind}"]):
                assert own.std().item() == pytest.approx(expected, rel=0.3 if kind == "bias" else 0.05)
    assert not any(torch.equal(a, b) and a.any() for a, b in ((stack[0], stack[1]), (stack[1], stack[2])))
    assert sparse["blocks.1.ffn.router.weight"].any()


def test_built_on_the_cpu_in_float32_and_shaped_without_memory():
    assert {(p.device.type, p.dtype) for p in build_model(CONFIG, VOCAB_SIZE, seed=0).parameters()} == {
        ("cpu", torch.float32)
    }
    assert {p.device.type for p in shape_model(CONFIG, VOCAB_SIZE).parameters()} == {"meta"}


def test_whole_values_for_a_model_that_has_none():
    built = values(CONFIG)
    given = {name: value for name, _, value in initial_values(shape_model(CONFIG, VOCAB_SIZE), 0)}
    assert list(given) == list(built) and all(torch.equal(given[name], built[name]) for name in built)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"d_model": 770, "n_head": 12}, "use a multiple of 12 or set model.d_head"),
        ({"n_kv_head": 3}, r"use one of \[1, 2, 4\]"),
        ({"position": Position.rotary, "d_head": 7}, "set an even model.d_head"),
        ({"dropout_residual": 1.0}, r"outside \[0, 1\)"),
        ({"n_layer": 0}, r"n_layer=0 is outside \[1, 2000\]"),
        ({"n_layer": 100_000}, r"n_layer=100000 is outside \[1, 2000\]"),
        ({"d_ff": 10**17}, f"model.d_ff={10**17} makes a tensor of more than 9e\\+18 bytes"),
        ({"d_ff": 10**21}, f"model.d_ff={10**21} makes a tensor of more than 9e\\+18 bytes"),
        ({"logit_softcap": 0.0}, "above 0"),
        (
            {"attention_pattern": AttentionPattern.sliding_window},
            "needs a width; set model.attention_window, such as 256",
        ),
        ({"attention_window": 8}, "model.attention_window=8 has no effect on model.attention_pattern=dense"),
        (
            {"attention_pattern": AttentionPattern.sliding_window, "attention_window": 0},
            "attention_window=0 must be at least 1",
        ),
        ({"n_expert": 0}, "model.n_expert=0 must be at least 1"),
        ({"n_expert": 4, "n_expert_per_token": 5}, "n_expert_per_token=5 is more than model.n_expert=4; use 1 to 4"),
        ({"n_expert": 4, "n_expert_per_token": 1}, "set model.router_softmax=before"),
        ({"n_expert": 4, "norm_placement": NormPlacement.post}, "works with model.norm_placement=pre"),
        ({"n_expert": 4, "capacity_factor": 0.0}, "model.capacity_factor=0.0 must be above 0"),
        ({"n_expert": 4, "router_aux_loss_coef": -1.0}, "model.router_aux_loss_coef=-1.0 must be above 0"),
        (
            {"n_expert_per_token": 3},
            "n_expert_per_token=3 is about experts, and this model has none; set model.n_expert",
        ),
        ({"n_shared_expert": 1}, "model.n_shared_expert=1 is about experts"),
        ({"router_softmax": RouterSoftmax.before}, "model.router_softmax=before is about experts"),
        ({"capacity_factor": 1.5}, "model.capacity_factor=1.5 is about experts"),
        ({"router_aux_loss_coef": 0.1}, "model.router_aux_loss_coef=0.1 is about experts"),
        ({"router_z_loss_coef": None}, "model.router_z_loss_coef=null is about experts"),
    ],
)
def test_wrong_configs_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        build_model(replace(CONFIG, **wrong), VOCAB_SIZE, seed=0)


def test_bert():
    config = EncoderConfig(n_layer=2, n_head=4, d_model=64, context_length=300, init_std=0.1)
    for name, value in values(config).items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            near(value, 0.1)


@pytest.mark.parametrize("feedforward", [Feedforward.relu, Feedforward.geglu])
def test_t5_starts_as_transformers_does(feedforward):
    """The standard deviation of each parameter, against the library's own initial values."""
    transformers = pytest.importorskip("transformers")
    from gptlab.interop.t5 import T5

    sizes = {"n_layer": 2, "n_head": 6, "d_head": 24, "d_model": 96, "d_ff": 200}
    config = EncoderDecoderConfig(**sizes, feedforward=feedforward, tie_embeddings=False, init_factor=0.7)
    theirs = T5.write_config(config, 400)
    torch.manual_seed(0)
    reference = dict(transformers.T5ForConditionalGeneration(transformers.T5Config(**theirs)).named_parameters())
    locations = T5.locations(config)
    for name, value in build_model(config, 400, seed=0).named_parameters():
        if name == "lm_head.weight":  # which transformers ties until weights say otherwise
            near(value, 0.7)
        elif "norm" in name:
            assert torch.equal(value, reference[locations[name].name])
        else:
            wide = 5 / math.sqrt(value.numel())
            assert abs(value.std() / reference[locations[name].name].std() - 1) < 2 * wide, name
            assert abs(value.mean()) < wide * value.std(), name
