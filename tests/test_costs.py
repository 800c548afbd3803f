from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gptlab.nn.loss as loss
import gptlab.nn.moe as moe
from gptlab import costs
from gptlab.distributed.config import Layout, Sharding, StrategyConfig
from gptlab.models.build import build_model, shape_model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import AttentionPattern, DecoderConfig, Norm, NormPlacement, Position
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.attention import Attention
from gptlab.training.config import FinetuneConfig, Finetuning
from gptlab.training.finetune import prepare_finetuning

SMALL = {"n_layer": 3, "n_head": 4, "d_model": 32, "context_length": 16}
CONFIGS = [
    DecoderConfig(**SMALL),
    DecoderConfig(**SMALL, bias=False, tie_embeddings=False),
    DecoderConfig(**SMALL, qkv_bias=False, tie_embeddings=False, position=Position.none),
    DecoderConfig(**SMALL, bias=False, qkv_bias=True, d_head=6, d_ff=50, feedforward=Feedforward.relu2),
    DecoderConfig(**SMALL, n_kv_head=2, norm=Norm.rmsnorm, position=Position.rotary, feedforward=Feedforward.swiglu),
    DecoderConfig(**SMALL, n_kv_head=1, norm=Norm.rmsnorm, bias=False, qk_norm=True, feedforward=Feedforward.swiglu),
    DecoderConfig(**SMALL, norm_placement=NormPlacement.post),
    DecoderConfig(**SMALL, attention_pattern=AttentionPattern.alternating, attention_window=4),
    DecoderConfig(**SMALL, n_expert=5, n_expert_per_token=3),
    DecoderConfig(**SMALL, n_expert=4, n_shared_expert=2, bias=False, feedforward=Feedforward.swiglu),
]
GPT2 = {"context_length": 1024}
PUBLISHED = {
    "gpt2": (DecoderConfig(n_layer=12, d_model=768, n_head=12, **GPT2), 124_439_808),
    "gpt2-medium": (DecoderConfig(n_layer=24, d_model=1024, n_head=16, **GPT2), 354_823_168),
    "gpt2-large": (DecoderConfig(n_layer=36, d_model=1280, n_head=20, **GPT2), 774_030_080),
    "gpt2-xl": (DecoderConfig(n_layer=48, d_model=1600, n_head=25, **GPT2), 1_557_611_200),
    "verdict": (
        DecoderConfig(n_layer=12, d_model=768, n_head=12, context_length=256, tie_embeddings=False, qkv_bias=False),
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
        "trained": count(model.parameters()),
    }
    if config.n_expert is not None:
        idle = 1 - config.n_expert_per_token / config.n_expert
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
@pytest.mark.parametrize(
    "options", [{}, {"n_decoder_layer": 1, "tie_embeddings": False, "d_head": 5, "d_ff": 50}], ids=str
)
def test_an_encoder_decoders_parts(options, feedforward):
    config = EncoderDecoderConfig(**SMALL, **options, feedforward=feedforward)
    model, counts = shape_model(config, 40), costs.parameter_counts(config, 40)
    cross = sum(count(block.cross.parameters()) for block in model.decoder.blocks)
    assert counts["attention"] == cross + sum(count(block.attn.parameters()) for block in model.blocks)
    assert counts["feedforward"] == sum(count(block.ffn.parameters()) for block in model.blocks)
    assert counts["norm"] == sum(count([p]) for name, p in model.named_parameters() if "norm" in name)
    assert counts["total"] == count(model.parameters())


OTHERS = [
    EncoderConfig(**SMALL, d_head=6, d_ff=50),
    EncoderConfig(**SMALL, heads=Heads.masked_lm),
    EncoderDecoderConfig(**SMALL, n_decoder_layer=2, d_head=5, d_ff=50),
    EncoderDecoderConfig(**SMALL, tie_embeddings=False, feedforward=Feedforward.geglu),
]
TUNED = [
    FinetuneConfig(),
    FinetuneConfig(mode=Finetuning.last_layers, n_layer=2),
    FinetuneConfig(mode=Finetuning.lora, rank=3),
    FinetuneConfig(mode=Finetuning.lora, rank=2, layers=["attn.k", "attn.out"]),
]
CROSSED = FinetuneConfig(mode=Finetuning.lora, rank=2, layers=["cross.v", "cross.out"])


@pytest.mark.parametrize(
    "finetune", TUNED, ids=lambda finetune: f"{finetune.mode.value}-{','.join(finetune.target_modules)}"
)
@pytest.mark.parametrize("config", CONFIGS + OTHERS, ids=range(len(CONFIGS + OTHERS)))
def test_trained_parameters_and_their_memory_are_the_built_models(config, finetune):
    model = shape_model(config, 40)
    prepare_finetuning(model, finetune, config)
    counts = costs.parameter_counts(config, 40, finetune)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert counts["total"] == count(model.parameters())
    assert counts["trained"] == count(trained.values()) > 0
    matrices = [p for name, p in trained.items() if ".blocks." in f".{name}" and p.ndim >= 2 and "bias" not in name]
    known = {"micro_batch_size": 2, "context_length": 16, "precision": "32-true", "finetune": finetune}
    adamw, muon = (costs.memory_bytes(config, 40, optimizer=name, **known) for name in costs.OPTIMIZERS)
    assert adamw["weights"] == 4 * counts["total"]
    assert (adamw["gradients"], adamw["optimizer"]) == (4 * counts["trained"], 8 * counts["trained"])
    assert adamw["optimizer"] - muon["optimizer"] == 4 * count(matrices)


@pytest.mark.parametrize("config", CONFIGS + OTHERS, ids=range(len(CONFIGS + OTHERS)))
def test_linear_layers_are_those_of_the_blocks(config):
    layers = [
        (name, module.in_features, module.out_features)
        for block in shape_model(config, 40).blocks
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "ffn.router"  # which reads its weight alone
    ]
    told = [(name, *size) for name, (*size, n) in config.linear_layers().items() for _ in range(n)]
    assert sorted(layers) == sorted(told)


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


@pytest.mark.parametrize("heads", Heads)
@pytest.mark.parametrize("n_scored", [16, 5])
def test_flops_of_an_encoder(heads, n_scored):
    config = EncoderConfig(**SMALL, d_head=6, d_ff=50, heads=heads)
    model = shape_model(config, 40)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        hidden = model.hidden_states(torch.zeros((2, 16), dtype=torch.int64, device="meta"))
        if heads is not Heads.none:
            model.head.logits(model.transformed(hidden[:, :n_scored]))
        if heads is not Heads.masked_lm:
            pooled = model.pooled(hidden)
        if heads is Heads.pretraining:
            model.next_sentence(pooled)
    flops = costs.flops_per_token(config, 40, 16, scored_fraction=n_scored / 16)["per_token_exact"]
    assert 2 * 16 * flops == pytest.approx(3 * counter.get_total_flops(), rel=1e-12)


@pytest.mark.parametrize("n_target", [16, 6])
@pytest.mark.parametrize("config", OTHERS[2:], ids=["t5", "t5 1.1"])
def test_flops_of_an_encoder_decoder(config, n_target):
    model = shape_model(config, 40)
    source, targets = (torch.zeros((2, n), dtype=torch.int64, device="meta") for n in (16, n_target))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(targets, source=source)
    known = {} if n_target == 16 else {"target_length": n_target}
    flops = costs.flops_per_token(config, 40, 16, **known)
    assert 2 * 16 * flops["per_token_exact"] == pytest.approx(3 * counter.get_total_flops(), rel=1e-12)
    decoder = count(model.decoder.parameters()) - count(model.decoder.position.parameters())
    encoder = count(model.encoder.parameters()) - count(model.encoder.position.parameters())
    met = encoder * 16 + (decoder + 40 * config.d_model) * n_target
    assert flops["per_token_6n"] == pytest.approx(6 * met / 16, rel=1e-12)
    with pytest.raises(ValueError, match="target_length=4 is of an encoder-decoder; leave it out"):
        costs.flops_per_token(DecoderConfig(**SMALL), 40, 16, target_length=4)


@pytest.mark.parametrize(
    "finetune", TUNED, ids=lambda finetune: f"{finetune.mode.value}-{','.join(finetune.target_modules)}"
)
@pytest.mark.parametrize("config", CONFIGS + OTHERS, ids=range(len(CONFIGS + OTHERS)))
def test_flops_of_frozen_weights_equal_a_count_of_both_passes(config, finetune, monkeypatch):
    monkeypatch.setattr(moe, "runs_grouped", lambda x, weight: False)  # the counter knows the loop's products
    model = build_model(config, 40, seed=0)
    prepare_finetuning(model, finetune, config)
    for name, parameter in model.named_parameters():
        if "lora_up" in name:
            torch.nn.init.ones_(parameter)
    blocks = model.decoder.blocks if hasattr(model, "decoder") else model.blocks
    first = len(blocks) - finetune.n_layer if finetune.mode is Finetuning.last_layers else 0
    entries, ungraded = [blocks[first]], 0
    if hasattr(model, "encoder"):
        if finetune.mode is Finetuning.last_layers:  # what its keys and values are made of has none
            ungraded = finetune.n_layer * (blocks[0].cross.k.weight.numel() + blocks[0].cross.v.weight.numel())
        else:
            entries.append(model.encoder.blocks[0])
    for block in entries:  # what the first trained block reads has gradients
        block.register_forward_pre_hook(lambda _, read: (read[0].requires_grad_(), *read[1:]))
    tokens = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(0))
    beside = {"source": tokens} if hasattr(model, "encoder") else {}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if isinstance(config, EncoderConfig):
            hidden = model.hidden_states(tokens)
            loss = model.head.logits(model.transformed(hidden)).sum()
            if config.heads is Heads.pretraining:
                loss = loss + model.next_sentence(model.pooled(hidden)).sum()
            loss.backward()
        else:
            model(tokens, **beside).sum().backward()
    flops = costs.flops_per_token(config, 40, 16, finetune=finetune)["per_token_exact"]
    assert 2 * 16 * (flops - 2 * ungraded) == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_flops_of_adapters_after_the_encoder():
    """The encoder is only passed forward, and keys and values are of its tokens however few the targets are."""
    config = OTHERS[3]
    d, f, n = config.d_model, config.ff_width, 16
    flops = costs.flops_per_token(config, 40, n, target_length=4, finetune=CROSSED)["per_token_exact"]
    block, scores = 4 * d * d + 3 * d * f, 2 * d  # of one position
    encoder = 3 * n * (block + n * scores)
    decoder = 3 * (4 * (block + 2 * d * d) + 2 * n * d * d)
    seen = 3 * 4 * (4 + n) * scores
    adapters = 3 * 2 * (n + 4) * 2 * d
    words = 4 * 40 * d
    assert n * flops == 2 * (encoder + 2 * decoder + 3 * seen + 3 * adapters + 2 * words)


