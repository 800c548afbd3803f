"""Loss spikes: found by what was seen before, and then stopped at, skipped, or gone back from."""

import json
import math
import os
import random
import signal
import statistics

import pytest
import torch
from ranks import carry_out
from small_runs import ROOT, learned, overrides_of, small_run, step_rows, write_text
from small_runs import train as train_command

from gptlab.config import RunConfig
from gptlab.data.sources.config import TextConfig
from gptlab.distributed.signals import Failure
from gptlab.errors import UserError
from gptlab.runs import checkpoint
from gptlab.training.callbacks.metrics import Metrics
from gptlab.training.config import (
    AdamWConfig,
    CallbacksConfig,
    CheckpointConfig,
    MuonConfig,
    SpikeAction,
    SpikeConfig,
    TrainerConfig,
)
from gptlab.training.loop import train
from gptlab.training.spikes import SpikeDetector, attempts, largest_jump

STEP_BYTES = 128  # of the small run, whose tokens are bytes


def detector(**options) -> SpikeDetector:
    given = {"action": SpikeAction.stop, "threshold": 3.0, "window_steps": 5, "warmup_steps": 5}
    return SpikeDetector(SpikeConfig(**given | options))


def test_a_spike_is_so_many_deviations_above_the_mean_of_the_last_good_steps():
    draw = random.Random(0)
    losses = [4 - i / 100 + draw.gauss(0, 0.1) for i in range(200)]
    for i in range(20, 200, 7):
        losses[i] += draw.uniform(0, 1)
    found = detector()
    good = []
    for loss in losses:
        last = good[-5:]
        is_spike = len(good) >= 5 and loss > statistics.fmean(last) + 3 * statistics.pstdev(last)
        assert found.finds(loss) == is_spike
        if not is_spike:
            good.append(loss)
    assert 5 < len(losses) - len(good) < 100


def test_nothing_is_judged_before_the_warmup_is_over():
    found = detector(warmup_steps=10)
    assert not any(found.finds(loss) for loss in (1, 1, 1, 100, math.inf, math.nan, 1, 1, 1, 1, 1, 1))
    assert found.finds(1000) and found.finds(math.nan) and found.finds(1.0, grad_norm=math.inf)
    assert found.in_a_row == 3 and not found.finds(1.0) and found.in_a_row == 0


def test_a_detector_goes_on_from_its_state():
    draw = random.Random(1)
    losses = [draw.gauss(3, 0.1) + (draw.random() < 0.1) for _ in range(100)]
    whole = detector()
    expected = [whole.finds(loss) for loss in losses]
    for cut in (2, 7, 50):
        first, second = detector(), detector()
        got = [first.finds(loss) for loss in losses[:cut]]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert got + [second.finds(loss) for loss in losses[cut:]] == expected and any(expected)


def write_poisoned(path, *steps: int) -> None:
    """Text whose windows of some steps hold what the model has never seen."""
    text = bytearray(write_text(path).read_bytes())
    draw = random.Random(0)
    for step in steps:
        start = (step - 1) * STEP_BYTES
        text[start : start + STEP_BYTES] = bytes(draw.choices(b"#$%^&*@~|{}[]<>+=0123456789", k=STEP_BYTES))
    path.write_bytes(text)


def run_with(folder, action: str | None, *, every=5, keep=9, **options) -> RunConfig:
    """Forty steps over the text in its order, judged from step 10 on."""
    spike, more = {"threshold": 5.0, "window_steps": 10, "warmup_steps": 10}, options.pop("spike", {})
    return small_run(
        folder,
        data=TextConfig(path=str(folder.parent / "text.txt"), shuffle=False),
        callbacks=CallbacksConfig(
            checkpoint=CheckpointConfig(every_steps=every, keep_last=keep),
            spike=SpikeConfig(action=SpikeAction(action), **spike | more) if action else SpikeConfig(),
            sample=None,
            plot=False,
        ),
        **{"budget_steps": 40, "trainer": quiet(), **options},
    )


def quiet(**options) -> TrainerConfig:
    settings = {"val_check_interval": 20, "enable_progress_bar": False, "enable_model_summary": False}
    return TrainerConfig(**{"accelerator": "cpu", "devices": 1, **settings, **options})


