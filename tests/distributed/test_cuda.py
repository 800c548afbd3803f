"""What only a GPU can show: the same losses as on a CPU, in every precision, and steps that do not wait for the device.

`python benchmarks/gpu.py --sections checks` carries out the same and more without pytest, and writes a table.
"""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden.runs import RUNS, golden_losses, golden_run
from small_runs import OBJECTIVES, learned, of_objective, small_run, step_rows

from gptlab.distributed.config import Recompute, StrategyConfig
from gptlab.training.config import AdamWConfig, MuonConfig
from gptlab.training.loop import train
from gptlab.training.module import LanguageModule
from gptlab.training.step import reseed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NO_DROPOUT = [name for name, run in RUNS.items() if "model" not in run or not run["model"].dropout]


def on_gpu(config, precision="32-true"):
    return replace(config, trainer=replace(config.trainer, accelerator="gpu", precision=precision))


def losses_of(config):
    train(config)
    return [row["train/loss"] for row in step_rows(Path(config.run_dir) / "metrics.csv")]


@contextmanager
def no_waiting():
    """Inside, an operation that waits for the GPU raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_gpu_and_a_cpu_give_the_same_losses(name, tmp_path):
    options = of_objective(name, tmp_path)
    cpu = losses_of(small_run(tmp_path / "cpu", **options))
    gpu = losses_of(on_gpu(small_run(tmp_path / "gpu", **options)))
    assert gpu == pytest.approx(cpu, abs=1e-3)


@pytest.mark.parametrize("name", NO_DROPOUT)
def test_golden_losses(name, tmp_path):
    # Muon's Newton-Schulz steps are in bfloat16 on a GPU.
    allowed = 5e-2 if "muon" in name else 1e-3
    assert losses_of(on_gpu(golden_run(name, tmp_path))) == pytest.approx(golden_losses(name), abs=allowed)


def test_bf16_stays_near_float32(tmp_path):
    exact = losses_of(on_gpu(small_run(tmp_path / "exact")))
    rounded = losses_of(on_gpu(small_run(tmp_path / "rounded"), "bf16-mixed"))
    assert rounded == pytest.approx(exact, abs=5e-2) and rounded != exact


def test_fused_updates_are_those_that_are_not(tmp_path):
    found = [
        losses_of(on_gpu(small_run(tmp_path / str(fused), optimizer=AdamWConfig(lr=1e-2, fused=fused))))
        for fused in (True, False)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(
    "strategy", [{"compile": True}, *({"activation_checkpointing": what} for what in Recompute if what.value != "none")]
)
def test_what_computes_blocks_in_another_way_gives_the_same_losses(strategy, tmp_path):
    plain = losses_of(on_gpu(small_run(tmp_path / "plain")))
    other = losses_of(on_gpu(small_run(tmp_path / "other", strategy=StrategyConfig(**strategy))))
    assert other == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("first", ["cpu", "gpu"])
def test_a_run_goes_on_on_the_other_device(first, tmp_path):
    straight = losses_of(small_run(tmp_path / "straight"))
    config = small_run(tmp_path / "moved")
    begun, continued = (config, on_gpu(config)) if first == "cpu" else (on_gpu(config), config)
    begun = replace(begun, trainer=replace(begun.trainer, precision="32-true"))
    continued = replace(continued, trainer=replace(continued.trainer, precision="32-true"))
    train(begun, until_step=5)
    assert losses_of(continued) == pytest.approx(straight, abs=1e-3)


def test_a_run_with_dropout_that_is_interrupted_is_bit_identical(tmp_path):
    config = small_run(tmp_path / "straight")
    model = replace(config.model, dropout=0.1)
    runs = []
    for name in ("straight", "interrupted"):
        config = on_gpu(small_run(tmp_path / name, model=model), "bf16-mixed")
        runs.append(replace(config, trainer=replace(config.trainer, deterministic=True)))
    train(runs[0])
    train(runs[1], until_step=5)
    train(runs[1])
    assert learned(tmp_path / "interrupted") == learned(tmp_path / "straight")


@pytest.mark.parametrize("optimizer", [AdamWConfig(lr=1e-2), MuonConfig(lr=1e-2)], ids=["adamw", "muon"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_does_not_wait_for_the_gpu(optimizer, compiled, tmp_path, monkeypatch):
    step, watched = LanguageModule.training_step, []

    def guarded(module, batch, batch_idx):
        if module.finished_steps < 2:  # kernels are chosen and compiled
            return step(module, batch, batch_idx)
        watched.append(module.finished_steps)
        with no_waiting():
            return step(module, batch, batch_idx)

    monkeypatch.setattr(LanguageModule, "training_step", guarded)
    given = {"optimizer": optimizer, "strategy": StrategyConfig(compile=compiled), "micro_batch_size": 4}
    train(on_gpu(small_run(tmp_path / "run", **given), "bf16-mixed"))
    assert watched == list(range(2, 10))


def test_dropout_on_a_gpu_is_that_of_the_step():
    def drawn(step):
        reseed(0, step, device="cuda")
        return torch.rand(8, device="cuda").tolist()

    assert drawn(3) == drawn(3) != drawn(4)
