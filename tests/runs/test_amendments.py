"""Changes while a run is going: applied at a step, and at the same step ever after."""

import json
import signal

import pytest
from lightning.pytorch.callbacks import Callback
from ranks import carry_out
from small_runs import ROOT, learned, overrides_of, small_run, step_rows, write_text
from small_runs import train as train_command

from gptlab.cli import amend
from gptlab.training.config import (
    AdamWConfig,
    CallbacksConfig,
    CheckpointConfig,
    MuonConfig,
    TrainerConfig,
    WSDConfig,
)
from gptlab.training.loop import train

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def run_of(folder, **overrides):
    settings = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=5, keep_last=9), sample=None, plot=False)
    trainer = TrainerConfig(accelerator="cpu", devices=1, val_check_interval=10, **QUIET)
    return small_run(folder, **{"callbacks": settings, "trainer": trainer, "budget_steps": 20, **overrides})


def events(run, kind: str) -> list[dict]:
    return [e for line in (run / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == kind]


def numbers(run) -> list[tuple]:
    names = ("step", "train/loss", "train/grad_norm", "train/lr")
    return [tuple(row[name] for name in names) for row in step_rows(run / "metrics.csv")]


class At(Callback):
    """Does something to a run before one of its steps."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, module, *_):
        if module.finished_steps == self.step - 1:
            self.action(trainer, module)


def amends(run, *overrides: str):
    def action(trainer, module):
        assert amend.main([f"run={run}", *overrides]) == 0

    return action


class Killed(Exception):
    pass


def kill(trainer, module):
    module.updating = True  # so that nothing is saved on the way out
    raise Killed


@pytest.mark.parametrize("optimizer_class", [AdamWConfig, MuonConfig])
def test_a_running_run_takes_it_up_at_its_next_step(tmp_path, optimizer_class):
    run, other = tmp_path / "run", tmp_path / "other"
    overrides = ["optimizer.lr=3e-3", "optimizer.weight_decay=0.3", "optimizer.grad_clip=0.2", "optimizer.beta2=0.9"]
    overrides += ["optimizer.momentum=0.8", "optimizer.adamw_lr=1e-3"] if optimizer_class is MuonConfig else []
    config = run_of(run, optimizer=optimizer_class(lr=1e-2))
    summary = train(config, [At(7, amends(run, *overrides, "schedule.min_lr_ratio=0"))]).summary
    (event,) = events(run, "amended")
    assert (event["step"], event["number"], event["overrides"]["optimizer.lr"]) == (7, 1, 3e-3)
    assert [(a["number"], a["step"]) for a in summary["amendments"]] == [(1, 7)]
    assert summary["run_id"] == config.run_id(), "the run is still the one that was started"

    def by_hand(trainer, module):
        for group in trainer.optimizers[0].param_groups:
            muon, matrices = group.get("muon", False), group["params"][0].ndim == 2
            group["initial_lr"] = 3e-3 if muon or optimizer_class is AdamWConfig else 1e-3
            group["weight_decay"] = 0.3 if matrices else 0.0
            group["betas"] = (0.9, 0.9)
            if muon:
                group["momentum"] = 0.8
        module.optimizer_config.grad_clip = 0.2
        object.__setattr__(module.schedule, "min_lr_ratio", 0.0)

    train(run_of(other, optimizer=optimizer_class(lr=1e-2)), [At(8, by_hand)])
    assert numbers(run) == numbers(other)
    lrs = [row[-1] for row in numbers(run)]
    assert lrs[6] > 3e-3 >= lrs[7] > lrs[-1]


def test_a_run_that_is_not_running_takes_it_up_when_it_is_continued(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        train(run_of(run), [At(13, kill)])
    assert amend.main([f"run={run}", "optimizer.lr=1e-3", "schedule.min_lr_ratio=1"]) == 0
    train(run_of(run))
    (event,) = events(run, "amended")
    assert event["step"] == 10
    assert [row[-1] for row in numbers(run)][10:] == [1e-3] * 10


def test_killed_and_continued_it_replays_what_it_took_up(tmp_path):
    """Overrides are applied at steps 7 and 13, and kills come before, between and after: no bit changes."""
    changes = [At(7, amends(tmp_path / "straight", "optimizer.lr=3e-3", "callbacks.checkpoint.every_steps=4"))]
    changes += [At(13, amends(tmp_path / "straight", "schedule.min_lr_ratio=0.5", "optimizer.lr=5e-3"))]
    train(run_of(tmp_path / "straight"), changes)
    run = tmp_path / "killed"
    first = At(7, amends(run, "optimizer.lr=3e-3", "callbacks.checkpoint.every_steps=4"))
    second = At(13, amends(run, "schedule.min_lr_ratio=0.5", "optimizer.lr=5e-3"))
    # From step 5 the first is replayed at 7; from 12 both are there; from 16 both are past.
    for callbacks in ([first, At(8, kill)], [second, At(15, kill)], [At(19, kill)]):
        with pytest.raises(Killed):
            train(run_of(run), callbacks)
    train(run_of(run))
    assert numbers(run) == numbers(tmp_path / "straight")
    assert [(e["number"], e["step"]) for e in events(run, "amended")] == [(1, 7), (2, 13)]
    assert [e["step"] for e in events(run, "continued")] == [5, 12, 16]


# Amends the run before step 7 by the command, and pulls the plug when a step begins.
DRIVER = """
import os, runpy, signal, sys

if __name__ == "__main__":
    from pathlib import Path
    from gptlab.cli import amend
    from gptlab.training.module import LanguageModule

    left, real = int(os.environ["KILL_AT"]), LanguageModule.training_step

    def step(self, *args):
        global left
        run = next(c.folder.path for c in self.trainer.callbacks if hasattr(c, "folder"))
        if self.finished_steps == 6 and not (run / "amendments.jsonl").exists():
            amend.main([f"run={{run}}", "optimizer.lr=2e-3"])
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args)

    LanguageModule.training_step = step
    sys.argv[0] = {program!r}
    runpy.run_path({program!r}, run_name="__main__")
