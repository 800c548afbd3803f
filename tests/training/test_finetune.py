"""Fine-tuning: which parameters are trained, what an adapter computes, and how it is merged."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from interop.external import run_convert
from small_runs import of_objective, small_run, write_examples

from gptlab.data.sources.config import TableConfig
from gptlab.errors import UserError
from gptlab.models.build import init_weights, shape_model
from gptlab.models.config import model_from_plain
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.lora import LoRALinear
from gptlab.objectives.config import ClassificationConfig
from gptlab.runs import checkpoint
from gptlab.runs.initial_weights import load_initial
from gptlab.runs.load import load_model
from gptlab.training.config import AdamWConfig, FinetuneConfig, Finetuning
from gptlab.training.finetune import prepare_finetuning
from gptlab.training.loop import train

SHAPE = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}
LORA = FinetuneConfig(type=Finetuning.lora, rank=3, alpha=7.0, target_modules=["attn.q", "attn.v", "ffn.down"])


def adapted(config, finetune=LORA, vocab_size=40, seed=0):
    model = shape_model(config, vocab_size)
    prepare_finetuning(model, finetune)
    model = model.to_empty(device="cpu")
    init_weights(model, seed)
    return model


def tokens(vocab_size=40):
    return torch.randint(vocab_size, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_an_adapter_is_explicit_maths(bias):
    layer = LoRALinear(5, 4, bias=bias, rank=2, alpha=3.0, dropout=0.5)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(i))
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(9))
    w, down, up = layer.weight.double(), layer.lora_down.double(), layer.lora_up.double()
    own = x.double() @ w.T + (layer.bias.double() if bias else 0.0)
    assert torch.allclose(layer.eval()(x).double(), own + 3 / 2 * x.double() @ down.T @ up.T, atol=1e-5)
    torch.manual_seed(0)
    kept = F.dropout(torch.ones_like(x), 0.5).double()
    torch.manual_seed(0)
    added = 3 / 2 * (x.double() * kept) @ down.T @ up.T
    assert torch.allclose(layer.train()(x).double(), own + added, atol=1e-5), "dropout is of what the adapter reads"


@pytest.mark.parametrize(
    "config", [DecoderConfig(**SHAPE), EncoderConfig(**SHAPE), EncoderDecoderConfig(**SHAPE)], ids=type
)
def test_adapters_start_at_zero_and_by_seed_and_name(config):
    plain, first, again, other = (
        adapted(config, *options) for options in ((FinetuneConfig(),), (LORA,), (LORA,), (LORA, 40, 1))
    )
    call = {"source": tokens()} if isinstance(config, EncoderDecoderConfig) else {}
    assert near(first(tokens(), **call), plain(tokens(), **call))
    own, drawn, different = (dict(model.named_parameters()) for model in (first, again, other))
    for name, parameter in own.items():
        if name.endswith(".lora_up"):
            assert not parameter.any()
        if name.endswith(".lora_down"):
            bound = parameter.shape[1] ** -0.5
            assert 0.8 * bound < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
            assert torch.equal(parameter, drawn[name]) and not torch.equal(parameter, different[name])
    downs = [p for name, p in own.items() if name.endswith("attn.q.lora_down")]
    assert not torch.equal(downs[0], downs[1]), "each layer has its own"


def frozen(config, **finetune):
    model = shape_model(config, 40)
    prepare_finetuning(model, FinetuneConfig(type=Finetuning.last_layers, **finetune))
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}, {
        name for name, p in model.named_parameters() if not p.requires_grad
    }


def test_the_last_blocks_of_each_architecture():
    trained, rest = frozen(DecoderConfig(**SHAPE, tie_embeddings=False), n_layer=1)
    assert trained == {"blocks", "final_norm", "lm_head"}
    assert {name.split(".")[0] for name in rest} == {"tok_emb", "pos_emb", "blocks"}
    assert not any(name.startswith("blocks.1.") for name in rest)
    trained, rest = frozen(EncoderConfig(**SHAPE, heads=Heads.pretraining), n_layer=2)
    assert trained == {"blocks", "pooler", "mlm", "nsp"}
    assert {name.split(".")[0] for name in rest} == {"tok_emb", "pos_emb", "seg_emb", "emb_norm"}
    trained, rest = frozen(EncoderDecoderConfig(**SHAPE, n_decoder_layer=3, tie_embeddings=False), n_layer=2)
    assert trained == {"decoder", "lm_head"}
    assert {".".join(name.split(".")[:3]) for name in rest if name.startswith("decoder.")} == {
        "decoder.position.table",
        "decoder.blocks.0",
    }


EXPERTS = {"n_expert": 4, "n_shared_expert": 1}


@pytest.mark.parametrize(
    ("config", "wrong", "names"),
    [
        (
            DecoderConfig(**SHAPE),
            ["attn.q", "cross.q"],
            "cross.q is no layer .* attn.q, attn.k, attn.v, attn.out, ffn.up",
        ),
        (DecoderConfig(**SHAPE), ["ffn.gate"], "ffn.gate is no layer"),
        (DecoderConfig(**SHAPE, **EXPERTS), ["ffn.up"], "ffn.up is a layer of the experts.*ffn.shared.up"),
        (DecoderConfig(**SHAPE, **EXPERTS), ["ffn.experts.up"], "ffn.experts.up is a layer of the experts"),
        (DecoderConfig(**SHAPE, **EXPERTS), ["ffn.router"], "ffn.router is no layer"),
        (EncoderDecoderConfig(**SHAPE), ["norm1"], "norm1 is no layer .* cross.q"),
    ],
    ids=str,
)
def test_layers_that_the_model_lacks_are_refused(config, wrong, names):
    with pytest.raises(UserError, match=rf"finetune\.target_modules=\[.*: {names}"):
        adapted(config, replace(LORA, target_modules=wrong))


def test_adapters_are_in_every_block_that_has_the_layer():
    model = adapted(EncoderDecoderConfig(**SHAPE), replace(LORA, target_modules=["attn.q", "cross.k"]))
    found = {name.removesuffix(".lora_up") for name, _ in model.named_parameters() if name.endswith(".lora_up")}
    assert found == {
        *(f"{side}.blocks.{i}.attn.q" for side in ("encoder", "decoder") for i in range(2)),
        *(f"decoder.blocks.{i}.cross.k" for i in range(2)),
    }
    model = adapted(DecoderConfig(**SHAPE, **EXPERTS), replace(LORA, target_modules=["ffn.shared.up"]))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"blocks.{i}.ffn.shared.up.lora_{side}" for i in range(2) for side in ("down", "up")
    }


@pytest.mark.parametrize(
    ("config", "n"),
    [(DecoderConfig(**SHAPE), 2), (EncoderDecoderConfig(**SHAPE, n_decoder_layer=3), 3)],
    ids=["", "T5"],
)
def test_more_blocks_than_there_are_are_refused(config, n):
    frozen(config, n_layer=n)
    with pytest.raises(UserError, match=rf"finetune\.n_layer={n + 1} is more than the {n} blocks.*or fewer"):
        frozen(config, n_layer=n + 1)


def test_a_class_head_is_trained_whatever_is_frozen():
    for finetune in (LORA, FinetuneConfig(type=Finetuning.last_layers, n_layer=1)):
        model = shape_model(DecoderConfig(**SHAPE), 40, 3)
        prepare_finetuning(model, finetune)
        assert all(parameter.requires_grad for parameter in model.class_head.parameters())
        assert not model.tok_emb.weight.requires_grad


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretrained run, and one of adapters that began there."""
    place = tmp_path_factory.mktemp("tuned")
    train(small_run(place / "base", model=DecoderConfig(**SHAPE)))
    model = DecoderConfig(**SHAPE, init_from=str(place / "base"))
    train(small_run(place / "lora", model=model, finetune=LORA))
    return place


