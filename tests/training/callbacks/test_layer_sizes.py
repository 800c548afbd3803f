"""`callbacks.inspect`: sizes by layer against those computed by hand, and a run that learns the same with it."""

import math
import shutil

import pytest
import torch
from small_runs import of_objective, small_run, step_rows

from gptlab.errors import UserError
from gptlab.models.build import build_model, shape_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.runs.folder import read_metrics
from gptlab.training.callbacks.layer_sizes import columns_of
from gptlab.training.config import CallbacksConfig, CheckpointConfig, FinetuneConfig, Finetuning, InspectConfig
from gptlab.training.loop import batch, train


def config_of(folder, every_steps, **options):
    saved = CheckpointConfig(every_steps=2, keep_last=9)
    settings = CallbacksConfig(
        checkpoint=saved, sample=None, plot=False, forecast=False, inspect=InspectConfig(every_steps=every_steps)
    )
    config = small_run(folder, callbacks=settings, **options)
    config.model.dropout = 0.1  # random state matters
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("some runs")
    runs = {}
    for name, every in (("with", 4), ("without", None)):
        config = config_of(folder / name, every, micro_batch_size=2)
        runs[name] = config, train(config)
    return runs


def test_it_changes_nothing_that_is_learned(trained):
    rows = [step_rows(run.path / "metrics.csv") for _, run in trained.values()]
    for with_it, without in zip(*rows, strict=True):
        assert {k: v for k, v in with_it.items() if "perf" not in k} == {
            k: v for k, v in without.items() if "perf" not in k
        }
    assert trained["with"][0].run_id() == trained["without"][0].run_id()
    assert not (trained["without"][1].path / "layers.csv").exists()


def test_gradients_sum_to_the_global_norm(trained):
    path = trained["with"][1].path
    norms = {row["step"]: row["train/grad_norm"] for row in step_rows(path / "metrics.csv")}
    rows = read_metrics(path / "layers.csv")
    assert [row["step"] for row in rows] == [1, 4, 8, 10]
    for row in rows:
        total = math.sqrt(sum(value**2 for name, value in row.items() if name.startswith("gradient_norm/")))
        assert total == pytest.approx(norms[row["step"]], rel=1e-5)


def test_the_first_row_is_that_of_the_initial_model(trained):
    config, run = trained["with"]
    row = read_metrics(run.path / "layers.csv")[0]
    model = build_model(config.model, 257, seed=config.seed).eval()
    for name in ("tok_emb", "blocks.1", "final_norm"):
        values = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if n.startswith(name)])
        assert row[f"weight_norm/{name}"] == pytest.approx(values.norm().item(), rel=1e-5)
    x = model.tok_emb(batch(config, 0)["tokens"][:2]) + model.pos_emb(torch.arange(16))
    for i, block in enumerate(model.blocks):
        x = block(x, causal=True)
        rms = x.detach().square().mean().sqrt().item()
        assert row[f"activation_rms/blocks.{i}"] == pytest.approx(rms, rel=1e-5)


def test_a_run_that_goes_on_has_each_step_once(trained, tmp_path):
    config, run = trained["with"]
    expected = (run.path / "layers.csv").read_text()
    again = tmp_path / "again"
    shutil.copytree(run.path, again, symlinks=True)
    for name in ("last", "best"):
        (again / "checkpoints" / f"{name}.ckpt").unlink()
    for step in (8, 10):
        (again / "checkpoints" / f"step_{step:08}.ckpt").unlink()
    (again / "summary.json").unlink()
    config.run_dir, config.resume = str(again), "auto"
    train(config)
    assert (again / "layers.csv").read_text() == expected
    # In another folder, and without looking: what led up to the checkpoint is there, and nothing of later steps.
    other = config_of(tmp_path / "other", None, micro_batch_size=2)
    other.data, other.resume = config.data, str(run.path / "checkpoints" / "step_00000006.ckpt")
    train(other)
    assert [row["step"] for row in read_metrics(tmp_path / "other" / "layers.csv")] == [1, 4]


def test_frozen_layers_have_no_gradient(trained, tmp_path):
    tuned = FinetuneConfig(type=Finetuning.last_layers, n_layer=1)
    config = config_of(tmp_path / "run", 1, finetune=tuned, budget_steps=2)
    config.model.init_from = str(trained["without"][1].path)
    row = read_metrics(train(config).path / "layers.csv")[-1]
    assert "gradient_norm/blocks.1" in row and "weight_norm/blocks.0" in row and "gradient_norm/blocks.0" not in row


@pytest.mark.parametrize("objective", ["masked_lm", "span_corruption"])
def test_encoders_and_encoder_decoders(tmp_path, objective):
    config = config_of(tmp_path / "run", 1, budget_steps=2, **of_objective(objective, tmp_path))
    row = read_metrics(train(config).path / "layers.csv")[-1]
    model = shape_model(config.model, 300)
    assert set(row) == {"step", "tokens", *columns_of(model)}
    assert all(value > 0 for value in row.values())


def test_layers_of_two_stacks_have_their_own_names():
    config = EncoderDecoderConfig(n_layer=2, n_head=2, d_model=16)
    model = shape_model(config, 50)
    assert len(set(model.block_names)) == len(model.blocks) == 4
    assert set(model.block_names) < set(model.layers_of_parameters().values())


def test_experts_return_their_routing_beside_the_stream(tmp_path):
    config = config_of(tmp_path / "run", 1, budget_steps=2)
    config.model = DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=16, n_expert=2)
    row = read_metrics(train(config).path / "layers.csv")[-1]
    assert row["activation_rms/blocks.0"] > 0


def test_a_wrong_interval_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.inspect\.every_steps=0"):
        config_of(tmp_path / "run", 0).check()
