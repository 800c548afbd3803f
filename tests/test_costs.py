from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gptlab.nn.loss as loss
import gptlab.nn.moe as moe
from gptlab import costs
from gptlab.models.build import build_model, shape_model
from gptlab.models.config import (
    AttentionPattern,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    Feedforward,
    Heads,
    Norm,
    NormPlacement,
    Position,
)
from gptlab.training.config import Layout, Sharding, StrategyConfig

SMALL = {"n_layer": 3, "n_head": 4, "d_model": 32, "context_length": 16}
CONFIGS = [
    DecoderConfig(**SMALL),
    DecoderConfig(**SMALL, bias=False, tied_head=False),
    DecoderConfig(**SMALL, qkv_bias=False, tied_head=False, position=Position.none),
    DecoderConfig(**SMALL, bias=False, qkv_bias=True, d_head=6, d_ff=50, feedforward=Feedforward.relu2),
    DecoderConfig(**SMALL, n_kv_head=2, norm=Norm.rmsnorm, position=Position.rotary, feedforward=Feedforward.swiglu),
    DecoderConfig(**SMALL, n_kv_head=1, norm=Norm.rmsnorm, bias=False, qk_norm=True, feedforward=Feedforward.swiglu),
    DecoderConfig(**SMALL, norm_placement=NormPlacement.post),
    DecoderConfig(**SMALL, attention_pattern=AttentionPattern.alternating, attention_window=4),
    DecoderConfig(**SMALL, n_expert=5, n_expert_active=3),
    DecoderConfig(**SMALL, n_expert=4, n_shared_expert=2, bias=False, feedforward=Feedforward.swiglu),
]
GPT2 = {"context_length": 1024}
PUBLISHED = {
    "gpt2": (DecoderConfig(n_layer=12, d_model=768, n_head=12, **GPT2), 124_439_808),
    "gpt2-medium": (DecoderConfig(n_layer=24, d_model=1024, n_head=16, **GPT2), 354_823_168),
    "gpt2-large": (DecoderConfig(n_layer=36, d_model=1280, n_head=20, **GPT2), 774_030_080),
    "gpt2-xl": (DecoderConfig(n_layer=48, d_model=1600, n_head=25, **GPT2), 1_557_611_200),
    "verdict": (
        DecoderConfig(n_layer=12, d_model=768, n_head=12, context_length=256, tied_head=False, qkv_bias=False),
        162_419_712,
    ),
}


def count(parameters):
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_parameter_counts_equal_the_built_models(config):
    model, counts = shape_model(config, 40), costs.parameter_counts(config, 40)
    built = {
        "embedding": count(model.tok_emb.parameters()),
        "position": 0 if model.pos_emb is None else count(model.pos_emb.parameters()),
        "attention": sum(count(block.attn.parameters()) for block in model.blocks),
        "feedforward": sum(count(block.ffn.parameters()) for block in model.blocks),
        "norm": sum(count(p) for p in ([q for n, q in model.named_parameters() if "norm" in n],)),
        "head": 0 if model.lm_head is None else count(model.lm_head.parameters()),
        "total": count(model.parameters()),
        "active": count(model.parameters()),
    }
    if config.n_expert is not None:
        idle = 1 - config.n_expert_active / config.n_expert
        built["active"] -= round(idle * sum(count(block.ffn.experts.parameters()) for block in model.blocks))
    assert counts == built


@pytest.mark.parametrize("heads", Heads)
def test_an_encoders_parts(heads):
    config = EncoderConfig(**SMALL, heads=heads, d_head=6, d_ff=50, n_segment=3)
    model, counts = shape_model(config, 40), costs.parameter_counts(config, 40)
    assert counts["attention"] == sum(count(block.attn.parameters()) for block in model.blocks)
    assert counts["feedforward"] == sum(count(block.ffn.parameters()) for block in model.blocks)
    assert counts["pooler"] == (0 if model.pooler is None else count(model.pooler.parameters()))
    assert counts["head"] == sum(count(part.parameters()) for part in (model.mlm, model.nsp) if part is not None)
    assert counts["total"] == count(model.parameters())