def unmerged(run):
    """The model as it was trained, adapters beside their layers."""
    saved = checkpoint.load(run / "checkpoints" / "best.ckpt")
    model = adapted(model_from_plain(saved.state.config["model"]), vocab_size=saved.vocab_size)
    checkpoint.restore_model(model, saved.model)
    return model.eval()


def near(a, b):
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


@torch.no_grad()
def test_a_merged_model_computes_what_was_trained(runs, tmp_path, capsys):
    ids = tokens(257)
    expected = unmerged(runs / "lora")(ids)
    base = load_model(str(runs / "base")).model(ids)
    assert (expected - base).abs().max() > 0.1, "it learned something"
    merged = load_model(str(runs / "lora")).model
    assert not any("lora" in name for name in merged.state_dict())
    assert near(merged(ids), expected)
    assert run_convert(f"from={runs / 'lora'}", f"to={tmp_path / 'theirs'}") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert near(theirs(ids).logits, expected)
    assert (
        f"of {sum(p.numel() for p in merged.parameters()):,} parameters" in (tmp_path / "theirs/README.md").read_text()
    )
    assert not any("lora" in name for name in theirs.state_dict())


@torch.no_grad()
def test_a_run_of_adapters_is_a_model_to_start_from(runs):
    merged = load_model(str(runs / "lora")).model.state_dict()
    config = DecoderConfig(**SHAPE, init_from=str(runs / "lora"))
    for finetune in (FinetuneConfig(), LORA):
        model = adapted(config, finetune, vocab_size=257, seed=5)
        drawn = {name: p.clone() for name, p in model.named_parameters()}
        load_initial(model, config, 257, seed=5)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, drawn[name] if "lora" in name else merged[name]), name


