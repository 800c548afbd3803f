"""Roles, initial scales and multipliers of mup and completep, which a model of the base size has as standard."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.models.build import build_model, shape_model
from gptlab.models.config import Feedforward, Kind, ModelConfig, Parametrization
from gptlab.models.decoder.config import DecoderConfig, Init, NormPlacement, RouterSoftmax
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.loss import LMHead

VOCAB_SIZE = 30
MUP, COMPLETEP = Parametrization.mup, Parametrization.completep
SHAPE = {"n_head": 2, "context_length": 8}
DECODER = DecoderConfig(**SHAPE, n_layer=2, d_model=16, init_std=0.3)
GATED = replace(DECODER, feedforward=Feedforward.swiglu, n_kv_head=1, tie_embeddings=False, qk_norm=True)
EXPERTS = replace(DECODER, n_expert=3, n_shared_expert=1, router_softmax=RouterSoftmax.before)
POST = replace(DECODER, norm_placement=NormPlacement.post)
ENCODER = EncoderConfig(**SHAPE, n_layer=2, d_model=16)
T5 = EncoderDecoderConfig(**SHAPE, n_layer=2, d_model=16)
MODELS = {"decoder": DECODER, "gated": GATED, "experts": EXPERTS, "post": POST, "encoder": ENCODER, "t5": T5}
MODELS["t5 untied"] = replace(T5, tie_embeddings=False)
each_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


def mup(config, base_d_model, base_d_head):
    return replace(config, parametrization=MUP, base_d_model=base_d_model, base_d_head=base_d_head)


def wide(config, ratio=4, *, of=16):
    """The model `ratio` times as wide, with as many heads."""
    return mup(replace(config, d_model=of * ratio), of, of // config.n_head)


def values(config):
    return {name: p.detach() for name, p in build_model(config, VOCAB_SIZE, seed=0).named_parameters()}


def outputs(model):
    tokens = torch.arange(16).view(2, 8) % VOCAB_SIZE
    inputs = {"source": tokens.flip(1)} if isinstance(model.config, EncoderDecoderConfig) else {}
    return model.eval()(tokens, **inputs)


@each_model
def test_a_model_of_the_base_size_is_the_standard_one(config):
    own = mup(config, config.d_model, config.head_width)
    if COMPLETEP in config.parametrizations:
        own = replace(own, parametrization=COMPLETEP, base_n_layer=config.n_layer)
    own.check()
    first, second = (build_model(c, VOCAB_SIZE, seed=3) for c in (config, own))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(outputs(first), outputs(second))


def test_roles_of_a_decoder_with_experts():
    model = shape_model(replace(EXPERTS, tie_embeddings=False), VOCAB_SIZE, n_class=3)
    kinds = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            role = model.role_of(name, module)
            kinds[name] = role.kind
            assert role.residual == name.startswith("blocks."), name
    expected = {
        "tok_emb.weight": Kind.input,
        "pos_emb.weight": Kind.input,
        "lm_head.weight": Kind.input,
        "class_head.weight": Kind.output,
        "class_head.bias": Kind.vector,
        "blocks.0.norm1.weight": Kind.vector,
        "blocks.0.attn.k.weight": Kind.hidden,
        "blocks.0.attn.out.bias": Kind.vector,
        "blocks.0.ffn.router.weight": Kind.output,
        "blocks.0.ffn.experts.up.weight": Kind.hidden,
        "blocks.0.ffn.experts.up.bias": Kind.vector,
        "blocks.0.ffn.shared.down.weight": Kind.hidden,
    }
    assert {name: kinds[name] for name in expected} == expected


def test_roles_of_bert_and_t5():
    for config, expected in (
        (ENCODER, {"seg_emb.weight": Kind.input, "pooler.weight": Kind.hidden, "nsp.weight": Kind.output}),
        (ENCODER, {"mlm.dense.weight": Kind.hidden, "mlm.bias": Kind.vector, "emb_norm.weight": Kind.vector}),
        (T5, {"encoder.position.table.weight": Kind.input, "decoder.blocks.0.cross.q.weight": Kind.hidden}),
        (T5, {"decoder.final_norm.weight": Kind.vector}),
    ):
        model = shape_model(config, VOCAB_SIZE)
        modules = dict(model.named_modules())
        for name, kind in expected.items():
            assert model.role_of(name, modules[name.rpartition(".")[0]]).kind is kind, name


@pytest.mark.parametrize("init", [Init.gpt2, Init.torch, Init.zero])
def test_initial_values_by_width(init):
    """Table 8: hidden variances are by the inputs, those of embeddings and the head are constant."""
    base = replace(DECODER, d_model=64, init=init, tie_embeddings=False)
    narrow, broad = values(base), values(wide(base, 4, of=64))
    for name, ratio in {
        "tok_emb.weight": 1.0,
        "pos_emb.weight": 1.0,
        "lm_head.weight": 1.0,
        "blocks.0.attn.q.weight": 0.5,
        "blocks.1.ffn.up.weight": 0.5,
        "blocks.1.ffn.down.weight": 0.5,
    }.items():
        if narrow[name].any():
            assert broad[name].std() / narrow[name].std() == pytest.approx(ratio, rel=0.1), name
        else:
            assert init is Init.zero and not broad[name].any()


def test_outputs_without_a_multiplier_shrink_with_the_width():
    """Table 3: the same as a multiplier of 1 / width for Adam."""
    narrow, broad = values(EXPERTS), values(wide(EXPERTS))
    name = "blocks.0.ffn.router.weight"
    assert broad[name].std() / narrow[name].std() == pytest.approx(1 / 4, rel=0.2)


def test_residual_projections_of_completep_start_as_those_of_the_base_depth():
    deep = replace(DECODER, n_layer=8, d_model=64)
    completep = replace(deep, parametrization=COMPLETEP, base_d_model=64, base_n_layer=2)
    name = "blocks.0.attn.out.weight"
    assert values(completep)[name].std() / values(deep)[name].std() == pytest.approx(2.0)


def test_scores_logits_and_branches():
    config = replace(wide(replace(DECODER, n_layer=6)), parametrization=COMPLETEP, base_n_layer=2)
    model = build_model(config, VOCAB_SIZE, seed=0)
    assert model.blocks[0].attn.scale == pytest.approx(8**-0.5 * 8 / 32)  # 1 / d_head, and 8^-0.5 in the base model
    assert model.head.scale == 1 / 4
    x, block = torch.randn(2, 8, 64), model.blocks[0].eval()
    middle = x + block.attn(block.norm1(x), causal=True) / 3
    torch.testing.assert_close(block(x, causal=True), middle + block.ffn(block.norm2(middle)) / 3)


def test_more_heads_of_one_width_keep_the_scale():
    config = mup(replace(DECODER, d_model=64, n_head=8), 16, 8)
    assert shape_model(config, VOCAB_SIZE).blocks[0].attn.scale is None


@each_model
def test_factors_of_weights_take_the_place_of_multipliers(config):
    own = wide(replace(config, init_std=0.3) if hasattr(config, "init_std") else config, 3)
    if COMPLETEP in config.parametrizations:
        own = replace(own, parametrization=COMPLETEP, base_n_layer=1)
    own.check()
    model = build_model(own, VOCAB_SIZE, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains too
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    standard, factors = model.as_standard()
    assert standard.parametrization is Parametrization.standard and set(factors) <= set(model.state_dict())
    standard.check()
    other = build_model(standard, VOCAB_SIZE, seed=0)
    other.load_state_dict({name: value * factors.get(name, 1.0) for name, value in model.state_dict().items()})
    torch.testing.assert_close(outputs(other), outputs(model), rtol=1e-4, atol=1e-5)
    assert outputs(model).std() > 0.01


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"parametrization": MUP}, "model.base_d_model"),
        ({"parametrization": MUP, "base_d_model": 8}, "model.base_d_head=8"),
        ({"parametrization": MUP, "base_d_model": 8}, "model.base_d_head=4"),
        ({"parametrization": COMPLETEP, "base_d_model": 16}, "model.base_n_layer"),
        ({"parametrization": MUP, "base_d_model": 16, "base_n_layer": 2}, "model.base_n_layer=null"),
        ({"base_d_model": 16}, "model.base_d_model=null"),
        ({"base_d_head": 8}, "model.base_d_head=null"),
    ],
)
def test_a_key_is_needed_or_refused(changes, needed):
    with pytest.raises(UserError, match=needed):
        replace(DECODER, **changes).check()


@pytest.mark.parametrize("config", [POST, ENCODER, T5], ids=["post", "encoder", "t5"])
def test_completep_is_for_decoders_with_pre_norm(config):
    with pytest.raises(UserError, match=r"use model\.parametrization=standard or mup"):
        replace(config, parametrization=COMPLETEP, base_d_model=16, base_n_layer=1).check()


class Average(LanguageModel):
    """A plugin's model, which says nothing about parametrizations."""

    def __init__(self, config, vocab_size):
        super().__init__(config)
        self.blocks = nn.ModuleList([nn.Linear(config.d_model, config.d_model)])
        self.tok_emb = nn.Embedding(vocab_size, config.d_model)

    def hidden_states(self, tokens, *, attention_mask=None, **inputs):
        return self.blocks[0](self.tok_emb(tokens))

    @property
    def head(self):
        return LMHead(weight=self.tok_emb.weight, scale=self.logit_scale)


def test_a_model_that_does_not_know_parametrizations_is_refused():
    with pytest.raises(UserError, match=r"model.parametrization=standard"):
        ModelConfig(type="average", d_model=16, parametrization=MUP, base_d_model=8).check()
    config = ModelConfig(type="average", d_model=16, parametrization=MUP, base_d_model=8)
    with pytest.raises(UserError, match=r"blocks\.0\.weight is; define _role_of"):
        Average(config, 5).role_of("blocks.0.weight", nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"train with model\.parametrization=standard, or use it with gptlab"):
        Average(config, 5).as_standard()
