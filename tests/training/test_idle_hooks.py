"""Which hooks Lightning calls."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from gptlab.training.idle_hooks import HOOKS_OF_A_STEP, skip_idle_hooks


class OneStep(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def counting(name: str) -> tuple[Callback, list[str]]:
    """A callback with this hook of a step alone, and what it was called with."""
    called = []
    own = type("Counting", (Callback,), {name: lambda self, *args, **kwargs: called.append(name)})
    return own(), called


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*num_workers")
@pytest.mark.parametrize("name", HOOKS_OF_A_STEP)
def test_a_hook_that_is_defined_is_called_and_no_other_one(tmp_path, monkeypatch, name):
    callback, called = counting(name)
    skip_idle_hooks([callback])

    def of_the_base_class(self, *args, **kwargs):
        raise AssertionError("an empty hook was called")

    for other in HOOKS_OF_A_STEP:
        monkeypatch.setattr(Callback, other, of_the_base_class)
        monkeypatch.setattr(lightning.LightningModule, other, of_the_base_class)
    module = OneStep()
    skip_idle_hooks([module])
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[callback],
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(3, 2)))
    assert called == [name] * 3


def test_a_hook_that_was_put_on_the_callback_itself_stays():
    callback = Callback()
    callback.on_train_batch_end = hook = lambda *args: None
    skip_idle_hooks([callback])
    assert callback.on_train_batch_end is hook


def test_hooks_stay_where_lightning_would_call_none(monkeypatch):
    def calls_whatever_there_is(trainer, name):
        for callback in trainer.callbacks:
            getattr(callback, name)()

    callback = Callback()
    monkeypatch.setattr("lightning.pytorch.trainer.call._call_callback_hooks", calls_whatever_there_is)
    skip_idle_hooks([callback])
    assert not vars(callback)
    monkeypatch.undo()
    skip_idle_hooks([callback])
    assert set(vars(callback)) == set(HOOKS_OF_A_STEP)
