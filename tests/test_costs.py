"""Counts on the meta device, held against explicit maths, the real model and torch's own counter."""

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import gptlab.nn.moe as moe
from gptlab import costs
from gptlab.counting import ACTIVATION
from gptlab.distributed.config import Layout, Recompute, Sharding, StrategyConfig
from gptlab.distributed.parallelize import parallelize
from gptlab.models.base import LanguageModel
from gptlab.models.build import build_model, shape_model
from gptlab.models.config import Capability, Feedforward, ModelConfig
from gptlab.models.decoder.config import AttentionPattern, DecoderConfig, Norm, NormPlacement, Position
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.loss import CHUNK_ELEMENTS_GPU, LMHead, linear_cross_entropy
from gptlab.training.config import AdamWConfig, FinetuneConfig, Finetuning, MuonConfig
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


def shaped(config, finetune=None, vocab_size=40):
    model = shape_model(config, vocab_size)
    if finetune is not None:
        prepare_finetuning(model, finetune)
    return model


def flops(config, finetune=None, **options):
    return costs.training_pass(shaped(config, finetune), 16, **options).flops_per_token


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_parameter_counts_are_those_of_the_parts(config):
    model = shape_model(config, 40)
    counts = costs.parameter_counts(model)
    built = {
        "embedding": count(model.tok_emb.parameters()),
        "position": 0 if model.pos_emb is None else count(model.pos_emb.parameters()),
        "attention": sum(count(block.attn.parameters()) for block in model.blocks),
        "feedforward": sum(count(block.ffn.parameters()) for block in model.blocks),
        "norm": count(p for name, p in model.named_parameters() if "norm" in name),
        "head": 0 if model.lm_head is None else count(model.lm_head.parameters()),
        "total": count(model.parameters()),
        "active": count(model.parameters()),
        "trained": count(model.parameters()),
    }
    if config.n_expert is not None:
        inactive = 1 - config.n_expert_per_token / config.n_expert
        built["active"] -= round(inactive * sum(count(block.ffn.experts.parameters()) for block in model.blocks))
    assert {part: n for part, n in counts.items() if n} == {part: n for part, n in built.items() if n}


@pytest.mark.parametrize("heads", Heads)
def test_parts_of_an_encoder(heads):
    model = shape_model(EncoderConfig(**SMALL, heads=heads, d_head=6, d_ff=50, n_segment=3), 40)
    counts = costs.parameter_counts(model)
    assert counts["attention"] == sum(count(block.attn.parameters()) for block in model.blocks)
    assert counts["feedforward"] == sum(count(block.ffn.parameters()) for block in model.blocks)
    assert counts.get("pooler", 0) == (0 if model.pooler is None else count(model.pooler.parameters()))
    assert counts.get("head", 0) == sum(count(part.parameters()) for part in (model.mlm, model.nsp) if part is not None)
    assert counts["total"] == count(model.parameters())


