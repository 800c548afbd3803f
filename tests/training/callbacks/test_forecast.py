"""Forecasts of real small runs: written before the first step, on the way and at the end, and without any effect."""

from types import SimpleNamespace

import pytest
from small_runs import learned, small_run

from gptlab.lab.compare import compare
from gptlab.runs import forecasts
from gptlab.steps import Steps
from gptlab.training.callbacks import forecast
from gptlab.training.callbacks.forecast import Forecast, curve_of
from gptlab.training.config import AdamWConfig, CallbacksConfig, CheckpointConfig
from gptlab.training.loop import train

STEPS = 100


def run_of(folder, *, forecast=True, val_check_interval=10, resume="auto", **given):
    config = small_run(folder, budget_steps=STEPS, resume=resume, **given)
    config.callbacks = CallbacksConfig(
        checkpoint=CheckpointConfig(every_steps=10, keep_last=9), sample=None, plot=False, forecast=forecast
    )
    config.trainer.val_check_interval = val_check_interval
    return config


def without_times(found):
    return [{name: value for name, value in one.items() if name != "seconds"} for one in found["loss"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one recipe beside each other, and what the second printed."""
    folder = tmp_path_factory.mktemp("runs")
    return [train(run_of(folder / f"seed={seed}", seed=seed)) for seed in (1, 2)]


def test_what_is_forecast_and_what_came_out(runs):
    first, second = (forecasts.read(run.path) for run in runs)
    summary = runs[0].summary
    before, outcome = first["before"], first["outcome"]
    assert before["steps"] == STEPS and before["parameters"] == summary["parameters"] and before["memory_bytes"] > 0
    assert before["flops"] == summary["flops_per_token"] * summary["tokens"]
    assert before["seconds"] is None and before["earlier_runs"] == []  # nothing to tell it by
    assert [one["step"] for one in first["loss"]] == list(range(20, STEPS, 10))  # from the second tenth on
    assert all(one["low"] < one["loss"] < one["high"] and one["seconds"] > 0 for one in first["loss"])
    assert outcome["loss"] == summary["val/loss"] and outcome["seconds"] == summary["seconds"]
    times = outcome["times"]
    assert STEPS * times["step"] + 10 * times["pause"] <= summary["seconds"] + 0.1
    # The second run has the first to learn from.
    assert second["recipe"] == first["recipe"] and second["before"]["earlier_runs"] == ["seed=1"]
    assert second["before"]["seconds_from"] == "seed=1"
    assert second["before"]["seconds"] == pytest.approx(outcome["seconds"], abs=0.11)


def test_the_errors_are_told(runs):
    found = forecasts.read(runs[1].path)
    errors = forecasts.errors_of(found)
    fifth, final = found["loss"][0], runs[1].summary["val/loss"]
    assert fifth["step"] == 20 and errors.loss == pytest.approx(fifth["loss"] / final - 1)
    assert errors.held == (fifth["low"] <= final <= fifth["high"])
    lines = forecast.describe(found)
    assert (
        f"it is {final:.4f}, the forecast {abs(errors.loss):.1%} too {'high' if errors.loss > 0 else 'low'}" in lines[0]
    )
    assert "before the first step (as seed=1)" in lines[1] and "it took" in lines[1]
    together = compare([run.path for run in runs])
    assert together.forecast_errors["seed=2"] == errors and together.plain()["forecast_errors"]["seed=2"]["loss"]
    text = together.text()
    assert "final loss, after a fifth of the run: off by" in text and "at the median of 2 runs" in text
    assert f"{sum(forecasts.errors_of(forecasts.read(r.path)).held for r in runs)} of 2 held it" in text


def test_a_run_learns_the_same_without_forecasts(runs, tmp_path):
    train(run_of(tmp_path / "without", seed=2, forecast=False, data=runs[1].config.data))
    assert learned(tmp_path / "without") == learned(runs[1].path)
    assert not (tmp_path / "without" / forecasts.FILE).exists()


def test_a_run_that_goes_on_forecasts_as_if_nothing_had_happened(tmp_path):
    run = train(run_of(tmp_path / "run"))
    expected = forecasts.read(run.path)
    middle = run.checkpoint(20)
    train(run_of(tmp_path / "run", resume=str(middle)))
    found = forecasts.read(run.path)
    assert without_times(found) == without_times(expected) and found["before"] == expected["before"]
    assert found["outcome"]["seconds"] is None  # of which only a part is known
    assert found["outcome"]["loss"] == expected["outcome"]["loss"]
    # In another folder it is another run, with what is left of the steps.
    longer = run_of(tmp_path / "longer", resume=str(middle), optimizer=AdamWConfig(lr=2e-2))
    train(longer)
    other = forecasts.read(tmp_path / "longer")
    assert other["recipe"] != expected["recipe"] and other["loss"][0]["step"] == 20


def test_without_validations_the_training_loss_counts(tmp_path):
    config = run_of(tmp_path / "run")
    config.data.val_fraction = 0.0
    run = train(config)
    found = forecasts.read(run.path)
    assert {one["metric"] for one in found["loss"]} == {"train/loss"} == {found["outcome"]["metric"]}
    assert [one["step"] for one in found["loss"]] == list(range(20, STEPS, 10))
    curve = curve_of(run.path, STEPS)
    assert found["outcome"]["loss"] == pytest.approx(curve.final()) == pytest.approx(curve.losses[-5:].mean())


def test_only_finished_runs_beside_it_with_the_same_values_count(tmp_path):
    kinds = {"done": {"outcome": {}}, "unfinished": {}, "other": {"recipe": "y", "outcome": {}}}
    for name, more in kinds.items():
        (tmp_path / name).mkdir()
        forecasts.write(tmp_path / name, {"recipe": "x", "before": {}, "loss": [], **more})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / forecasts.FILE).write_text("{")
    (tmp_path / "own").mkdir()
    assert [run.name for run in forecasts.finished_beside(tmp_path / "own", recipe="x")] == ["done"]
    assert forecasts.finished_beside(tmp_path / "done", recipe="x") == []  # itself does not
    assert forecasts.read(tmp_path / "damaged") is forecasts.read(tmp_path / "nowhere") is None
    assert curve_of(tmp_path / "nowhere", 10) is None


def test_errors_by_hand():
    found = {
        "before": {"steps": 100, "seconds": 90.0, "memory_bytes": 300},
        "loss": [
            {"step": 10, "metric": "val/loss", "loss": 9.0, "low": 8.0, "high": 10.0, "seconds": 1.0},
            {"step": 20, "metric": "val/loss", "loss": 2.2, "low": 1.9, "high": 2.5, "seconds": 110.0},
        ],
        "outcome": {"metric": "val/loss", "loss": 2.0, "seconds": 100.0, "memory_bytes": 200},
    }
    errors = forecasts.errors_of(found)
    assert errors.loss == pytest.approx(0.1) and errors.held and errors.memory == pytest.approx(0.5)
    assert errors.seconds == pytest.approx(0.1) and errors.seconds_before == pytest.approx(-0.1)
    nothing = forecasts.errors_of(
        {"before": {"steps": 100}, "loss": [], "outcome": {"metric": "val/loss", "loss": 2.0}}
    )
    assert nothing.loss is nothing.held is nothing.seconds is nothing.seconds_before is nothing.memory is None


def test_time_is_that_of_steps_and_evaluations(monkeypatch, tmp_path):
    """On a clock that the test moves: the first step and each evaluation take longer."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: clock.now)
    plan = SimpleNamespace(
        n_steps=100,
        val_every=25,
        parameters={"total": 1},
        memory={"total": 1},
        steps=Steps.of(1, 1),
        total_tokens=100,
        flops_per_token=1.0,
    )
    folder = SimpleNamespace(path=tmp_path)
    metrics = SimpleNamespace(observers=[])
    callback = Forecast(plan, folder, metrics, recipe="r", shapes="s", factor=lambda step: 1.0)
    module = SimpleNamespace(finished_steps=0, device=SimpleNamespace(type="cpu"), evaluation={"val/loss": 2.0})
    trainer = SimpleNamespace(sanity_checking=False)
    callback.on_train_start(trainer, module)
    for step in range(100):
        callback.on_train_batch_start(trainer, module, None, 0)
        clock.now += 10 if step == 0 else 1
        module.finished_steps = step + 1
        for observe in metrics.observers:
            observe({"step": step + 1, "tokens": 0, "train/loss": 3 - step / 100})
        if (step + 1) % 25 == 0:
            callback.on_validation_start(trainer, module)
            clock.now += 7
            callback.on_validation_end(trainer, module)
    seconds = clock.now - 100
    assert seconds == 10 + 99 + 4 * 7
    callback.finish(seconds, {"val/loss": 2.0})
    found = forecasts.read(tmp_path)
    # Validations are further apart than a fifth: it looks every tenth, and evaluations are not known of before 25.
    assert [(one["step"], one["seconds"]) for one in found["loss"]][:3] == [(20, 109.0), (30, seconds), (40, seconds)]
    assert found["outcome"]["times"] == {"step": 1.0, "pause": 7.0, "other": 9.0}