def events(run, kind: str) -> list[dict]:
    return [e for line in (run / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == kind]


def numbers(run) -> list[tuple]:
    return [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in step_rows(run / "metrics.csv")]


def test_without_a_policy_training_goes_through_a_spike(tmp_path):
    write_poisoned(tmp_path / "text.txt", 24)
    assert train(run_with(tmp_path / "run", None)).summary["finished"]
    losses = {step: loss for step, loss, _ in numbers(tmp_path / "run")}
    assert losses[24] > losses[23] + 2, "the poison is one"


def test_stop_ends_the_run_with_what_is_from_before(tmp_path):
    write_poisoned(tmp_path / "text.txt", 24)
    with pytest.raises(
        Failure, match=r"step 24 is a spike: loss \d.* where \d.* to \d.* is usual.*callbacks\.spike\.action="
    ):
        train(run_with(tmp_path / "run", "stop", every=4))
    assert [step for step, _ in checkpoint.kept(tmp_path / "run" / "checkpoints")][-1] == 20
    assert step_rows(tmp_path / "run" / "metrics.csv")[-1]["step"] == 24
    assert train(run_with(tmp_path / "run", "skip", every=4)).summary["finished"], "it goes on with another setting"


@pytest.mark.parametrize("optimizer", [AdamWConfig(lr=1e-2), MuonConfig(lr=1e-2)])
def test_skip_leaves_weights_and_memory_bit_for_bit(tmp_path, optimizer):
    write_poisoned(tmp_path / "text.txt", 24)
    assert train(run_with(tmp_path / "run", "skip", every=1, keep=99, optimizer=optimizer)).summary["finished"]
    before, after, later = (
        checkpoint.load(tmp_path / "run" / "checkpoints" / f"step_{step:08d}.ckpt") for step in (23, 24, 25)
    )
    for name, value in before.model.items():
        assert torch.equal(value, after.model[name]) and not torch.equal(value, later.model[name])
    for name, memory in before.optimizer.items():
        assert all(torch.equal(value, after.optimizer[name][key]) for key, value in memory.items())
    assert [step for step, *_ in numbers(tmp_path / "run")] == list(range(1, 41))
    (event,) = events(tmp_path / "run", "skipped")
    assert event["step"] == 24 and event["loss"] > event["usual"][1]


def test_skipping_has_an_end(tmp_path):
    write_poisoned(tmp_path / "text.txt", 24, 25, 26, 27)
    with pytest.raises(Failure, match=r"step 26 is a spike.* number 3 in a row.*max_skips=2"):
        train(run_with(tmp_path / "run", "skip", spike={"max_skips": 2}))


def without(monkeypatch, *gaps: tuple[int, int]) -> None:
    """Let a run leave out `n` steps' samples from a step on, by none of what rollbacks use."""
    from gptlab.training.datamodule import TrainBatches

    real = TrainBatches.__getitem__

    def moved(batches, item):
        return real(batches, item + sum(n for step, n in gaps if item >= step))

    monkeypatch.setattr(TrainBatches, "__getitem__", moved)


def test_a_run_that_went_back_equals_one_that_never_saw_those_samples(tmp_path, monkeypatch):
    write_poisoned(tmp_path / "text.txt", 24)
    summary = train(run_with(tmp_path / "run", "rollback", spike={"rollback_steps": 6})).summary
    assert summary["finished"] and summary["skipped_steps"] == 9
    (event,) = events(tmp_path / "run", "rolled back")
    assert (event["from"], event["to"], event["skipped_steps"]) == (24, 15, 9)
    end = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert end.state.skipped_steps == 9 and end.state.samples == 40 * 8
    without(monkeypatch, (15, 9))
    train(run_with(tmp_path / "other", None))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "other")
    assert len(numbers(tmp_path / "run")) == 40


def test_going_back_twice_leaves_out_the_samples_of_both(tmp_path, monkeypatch):
    write_poisoned(tmp_path / "text.txt", 24, 29, 47)
    summary = train(run_with(tmp_path / "run", "rollback")).summary
    went = [(e["from"], e["to"], e["skipped_steps"], e["in_a_row"]) for e in events(tmp_path / "run", "rolled back")]
    # Step 25 after the first sees what step 29 would have; 38 after the second what 47 would have.
    assert went == [(24, 20, 4, 1), (25, 20, 9, 2), (38, 35, 12, 1)] and summary["skipped_steps"] == 12
    without(monkeypatch, (20, 9), (35, 3))
    train(run_with(tmp_path / "other", None))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "other")


def test_a_spike_that_is_read_late_is_gone_back_from_all_the_same(tmp_path, monkeypatch):
    """On a GPU the numbers of several steps are read at once."""
    write_poisoned(tmp_path / "text.txt", 24)
    real = Metrics.on_train_start

    def on_train_start(metrics, trainer, module):
        real(metrics, trainer, module)
        metrics.window = 10

    with monkeypatch.context() as patched:
        patched.setattr(Metrics, "on_train_start", on_train_start)
        train(run_with(tmp_path / "run", "rollback", every=20))
    (event,) = events(tmp_path / "run", "rolled back")
    assert (event["from"], event["to"], event["skipped_steps"]) == (24, 20, 4)
    without(monkeypatch, (20, 4))
    train(run_with(tmp_path / "other", None, every=20))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "other")


