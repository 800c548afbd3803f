"""What is said of a run that takes long, on a clock that the test moves."""

from types import SimpleNamespace

import pytest
import torch

from gptlab.steps import Steps
from gptlab.training.callbacks import pace
from gptlab.training.callbacks.pace import Pace


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock.now)
    return clock


def run_steps(clock, *, n_steps, count, seconds, warm_up=False, compiling=0.0, until=None):
    """Steps of `count` micro-batches of so many `seconds` each, from step 7 on."""
    plan = SimpleNamespace(n_steps=n_steps, steps=Steps.of(1000, 1000))
    module = SimpleNamespace(finished_steps=7, before_micro_batch=[], device=torch.device("cpu"))
    callback = Pace(plan, warm_up=warm_up)
    callback.on_train_start(None, module)
    for step in range(7, until or n_steps):
        for index in range(count):
            for call in module.before_micro_batch:
                call(index, count)
            clock.now += seconds + (compiling if (step, index) == (7, 0) else 0)
        module.finished_steps += 1
        callback.on_train_batch_end(None, module, None, None, 0)


def test_a_long_step_is_told_after_its_first_micro_batch(clock, capsys):
    run_steps(clock, n_steps=107, count=40, seconds=3, until=8)
    text = capsys.readouterr().err
    assert "a step of 1,000 tokens takes about 2 min in 40 gradient accumulation steps, 8 tokens/s" in text
    assert "100 steps about 3 h 20 min" in text and text.count("warning") == 1


def test_a_step_in_one_piece_is_measured_at_its_end(clock, capsys):
    run_steps(clock, n_steps=9, count=1, seconds=90)
    assert "takes about 1 min 30 s, 11 tokens/s" in capsys.readouterr().err


def test_compilation_is_not_taken_for_the_speed(clock, capsys):
    run_steps(clock, n_steps=9, count=40, seconds=1, warm_up=True, compiling=60)
    assert capsys.readouterr().err == ""


def test_more_than_a_day_is_told_once(clock, capsys):
    run_steps(clock, n_steps=100_007, count=1, seconds=2, until=200)
    text = capsys.readouterr().err
    assert text == "warning: the rest of the run takes about 2.3 days at the measured speed\n"


def test_a_short_run_is_left_alone(clock, capsys):
    run_steps(clock, n_steps=1000, count=2, seconds=1)
    assert capsys.readouterr().err == ""