@pytest.mark.parametrize("feedforward", Feedforward)
@pytest.mark.parametrize(
    "options", [{}, {"n_decoder_layer": 1, "tie_embeddings": False, "d_head": 5, "d_ff": 50}], ids=str
)
def test_parts_of_an_encoder_decoder(options, feedforward):
    model = shape_model(EncoderDecoderConfig(**SMALL, **options, feedforward=feedforward), 40)
    counts = costs.parameter_counts(model)
    cross = sum(count(block.cross.parameters()) for block in model.decoder.blocks)
    assert counts["attention"] == cross + sum(count(block.attn.parameters()) for block in model.blocks)
    assert counts["feedforward"] == sum(count(block.ffn.parameters()) for block in model.blocks)
    assert counts["norm"] == count(p for name, p in model.named_parameters() if "norm" in name)
    assert counts["total"] == count(model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    config, published = PUBLISHED[name]
    assert costs.parameter_counts(shape_model(config, 50_257))["total"] == published


OTHERS = [
    EncoderConfig(**SMALL, d_head=6, d_ff=50),
    EncoderConfig(**SMALL, heads=Heads.masked_lm),
    EncoderDecoderConfig(**SMALL, n_decoder_layer=2, d_head=5, d_ff=50),
    EncoderDecoderConfig(**SMALL, tie_embeddings=False, feedforward=Feedforward.geglu),
]
TUNED = [
    FinetuneConfig(),
    FinetuneConfig(type=Finetuning.last_layers, n_layer=2),
    FinetuneConfig(type=Finetuning.lora, rank=3),
    FinetuneConfig(type=Finetuning.lora, rank=2, target_modules=["attn.k", "attn.out"]),
]
each_finetuning = pytest.mark.parametrize(
    "finetune", TUNED, ids=lambda finetune: f"{finetune.type.value}-{','.join(finetune.target_modules)}"
)
each_config = pytest.mark.parametrize("config", CONFIGS + OTHERS, ids=range(len(CONFIGS + OTHERS)))


@each_finetuning
@each_config
def test_memory_of_trained_parameters(config, finetune):
    model = shaped(config, finetune)
    counts = costs.parameter_counts(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert counts["trained"] == count(trained.values()) > 0
    matrices = [p for name, p in trained.items() if ".blocks." in f".{name}" and p.ndim >= 2 and "bias" not in name]
    adamw, muon = (memory(model, optimizer=optimizer) for optimizer in (AdamWConfig(), MuonConfig()))
    assert adamw["weights"] == 4 * counts["total"]
    assert (adamw["gradients"], adamw["optimizer"]) == (4 * counts["trained"], 8 * counts["trained"])
    assert adamw["optimizer"] - muon["optimizer"] == 4 * count(matrices)


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_flops_of_a_decoder(config):
    """PaLM, appendix B: 6 for each weight of a matrix, and 12 H K T for attention, per token and block."""
    c, queries, keys = config, config.n_head * config.head_width, config.kv_heads * config.head_width
    n_feedforward, router = 1, 0
    if c.n_expert is not None:
        n_feedforward, router = c.n_expert_per_token + (c.n_shared_expert or 0), c.n_expert * c.d_model
    feedforward = n_feedforward * (3 if c.feedforward.gated else 2) * c.d_model * c.ff_width + router
    block = 6 * (2 * queries * c.d_model + 2 * keys * c.d_model + feedforward) + 12 * queries * 16
    assert flops(c) == c.n_layer * block + 6 * 40 * c.d_model


def test_flops_of_gpt3_without_its_blocks_one_by_one():
    config = DecoderConfig(n_layer=96, n_head=96, d_model=12_288, context_length=2048)
    counted = costs.training_pass(shape_model(config, 50_257), 2048)
    d, n = 12_288, 96
    assert counted.flops_per_token == n * (6 * 12 * d * d + 12 * d * 2048) + 6 * 50_257 * d


def test_extrapolation_from_short_sequences_is_exact_for_attention(monkeypatch):
    model = shape_model(DecoderConfig(**SMALL | {"context_length": 100}), 40)
    counted = costs.training_pass(model, 100, micro_batch_size=3)
    monkeypatch.setattr(costs, "MAX_OPERATIONS", 10)
    extrapolated = costs.training_pass(model, 100, micro_batch_size=3)
    assert extrapolated.flops_per_token == pytest.approx(counted.flops_per_token, rel=1e-9)
    for recompute in Recompute:
        found = extrapolated.activation_bytes("bf16-mixed", recompute)
        assert found == pytest.approx(counted.activation_bytes("bf16-mixed", recompute), rel=1e-9)


def test_blocks_that_are_alike_count_as_if_each_was_run():
    config = DecoderConfig(
        **SMALL | {"n_layer": 6}, attention_pattern=AttentionPattern.alternating, attention_window=4, n_expert=4
    )
    model, each = shape_model(config, 40), shape_model(config, 40)
    for i, block in enumerate(each.blocks):
        block.number = i
    counted, expected = (costs.training_pass(model, 16) for model in (model, each))
    assert (len(counted.kept_by_blocks), len(expected.kept_by_blocks)) == (2, 6)
    assert replace(counted, kept_by_blocks=()) == replace(expected, kept_by_blocks=())
    assert "forward" not in vars(model.blocks[0]) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("heads", Heads)
@pytest.mark.parametrize("n_scored", [16, 5])
def test_flops_of_an_encoder(heads, n_scored):
    config = EncoderConfig(**SMALL, d_head=6, d_ff=50, heads=heads)
    block = 16 * (4 * 32 * 24 + 2 * 32 * 50) + 2 * 16 * 16 * 24  # multiply-adds of a sequence
    total = 3 * block
    if heads is not Heads.none:
        total += n_scored * (32 * 32 + 32 * 40)
    if heads is not Heads.masked_lm:
        total += 32 * 32
    if heads is Heads.pretraining:
        total += 2 * 32
    assert 16 * flops(config, scored_fraction=n_scored / 16) == pytest.approx(6 * total, rel=1e-12)


@pytest.mark.parametrize("n_target", [16, 6])
@pytest.mark.parametrize("config", OTHERS[2:], ids=["t5", "t5 1.1"])
def test_flops_of_an_encoder_decoder(config, n_target):
    model = build_model(config, 40, seed=0)
    source, targets = (torch.zeros((2, n), dtype=torch.int64) for n in (16, n_target))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(targets, source=source)
    counted = costs.training_pass(shape_model(config, 40), 16, target_length=n_target)
    assert 2 * 16 * counted.flops_per_token == pytest.approx(3 * counter.get_total_flops(), rel=1e-12)
    decoder = count(model.decoder.parameters()) - count(model.decoder.position.parameters())
    encoder = count(model.encoder.parameters()) - count(model.encoder.position.parameters())
    met = encoder * 16 + (decoder + 40 * config.d_model) * n_target
    assert counted.flops_per_token_6n == pytest.approx(6 * met / 16, rel=1e-12)


def test_a_target_length_is_for_an_encoder_decoder():
    with pytest.raises(ValueError, match="target_length=4"):
        flops(DecoderConfig(**SMALL), target_length=4)


@each_finetuning
@each_config
def test_flops_with_frozen_weights_are_those_that_autograd_runs(config, finetune, monkeypatch):
    monkeypatch.setattr(moe, "runs_grouped", lambda x, weight: False)  # torch's counter knows the loop's products
    model = build_model(config, 40, seed=0)
    prepare_finetuning(model, finetune)
    for name, parameter in model.named_parameters():
        if "lora_up" in name:
            nn.init.ones_(parameter)
    tokens = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(0))
    source = {"source": tokens} if Capability.encoder_decoder in config.capabilities else {}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if Capability.nsp_head in config.capabilities:
            hidden = model.hidden_states(tokens)
            loss = (
                model.head.logits(model.mlm_transform(hidden)).sum() + model.next_sentence(model.pooled(hidden)).sum()
            )
        else:
            loss = model(tokens, **source).sum()
        loss.backward()
    assert 2 * 16 * flops(config, finetune) == pytest.approx(counter.get_total_flops(), rel=1e-12)


def test_flops_of_adapters_in_cross_attention():
    """The encoder runs forward alone, and keys and values are of its tokens however few the targets are."""
    config = OTHERS[3]
    finetune = FinetuneConfig(type=Finetuning.lora, rank=2, target_modules=["cross.v", "cross.out"])
    d, f, n, t, rank, vocabulary = config.d_model, config.ff_width, 16, 4, 2, 40
    encoder = 3 * (n * (4 * d * d + 3 * d * f) + 2 * n * n * d)
    decoder = 3 * (t * (6 * d * d + 3 * d * f) + n * 2 * d * d + 2 * t * t * d + 2 * t * n * d)
    adapters = 3 * rank * 2 * d * (n + t)
    forward = encoder + decoder + adapters + t * vocabulary * d
    # Nothing before the first adapter has a gradient, nor do keys, which depend on frozen weights alone.
    first = t * (d * d + 3 * d * f) + t * n * d
    later = 2 * (t * (6 * d * d + 3 * d * f) + 4 * t * t * d + 3 * t * n * d)
    backward = first + later + 3 * rank * d * (3 * n + 4 * t) + t * vocabulary * d
    assert n * flops(config, finetune, target_length=t) == 2 * (forward + backward)


def test_six_n_of_an_encoder_weighs_its_heads():
    model = shape_model(EncoderConfig(**SMALL), 40)
    blocks = count(model.blocks.parameters()) + count(model.emb_norm.parameters())
    tokens = count(model.mlm.parameters()) - 40 + count(model.tok_emb.parameters())
    sequence = count(model.pooler.parameters()) + count(model.nsp.parameters())
    counted = costs.training_pass(model, 16, scored_fraction=0.25)
    assert counted.flops_per_token_6n == pytest.approx(6 * (blocks + (tokens + 40) / 4 + sequence / 16), rel=1e-12)


def test_six_n_leaves_out_what_is_only_looked_up():
    tied, untied = (shape_model(DecoderConfig(**SMALL, tie_embeddings=tied), 40) for tied in (True, False))
    for model in (tied, untied):
        expected = 6 * (costs.parameter_counts(tied)["total"] - 16 * 32)
        assert costs.training_pass(model, 16).flops_per_token_6n == expected == costs.estimated_flops_per_token(model)


def test_six_n_leaves_out_inactive_experts():
    model = shape_model(DecoderConfig(**SMALL, n_expert=4), 40)
    n = costs.parameter_counts(model)["active"] - 16 * 32
    assert costs.training_pass(model, 16).flops_per_token_6n == 6 * n


class Recurrent(LanguageModel):
    """A causal model that is no transformer, as a plugin may bring one."""

    def __init__(self):
        super().__init__(ModelConfig(d_model=8, context_length=16))
        self.blocks = nn.ModuleList()
        self.tok_emb = nn.Embedding(40, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def hidden_states(self, tokens, *, attention_mask=None):
        return self.rnn(self.tok_emb(tokens))[0]

    @property
    def head(self):
        return LMHead(weight=self.tok_emb.weight)


def test_a_model_that_is_no_transformer():
    with torch.device("meta"):
        model = Recurrent()
    counted = costs.training_pass(model, 16)
    gates = 2 * 3 * 8 * 8  # inputs and states, three gates
    # The first state has no gradient.
    assert 16 * counted.flops_per_token == 2 * (16 * 3 * (gates + 40 * 8) - 3 * 8 * 8)
    assert counted.activation_bytes("32-true") > 0
    # So many positions that it would take seconds: extrapolated from short sequences.
    assert 2000 * costs.training_pass(model, 2000).flops_per_token == pytest.approx(
        2 * (2000 * 3 * (gates + 40 * 8) - 3 * 8 * 8), rel=1e-9
    )
    assert memory(model, counted)["weights"] == 4 * count(model.parameters())


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
        if heads is Heads.none:
            return hidden
        return torch.cat([hidden[:, :4], model.mlm_transform(hidden[:, :4])], 1)

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
    config, finetune = DecoderConfig(**SMALL), FinetuneConfig(type=Finetuning.last_layers, n_layer=1)
    model = build_model(config, 40, seed=0)
    prepare_finetuning(model, finetune)
    measured = kept_bytes(model, lambda: model.hidden_states(torch.zeros((8, 16), dtype=torch.int64)))
    assert activations(config, finetune=finetune) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("recompute", [Recompute.full, Recompute.selective])
def test_activation_checkpointing_keeps_inputs_of_blocks_and_one_block(recompute):
    config = DecoderConfig(**SMALL)
    model = build_model(config, 40, seed=0)
    x = torch.zeros((8, 16, 32), requires_grad=True)
    block = kept_bytes(model, lambda: model.blocks[0](x, causal=True)) - 4 * x.numel()  # without its result
    parallelize(model, StrategyConfig(activation_checkpointing=recompute), None, precision="32-true")
    measured = kept_bytes(model, lambda: model.hidden_states(torch.zeros((8, 16), dtype=torch.int64)))
    if recompute is Recompute.selective:  # checkpoints keep products where no hook sees them
        measured += 3 * 4 * 8 * 16 * (3 * 32 + 32 + 32 + 4 * 32 + 32)
    counted = costs.training_pass(shape_model(config, 40), 16, micro_batch_size=8)
    assert counted.activation_bytes("32-true", recompute) == pytest.approx(measured + block, rel=0.05)
    assert counted.activation_bytes("32-true", recompute) < counted.activation_bytes("32-true")


SIX = {"n_layer": 6, "n_head": 4, "d_model": 64}
RECOMPUTED = {
    "decoder": (DecoderConfig(**SIX, context_length=16), None, 6),
    "last layers": (
        DecoderConfig(**SIX, context_length=16),
        FinetuneConfig(type=Finetuning.last_layers, n_layer=2),
        2,
    ),
    "lora": (DecoderConfig(**SIX, context_length=16), FinetuneConfig(type=Finetuning.lora), 6),
    "encoder-decoder": (EncoderDecoderConfig(n_layer=3, n_head=4, d_model=64, d_ff=128), None, 6),
}


@pytest.mark.parametrize("case", RECOMPUTED)
def test_each_recomputed_block_saves_what_was_counted(case):
    """Peaks of forward and backward passes with the first n blocks recomputed, those that keep nothing left out."""
    config, finetune, n_blocks = RECOMPUTED[case]
    target_length = 10 if isinstance(config, EncoderDecoderConfig) else None
    shape = shaped(config, finetune)
    counted = costs.training_pass(shape, 16, micro_batch_size=8, fused=False, target_length=target_length)
    blocks = counted.recomputable
    assert len(blocks) == n_blocks
    measured, planned = [], []
    for n in range(n_blocks + 1):
        measured.append(peak_bytes(config, finetune, blocks[:n], target_length))
        planned.append(counted.activation_bytes("32-true", Recompute.budget, blocks[:n]))
    # The last block is recomputed when nothing more can be let go of, so that it saves nothing.
    assert planned[-1] == planned[-2] and measured[-1] == pytest.approx(measured[-2], rel=0.01)
    for n in range(n_blocks - 2):
        assert measured[n] - measured[n + 1] == pytest.approx(planned[n] - planned[n + 1], rel=0.1), n
    assert planned == pytest.approx(measured, rel=0.25)
    if n_blocks > 2:  # of the last blocks as many save less
        assert peak_bytes(config, finetune, blocks[2:], target_length) > 1.1 * measured[n_blocks - 2]


def test_a_budget_recomputes_as_few_blocks_as_keep_to_it():
    model = shape_model(DecoderConfig(**SIX, context_length=16), 40)
    counted = costs.training_pass(model, 16, micro_batch_size=8)
    strategy = StrategyConfig(activation_checkpointing=Recompute.budget)

    def of(blocks, process=0):
        return memory(model, counted, strategy=strategy, recomputed=blocks, process=process)

    totals = [memory(model, counted, strategy=strategy, recomputed=range(n))["total"] for n in range(7)]
    assert totals[0] == memory(model, counted)["total"] and totals[0] > totals[1] > totals[4] > totals[5] == totals[6]
    for n in range(6):
        blocks, found = costs.recompute_within(totals[n], counted.recomputable, of)
        assert (blocks, found["total"]) == (tuple(range(n)), totals[n])
        tighter, _ = costs.recompute_within(totals[n] - 1, counted.recomputable, of)
        assert len(tighter) == min(n + 1, 5)  # the last one would save nothing
    beside, _ = costs.recompute_within(totals[3], counted.recomputable, partial(of, process=10**9))
    assert beside == (0, 1, 2), "the program itself is not part of it"


class LivePeak(TorchDispatchMode):
    """The most bytes of tensors that were there at once, without those in `apart`."""

    def __init__(self, apart):
        super().__init__()
        self.apart = {tensor.untyped_storage().data_ptr() for tensor in apart}
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                self.meet(tensor.untyped_storage())
        return result

    def meet(self, storage):
        if storage._cdata not in self.live and storage.data_ptr() not in self.apart:
            self.live[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.release, storage._cdata)

    def release(self, address):
        self.now -= self.live.pop(address, 0)


def peak_bytes(config, finetune, recomputed, target_length):
    model = build_model(config, 40, seed=0)
    if finetune is not None:
        prepare_finetuning(model, finetune)
    strategy = StrategyConfig(activation_checkpointing=Recompute.budget)
    parallelize(model, strategy, None, precision="32-true", recomputed=recomputed)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    tokens, beside = torch.zeros((8, 16), dtype=torch.int64), {}
    if target_length is not None:
        tokens, beside = tokens[:, :target_length], {"source": tokens}
    with LivePeak([*model.parameters(), *(p.grad for p in trained)]) as live:
        model.hidden_states(tokens, **beside).square().sum().backward()
    return live.peak


def kept_bytes(model, forward):
    """What autograd keeps for the backward pass of `forward`, with what it returns."""
    kept = {}

    def keep(tensor):
        if tensor.numel() >= 8 * 16 and not any(tensor.is_set_to(p) for p in model.parameters()):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    result = result[0] if isinstance(result, tuple) else result
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights) + result.nbytes


def activations(config, finetune=None, **options):
    counted = costs.training_pass(shaped(config, finetune), 16, micro_batch_size=8, **options)
    return counted.activation_bytes("32-true")


def memory(model, counted=None, **options):
    given = {"optimizer": AdamWConfig(), "precision": "32-true", "strategy": StrategyConfig(), "layout": Layout()}
    return costs.memory_bytes(model, counted, **given | options)


def test_memory_by_part():
    model = shape_model(DecoderConfig(**SMALL), 40)
    n, counted = costs.parameter_counts(model)["total"], costs.training_pass(model, 16, micro_batch_size=2)
    full = memory(model, counted)
    assert (full["weights"], full["gradients"], full["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert full["total"] == sum(value for name, value in full.items() if name != "total")
    quarter = memory(model, counted, strategy=StrategyConfig(type=Sharding.fsdp), layout=Layout(shards=4))
    assert quarter["weights"] == 4 * -(-n // 4)
    assert quarter["activations"] == full["activations"] and 0 < quarter["gathered"] < full["weights"]
    zero1 = memory(model, counted, strategy=StrategyConfig(type=Sharding.zero1), layout=Layout(replicas=4))
    assert (zero1["weights"], zero1["optimizer"]) == (4 * n, 4 * -(-2 * n // 4))
    half = memory(model, counted, precision="bf16-true")
    assert half["weights"] == 2 * n and half["activations"] == pytest.approx(full["activations"] / 2, rel=1e-2)
    # The biases of layers that are split by their outputs are split too, those that follow a sum are not.
    split = ("q.bias", "k.bias", "v.bias", "up.bias")
    hidden = count(p for name, p in model.blocks.named_parameters() if p.ndim == 2 or name.endswith(split))
    tensor = memory(model, counted, strategy=StrategyConfig(type=Sharding.tp), layout=Layout(tensor=2))
    assert tensor["weights"] == 4 * (n - hidden // 2)


def test_a_micro_batch_has_a_gradient_of_the_head_beside_the_sum():
    model = build_model(DecoderConfig(**SMALL, tie_embeddings=True), 997, seed=0)
    weight, tokens, storages, alive = model.head.weight, torch.arange(32).reshape(2, 16), {}, []

    class Gradients(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            dense = isinstance(result, torch.Tensor) and result.layout is torch.strided
            if dense and result.shape == weight.shape and not result.is_set_to(weight.data):
                storage = result.untyped_storage()
                storages[storage._cdata] = weakref.ref(storage)
            return result

    def in_the_first_block(module, grads, of_outputs):
        alive.append(sum(storage() is not None for storage in storages.values()))

    model.blocks[0].register_full_backward_hook(in_the_first_block)
    with Gradients():
        for _ in range(3):
            linear_cross_entropy(model.hidden_states(tokens), model.head, tokens, chunk_size=8).backward()
    assert alive == [1, 2, 2]
    counted = costs.training_pass(shaped(model.config, vocab_size=997), 16)
    once, again = (memory(model, counted, accumulates=accumulates) for accumulates in (False, True))
    assert again["temporary"] - once["temporary"] == 4 * weight.numel()
    sharded = {"strategy": StrategyConfig(type=Sharding.fsdp), "layout": Layout(shards=2)}
    assert memory(model, counted, **sharded) == memory(model, counted, accumulates=True, **sharded)


@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig()], ids=lambda optimizer: optimizer.type)
def test_optimizer_state_is_that_of_the_built_optimizer(optimizer):
    config = DecoderConfig(**SMALL, n_expert=4)
    model = build_model(config, 40, seed=0)
    built = optimizer.build(model.named_parameters(), device=torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    built.step()
    state = count(
        value for state in built.state.values() for value in state.values() if torch.is_tensor(value) and value.ndim
    )
    assert memory(shape_model(config, 40), optimizer=optimizer)["optimizer"] == 4 * state


def test_every_expert_is_held():
    model = shape_model(DecoderConfig(**SMALL, n_expert=4, n_shared_expert=1, bias=False), 40)
    assert memory(model)["weights"] == 4 * count(model.parameters())


def test_logits_are_bounded_as_the_loss_bounds_them():
    model = shape_model(DecoderConfig(**SMALL), 50_257)
    sizes = [memory(model, costs.training_pass(model, 16, micro_batch_size=n))["logits"] for n in (10, 100, 1000, 2000)]
    aligned = 50_304
    assert sizes == [12 * 160 * 50_257, 8 * 1600 * aligned, 8 * CHUNK_ELEMENTS_GPU, 8 * CHUNK_ELEMENTS_GPU]


@pytest.mark.parametrize("n_positions", [100, 300, 3000, 50_000], ids=["plain", "parts", "a chunk", "chunks"])
def test_the_loss_on_a_cpu_needs_what_was_counted(n_positions):
    model = build_model(DecoderConfig(**SMALL), 1024, seed=0)
    hidden, targets = torch.randn(n_positions, 32, requires_grad=True), torch.zeros(n_positions, dtype=torch.int64)
    hidden.grad, model.head.weight.grad = torch.zeros_like(hidden), torch.zeros_like(model.head.weight)
    with LivePeak([hidden, hidden.grad, model.head.weight, model.head.weight.grad]) as live:
        linear_cross_entropy(hidden, model.head, targets).backward()
    shape = shape_model(model.config, 1024)
    counted = costs.training_pass(shape, 10, micro_batch_size=n_positions // 10, fused=False)
    logits = memory(shape, counted)["logits"]
    beside = 4 * (model.head.weight.numel() + 3 * hidden.numel())  # gradients, and what the products read
    assert 0.97 * logits <= live.peak <= 1.1 * (logits + beside)  # chunks are made alike, a little below the largest


def test_activations_are_left_out_where_nothing_was_counted():
    assert not {"activations", "logits"} & memory(shape_model(DecoderConfig(**SMALL), 40)).keys()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_with_dropout_keeps_its_weights_on_a_cpu(dropout, fused):
    """The weights (B, H, T, T) before dropout and after it, and the mask that multiplies them, in float32."""
    b, h, t, d = 8, 4, 16, 32
    without, counted = (
        costs.training_pass(
            shape_model(DecoderConfig(**SMALL, dropout=p), 40), t, micro_batch_size=b, fused=fused
        ).activation_bytes("32-true")
        for p in (0.0, dropout)
    )
    if not dropout:
        assert counted == without
    elif fused:  # masks of one byte: of the embedding and of two results a block
        assert counted - without == pytest.approx(7 * b * t * d, rel=0.2)
    else:
        assert counted - without == pytest.approx(4 * (3 * 3 * b * h * t * t + 7 * b * t * d), rel=0.2)


@pytest.mark.parametrize("fused", [True, False])
def test_confined_attention_adds_one_mask_and_no_operations(fused):
    config = DecoderConfig(n_layer=3, n_head=2, d_model=16, context_length=12)
    given = {"micro_batch_size": 5, "fused": fused}
    plain, confined = (
        costs.training_pass(shape_model(config, 29), 12, confined=confined, **given) for confined in (False, True)
    )
    assert confined.flops_per_token == plain.flops_per_token
    assert confined.kept[ACTIVATION] - plain.kept[ACTIVATION] == 5 * 12 * 12