def test_going_back_has_an_end(tmp_path):
    write_poisoned(tmp_path / "text.txt", 24, 28, 32, 36)
    config = run_with(tmp_path / "run", "rollback", spike={"max_rollbacks": 2}, every=20)
    with pytest.raises(Failure, match=r"went back to step 20 2 times already.*max_rollbacks.*gptlab amend"):
        train(config)
    config.callbacks.spike.threshold = 1000.0
    assert train(config).summary["finished"]


def test_without_a_checkpoint_that_is_old_enough_the_words_are_named(tmp_path):
    write_poisoned(tmp_path / "text.txt", 19)
    with pytest.raises(Failure, match=r"no checkpoint is of step 18 or before.*callbacks\.checkpoint\.every_steps"):
        train(run_with(tmp_path / "run", "rollback", every=20))


REFUSED = {
    "callbacks.spike.threshold=4": "threshold=4.0 needs callbacks.spike.action=stop or skip or rollback",
    "callbacks.spike.action=skip callbacks.spike.max_rollbacks=1": "needs callbacks.spike.action=rollback",
    "callbacks.spike.action=skp": "callbacks.spike.action=skp is unknown; did you mean skip?",
    "callbacks.spike.action=stop callbacks.spike.window_steps=1": "must be at least 2",
    "callbacks.spike.action=skip trainer.precision=16-mixed": "trainer.precision=bf16-mixed",
    "callbacks.spike.action=rollback callbacks.checkpoint=null": "needs checkpoints",
    "callbacks.spike.action=rollback trainer.enable_checkpointing=false": "needs checkpoints",
    "callbacks.spike.action=rollback callbacks.spike.rollback_steps=31 callbacks.checkpoint.every_steps=10": (
        "use callbacks.checkpoint.keep_last=4"
    ),
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_settings_that_cannot_be_obeyed_are_refused(overrides):
    from gptlab.composition import compose

    with pytest.raises(UserError) as error:
        compose(*overrides.split())
    assert REFUSED[overrides] in str(error.value)


# Pulls the plug when a step begins, after a save or after a rollback is recorded.
DRIVER = """
import os, runpy, signal, sys

if __name__ == "__main__":
    kind, count = os.environ["KILL_AT"].split(":")
    left = int(count)
    from gptlab.runs.folder import RunFolder
    from gptlab.training.module import LanguageModule

    def counted(function, matches):
        def wrapper(self, *args, **kwargs):
            global left
            result = function(self, *args, **kwargs)
            if matches(args):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapper

    if kind == "step":
        LanguageModule.training_step = counted(LanguageModule.training_step, lambda args: True)
    else:
        RunFolder.event = counted(RunFolder.event, lambda args: args[0] == kind)
    sys.argv[0] = {program!r}
    runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_killed_and_continued_it_decides_as_if_nothing_had_happened(tmp_path, action):
    write_poisoned(tmp_path / "text.txt", 24, 29)
    (tmp_path / "driver.py").write_text(DRIVER.format(program=str(ROOT / "train.py")))
    spike = {"action": action, "threshold": 5, "window_steps": 10, "warmup_steps": 10}
    overrides = overrides_of(
        tmp_path / "text.txt",
        budget_steps=40,
        **{"data.shuffle": "false", "callbacks.checkpoint.every_steps": 5, "callbacks.checkpoint.keep_last": 3},
        **{f"callbacks.spike.{name}": value for name, value in spike.items()},
    )
    done = train_command([*overrides, "run_dir=straight"], tmp_path)
    assert done.returncode == 0, done.stderr
    kind = {"skip": "skipped", "rollback": "rolled back"}[action]
    assert len(events(tmp_path / "straight", kind)) == 2
    # After the first spike, then within the steps that lead to the second, then right after that.
    moments = [f"{kind}:1", "step:3", f"{kind}:1"] if action == "rollback" else ["step:24", f"{kind}:1", "step:7"]
    for moment in moments:
        killed = train_command([*overrides, "run_dir=killed"], tmp_path, program=tmp_path / "driver.py", KILL_AT=moment)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    done = train_command([*overrides, "run_dir=killed"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert learned(tmp_path / "killed") == learned(tmp_path / "straight") and len(learned(tmp_path / "killed")) == 41
    if action == "rollback":
        assert len(events(tmp_path / "killed", kind)) == 2, "what is on the record is not gone through again"


def test_two_processes_skip_and_go_back_as_one_does(tmp_path):
    write_poisoned(tmp_path / "text.txt", 24)
    job = {
        "run": {"budget_steps": 30},
        "text": str(tmp_path / "text.txt"),
        "spike": {"threshold": 5.0, "window_steps": 10, "warmup_steps": 10},
    }
    for n_ranks, strategies in ((1, ["auto"]), (2, ["ddp", "fsdp"])):
        jobs = [
            {**job, "folder": str(tmp_path / f"{name}-{action}"), "strategy": {"type": name}, "action": action}
            for name in strategies
            for action in ("skip", "rollback")
        ]
        carry_out(jobs, n_ranks, tmp_path)
    for action, kind in (("skip", "skipped"), ("rollback", "rolled back")):
        alone = numbers(tmp_path / f"auto-{action}")
        assert len(alone) == 30 and len(events(tmp_path / f"auto-{action}", kind)) == 1
        for name in ("ddp", "fsdp"):
            assert len(events(tmp_path / f"{name}-{action}", kind)) == 1
            for got, want in zip(numbers(tmp_path / f"{name}-{action}"), alone, strict=True):
                assert got == pytest.approx(want, rel=1e-5, abs=1e-5)


@pytest.mark.slow  # most of a minute
def test_lightnings_own_launcher_survives_going_back(tmp_path):
    write_poisoned(tmp_path / "text.txt", 14)
    spike = {"action": "rollback", "threshold": 5, "window_steps": 8, "warmup_steps": 8}
    overrides = overrides_of(
        tmp_path / "text.txt",
        budget_steps=18,
        **{"data.shuffle": "false", "callbacks.checkpoint.every_steps": 5, "callbacks.checkpoint.keep_last": 3},
        **{f"callbacks.spike.{name}": value for name, value in spike.items()},
    )
    rows = {}
    for devices in (1, 2):
        place = f"run_dir=devices-{devices}"
        alone = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "LOCAL_RANK")}
        done = train_command([*overrides, f"trainer.devices={devices}", place], tmp_path, **alone)
        assert done.returncode == 0, done.stderr
        assert len(events(tmp_path / f"devices-{devices}", "rolled back")) == 1
        rows[devices] = numbers(tmp_path / f"devices-{devices}")
    for got, want in zip(rows[2], rows[1], strict=True):
        assert got == pytest.approx(want, rel=1e-5, abs=1e-5)


def rolled_back(start: int, to: int, skipped: int, loss: float = 9.0) -> dict:
    return {"event": "rolled back", "from": start, "to": to, "loss": loss, "skipped_steps": skipped, "in_a_row": 1}


def test_which_samples_a_step_read_each_time_it_was_taken():
    history = [{"event": "started"}, rolled_back(50, 40, 10), rolled_back(80, 70, 20), rolled_back(72, 35, 57)]
    for step in (30, 38, 45, 50, 60, 75, 99):
        # The run, played through: which samples each taking of the step read.
        taken, skipped, at = [], 0, 0
        for event in [*history[1:], {"from": 120, "to": None}]:
            if at < step <= event["from"]:
                taken.append(skipped)
            if event["to"] is not None:
                at, skipped = event["to"], event["skipped_steps"]
        found = attempts(history, step)
        assert [one.skipped_steps for one in found] == taken
        assert [one.went_back_to is None for one in found] == [False] * (len(taken) - 1) + [True]
        assert [one.loss for one in found if one.loss is not None] == [9.0] * (step == 50)
    assert attempts([], 5, 7)[0].skipped_steps == 7
    begun_elsewhere = [rolled_back(50, 40, 17)]
    assert attempts(begun_elsewhere, 3)[0].skipped_steps == 7


def test_the_largest_jump_of_a_run():
    draw = random.Random(0)
    rows = [{"step": 0, "val/loss": 5.0}]
    rows += [{"step": step, "train/loss": 3 + draw.gauss(0, 0.05)} for step in range(1, 201)]
    assert largest_jump(rows, [], SpikeConfig()) is None
    rows[150]["train/loss"], rows[120]["train/loss"] = 6.0, 4.5
    jump = largest_jump(rows, [], SpikeConfig())
    assert (jump.step, jump.attempt, jump.rolled_back) == (150, 1, False) and jump.usual[0] < 3 < jump.usual[1] < 4.5
    jump = largest_jump(rows, [rolled_back(90, 80, 10, loss=8.0)], SpikeConfig())
    assert (jump.step, jump.attempt, jump.rolled_back, jump.loss) == (90, 1, True, 8.0)
    assert largest_jump([], [], SpikeConfig()) is None
    assert largest_jump(rows[:15], [], SpikeConfig()) is None, "too few to say what is usual"
