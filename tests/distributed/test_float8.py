"""Float8 training, emulated on the CPU: what it computes, which layers it reaches, and what is refused.

The extra `test` leaves torchao out: transformers imports it where it is, with warnings, in every process. `.ci/run`
installs it beside the environment and runs this file with it.
"""

import importlib.util
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from ranks import carry_out
from small_runs import ROOT, small_run, step_rows

import gptlab
from gptlab.composition import compose
from gptlab.distributed import devices, float8
from gptlab.distributed.config import Recompute, StrategyConfig
from gptlab.distributed.parallelize import parallelize
from gptlab.errors import UserError
from gptlab.models.build import build_model, shape_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.folder import read_metrics
from gptlab.training.config import FLOAT8, TrainerConfig
from gptlab.training.loop import train

REASON = 'needs torchao: pip install "gptlab[fp8]"'
SHAPE = DecoderConfig(n_layer=2, n_head=4, d_model=64, context_length=32)
V = 300
UNIT = 2**-4  # of float8_e4m3fn: half the step between 1 and the next number, which has three bits of mantissa


@pytest.fixture
def torchao():
    if importlib.util.find_spec("torchao") is None:
        pytest.skip(REASON)


@pytest.fixture
def tokens():
    return torch.randint(V, (4, 32), generator=torch.Generator().manual_seed(1))


def network(precision, config=SHAPE):
    model = build_model(config, V, seed=0)
    if precision == FLOAT8:
        float8.use_float8(model, emulate=True)
    return model.train()


def autocast(precision):
    return nullcontext() if precision == "32-true" else torch.autocast("cpu", torch.bfloat16)


def measured(model, tokens, precision):
    """Hidden states, the loss, and gradients by parameter."""
    with autocast(precision):
        hidden = model.hidden_states(tokens)
        loss = F.cross_entropy(model.head.logits(hidden).float().flatten(0, 1), tokens.flatten())
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return hidden.detach().float(), loss.item(), gradients


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture
def calls(torchao, monkeypatch):
    """The calls of torchao's layer, and how it was called."""
    with float8.quiet():
        from torchao.float8.float8_linear import Float8Linear

    found, forward = [], Float8Linear.forward

    def counted(self, x):
        assert torch.is_autocast_enabled("cpu")
        found.append(self)
        return forward(self, x)

    monkeypatch.setattr(Float8Linear, "forward", counted)
    return found


def test_results_are_as_near_as_three_bits_of_mantissa_allow(torchao, tokens):
    """Nearer than the unit of float8, and further than bfloat16, whose unit is a 32nd of it."""
    exact, loss, gradients = measured(network("32-true"), tokens, "32-true")
    rounded = measured(network("bf16-mixed"), tokens, "bf16-mixed")
    hidden, found, own = measured(network(FLOAT8), tokens, FLOAT8)
    assert error(rounded[0], exact) < UNIT / 8 < error(hidden, exact) < UNIT
    assert found == pytest.approx(loss, abs=1e-2)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        if name.endswith(("q.weight", "k.weight", "v.weight", "out.weight", "up.weight", "down.weight")):
            # Three factors are rounded on the way, and so are those before them.
            assert error(rounded[2][name], gradient) < UNIT / 4 < error(own[name], gradient) < 2 * UNIT, name


def test_a_token_does_not_depend_on_later_ones_nor_on_other_sequences(torchao, tokens):
    model = network(FLOAT8).eval()
    other = tokens.clone()
    other[:, 20:] = 7
    with torch.no_grad(), autocast(FLOAT8):
        whole = model.hidden_states(tokens)
        assert torch.equal(whole[:, :20], model.hidden_states(other)[:, :20])
        torch.testing.assert_close(whole[:1], model.hidden_states(tokens[:1]))


