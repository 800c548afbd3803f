"""Time that a run spends on evaluations and saves, and saves that would take too much of it."""

import json

import pytest
from small_runs import small_run, step_rows

from gptlab.runs import checkpoint
from gptlab.training.callbacks import pauses
from gptlab.training.callbacks.pauses import Pauses
from gptlab.training.config import CallbacksConfig, CheckpointConfig
from gptlab.training.loop import train


class Clock:
    """In place of the module `time`: a second is what a test says."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pauses, "time", clock)
    return clock


def saved(found: Pauses, clock: Clock, seconds: float) -> Pauses:
    with found.saving():
        clock.now += seconds
    return found


def begun(clock: Clock) -> Pauses:
    found = Pauses()
    clock.now += 1000.0  # before training
    found.on_train_start(None, None)
    return found


def test_the_next_save_waits_until_all_are_a_twentieth_of_the_time(clock):
    found = begun(clock)
    assert not found.saving_takes_too_much()  # nobody knows how long the first takes
    saved(found, clock, 3.0)
    assert found.saving_takes_too_much()
    clock.now += 116.9  # 119.9 s since the beginning: 3 + 3 s are more than a twentieth
    assert found.saving_takes_too_much()
    clock.now += 0.2
    assert not found.saving_takes_too_much()


def test_a_short_save_is_never_left_out(clock):
    assert not saved(begun(clock), clock, 0.9).saving_takes_too_much()


def test_time_and_saves_before_a_rollback_count_alike(clock):
    found = begun(clock)
    for _ in range(10):
        clock.now += 1000.0
        saved(found, clock, 20.0)
    found.on_train_start(None, None)  # after a spike
    assert not found.saving_takes_too_much()


@pytest.fixture
def saved_steps(tmp_path):
    """Trains ten steps and returns after which of them the run was saved."""

    def saved_steps(name="run", **settings):
        callbacks = CallbacksConfig(sample=None, plot=False, checkpoint=CheckpointConfig(**settings))
        run = train(small_run(tmp_path / name, callbacks=callbacks))
        events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
        return run, [event["step"] for event in events if event["event"] == "saved"]

    return saved_steps


def test_saves_after_validations_are_left_out_and_those_that_were_asked_for_are_not(saved_steps, monkeypatch):
    assert saved_steps()[1] == [5, 10]
    monkeypatch.setattr(Pauses, "saving_takes_too_much", lambda self: True)
    run, steps = saved_steps("left out")
    assert steps == [10] and checkpoint.newest(run.path / "checkpoints")[0] is not None
    assert saved_steps("asked for", every_steps=3)[1] == [3, 5, 6, 9, 10]


def test_the_best_is_the_best_of_what_was_saved(tmp_path, monkeypatch):
    answers = iter([False] * 4 + [True] * 2 + [False] * 14)  # one for each step: the second validation is too early
    monkeypatch.setattr(Pauses, "saving_takes_too_much", lambda self: next(answers))
    config = small_run(tmp_path / "run", budget_steps=20)
    config.trainer.val_check_interval = 3
    run = train(config)
    losses = {row["step"]: row["val/loss"] for row in step_rows(run.path / "metrics.csv") if "val/loss" in row}
    saves = [event["step"] for event in run.events() if event["event"] == "saved"]
    assert saves == [3, 9, 12, 15, 18, 20]
    best = checkpoint.load(checkpoint.linked(run.path / "checkpoints", "best"))
    assert best.state.step == min(saves, key=losses.__getitem__)


def test_the_summary_says_what_was_no_training(saved_steps, monkeypatch, capsys):
    measured = Pauses.on_validation_end

    def slow(self, trainer, module):
        measured(self, trainer, module)
        self.evaluating_seconds += 1000.0

    monkeypatch.setattr(Pauses, "on_validation_end", slow)
    run, _ = saved_steps()
    summary = json.loads((run.path / "summary.json").read_text())
    assert 3000 <= summary["evaluating_seconds"] < 3060  # before the first step, after the fifth and the tenth
    assert 0 < summary["saving_seconds"] + 0.05 < summary["seconds"]
    share = summary["evaluating_seconds"] / summary["seconds"]
    assert f"{share:.0%} evaluating" in capsys.readouterr().out