def test_six_n_of_an_encoder_weighs_its_heads():
    config = EncoderConfig(**SMALL)
    model = shape_model(config, 40)
    blocks = count(model.blocks.parameters()) + count(model.emb_norm.parameters())
    words = count(model.mlm.parameters()) + count(model.tok_emb.parameters())
    text = count(model.pooler.parameters()) + count(model.nsp.parameters())
    flops = costs.flops_per_token(config, 40, 16, scored_fraction=0.25)["per_token_6n"]
    assert flops == pytest.approx(6 * (blocks + words / 4 + text / 16), rel=1e-12)


def test_six_n_leaves_out_what_is_only_looked_up():
    tied, untied = (DecoderConfig(**SMALL, tie_embeddings=tied) for tied in (True, False))
    flops = [costs.flops_per_token(config, 40, 16)["per_token_6n"] for config in (tied, untied)]
    assert flops[0] == flops[1] == 6 * (costs.parameter_counts(tied, 40)["total"] - 16 * 32)


@pytest.mark.parametrize(
    "option",
    [
        *({"feedforward": value} for value in Feedforward),
        {"norm_placement": NormPlacement.post},
        *({"n_expert": 4, "feedforward": value} for value in Feedforward),
        {"n_expert": 4, "n_expert_per_token": 3, "capacity_factor": 1.25, "n_shared_expert": 1},
    ],
    ids=str,
)
def test_activations_are_what_autograd_keeps(option):
    config = DecoderConfig(**SMALL, **option, bias=False)
    model = build_model(config, 40, seed=0)
    measured = kept_bytes(model, lambda: model.hidden_states(torch.zeros((8, 16), dtype=torch.int64)))
    assert activations(config) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("heads", [Heads.none, Heads.masked_lm])
