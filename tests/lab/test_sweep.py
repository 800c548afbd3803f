"""Sweeps: what is proposed, recorded, ended early, and gone on with after any end."""

import json
import math
import signal
import time
import typing
from collections import Counter
from copy import deepcopy
from functools import cache, reduce
from pathlib import Path

import optuna
import pytest
from small_runs import TrialsInProcess, learned, overrides_of, start_sweep, write_text

from gptlab import UserError, compose, composition, quoting
from gptlab.lab.config import Direction, PrunerKind, SamplerKind, SweepConfig
from gptlab.lab.sweep import sweep
from gptlab.lab.trials import State, read_frozen
from gptlab.runs.folder import read_metrics
from gptlab.values import coerce

SPACE = {"optimizer.lr": {"low": "1e-4", "high": "1e-1", "log": "true"}, "model.n_layer": {"low": 1, "high": 3}}


class Interrupted(Exception):
    exit_code = 130


def loss(config):
    return (math.log10(config.optimizer.lr) + 2.5) ** 2 + 0.1 * config.model.n_layer


@cache
def composed(*overrides):
    return compose(*overrides)


def compose_fast(*overrides, config_dir=None):
    """What compose does, in less time: of keys that tests sweep the values are set in a config that is there."""
    leaves = [o for o in overrides if o.startswith(("run_dir=", "optimizer.lr=", "model.n_layer=", "seed="))]
    config = deepcopy(composed(*(o for o in overrides if o not in leaves)))
    for key, _, text in (override.partition("=") for override in leaves):
        *groups, name = key.split(".")
        part = reduce(getattr, groups, config)
        hint = typing.get_type_hints(type(part))[name]
        setattr(part, name, coerce(key, quoting.unquote(text), hint))
    config.check()
    return config


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """A folder to work in, where a trial is a call of a function, which a test may replace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composition, "compose", compose_fast)
    return TrialsInProcess(lambda config: {"val/loss": loss(config)}, monkeypatch)


def run(space=SPACE, *overrides, name="s", **settings):
    said = []
    result = sweep(space, [f"name={name}", *overrides], SweepConfig(**settings), say=said.append)
    return result, said


def points(result):
    return [tuple(trial.values.items()) for trial in result.trials]


@pytest.mark.parametrize(
    "sampler, n",
    [
        (SamplerKind.random, 5),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((SamplerKind.tpe, 12), (SamplerKind.cmaes, 8))),
    ],
)
def test_a_sweep_that_is_interrupted_proposes_what_it_would_have(trials, sampler, n):
    whole, _ = run(name="whole", n_trials=n, sampler=sampler)
    assert [t.state for t in whole.trials] == [State.finished] * n and len(set(points(whole))) == n
    original, seen = trials.task, []

    def task(config):
        seen.append(config.run_dir)
        if len(seen) in (2, 5, 6):
            raise Interrupted("stopped by SIGINT, saved at step 3")
        return original(config)

    trials.task = task
    codes = []
    while not codes or codes[-1] != 0:
        parts, _ = run(name="parts", n_trials=n, sampler=sampler)
        codes.append(parts.exit_code)
    assert codes == [130, 130, 130, 0] and len(seen) == n + 3 and len(set(seen)) == n
    assert points(parts) == points(whole)
    more, _ = run(name="parts", n_trials=n + 1, sampler=sampler)
    assert points(more)[:n] == points(whole) and len(more.trials) == n + 1, "a larger number goes on"


def test_a_point_is_sampled_once_however_often_its_trial_is_opened(trials, monkeypatch):
    """Neither a report to the pruner nor the adoption of a trial that was stopped fits CMA-ES again."""
    sampled, sample = [], optuna.samplers.CmaEsSampler.sample_relative

    def counted(self, study, trial, search_space):
        sampled.append(trial.number)
        return sample(self, study, trial, search_space)

    monkeypatch.setattr(optuna.samplers.CmaEsSampler, "sample_relative", counted)
    calls = []

    def task(config):
        calls.append(config.run_dir)
        found = evaluated(config, [3.0, loss(config)])
        if len(calls) == 3:
            raise Interrupted("stopped by SIGINT, saved at step 3")
        return found

    trials.task = task
    settings = {"sampler": SamplerKind.cmaes, "pruner": PrunerKind.median, "n_trials": 5}
    assert run(**settings)[0].exit_code == 130
    result, said = run(**settings)
    assert any(line.startswith("trial 2 goes on") for line in said) and len(result.trials) == 5
    study = optuna.load_study(study_name=None, storage=result.storage)
    assert all(list(t.intermediate_values) == [10, 20] for t in study.trials)
    assert sampled == [0, 1, 2, 3, 4]


def test_a_grid_tries_every_point_once(trials):
    space = {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True, "n": 3}, "seed": [1, 2]}
    result, said = run(space, sampler=SamplerKind.grid, n_trials=50)
    assert sorted((t.values["optimizer.lr"], t.values["seed"]) for t in result.trials) == [
        (lr, seed) for lr in (1e-3, 1e-2, 1e-1) for seed in (1, 2)
    ]
    assert [c.optimizer.lr for c in trials.seen] == [t.values["optimizer.lr"] for t in result.trials]
    reordered = dict(reversed(space.items()))
    again, _ = run(reordered, sampler=SamplerKind.grid)
    assert points(again) == points(result) and len(trials.seen) == 6, "nothing is missing"
    assert "6 finished" in said[0] or "6 trials" in said[0]


def test_equal_configs_are_trained_once(trials):
    result, _ = run({"optimizer": ["adamw", "muon"], "model.n_layer": [1, 2]}, sampler=SamplerKind.random, n_trials=9)
    distinct = len(set(points(result)))
    assert len(result.trials) == 9 and len(trials.seen) == distinct <= 4
    states = Counter(trial.state for trial in result.trials)
    assert states == {State.finished: distinct, State.repeated: 9 - distinct}
    for trial in result.trials:
        if trial.state is State.repeated:
            first = result.trials[trial.same_as]
            assert f"same: as trial {first.number}" in result.table()
            assert first.values == trial.values and first.number < trial.number
            assert first.numbers["val/loss"] == trial.numbers["val/loss"]


def test_a_trial_that_fails_is_a_line_and_may_be_tried_again(trials):
    def task(config):
        if config.model.n_layer == 2:
            raise RuntimeError("the disk\nis full")
        return {"val/loss": loss(config)}

    trials.task = task
    space = {"model.n_layer": [1, 2, 3]}
    result, said = run(space, sampler=SamplerKind.grid)
    assert result.exit_code == 1
    failed = result.trials[1]
    assert (failed.state, failed.reason) == (State.failed, "is full")
    (line,) = [line for line in result.table().splitlines() if "failed" in line]
    assert line.split()[0] == "1" and line.endswith(f"failed: is full; {failed.log}")
    assert "RuntimeError: the disk" in failed.log.read_text()
    assert any(line.startswith("  failed: is full") for line in said)
    trials.task = lambda config: {"val/loss": loss(config)}
    again, _ = run(space, sampler=SamplerKind.grid)
    assert len(trials.seen) == 3 and len(again.trials) == 3, "what failed is not missing"
    assert again.exit_code == 0, "nothing failed in this call"
    again, _ = run(space, sampler=SamplerKind.grid, retry_failed=True)
    assert [t.state for t in again.trials] == [State.finished, State.failed, State.finished, State.finished]
    assert again.trials[3].folder == failed.folder and len(trials.seen) == 4
    again, _ = run(space, sampler=SamplerKind.grid, retry_failed=True)
    assert len(trials.seen) == 4


def test_a_point_that_cannot_work_is_a_line(trials):
    space = {"model.d_model": [32, 48], "model.n_head": [2, 3]}
    result, _ = run(space, "model.context_length=16", "batch_tokens=64", sampler=SamplerKind.grid)
    assert [t.state for t in result.trials] == [State.finished, State.refused, State.finished, State.finished]
    assert "model.d_model=32 is not divisible by model.n_head=3" in result.table() and len(trials.seen) == 3


def evaluated(config, values):
    """Events as training writes them, of a run that evaluates every ten steps."""
    folder = Path(config.run_dir)
    events = [
        {"event": "started", "step": 0, "n_steps": 10 * len(values)},
        {"event": "validated", "step": 0, "val/loss": 9.0},
    ]
    events += [{"event": "validated", "step": 10 * (i + 1), "val/loss": value} for i, value in enumerate(values)]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return {"val/loss": values[-1]}


def test_pruning_follows_from_the_evaluations_alone(trials):
    """A trial that was over when its evaluations were read is pruned as one that was still running would have been."""
    curves = {1: [3.0, 2.0, 1.0], 2: [3.1, 2.1, 1.1], 3: [2.9, 1.9, 0.9], 4: [3.0, 2.6, 0.1], 5: [1.0, 0.9, 0.8]}
    trials.task = lambda config: evaluated(config, curves[config.seed])
    settings = {"sampler": SamplerKind.grid, "pruner": PrunerKind.median, "pruner_startup_trials": 3}
    result, _ = run({"seed": [1, 2, 3, 4, 5]}, **settings)
    assert [t.state.name for t in result.trials] == ["finished", "finished", "finished", "pruned", "finished"]
    pruned = result.trials[3]
    assert (pruned.reason, pruned.numbers["val/loss"]) == ("at step 20, val/loss 2.6000", 2.6)
    study = optuna.load_study(study_name=None, storage=result.storage)
    assert [t.state.name for t in study.trials].count("PRUNED") == 1
    assert study.trials[0].intermediate_values == {10: 3.0, 20: 2.0, 30: 1.0}
    assert result.best.number == 4 and "pruned: at step 20" in result.table()


def test_trials_of_other_batches_are_compared_at_equal_tokens(trials):
    trials.task = lambda config: evaluated(config, [2.0, 1.0])
    space = {"batch_tokens": [64, 128]}
    result, _ = run(space, "model.context_length=16", sampler=SamplerKind.grid, pruner=PrunerKind.median)
    study = optuna.load_study(study_name=None, storage=result.storage)
    (small, large) = (list(t.intermediate_values) for t in study.trials)
    assert [2 * step for step in small] == large


def test_loss_against_flops_has_a_front_and_no_pruning(trials):
    trials.task = lambda config: {"val/loss": 1 / config.model.n_layer, "flops": 1e9 * config.model.n_layer}
    metric = ("val/loss", "flops")
    result, said = run({"model.n_layer": [1, 2, 3]}, sampler=SamplerKind.grid, metric=metric)
    assert [trial.number for trial in result.front] == [0, 1, 2]
    assert "minimize val/loss, minimize flops" in said[0]
    result, _ = run({"model.n_layer": [1, 2, 3]}, name="up", sampler=SamplerKind.grid, metric=metric,
                    direction=(Direction.minimize, Direction.maximize))  # fmt: skip
    assert [trial.number for trial in result.front] == [2]
    with pytest.raises(
        UserError, match=r"pruner=median ends trials by one metric, and metric=\[val/loss,flops\] has 2"
    ):
        run(metric=metric, pruner=PrunerKind.median)


def test_the_best_evaluation_and_accuracies(trials):
    trials.task = lambda config: evaluated(config, [0.5 * config.seed, 2.0]) | {"val/accuracy": 0.1 * config.seed}
    result, _ = run({"seed": [2, 1, 3]}, sampler=SamplerKind.grid, metric=("best/val/loss",))
    assert [t.numbers["best/val/loss"] for t in result.trials] == [1.0, 0.5, 1.5] and result.best.number == 1
    result, said = run({"seed": [2, 1, 3]}, name="a", sampler=SamplerKind.grid, metric=("val/accuracy",))
    assert "maximize val/accuracy" in said[0] and result.best.number == 2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"metric": ("val/lss",)}, "metric=val/lss is not measured by these trials, which have val/loss"),
        ({"metric": ("lss",)}, "metric=lss is no metric of a run; use val/loss"),
        ({"metric": ("val/loss", "val/loss")}, "each once"),
        ({"direction": (Direction.minimize,) * 2}, "direction= has 2 values and metric= 1"),
        ({"sampler": SamplerKind.grid}, "sampler=grid tries every point, and optimizer.lr has a range"),
        ({"storage": "study"}, "storage=study is no storage of studies; use FILE.journal"),
        ({"storage": "nothing://x"}, "the study cannot be opened: storage=nothing://x"),
        ({"n_trials": 0}, "n_trials=0 must be at least 1"),
        ({"name": "what?"}, "name=what? has ?, which an address of SQLite cannot have"),
    ],
)
def test_settings_that_cannot_work_are_answered(trials, settings, message):
    with pytest.raises(UserError) as refused:
        run(**settings)
    assert message in str(refused.value)
    assert len(trials.seen) == (settings.get("metric") == ("val/lss",)), "one trial, which is kept"


@pytest.mark.parametrize(
    "space, overrides, settings, message",
    [
        ({"seed": [1, 2]}, [], {}, "sampler=tpe would look for the luckiest seed"),
        ({"optimizer": ["muon", "adamw"], "model.n_layer": [1, 2]}, [], {"sampler": SamplerKind.cmaes}, "has choices"),
        ({"optimizer.lr": {"low": 1, "high": 2}}, [], {"sampler": SamplerKind.cmaes}, "needs two ranges or more"),
        (SPACE, ["optimizer.lr=1"], {}, "optimizer.lr=1 and the space's optimizer.lr"),
        (SPACE, ["run_dir=x"], {}, "run_dir=x is for one run; name the sweep's folder with name=NAME"),
        (SPACE, ["resume=null"], {}, "resume=null is for one run"),
        (SPACE, ["model.n_embd=3"], {}, "unknown config key model.n_embd"),
        (SPACE, ["data.val_fraction=0"], {}, "metric=val/loss needs a validation split"),
        ({"optimizer.lr": {"low": -1, "high": 1}}, [], {}, "space: optimizer.lr=-1.0 must be above 0"),
        ({"model.n_layer": [1, 0]}, [], {}, "space: model.n_layer=0 is outside"),
    ],
)  # fmt: skip
def test_nothing_is_trained_or_written_before_all_is_checked(trials, tmp_path, space, overrides, settings, message):
    with pytest.raises(UserError) as refused:
        run(space, *overrides, **settings)
    assert message in str(refused.value)
    assert not trials.seen and not list(tmp_path.iterdir())


def test_a_study_of_another_space_is_refused_by_what_differs(trials):
    run(n_trials=2)
    wider = SPACE | {"optimizer.lr": {"low": "1e-5", "high": "1e-1", "log": "true"}}
    for space, overrides, settings, message in (
        (wider, [], {}, "runs/s is another sweep: optimizer.lr: low was 0.0001 and is 1e-05; restore it, or give"),
        ({"model.n_layer": [1, 2]}, [], {}, "the space had optimizer.lr"),
        (SPACE | {"optimizer": ["muon"]}, [], {}, "the space had no optimizer"),
        (SPACE, ["budget_steps=7"], {}, "config.budget_steps was None and is 7"),
        (SPACE, [], {"metric": ("val/perplexity",)}, "metric was ['val/loss'] and is ['val/perplexity']"),
        (SPACE, [], {"direction": (Direction.maximize,)}, "direction was ['minimize'] and is ['maximize']"),
    ):
        with pytest.raises(UserError) as refused:
            run(space, *overrides, n_trials=3, **settings)
        assert message in str(refused.value)
    assert len(trials.seen) == 2
    result, _ = run(n_trials=3, sampler=SamplerKind.random)
    assert len(result.trials) == 3, "another sampler goes on with it"


def test_without_a_name_the_same_space_finds_its_folder(trials):
    first = sweep(SPACE, [], SweepConfig(n_trials=1), say=lambda _: None)
    again = sweep(dict(reversed(SPACE.items())), [], SweepConfig(n_trials=2), say=lambda _: None)
    other = sweep(SPACE, ["budget_steps=7"], SweepConfig(n_trials=1), say=lambda _: None)
    assert first.folder == again.folder != other.folder and len(again.trials) == 2


def test_a_study_of_someone_else_is_not_gone_on_with(trials, tmp_path):
    url = f"sqlite:///{tmp_path}/theirs.db"
    optuna.create_study(study_name="s", storage=url).add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match="holds a study that gptlab sweep did not make"):
        run(storage=url)


def test_a_folder_that_is_gone_changes_nothing_about_what_is_known(trials):
    import shutil

    first, _ = run(n_trials=3)
    shutil.rmtree(first.trials[1].folder)
    again, _ = run(n_trials=4)
    assert len(trials.seen) == 4 and points(again)[:3] == points(first)
    assert again.trials[1].numbers["val/loss"] == first.trials[1].numbers["val/loss"]


def test_a_trial_of_which_a_kill_left_only_a_number_is_adopted(trials):
    """A kill between the study's new trial and its values, its folder or its end."""
    whole, _ = run(name="whole", n_trials=5)
    first, _ = run(n_trials=2)
    study = optuna.load_study(study_name=None, storage=first.storage)
    study.sampler = optuna.samplers.RandomSampler(seed=1)
    study.ask()  # and nothing else
    again, said = run(n_trials=5)
    assert points(again) == points(whole) and any(line.startswith("trial 2 goes on") for line in said)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a place of sweeps")
    write_text(folder / "text.txt")
    lines = ["optimizer.lr: {low: 1e-4, high: 1e-1, log: true}", "model.n_layer: {low: 1, high: 2}"]
    (folder / "my space.yaml").write_text("\n".join(lines))
    return folder