"""


def test_the_real_command_killed_after_it_was_amended(tmp_path):
    write_text(tmp_path / "text.txt")
    (tmp_path / "driver.py").write_text(DRIVER.format(program=str(ROOT / "train.py")))
    overrides = overrides_of(
        tmp_path / "text.txt", **{"callbacks.checkpoint.every_steps": 5, "callbacks.checkpoint.best": "false"}
    )

    def start(name: str, kill_at: int):
        return train_command(
            [*overrides, f"run_dir={name}"], tmp_path, program=tmp_path / "driver.py", KILL_AT=str(kill_at)
        )

    assert start("straight", 0).returncode == 0
    assert start("killed", 10).returncode == -signal.SIGKILL
    done = start("killed", 0)
    assert done.returncode == 0, done.stderr
    assert learned(tmp_path / "killed") == learned(tmp_path / "straight")
    (event,) = events(tmp_path / "killed", "amended")
    assert event["step"] == 7 and [e["step"] for e in events(tmp_path / "killed", "continued")] == [5]


def test_two_processes_take_it_up_as_one_does(tmp_path):
    write_text(tmp_path / "text.txt")
    overrides = {"optimizer.lr": 1e-3, "optimizer.grad_clip": None, "schedule.min_lr_ratio": 1.0}
    for n_ranks, names in ((1, ["auto"]), (2, ["ddp", "zero1", "fsdp"])):
        jobs = [
            {"folder": str(tmp_path / name), "strategy": {"type": name}, "optimizer": "muon"}
            | {"amend": {"at": 4, "overrides": overrides}}
            for name in names
        ]
        carry_out(jobs, n_ranks, tmp_path)
    alone = numbers(tmp_path / "auto")
    assert alone[3][-1] > 2e-3 and alone[4][-1] == 1e-3
    for name in ("ddp", "zero1", "fsdp"):
        assert [e["step"] for e in events(tmp_path / name, "amended")] == [4]
        for got, want in zip(numbers(tmp_path / name), alone, strict=True):
            assert got == pytest.approx(want, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "line", ['{"number": 1, "ov', "[]", '{"number": 1, "overrides": 7}', "\x00\x01", '{"number": "x", "overrides": {}}']
)
def test_a_damaged_file_does_not_end_a_running_run(tmp_path, capsys, line):
    run = tmp_path / "run"

    def damage(trainer, module):
        (run / "amendments.jsonl").write_text(line)

    assert train(run_of(run), [At(7, damage)]).summary["finished"]
    (event,) = events(run, "amendment unreadable")
    assert event["step"] == 7 and "line 1 of" in event["reason"] and event["reason"] in capsys.readouterr().err
    assert not events(run, "amended")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"model.n_layer": 3}, "model.n_layer cannot be changed"),
        ({"optimizer.lr": "fast"}, "optimizer.lr=fast must be a number"),
        ({"optimizer.lr": -1.0}, "must be above 0"),
        ({"schedule.warmup_steps": 1000}, "warms up for 1000 steps"),
    ],
)
def test_what_the_command_would_refuse_the_run_refuses_once(tmp_path, overrides, reason):
    run = tmp_path / "run"

    def by_hand(trainer, module):
        (run / "amendments.jsonl").write_text(json.dumps({"number": 1, "overrides": overrides}) + "\n")

    with pytest.raises(Killed):
        train(run_of(run), [At(7, by_hand), At(12, kill)])
    (event,) = events(run, "amendment refused")
    assert event["step"] == 7 and reason in event["reason"]
    assert amend.main([f"run={run}", "optimizer.lr=1e-3"]) == 0, "it is in nobody's way"
    train(run_of(run))
    assert len(events(run, "amendment refused")) == 1
    assert [(e["number"], e["step"]) for e in events(run, "amended")] == [(2, 10)]


@pytest.fixture(scope="module")
def halted(tmp_path_factory):
    """A run of twenty steps that was killed after ten."""
    run = tmp_path_factory.mktemp("amend") / "run"
    with pytest.raises(Killed):
        train(run_of(run, schedule=WSDConfig(warmup_fraction=0.1)), [At(11, kill)])
    return run


REFUSED = {
    "optimizer.lrr=1": "optimizer.lrr; did you mean optimizer.lr?",
    "lr=1": "did you mean optimizer.lr?",
    "model.n_layer=3": "model.n_layer cannot be changed while a run is going; these can: optimizer.lr, ",
    "model=gpt124m": "model cannot be changed while a run is going",
    "budget_steps=30": "budget_steps cannot be changed",
    "optimizer.momentum=0.9": "optimizer.momentum cannot be changed",
    "optimizer.lr=fast": "optimizer.lr=fast must be a number",
    "optimizer.lr=-1": "optimizer.lr=-1.0 must be above 0",
    "optimizer.lr": "optimizer.lr needs a value",
    "schedule.decay=3": "unknown config key schedule.decay",
    "schedule.warmup_steps=100": "warms up for 100 steps and ends after 20",
    "schedule.warmup_steps=1 schedule.warmup_tokens=128": "set the same length",
    "callbacks.checkpoint.keep_last=0": "must be at least 1",
    "": "needs an override",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_wrong_override_is_answered(halted, overrides, capsys):
    assert amend.main([f"run={halted}", *overrides.split()]) == 2
    assert REFUSED[overrides] in capsys.readouterr().err
    assert not (halted / "amendments.jsonl").exists()


def test_an_alternative_replaces_what_it_is_one_of(halted):
    assert amend.main([f"run={halted}", "schedule.warmup_steps=1"]) == 0
    (line,) = (halted / "amendments.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["overrides"] == {
        "schedule.warmup_steps": 1,
        "schedule.warmup_tokens": None,
        "schedule.warmup_fraction": None,
    }
    assert entry["number"] == 1 and entry["time"].startswith("20")
    (halted / "amendments.jsonl").unlink()


def test_a_finished_run_and_a_folder_without_one_are_refused(tmp_path, capsys):
    train(run_of(tmp_path / "run", budget_steps=5))
    assert amend.main([f"run={tmp_path / 'run'}", "optimizer.lr=1"]) == 2
    assert "is finished" in capsys.readouterr().err
    assert amend.main([f"run={tmp_path / 'none'}", "optimizer.lr=1"]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert amend.main(["optimizer.lr=1"]) == 2
    assert "needs run=PATH" in capsys.readouterr().err
    assert amend.main(["--help"]) == 0 and "gptlab amend run=PATH" in capsys.readouterr().out