MODELS = {
    "plain": (SHAPE, 12),
    "experts": (replace(SHAPE, n_expert=4, bias=False), 8),  # attention's; the stacks and the router are no such layers
    "shared experts": (replace(SHAPE, n_expert=4, n_shared_expert=1, bias=False), 12),
    "encoder-decoder": (EncoderDecoderConfig(n_layer=1, n_head=2, d_model=32, context_length=16), 16),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_linear_layer_of_blocks_is_called(calls, kind):
    config, n = MODELS[kind]
    model = network(FLOAT8, config)
    layers = [module for module in model.modules() if type(module).__name__ == "Float8Linear"]
    assert len(layers) == n
    tokens = torch.zeros((2, config.context_length), dtype=torch.long)
    with autocast(FLOAT8):
        model.hidden_states(tokens, **({"source": tokens} if kind == "encoder-decoder" else {}))
    assert sorted(map(id, calls)) == sorted(map(id, layers))


@pytest.mark.parametrize("what", [Recompute.full, Recompute.selective])
def test_recomputation_changes_nothing(calls, tokens, what):
    expected = measured(network(FLOAT8), tokens, FLOAT8)
    assert len(calls) == 12
    model = network(FLOAT8)
    parallelize(model, StrategyConfig(activation_checkpointing=what), None, precision="bf16-mixed")
    hidden, loss, gradients = measured(model, tokens, FLOAT8)
    assert len(calls) == 12 + 24
    assert torch.equal(hidden, expected[0]) and loss == expected[1]
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[2][name], msg=name)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_blocks_are_traced_as_one_graph(torchao, tokens):
    expected = measured(network(FLOAT8), tokens, FLOAT8)
    model = network(FLOAT8)
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    hidden, loss, gradients = measured(model, tokens, FLOAT8)
    assert error(hidden, expected[0]) < UNIT / 8 and loss == pytest.approx(expected[1], abs=1e-3)
    assert gradients.keys() == expected[2].keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_compiled_blocks_compute_the_same(torchao, tokens):
    expected = measured(network(FLOAT8), tokens, FLOAT8)
    model = network(FLOAT8)
    strategy = StrategyConfig(compile=True, activation_checkpointing=Recompute.full)
    parallelize(model, strategy, None, precision="bf16-mixed")
    hidden, loss, _ = measured(model, tokens, FLOAT8)
    assert error(hidden, expected[0]) < UNIT / 4 and loss == pytest.approx(expected[1], abs=1e-3)


def test_the_head_and_the_embeddings_are_untouched(torchao):
    exact, model = network("bf16-mixed"), network(FLOAT8)
    assert type(model.tok_emb) is type(exact.tok_emb)
    hidden = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with autocast(FLOAT8):
        assert torch.equal(model.head.logits(hidden), exact.head.logits(hidden))
    untied = network(FLOAT8, replace(SHAPE, tie_embeddings=False))
    assert type(untied.lm_head) is torch.nn.Linear


def test_names_and_weights_go_both_ways(torchao):
    exact, model = network("32-true"), network(FLOAT8)
    state = model.state_dict()
    assert list(state) == list(exact.state_dict())
    assert all(type(value) is torch.Tensor and value.dtype is torch.float32 for value in state.values())
    assert all(torch.equal(value, exact.state_dict()[name]) for name, value in state.items())
    torch.nn.init.ones_(exact.blocks[0].attn.q.weight)
    model.load_state_dict(exact.state_dict())
    assert model.blocks[0].attn.q.weight.eq(1).all()
    meta = shape_model(SHAPE, V)
    float8.use_float8(meta, emulate=False)
    assert [name for name, _ in meta.named_parameters()] == [name for name, _ in exact.named_parameters()]
    assert not meta.blocks[0].attn.q.config.emulate


def test_any_number_of_tokens_and_frozen_layers(torchao):
    model = network(FLOAT8)
    model.blocks[0].requires_grad_(False)
    _, loss, gradients = measured(model, torch.arange(7)[None], FLOAT8)
    assert loss > 0 and "blocks.1.ffn.up.weight" in gradients and "blocks.0.ffn.up.weight" not in gradients
    assert model.blocks[0].attn.q.config.pad_inner_dim, "a GPU's product over 7 tokens needs it"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.precision=fp8"], "did you mean fp8-mixed"),
        (["trainer.precision=fp8-mixed", "strategy=tp", "trainer.devices=2"], "trainer.precision=bf16-mixed"),
        (["trainer.precision=fp8-mixed", "strategy=fsdp_tp", "trainer.devices=4"], "strategy=fsdp"),
        (["trainer.precision=fp8-mixed", "finetune=lora", "model.init_from=x"], "finetune=lora"),
        (["fp8=true"], "did you mean trainer.precision=fp8-mixed?"),
        (["precision=fp8"], "did you mean trainer.precision=fp8-mixed?"),
    ],
)
def test_what_a_config_refuses(overrides, said):
    with pytest.raises(UserError) as refused:
        compose("trainer.accelerator=cpu", *overrides).check()
    assert said in str(refused.value)


def test_layers_of_other_sizes_are_refused():
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.q has 24 inputs and 24 outputs.*multiple of 16"):
        float8.check_layers(shape_model(replace(SHAPE, d_model=24), V))
    float8.check_layers(shape_model(SHAPE, V))