@pytest.mark.parametrize("feedforward", Feedforward)
@pytest.mark.parametrize("options", [{}, {"n_decoder_layer": 1, "tied_head": False, "d_head": 5, "d_ff": 50}], ids=str)
def test_an_encoder_decoders_parts(options, feedforward):
    config = EncoderDecoderConfig(**SMALL, **options, feedforward=feedforward)
    model, counts = shape_model(config, 40), costs.parameter_counts(config, 40)
    cross = sum(count(block.cross.parameters()) for block in model.decoder.blocks)
    assert counts["attention"] == cross + sum(count(block.attn.parameters()) for block in model.blocks)
    assert counts["feedforward"] == sum(count(block.ffn.parameters()) for block in model.blocks)
    assert counts["norm"] == sum(count([p]) for name, p in model.named_parameters() if "norm" in name)
    assert counts["total"] == count(model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    config, published = PUBLISHED[name]
    assert costs.parameter_counts(config, 50_257)["total"] == published
    assert count(shape_model(config, 50_257).parameters()) == published


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_flops_equal_a_count_of_the_forward_pass(config, monkeypatch):
    if config.n_expert is None:
        model, device = shape_model(config, 40), "meta"
    else:  # who is chosen depends on values; the counter knows the loop's products, and attention written out
        monkeypatch.setattr(moe, "runs_grouped", lambda x, weight: False)
        model, device = build_model(config, 40, seed=0), "cpu"
    tokens = torch.zeros((2, 16), dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(tokens)
    assert 3 * counter.get_total_flops() == 2 * 16 * costs.flops_per_token(config, 40, 16)["per_token_exact"]


def test_six_n_leaves_out_what_is_only_looked_up():
    tied, untied = (DecoderConfig(**SMALL, tied_head=tied) for tied in (True, False))
    flops = [costs.flops_per_token(config, 40, 16)["per_token_6n"] for config in (tied, untied)]
    assert flops[0] == flops[1] == 6 * (costs.parameter_counts(tied, 40)["total"] - 16 * 32)


@pytest.mark.parametrize(
    "option",
    [
        *({"feedforward": value} for value in Feedforward),
        {"norm_placement": NormPlacement.post},
        *({"n_expert": 4, "feedforward": value} for value in Feedforward),
        {"n_expert": 4, "n_expert_active": 3, "capacity_factor": 1.25, "n_shared_expert": 1},
    ],
    ids=str,
)
def test_activations_are_what_autograd_keeps(option):
    config = DecoderConfig(**SMALL, **option, bias=False)
    model = build_model(config, 40, seed=0)
    kept = {}

    def keep(tensor):
        if tensor.numel() >= 8 * 16 and not any(tensor.is_set_to(p) for p in model.parameters()):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for block in model.blocks:
        block.attn.joint_projection = False  # its joined weight is no activation
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(torch.zeros((8, 16), dtype=torch.int64))
    measured = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)
    measured += hidden.nbytes
    predicted = costs.memory_bytes(
        config, 40, micro_batch_size=8, context_length=16, optimizer="adamw", precision="32-true"
    )["activations"]
    assert predicted == pytest.approx(measured, rel=0.05)


def test_memory_by_part():
    config = DecoderConfig(**SMALL)
    n = costs.parameter_counts(config, 40)["total"]
    known = {"micro_batch_size": 2, "context_length": 16}
    full = costs.memory_bytes(config, 40, optimizer="adamw", precision="32-true", **known)
    assert (full["weights"], full["gradients"], full["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert full["total"] == sum(value for name, value in full.items() if name != "total")
    fsdp = {"strategy": StrategyConfig(name=Sharding.fsdp), "layout": Layout(shards=4)}
    quarter = costs.memory_bytes(config, 40, optimizer="adamw", precision="32-true", **fsdp, **known)
    assert quarter["weights"] == 4 * -(-n // 4)
    assert quarter["activations"] == full["activations"] and 0 < quarter["gathered"] < full["weights"]
    zero1 = {"strategy": StrategyConfig(name=Sharding.zero1), "layout": Layout(replicas=4)}
    zero1 = costs.memory_bytes(config, 40, optimizer="adamw", precision="32-true", **zero1, **known)
    assert (zero1["weights"], zero1["optimizer"]) == (4 * n, 4 * -(-2 * n // 4))
    half = costs.memory_bytes(config, 40, optimizer="adamw", precision="bf16-true", **known)
    assert 2 * half["activations"] == full["activations"]
    muon = costs.memory_bytes(config, 40, optimizer="muon", precision="32-true", **known)
    hidden = sum(p.numel() for p in shape_model(config, 40).blocks.parameters() if p.ndim == 2)
    assert full["optimizer"] - muon["optimizer"] == 4 * hidden
    sparse = replace(config, n_expert=4, n_shared_expert=1, bias=False)
    adamw, muon = (
        costs.memory_bytes(sparse, 40, optimizer=name, precision="32-true", **known) for name in costs.OPTIMIZERS
    )
    hidden = sum(p.numel() for p in shape_model(sparse, 40).blocks.parameters() if p.ndim >= 2)
    assert adamw["optimizer"] - muon["optimizer"] == 4 * hidden
    assert adamw["weights"] == 4 * costs.parameter_counts(sparse, 40)["total"], "all are held, whoever sees them"


def test_logits_are_bounded_as_the_loss_bounds_them():
    assert costs.LOGITS_CHUNK == loss.CHUNK_ELEMENTS_GPU
    config = DecoderConfig(**SMALL)
    sizes = [
        costs.memory_bytes(
            config, 50_257, micro_batch_size=n, context_length=16, optimizer="adamw", precision="32-true"
        )
        for n in (1000, 2000)
    ]
    assert sizes[0]["logits"] == sizes[1]["logits"] == 8 * costs.LOGITS_CHUNK


@pytest.mark.parametrize("word", [{"optimizer": "adam"}, {"precision": "16"}])
def test_unknown_words_are_refused(word):
    words = {"optimizer": "adamw", "precision": "32-true"} | word
    with pytest.raises(ValueError, match="is unknown here; use one of"):
        costs.memory_bytes(DecoderConfig(**SMALL), 40, micro_batch_size=1, context_length=16, **words)