def arguments(place, name, *more):
    rest = [
        override
        for override in overrides_of(place / "text.txt")
        if not override.startswith(("optimizer.lr=", "model.n_layer"))
    ]
    return ["sweep", "space=my space.yaml", f"name={name}", *rest, "callbacks.checkpoint.every_steps=2", *more]


def rows_of(folder):
    return read_metrics(folder / "metrics.csv")


def wait_for(condition, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_twice(place, name, n, *more):
    """A sweep that is killed with SIGKILL in its second trial and in a later one; returns its study's trials."""
    folder = place / "runs" / name
    for nth in (2, n // 2 + 1):
        process = start_sweep(arguments(place, name, f"n_trials={n}", *more), place)
        wait_for(lambda nth=nth: len(list(folder.glob(f"{nth - 1:03d},*/metrics.csv"))) == 1, process)
        process.kill()
        process.communicate()
    last = start_sweep(arguments(place, name, f"n_trials={n}", *more), place)
    out, err = last.communicate(timeout=600)
    assert last.returncode == 0, err
    assert "goes on" in out
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db").trials


@pytest.mark.parametrize("n", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_a_study_that_is_killed_twice_ends_with_exactly_its_trials(place, n):
    found = kill_twice(place, f"killed {n}", n, "budget_steps=20")
    assert [t.number for t in found] == list(range(n)) and {t.state.name for t in found} == {"COMPLETE"}
    assert len({tuple(t.params.items()) for t in found}) == n
    folders = sorted(p for p in (place / "runs" / f"killed {n}").iterdir() if p.is_dir())
    assert len(folders) == n
    for trial, folder in zip(found, folders, strict=True):
        assert [row["step"] for row in rows_of(folder)] == list(range(21)), "no step twice, none left out"
        assert rows_of(folder)[-1]["val/loss"] == trial.value
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert sum(event["event"] == "finished" for event in events) == 1
    if n == 4:  # a trial that was killed is the one that was not
        config = read_frozen(folders[1])
        config.run_dir = str(place / "alone")
        from gptlab.training.loop import train

        train(config)
        assert learned(place / "alone") == learned(folders[1])


def test_two_processes_share_a_study_and_ctrl_c_ends_one_in_order(place):
    both = [start_sweep(arguments(place, "shared", "n_trials=4", "budget_steps=10"), place) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    begun = [
        line.split()[1]
        for text in said
        for line in text.splitlines()
        if line.startswith("trial ") and " of 4: " in line
    ]
    assert sorted(begun) == list("0123"), said
    found = optuna.load_study(study_name=None, storage=f"sqlite:///{place}/runs/shared/study.db").trials
    assert [t.state.name for t in found] == ["COMPLETE"] * 4


def test_ctrl_c_saves_the_running_trial_and_the_command_goes_on(place):
    long = arguments(place, "ctrl c", "n_trials=1", "budget_steps=100000")
    process = start_sweep(long, place)
    folder = place / "runs" / "ctrl c"
    wait_for(lambda: any(len(rows_of(p.parent)) > 3 for p in folder.glob("*/metrics.csv")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (
        "stopped by SIGINT, saved at step" in out
        and "stopped; this continues the sweep:\n  gptlab sweep 'space=my " in out
    )
    (trial,) = [p for p in folder.iterdir() if p.is_dir()]
    (study,) = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.db").trials
    assert study.state.name == "RUNNING"
    events = [json.loads(line)["event"] for line in (trial / "events.jsonl").read_text().splitlines()]
    assert events[-1] == "stopped"


def test_texts_are_given_to_trials_as_they_are_written(trials):
    space = {"callbacks.sample.prompt": ["it's, a/b", "[x]", "1.10"]}
    run(space, "data=text", "data.path=text.txt", "tokenizer=byte", sampler=SamplerKind.grid)
    assert [config.callbacks.sample.prompt for config in trials.seen] == space["callbacks.sample.prompt"]
    typed = ["data=text", "data.path=text.txt", "tokenizer=byte"]
    assert trials.seen[1].identity_fields() == compose(*typed).identity_fields()
