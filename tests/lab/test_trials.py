"""Trials of a sweep: why one failed, what is shown of it, and what its process is."""

import os
import subprocess
import sys

import pytest
from small_runs import small_run

from gptlab.config import to_plain
from gptlab.errors import UserError
from gptlab.lab import trials
from gptlab.lab.trials import State, Trial, freeze, key_of_config, read_frozen, table


@pytest.mark.parametrize(
    "log, reason",
    [
        ("step 1\nerror: the loss is nan; lower the rate\n", "the loss is nan; lower the rate"),
        ("error: \nTraceback (most recent call last):\n  File\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("rank 1: error: no\nerror: rank 0 lost the other ranks\n", "rank 0 lost the other ranks"),
        ("Fatal Python error: Segmentation fault\n\n", "Fatal Python error: Segmentation fault"),
        ("", ""),
    ],
)
def test_the_reason_of_a_failure_is_what_the_process_said_last(tmp_path, log, reason):
    before = "error: of an earlier start\n"
    (tmp_path / "log").write_text(before + log)
    assert trials._reason(tmp_path / "log", len(before)) == reason


def test_the_newest_whole_row_is_shown(tmp_path):
    file = tmp_path / "metrics.csv"
    assert trials._newest_row(file) == {}
    rows = "".join(f"{step},{step * 1e-5!r},\n" for step in range(1, 1000))
    file.write_text("step,train/loss,val/loss\n" + rows + "1000,2.")
    assert trials._newest_row(file) == {"step": "999", "train/loss": "0.0100", "val/loss": ""}


def test_a_table_has_the_best_trial_first_and_the_reasons_last(tmp_path):
    def trial(number, state, value=None, reason=""):
        numbers = {"val/loss": value, "steps": 1000, "seconds": 70.0} if value is not None else {}
        values = {"optimizer.lr": 10.0**-number, "model.n_kv_head": None}
        return Trial(
            number=number, label="", values=values, folder=tmp_path, state=state, reason=reason, numbers=numbers
        )

    found = [
        trial(0, State.finished, 2.0),
        trial(1, State.failed, reason="no\nspace " + 200 * "x"),
        trial(2, State.finished, 1.5),
        trial(3, State.pruned, 1.0, "at step 5"),
        trial(4, State.finished, float("nan")),
    ]
    lines = table(found, ["val/loss"]).splitlines()
    assert [line.split()[0] for line in lines] == ["trial", "2", "0", "4", "3", "1"]
    assert lines[1].split() == ["2", "0.01", "null", "1.5000", "1,000", "1", "min", "10", "s", "finished"]
    assert "failed: no space xxx" in lines[-1] and lines[-1].endswith(f"...; {tmp_path}/trial.log")
    up = table(found, ["val/loss"], descending=True).splitlines()
    assert [line.split()[0] for line in up[1:3]] == ["0", "2"]


def test_a_frozen_config_is_the_config_and_no_name_is_part_of_its_key(tmp_path):
    config = small_run(tmp_path / "run", resume="somewhere", seed=7)
    plain = to_plain(config)
    trial = Trial(number=3, label="seed=7", values={"seed": 7}, folder=tmp_path / "run", config=plain)
    assert trial.hold() and trials.hold(trial.folder) is None
    trial.held.close()
    freeze(trial)
    with pytest.raises(UserError, match="resume=somewhere does not exist"):
        read_frozen(trial.folder)
    (trial.folder / "checkpoints").mkdir()
    (trial.folder / "checkpoints" / "last.ckpt").touch()
    frozen = read_frozen(trial.folder)
    assert frozen.resume == "auto", "it continues what it has saved"
    assert to_plain(frozen) | {"resume": "somewhere"} == plain
    other = small_run(tmp_path / "other", seed=7, name="x", data_tag="y")
    assert key_of_config(to_plain(other)) == key_of_config(plain)
    assert key_of_config(plain | {"micro_batch_size": 2}) != key_of_config(plain), "a difference that learns the same"
    (trial.folder / "trial.yaml").write_text("- 1")
    with pytest.raises(UserError, match=r"trial\.yaml is missing or damaged"):
        read_frozen(trial.folder)


def test_a_folder_that_is_no_trial_is_answered(tmp_path):
    command = [sys.executable, "-m", "gptlab.cli.trial", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.returncode == 2 and "error: name the folder of a sweep's trial" in done.stderr