def test_activations_of_an_encoder(heads):
    config = EncoderConfig(**SMALL, heads=heads)
    model = build_model(config, 40, seed=0)

    def forward():
        hidden = model.hidden_states(torch.zeros((8, 16), dtype=torch.int64))
        return hidden if heads is Heads.none else torch.cat([hidden[:, :4], model.transformed(hidden[:, :4])], 1)

    assert activations(config, scored_fraction=4 / 16) == pytest.approx(kept_bytes(model, forward), rel=0.05)


@pytest.mark.parametrize("feedforward", [Feedforward.relu, Feedforward.geglu])
def test_activations_of_an_encoder_decoder(feedforward):
    config = EncoderDecoderConfig(**SMALL, n_decoder_layer=2, feedforward=feedforward)
    model = build_model(config, 40, seed=0)
    source, targets = (torch.zeros((8, n), dtype=torch.int64) for n in (16, 10))
    measured = kept_bytes(model, lambda: model.hidden_states(targets, source=source))
    # A fused kernel keeps neither a norm's output before its gain nor the weights of attention.
    measured -= 4 * 8 * (7 * 16 + 7 * 10) * 32 + 4 * 8 * 4 * (3 * 16 * 16 + 2 * 10 * 10)
    assert activations(config, target_length=10) == pytest.approx(measured, rel=0.05)


def test_frozen_blocks_keep_nothing():
    config, finetune = DecoderConfig(**SMALL), FinetuneConfig(mode=Finetuning.last_layers, n_layer=1)
    model = build_model(config, 40, seed=0)
    prepare_finetuning(model, finetune, config)
    measured = kept_bytes(model, lambda: model.hidden_states(torch.zeros((8, 16), dtype=torch.int64)))
    assert activations(config, finetune=finetune) == pytest.approx(measured, rel=0.05)


def kept_bytes(model, forward):
    """What autograd keeps for the backward pass of `forward`, with what it returns."""
    kept = {}

    def keep(tensor):
        if tensor.numel() >= 8 * 16 and not any(tensor.is_set_to(p) for p in model.parameters()):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for module in model.modules():
        if isinstance(module, Attention):
            module.joint_projection = False  # its joined weight is no activation
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights) + result.nbytes


def activations(config, **more):
    known = {"micro_batch_size": 8, "context_length": 16, "optimizer": "adamw", "precision": "32-true"}
    return costs.memory_bytes(config, 40, **known | more)["activations"]


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
