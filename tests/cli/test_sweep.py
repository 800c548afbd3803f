"""The command gptlab sweep: its options, its answers and what it prints."""

import json
import shlex

import pytest
from small_runs import TrialsInProcess

from gptlab.cli import sweep

SPACE = "optimizer.lr: [1e-3, 3e-3]\n"


@pytest.fixture
def trials(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my space.yaml").write_text(SPACE)
    return TrialsInProcess(lambda config: {"val/loss": 100 * config.optimizer.lr}, monkeypatch)


def test_the_table_and_what_to_type_now(trials, capsys):
    arguments = ["space=my space.yaml", "sampler=grid", "name=a sweep", "seed=3"]
    assert sweep.main(arguments) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("sweep runs/a sweep: 2 trials over optimizer.lr; minimize val/loss; sampler=grid")
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["trial", "optimizer.lr", "val/loss", "steps", "time", "state"]
    assert [line.split()[:3] for line in table[1:3]] == [["0", "0.001", "0.1000"], ["1", "0.003", "0.3000"]]
    assert "best: trial 0, optimizer.lr=0.001: val/loss 0.1000" in lines
    assert "next: gptlab generate 'run=runs/a sweep/000,optimizer.lr=0.001' prompt='...'" in lines
    assert "the study, while it goes on: optuna-dashboard 'sqlite:///runs/a sweep/study.db'" in lines
    assert all(config.seed == 3 for config in trials.seen)
    assert sweep.main(arguments) == 0 and len(trials.seen) == 2, "once more, nothing is missing"


def test_what_is_left_to_do_is_said_and_the_exit_code_is_of_this_call(trials, capsys):
    def task(config):
        if config.optimizer.lr > 2e-3:
            raise RuntimeError("no")
        return {"val/loss": 1.0}

    trials.task = task

    def call(*more):
        code = sweep.main(["space=my space.yaml", "name=left", *more])
        return code, [line for line in capsys.readouterr().out.splitlines() if line.startswith("the same command")]

    retry = "the same command with retry_failed=true tries 1 failed trial once more"
    grid = "sampler=grid"
    assert call(grid, "n_trials=1") == (0, ["the same command without n_trials= goes on with 1 point of the grid"])
    assert call(grid) == (1, [retry]), "a trial failed, and no larger n_trials= would go on"
    assert call(grid) == (0, [retry]), "none failed in this call"
    assert call(grid, "retry_failed=true") == (1, []) and len(trials.seen) == 3
    assert call("sampler=random", "n_trials=3") == (0, ["the same command with a larger n_trials= goes on"])


def test_the_command_that_goes_on_can_be_pasted(trials, capsys):
    class Interrupted(Exception):
        exit_code = 143

    def stopped(config):
        raise Interrupted("stopped by SIGTERM, saved at step 7; the same command continues it:\n  x")

    trials.task = stopped
    arguments = ["space=my space.yaml", "sampler=grid", "callbacks.sample.prompt=it's"]
    assert sweep.main(arguments) == 143
    out = capsys.readouterr().out
    assert "  stopped: stopped by SIGTERM, saved at step 7\n" in out
    line = out.splitlines()[-1].strip()
    assert shlex.split(line) == ["gptlab", "sweep", *arguments] and len(trials.seen) == 1


def test_json_is_all_of_standard_output(trials, capsys):
    def task(config):
        if config.optimizer.lr > 2e-3:
            raise RuntimeError("no")

    trials.task = task
    assert sweep.main(["space=my space.yaml", "sampler=grid", "output=json", "name=j"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["storage"], found["best"]) == ("runs/j", "sqlite:///runs/j/study.db", 0)
    assert found["trials"][0] == {
        "number": 0,
        "state": "finished",
        "values": {"optimizer.lr": 0.001},
        "metrics": {"val/loss": 1.0},
        "reason": "",
        "same_as": None,
        "folder": "runs/j/000,optimizer.lr=0.001",
    }
    assert (found["trials"][1]["state"], found["trials"][1]["reason"]) == ("failed", "RuntimeError: no")


def test_plugins_and_presets_of_ones_own_reach_the_trials(trials, tmp_path, monkeypatch):
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    (tmp_path / "mine" / "recipe" / "fast.yaml").write_text(
        "# @package _global_\ndefaults: [default, _self_]\nbatch_tokens: 1024\n"
    )
    (tmp_path / "space.yaml").write_text("recipe: [fast, small]\n")
    assert sweep.main(["--config-dir", "mine", "space=space.yaml", "sampler=grid"]) == 0
    assert [config.batch_tokens == 1024 for config in trials.seen] == [True, False]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("n_trials=3", "space= is missing; name a YAML file"),
        ("space=none.yaml", "space=none.yaml cannot be read: No such file or directory"),
        ("space=s.yaml n_trails=3", "unknown option n_trails of gptlab sweep; did you mean n_trials?"),
        ("space=s.yaml method=bayes", "unknown option method of gptlab sweep; did you mean sampler?"),
        ("space=s.yaml sampler=x", "sampler=x is unknown; known: tpe, random, grid, cmaes"),
        ("space=s.yaml pruner=medain", "pruner=medain is unknown; did you mean median?"),
        ("space=s.yaml n_trials=0", "n_trials=0 must be at least 1"),
        ("space=s.yaml n_trials=x", "n_trials=x must be a whole number"),
        ("space=s.yaml direction=up", "direction=up is unknown; known: minimize, maximize"),
        ("space=s.yaml model.n_embd=3", "unknown config key model.n_embd; did you mean model.d_model?"),
        ("space=s.yaml seed=1,2", "seed=1,2 is several values"),
        ("space=s.yaml -m seed=1", "-m is not an option of gptlab sweep"),
        ("space=s.yaml n_trials", "n_trials needs a value"),
    ],
)
def test_what_cannot_work_is_answered(trials, capsys, tmp_path, arguments, message):
    (tmp_path / "s.yaml").write_text(SPACE)
    assert sweep.main(arguments.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not trials.seen and not (tmp_path / "runs").exists()


def test_without_optuna_the_extra_is_named(trials, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert sweep.main(["space=my space.yaml"]) == 2
    assert "gptlab sweep needs optuna: pip install 'gptlab[sweep]'" in capsys.readouterr().err
