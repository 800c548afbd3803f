"""Outputs, losses and every gradient against transformers, with random weights that are far from their defaults."""

import pytest
import torch

from gptlab.data.sources.config import TextConfig
from gptlab.models.build import build_model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import DecoderConfig, Norm, Position
from gptlab.objectives.causal_lm import CausalLM

transformers = pytest.importorskip("transformers")
VOCAB_SIZE, POSITIONS = 61, 10


def scatter(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim == 2
            parameter.copy_(0.25 * drawn if matrix else 0.3 * drawn + (1.0 if "weight" in name else 0.0))
    return model.eval()


def gpt2_names(n_layer):
    """Ours -> theirs, and how to turn theirs into ours."""
    names = {"tok_emb.weight": ("transformer.wte.weight", None), "pos_emb.weight": ("transformer.wpe.weight", None)}
    for i in range(n_layer):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        for kind in ("weight", "bias"):
            for part, name in enumerate("qkv"):
                names[f"{ours}.attn.{name}.{kind}"] = (f"{theirs}.attn.c_attn.{kind}", part)
            for a, b in (("attn.out", "attn.c_proj"), ("ffn.up", "mlp.c_fc"), ("ffn.down", "mlp.c_proj")):
                names[f"{ours}.{a}.{kind}"] = (f"{theirs}.{b}.{kind}", "transposed")
            for a, b in (("norm1", "ln_1"), ("norm2", "ln_2")):
                names[f"{ours}.{a}.{kind}"] = (f"{theirs}.{b}.{kind}", None)
    for kind in ("weight", "bias"):
        names[f"final_norm.{kind}"] = (f"transformer.ln_f.{kind}", None)
    return names


def llama_names(n_layer):
    names = {"tok_emb.weight": "model.embed_tokens.weight"}
    for i in range(n_layer):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        names |= {f"{ours}.attn.{name}.weight": f"{theirs}.self_attn.{name}_proj.weight" for name in "qkv"}
        names[f"{ours}.attn.out.weight"] = f"{theirs}.self_attn.o_proj.weight"
        names |= {f"{ours}.ffn.{name}.weight": f"{theirs}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
        names[f"{ours}.norm1.weight"] = f"{theirs}.input_layernorm.weight"
        names[f"{ours}.norm2.weight"] = f"{theirs}.post_attention_layernorm.weight"
    names |= {"final_norm.weight": "model.norm.weight", "lm_head.weight": "lm_head.weight"}
    return {ours: (theirs, None) for ours, theirs in names.items()}


def ours_from(tensor, how):
    if isinstance(how, int):  # one of q, k, v, side by side in a Conv1D's columns
        return tensor.chunk(3, -1)[how].t()
    return tensor.t() if how == "transposed" else tensor


def assert_near(a, b, name):
    assert b.abs().max() > 0, name
    assert (a - b).abs().max() <= 1e-4 * b.abs().max(), name


def assert_equal_models(config, theirs, names):
    ours = build_model(config, VOCAB_SIZE, seed=0).eval()
    parameters = dict(theirs.named_parameters())
    assert {theirs_name for theirs_name, _ in names.values()} == set(parameters)
    state = {name: ours_from(parameters[external].detach(), how) for name, (external, how) in names.items()}
    ours.load_state_dict(state, strict=True)

    windows = torch.randint(VOCAB_SIZE, (3, POSITIONS + 1), generator=torch.Generator().manual_seed(1))
    objective = CausalLM(data=TextConfig(path="none"), context_length=POSITIONS)
    batch = objective.collate(windows)
    reference = theirs(batch["tokens"])
    assert_near(ours(batch["tokens"]), reference.logits, "logits")
    log_p = reference.logits.log_softmax(-1).gather(-1, batch["targets"][..., None])
    result = objective.loss(ours, batch)
    assert_near(result["loss"].sum, -log_p.sum(), "loss")
    theirs_loss = theirs(windows, labels=windows).loss
    assert_near(objective.mean_loss(ours, batch), theirs_loss, "mean loss")

    result["loss"].sum.backward()
    (-log_p.sum()).backward()
    largest_key_bias = max(p.grad.abs().max() for p in ours.parameters())
    for name, parameter in ours.named_parameters():
        external, how = names[name]
        wanted = ours_from(parameters[external].grad, how)
        if name.endswith("attn.k.bias"):  # zero but for rounding: it moves all scores of a query alike
            assert (parameter.grad - wanted).abs().max() <= 1e-6 * largest_key_bias, name
        else:
            assert_near(parameter.grad, wanted, name)


@pytest.mark.parametrize("n_head, d_model, d_ff", [(3, 21, None), (5, 40, 33)])
def test_gpt2(n_head, d_model, d_ff):
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_positions=POSITIONS + 1,
            n_embd=d_model,
            n_layer=3,
            n_head=n_head,
            n_inner=d_ff,
            layer_norm_epsilon=0.03,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    config = DecoderConfig(
        n_layer=3, n_head=n_head, d_model=d_model, d_ff=d_ff, context_length=POSITIONS + 1, norm_eps=0.03
    )
    assert_equal_models(config, scatter(theirs), gpt2_names(3))


@pytest.mark.parametrize("n_kv_head, d_head", [(6, None), (2, 8), (1, 4)])
def test_llama(n_kv_head, d_head):
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=POSITIONS + 1,
            hidden_size=36,
            intermediate_size=50,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=n_kv_head,
            head_dim=d_head or 6,
            rms_norm_eps=0.02,
            rope_parameters={"rope_type": "default", "rope_theta": 50.0},
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    config = DecoderConfig(
        n_layer=2,
        n_head=6,
        n_kv_head=n_kv_head,
        d_head=d_head,
        d_model=36,
        d_ff=50,
        context_length=POSITIONS + 1,
        position=Position.rotary,
        rope_theta=50.0,
        norm=Norm.rmsnorm,
        norm_eps=0.02,
        feedforward=Feedforward.swiglu,
        bias=False,
        tie_embeddings=False,
    )
    assert_equal_models(config, scatter(theirs), llama_names(2))