def test_the_plan_gives_the_number_of_trained_parameters(runs, tmp_path, capsys):
    model = DecoderConfig(**SHAPE, init_from=str(runs / "base"))
    train(small_run(tmp_path / "run", model=model, finetune=LORA, budget_steps=2))
    n_trained = 2 * 3 * (32 + 32 + 32 + 32 + 128 + 32)  # two blocks, rank 3, q, v and down
    assert f"; {n_trained:,} trained (" in capsys.readouterr().out


def test_a_run_is_not_resumed_with_other_adapters(runs, tmp_path):
    model = DecoderConfig(**SHAPE, init_from=str(runs / "base"))
    finetune = FinetuneConfig(type=Finetuning.lora, rank=2, target_modules=LORA.target_modules, alpha=LORA.alpha)
    resume = str(runs / "lora" / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"another model or batch: finetune\.rank was 3 and is 2"):
        train(small_run(tmp_path / "run", model=model, finetune=finetune, resume=resume, budget_steps=12))


def test_an_encoders_heads_may_be_other_ones(tmp_path):
    """What a pretrained encoder has is taken, its class head for as many classes too; what it lacks is drawn."""
    place = of_objective("masked_lm", tmp_path)
    pretrained = tmp_path / "pretrained"
    train(small_run(pretrained, **place))
    given = {"objective": ClassificationConfig(), "tokenizer": place["tokenizer"], "budget_steps": 5}
    given["data"] = TableConfig(
        path=str(write_examples(tmp_path / "r.jsonl")),
        prompt="{question}",
        label_column="even",
        class_names=["False", "True"],
    )
    still = AdamWConfig(lr=1e-30, weight_decay=0.0)
    found = {}
    for name, heads, source in (
        ("first", Heads.none, pretrained),
        ("same", Heads.none, tmp_path / "first"),
        ("wider", Heads.pretraining, tmp_path / "first"),
    ):
        model = replace(place["model"], heads=heads, init_from=str(source))
        train(small_run(tmp_path / name, **given | {"model": model, "optimizer": still, "seed": len(found)}))
        found[name] = checkpoint.load(tmp_path / name / "checkpoints" / "last.ckpt").model
    of_pretraining = checkpoint.load(pretrained / "checkpoints" / "best.ckpt").model
    for name, value in found["first"].items():
        assert name.startswith("class_head.") or torch.equal(value, of_pretraining[name]), name
    assert torch.equal(found["same"]["class_head.weight"], found["first"]["class_head.weight"])
    assert not torch.equal(found["wider"]["mlm.dense.weight"], of_pretraining["mlm.dense.weight"])
    assert torch.equal(found["wider"]["pooler.weight"], of_pretraining["pooler.weight"])
