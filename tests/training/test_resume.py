"""The real train.py, killed and started again with the same command, ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from small_runs import OBJECTIVES, ROOT, learned, objective_overrides, overrides_of, train, write_text
from warm_python import warm_python

from gptlab.distributed.signals import Interrupted
from gptlab.training.module import LanguageModule

# Runs train.py as it is, and pulls the plug at a chosen moment.
DRIVER = """
import os, runpy, signal, sys

if __name__ == "__main__":
    moment, count = os.environ["KILL_AT"].split(":")
    left = int(count)

    saving = False

    def counted(function, everywhere=False):
        def wrapper(*args, **kwargs):
            global left
            left -= everywhere or saving
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return wrapper

    if moment == "training_step":
        from gptlab.training.module import LanguageModule
        LanguageModule.training_step = counted(LanguageModule.training_step, everywhere=True)
    else:  # inside a save, before a file is synced or renamed
        from gptlab.runs.writer import CheckpointWriter

        write = CheckpointWriter._write

        def watched(*args):
            global saving
            saving = True
            write(*args)
            saving = False

        CheckpointWriter._write = watched
        setattr(os, moment, counted(getattr(os, moment)))
    sys.argv[0] = {program!r}
    runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.fixture
def place(tmp_path):
    write_text(tmp_path / "text.txt")
    (tmp_path / "driver.py").write_text(DRIVER.format(program=str(ROOT / "train.py")))
    return tmp_path


def saves(run):
    return [
        e for line in (run / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == "saved"
    ]


MOMENTS = {
    # After the first save; with a whole file that is not in SHA256SUMS yet; with one that is not renamed yet; and in a
    # later save, while its further names are given.
    "causal_lm": ("training_step:7", "fsync:2", "replace:2", "replace:9"),
    **dict.fromkeys(("masked_lm", "span_corruption", "classification", "instruction"), ("training_step:15",)),
}


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "causal_lm")) for name in OBJECTIVES],  # they save alike
)
def test_sigkill_between_and_inside_saves_changes_no_bit(place, objective):
    overrides = overrides_of(
        place / "text.txt",
        budget_steps=24,
        **{
            "model.dropout": 0.1,
            "callbacks.checkpoint.every_steps": 4,
            "trainer.val_check_interval": 6,
            "optimizer": "muon",
            **({"data.stride": 5} if objective == "causal_lm" else {}),
            **objective_overrides(objective, place),
        },
    )
    done = train([*overrides, "run_dir=straight"], place)
    assert done.returncode == 0, done.stderr
    expected = learned(place / "straight")
    assert len(expected) == 25 and sum(bool(row["val/loss"]) for row in expected) == 5

    for moment in MOMENTS[objective]:
        # Processes that gather batches ahead change nothing either; each takes seconds to start.
        workers = ["data.n_workers=2"] if moment == "replace:2" else []
        killed = train([*overrides, *workers, "run_dir=killed"], place, program=place / "driver.py", KILL_AT=moment)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
        assert not (place / "killed" / "summary.json").exists()
    done = train([*overrides, "run_dir=killed"], place)
    assert done.returncode == 0, done.stderr
    assert learned(place / "killed") == expected
    events = [json.loads(line) for line in (place / "killed" / "events.jsonl").read_text().splitlines()]
    continued = [event["step"] for event in events if event["event"] == "continued"]
    expected = 3 if objective == "causal_lm" else 1
    assert len(continued) >= expected and min(continued) > 0, "each start went on from a checkpoint"
    assert not list((place / "killed" / "checkpoints").glob(".*"))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_and_says_how_to_go_on(place, signum, code):
    overrides = [*overrides_of(place / "text.txt", budget_steps=100_000), "run_dir=run"]
    process = subprocess.Popen(
        [warm_python(), str(ROOT / "train.py"), *overrides],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    metrics = place / "run" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"stopped by {signal.Signals(signum).name}, saved at step" in err and "run_dir=run" in err
    assert "Traceback" not in err
    steps = [int(row["step"]) for row in learned(place / "run")]
    assert steps == list(range(len(steps))) and saves(place / "run")[-1]["step"] == steps[-1]


def test_a_signal_at_any_line_of_the_passes_ends_in_stop():
    """Also where these have begun and not yet ended, as between a step's last pass and what follows it."""

    def passes():
        found = 1
        return found

    def interrupted_at(n: int) -> list[int]:
        stopped, lines = [], iter(range(100))
        module = SimpleNamespace(interruptible=False, stop=stopped.append)

        def trace(frame, event, arg):
            if event == "line" and module.interruptible and next(lines) == n:
                sys.settrace(None)
                raise Interrupted(signal.SIGINT)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            result = LanguageModule.interruptibly(module, passes)  # pyright: ignore[reportArgumentType]
            assert result == 1
        except Interrupted:
            assert stopped, "it was caught, and raised again as nothing stopped the run"
        finally:
            sys.settrace(before)
        assert not module.interruptible
        return stopped

    assert [interrupted_at(n) for n in range(5)] == [[signal.SIGINT]] * 4 + [[]]
