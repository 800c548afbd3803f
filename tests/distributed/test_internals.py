"""A version of a library that lacks what gptlab relies on is named before anything runs."""

import lightning
import pytest
import torch
from small_runs import small_run

from gptlab.distributed import internals
from gptlab.errors import UserError
from gptlab.training.loop import train


def test_the_installed_versions_have_everything():
    internals.check()


def test_a_missing_part_of_torch_is_named_before_the_run_begins(tmp_path, monkeypatch):
    for kind in torch.optim.AdamW.__mro__:  # torch's compiler puts one on each class, where it is imported
        if "_init_group" in vars(kind):
            monkeypatch.delattr(kind, "_init_group")
    message = r"torch 2\S+ has no AdamW\._init_group.*pip install 'torch>="
    with pytest.raises(UserError, match=message):
        train(small_run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_missing_part_of_lightning_is_named_before_the_run_begins(tmp_path, monkeypatch):
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    monkeypatch.delattr(_SubprocessScriptLauncher, "_call_children_scripts")
    with pytest.raises(UserError, match=r"lightning 2\S+ has no \S+_call_children_scripts.*pip install 'lightning>="):
        train(small_run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_counters_that_are_gone_are_named_before_the_folder_is_written(tmp_path, monkeypatch):
    real = lightning.Trainer.__init__

    def without(trainer, *args, **given):
        real(trainer, *args, **given)
        del trainer.fit_loop.epoch_loop._batches_that_stepped

    monkeypatch.setattr(lightning.Trainer, "__init__", without)
    with pytest.raises(UserError, match=r"lightning 2\S+ has no \S+_batches_that_stepped"):
        train(small_run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
