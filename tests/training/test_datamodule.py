"""Workers that gather batches."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from small_runs import small_run

from gptlab.training.datamodule import ExamplesDataModule
from gptlab.training.loop import _open_data

WORKER = """
import os, sys, time
from gptlab.training.datamodule import _begin_worker
_begin_worker(0, run=os.getppid() if sys.argv[1] == "alive" else 1 << 22)
print("begun", flush=True)
time.sleep(60 if sys.argv[1] == "dead" else 2)
"""


@pytest.mark.slow
def test_a_worker_ends_with_a_run_that_was_killed_before_it_began():
    alive, dead = (
        subprocess.Popen([sys.executable, "-c", WORKER, state], stdout=subprocess.PIPE, text=True)
        for state in ("alive", "dead")
    )
    out, _ = dead.communicate(timeout=55)
    assert dead.returncode == 1 and out in ("", "begun\n")
    assert alive.communicate(timeout=55) == ("begun\n", None) and alive.returncode == 0


def loader_on(device: str, folder):
    """The loader of a run's batches where the run is on that device."""
    config = small_run(folder / "run")
    data, objectives, _ = _open_data(config, progress=False)
    layout = config.strategy.layout(1)
    module = ExamplesDataModule(
        data, objectives, config.data, seed=0, steps=config.steps, micro_batch_size=None, layout=layout, n_steps=10
    )
    module.trainer = SimpleNamespace(global_rank=0, strategy=SimpleNamespace(root_device=torch.device(device)))
    return module.train_dataloader()


def test_batches_for_a_gpu_are_pinned_without_gaps(tmp_path):
    """A view with gaps is copied to a GPU by way of memory that is not pinned, which the device is waited for."""
    loader = loader_on("cuda", tmp_path)
    assert loader.pin_memory
    batch = loader.dataset[0]
    assert not batch["tokens"].is_contiguous()  # one view of (B, T + 1) holds tokens and targets
    collated = loader.collate_fn(batch)
    assert all(value.is_contiguous() and torch.equal(value, batch[name]) for name, value in collated.items())


def test_a_run_on_the_cpu_leaves_the_gpu_of_the_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not loader_on("cpu", tmp_path).pin_memory
