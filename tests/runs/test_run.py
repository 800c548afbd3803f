"""A run folder as one value."""

import pytest
import torch
from small_runs import small_run, step_rows

from gptlab.config import config_from_plain, to_plain
from gptlab.errors import UserError
from gptlab.runs import checkpoint
from gptlab.runs.initial_weights import open_weights
from gptlab.runs.named_tokenizer import tokenizer_named, tokenizer_of_model
from gptlab.runs.run import open_run
from gptlab.training.config import CallbacksConfig, CheckpointConfig, SpikeAction, SpikeConfig
from gptlab.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=5, keep_last=9), sample=None, plot=False)
    config = small_run(folder, callbacks=settings)
    return config, train(config)


def test_a_run_is_what_its_folder_holds(trained):
    config, run = trained
    assert run.config == config and run.config.run_id() == config.run_id()
    assert run.summary["finished"] and run.summary["run_id"] == config.run_id()
    assert list(run.checkpoints) == [5, 10] and run.checkpoint("last").samefile(run.checkpoints[10])
    assert run.events()[0]["event"] == "started"
    assert run.tokenizer.decode(run.tokenizer.encode("the ").tolist()) == "the "


def test_metrics_are_the_numbers_of_the_file_exactly(trained):
    _, run = trained
    table, rows = run.metrics(), step_rows(run.path / "metrics.csv")
    assert table["step"].tolist() == list(range(11))
    assert table["train/loss"].dropna().tolist() == [row["train/loss"] for row in rows] and len(rows) == 10
    assert table["step"][table["val/loss"].notna()].tolist() == [0, 5, 10]


def test_a_checkpoint_is_loaded_by_name_or_step(trained):
    _, run = trained
    for which in (*run.checkpoints, "last", "best"):
        path = run.checkpoint(which)
        model, tokenizer = run.load(which)
        assert not model.training and tokenizer.vocab_size == 257
        for name, value in checkpoint.load(path).model.items():
            assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(UserError, match=r"no checkpoint 7; it has: 5, 10, last, best"):
        run.load(7)
    with pytest.raises(UserError, match="no checkpoint '10'"):
        run.checkpoint("10")


def test_a_damaged_config_is_refused(tmp_path):
    for text in ("seed: [1\n", "seed\n"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml is damaged"):
            _ = open_run(tmp_path).config


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no run.*runs/NAME"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        open_run(tmp_path / "none")


def test_a_config_survives_being_made_plain(tmp_path):
    config = small_run(tmp_path / "run")
    config.callbacks.spike = SpikeConfig(action=SpikeAction.skip, threshold=4.0)
    assert config_from_plain(to_plain(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 3}, "unknown config key budget"),
        ({"model": {"type": "decoder", "n_layr": 3}}, r"unknown config key model\.n_layr.*did you mean n_layer"),
        ({"model": {"type": "retnet"}}, r"model\.type=retnet is unknown.*plugins="),
        ({"seed": "one"}, "seed=one must be a whole number"),
        ({"optimizer": {"type": "adamw", "decay": "some"}}, r"optimizer\.decay=some is unknown.*matrices"),
        ({"plugins": ["elsewhere"]}, r"plugins elsewhere.*add plugins=\[elsewhere\]"),
    ],
)
def test_a_config_of_another_version_is_refused_by_key(tmp_path, change, message):
    plain = to_plain(small_run(tmp_path / "run")) | change
    with pytest.raises(UserError, match=f"saved.yaml.*{message}"):
        config_from_plain(plain, "saved.yaml")


def test_no_name_does_not_mean_the_current_folder(trained, monkeypatch):
    config, _ = trained
    monkeypatch.chdir(config.run_dir)
    assert open_run(".").config == config  # which holds a run
    with pytest.raises(UserError, match="the run's folder is empty"):
        open_run("")
    for opened in (tokenizer_of_model, tokenizer_named, open_weights):
        with pytest.raises(UserError, match="run= is empty; name a"):
            opened(" ", "run")