def test_a_model_without_linear_layers_is_refused(monkeypatch):
    model = shape_model(SHAPE, V)
    monkeypatch.setattr(type(model), "linear_layers", lambda self, block: {})
    with pytest.raises(UserError, match=r"has none; use trainer\.precision=bf16-mixed"):
        float8.check_layers(model)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    find_spec = float8.importlib.util.find_spec
    monkeypatch.setattr(
        float8.importlib.util, "find_spec", lambda name, *rest: None if name == "torchao" else find_spec(name, *rest)
    )
    with pytest.raises(UserError, match=r'pip install "gptlab\[fp8\]"'):
        train(fp8_run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_devices_without_float8_are_refused(monkeypatch):
    for name, kind in (("current_device", 0), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda kind=kind: kind)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: ("NVIDIA H100", "NVIDIA A100-SXM4-40GB")[index])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: ((9, 0), (8, 0))[index])
    one = TrainerConfig(accelerator="gpu", devices=1, precision=FLOAT8)
    found = devices.find_devices(one)
    assert found.precision == FLOAT8 and found.peak_flops is None
    with pytest.raises(UserError, match=r"8\.9 or above.*A100-SXM4-40GB is 8\.0; use trainer\.precision=bf16-mixed"):
        devices.find_devices(replace(one, devices=2))
    devices.find_devices(replace(one, devices=[0]))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"mps.*trainer\.accelerator=cpu"):
        devices.find_devices(replace(one, accelerator="mps"))


def fp8_run(folder, precision=FLOAT8, **given):
    config = small_run(folder, budget_steps=2, **given)
    return replace(config, trainer=replace(config.trainer, precision=precision))


def test_a_run_and_its_checkpoint_in_another_precision(calls, tmp_path, capsys):
    folder = tmp_path / "run"
    run = train(fp8_run(folder))
    assert "fp8-mixed is emulated on a CPU" in capsys.readouterr().err
    assert calls and all(layer.config.emulate for layer in calls)
    rows = step_rows(folder / "metrics.csv")
    assert len(rows) == 2 and "perf/mfu" not in rows[0]
    exact = train(fp8_run(tmp_path / "exact", "32-true"))
    first, second = (read_metrics(found.path / "metrics.csv")[-1] for found in (run, exact))
    assert first["val/loss"] != second["val/loss"] and first["val/loss"] == pytest.approx(second["val/loss"], abs=0.05)

    path, _ = checkpoint.newest(folder / "checkpoints")
    state = checkpoint.load(path).state
    assert state.arithmetic == FLOAT8
    loaded, *_ = gptlab.load(str(folder))
    assert type(loaded.blocks[0].attn.q) is not type(calls[0])
    n = len(calls)
    more = {"resume": str(path), "strategy": StrategyConfig(activation_checkpointing=Recompute.full)}
    with pytest.raises(UserError, match=r"trainer\.precision was fp8-mixed and is 32-true"):
        train(fp8_run(folder, "32-true"))
    train(replace(fp8_run(tmp_path / "on", "32-true", **more), budget_steps=3))
    assert len(calls) == n and len(step_rows(tmp_path / "on" / "metrics.csv")) == 3
    train(replace(fp8_run(tmp_path / "back", **more | {"resume": str(tmp_path / "on")}), budget_steps=4))
    assert len(calls) > n and len(step_rows(tmp_path / "back" / "metrics.csv")) == 4


def test_two_processes_learn_what_one_does(torchao, tmp_path):
    job = {"precision": FLOAT8, "run": {"micro_batch_size": 2, "budget_steps": 4}}
    for n_ranks, strategies in ((1, ["auto"]), (2, ["ddp", "fsdp"])):
        jobs = [job | {"folder": str(tmp_path / name), "strategy": {"type": name}} for name in strategies]
        carry_out(jobs, n_ranks, tmp_path)
    expected = step_rows(tmp_path / "auto" / "metrics.csv")
    for name in ("ddp", "fsdp"):
        rows = step_rows(tmp_path / name / "metrics.csv")
        # Forward passes agree, as scales are by token; a weight's gradient has scales over the micro-batch's tokens.
        assert rows[0]["train/loss"] == pytest.approx(expected[0]["train/loss"], rel=1e-3)
        assert rows[0]["train/grad_norm"] == pytest.approx(expected[0]["train/grad_norm"], rel=UNIT / 2)
        for row, want in zip(rows, expected, strict=True):
            assert row["train/loss"] == pytest.approx(want["train/loss"], rel=1e-2), (name, row["step"])


def test_the_extra_names_the_package():
    assert 'fp8 = ["torchao>=' in (ROOT / "pyproject.toml").read_text()
