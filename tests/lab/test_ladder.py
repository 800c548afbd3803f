"""Ladders: what is counted and refused beforehand, predicted before a run, and gone on with."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import yaml
from small_runs import TrialsInProcess

from gptlab import UserError, composition, train_ladder
from gptlab.config import to_plain
from gptlab.costs import training_pass
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.lab.collect import collect
from gptlab.lab.ladder import Ladder
from gptlab.lab.scaling import FitConfig, ParameterCount, observe_runs
from gptlab.lab.scaling_law import LawForm, read_law
from gptlab.models.build import shape_model
from gptlab.runs.folder import MetricsFile

SHARED = [
    *("debug=smoke", "tokenizer=byte", "data=text", "data.path=text.txt", "data.val_fraction=0.1", "model=small"),
    *("model.n_layer=1", "model.n_head=1", "model.context_length=16", "batch_tokens=64", "callbacks.sample=null"),
]
LADDER = {
    "overrides": SHARED,
    "sizes": {f"d{d}": [f"model.d_model={d}"] for d in (8, 16, 32)},
    "budgets": {"tokens": ["640", "1280", "5120"]},
    "held_out": {"large": {"size": ["model.d_model=64"], "tokens": "20480"}},
}


def loss(n, d):
    return 1.5 + 20 / n**0.3 + 30 / d**0.4


COMPOSE = composition.compose  # which a fixture replaces


@cache
def composed(*overrides):
    return COMPOSE(*overrides)


def compose_fast(*overrides, config_dir=None):
    """What compose does, in less time: the width is set in a config that is there."""
    widths = [o for o in overrides if o.startswith("model.d_model=")]
    config = deepcopy(composed(*(o for o in overrides if o not in widths)))
    for override in widths:
        config.model.d_model = int(override.partition("=")[2])
    config.check()
    return config


class Runs:
    """Runs that take no step: their losses lie on a law, times a factor for some."""

    def __init__(self):
        self.order, self.factors = [], {}

    def __call__(self, config):
        folder = Path(config.run_dir)
        self.order.append(folder.name)
        model = shape_model(config.model, ByteTokenizer().vocab_size, None)
        n, d = sum(p.numel() for p in model.parameters()), config.budget_tokens
        value = loss(n, d) * self.factors.get(folder.name, 1)
        if isinstance(value, Exception):
            raise value
        (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
        file = MetricsFile(folder / "metrics.csv", ["step", "tokens", "val/loss"])
        file.write({"step": d // 64, "tokens": d, "val/loss": value})
        file.close()
        (folder / "events.jsonl").write_text("")
        return {"val/loss": value, "parameters": n, "flops_per_token": 6.0 * n, "tokens": d}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composition, "compose", compose_fast)
    (tmp_path / "text.txt").write_text("it was the best of times " * 50)
    task = Runs()
    TrialsInProcess(task, monkeypatch)
    return task


def ladder(changes=None, overrides=("name=l",), **settings):
    return Ladder({**LADDER, **(changes or {})}, overrides, FitConfig(**{"bootstrap": 20, **settings}))


def test_a_larger_run_is_predicted_before_it_is_trained(runs, tmp_path, monkeypatch):
    seen = []
    predictions = tmp_path / "runs" / "l" / "predictions.json"
    monkeypatch.setattr(
        Runs,
        "__call__",
        lambda self, config, call=Runs.__call__: seen.append(predictions.is_file()) or call(self, config),
    )
    runs.factors["large"] = 1.02
    lines = []
    found = train_ladder(ladder(), say=lines.append)
    assert found.exit_code == 0 and len(runs.order) == 10 and runs.order[-1] == "large"
    assert seen == [False] * 9 + [True]
    (one,) = found.held_out
    n, d = one.parameters, one.tokens
    assert d == 20480 and one.predicted.value == pytest.approx(loss(n, d), rel=1e-3)
    assert one.error == pytest.approx(0.02, abs=1e-3) and one.measured == pytest.approx(1.02 * loss(n, d))
    assert one.times_the_largest > 4 and "outside" in found.held_out_text() and "+2.0" in found.held_out_text()
    assert any(line.startswith("predicted on 20") for line in lines)
    written = json.loads(predictions.read_text())["held_out"]
    assert written[0]["loss"]["value"] == one.predicted.value and written[0]["written"] == one.predicted_at
    law = read_law(tmp_path / "runs" / "l")
    assert len(law.observations) == 9 and found.law is not None
    assert law.constants["E"].value == pytest.approx(1.5, rel=0.05)

    # The same command trains nothing again and leaves the prediction as it was.
    before = predictions.read_text()
    again = train_ladder(ladder(), say=lines.append)
    assert len(runs.order) == 10 and predictions.read_text() == before and again.held_out == found.held_out


def test_a_held_out_run_that_was_not_predicted_says_so(runs, tmp_path):
    train_ladder(ladder(), say=lambda line: None)
    (tmp_path / "runs" / "l" / "predictions.json").unlink()
    found = train_ladder(ladder(), say=lambda line: None)
    assert found.held_out[0].predicted_at is None and "after the run began" in found.held_out_text()
    (tmp_path / "runs" / "l" / "predictions.json").write_text("{")
    with pytest.raises(UserError, match="is damaged; restore it"):
        train_ladder(ladder(), say=lambda line: None)


def test_a_prediction_is_compared_with_nothing_else(runs, tmp_path):
    train_ladder(ladder(), say=lambda line: None)
    folder = tmp_path / "runs" / "l"
    file, law = folder / "predictions.json", (folder / "law.json").read_text()
    (written,) = json.loads(file.read_text())["held_out"]
    assert written["metric"] == "val/loss" and written["counted"] == "total"
    others = ({"metric": "val/bits_per_byte"}, {"parameters": ParameterCount.non_embedding}, {"form": LawForm.norm})
    for settings in others:
        with pytest.raises(UserError, match=r"prediction of large for (metric=val/loss|parameters=total|form=sum)"):
            train_ladder(ladder(**settings), say=lambda line: None)
    for changes, message in (
        ({"metric": "val/bits_per_byte"}, "metric=val/bits_per_byte"),
        ({"parameters": 7}, "N=7"),
        ({"tokens": 7}, "D=7"),
    ):
        file.write_text(json.dumps({"held_out": [written | changes]}))
        with pytest.raises(UserError, match=f"prediction of large for {message}"):
            train_ladder(ladder(), say=lambda line: None)
    assert (folder / "law.json").read_text() == law


def test_runs_of_few_tokens_are_left_out_of_a_ladders_law(runs):
    found = ladder({"held_out": {"large": {"size": ["model.d_model=64"], "tokens": "640"}}})
    least = max(rung.tokens / rung.parameters for rung in found.rungs if rung.tokens == 640)
    kept = [rung for rung in found.rungs if rung.tokens / rung.parameters >= 1.01 * least]
    assert len(kept) < len(found.rungs)
    few = FitConfig(bootstrap=20, min_tokens_per_parameter=1.01 * least)
    train_ladder(found, say=lambda line: None)
    records = collect([rung.folder for rung in found.rungs])
    observed, notes = observe_runs(records, few)
    assert len(observed) == len(kept) and f"{9 - len(kept)} runs of fewer" in notes[0]


def test_what_failed_is_tried_again_and_no_law_is_fitted_before(runs, tmp_path):
    class Failure:
        def __rmul__(self, other):
            raise ValueError("no memory")

    runs.factors["d16,tokens=1280"] = Failure()
    found = train_ladder(ladder(), say=lambda line: None)
    assert found.exit_code == 1 and found.law is None and "large" not in runs.order
    assert not (tmp_path / "runs" / "l" / "law.json").exists()
    runs.factors.clear()
    n = len(runs.order)
    assert train_ladder(ladder(), say=lambda line: None).exit_code == 0
    assert runs.order[n:] == ["d16,tokens=1280", "large"]


def test_runs_are_counted_before_they_are_trained(runs):
    by_tokens = ladder()
    one = by_tokens.rungs[0]
    model = by_tokens._planner([*SHARED, "model.d_model=8", "budget_steps=1"]).model
    assert one.parameters == sum(p.numel() for p in model.parameters()) and one.tokens == 640
    assert one.flops == pytest.approx(640 * training_pass(model, 16).flops_per_token)
    flops = [8 * rung.flops for rung in by_tokens.rungs[::3]]
    by_flops = ladder({"budgets": {"flops": [str(value) for value in flops]}})
    assert by_flops.rungs[0].tokens == pytest.approx(8 * 640, abs=64)
    assert all(rung.flops == pytest.approx(flops[i % 3], rel=0.2) for i, rung in enumerate(by_flops.rungs))
    ratio = ladder({"budgets": {"tokens_per_parameter": ["2", "4"]}}, parameters=FitConfig().parameters)
    assert ratio.rungs[0].tokens == pytest.approx(2 * one.parameters, abs=64)
    assert "10 runs" in by_tokens.table() and "large" in by_tokens.table()
    assert not runs.order


def test_each_run_is_trained_with_each_seed(runs):
    twice = ladder({"seeds": ["1", "2"]})
    assert [rung.name for rung in twice.rungs[:2]] == ["d8,tokens=640,seed=1", "d8,tokens=640,seed=2"]
    assert [rung.point.config["seed"] for rung in twice.rungs] == [1, 2] * 9
    assert twice.held_out[0].point.config["seed"] == ladder().held_out[0].point.config["seed"]
    result = train_ladder(twice)
    assert len(result.law.observations.losses) == 18


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {}}, "size is not a key of a ladder; did you mean sizes"),
        ({"sizes": {}}, "sizes has to be a mapping"),
        ({"sizes": {"a": "model.d_model=8"}}, "a has to be a list of overrides"),
        ({"sizes": {"a": ["model.d_modle=8"]}}, "d_model"),
        ({"sizes": {"a": ["budget_tokens=8"]}}, "the ladder sets budgets and folders itself"),
        ({"overrides": [*SHARED, "name=x"]}, "the ladder sets budgets and folders itself"),
        ({"budgets": {"steps": ["1"]}}, "tokens, flops, tokens_per_parameter"),
        ({"budgets": {"tokens": "1"}}, "has to be a list of numbers"),
        ({"budgets": {"tokens": ["many"]}}, "tokens=many is no budget"),
        ({"budgets": {"tokens": ["10"]}}, "less than one step"),
        ({"held_out": {"large": {"tokens": "1e4"}}}, "has to have a size"),
        ({"budgets": {"tokens": ["1280", "1.28e3"]}}, "d8,tokens=1280 and d8,tokens=1.28e3 are the same run"),
        ({"sizes": {"a": ["model.d_model=8"], "b": ["model.d_model=8"]}}, "a,tokens=640 and b,tokens=640 are the same"),
        ({"held_out": {"x": {"size": ["model.d_model=8"], "tokens": "640"}}}, "d8,tokens=640 and x are the same run"),
        ({"overrides": [*SHARED, "data.val_fraction=0"]}, "leaves no val/loss"),
        ({"seeds": "3"}, "seeds has to be a list of numbers"),
        ({"seeds": []}, "seeds has to be a list of numbers"),
        ({"seeds": ["1", "x"]}, "seed=x"),
        ({"seeds": ["1", "1"]}, "d8,tokens=640,seed=1 and d8,tokens=640,seed=1 are the same run"),
        ({"seeds": ["1"], "overrides": [*SHARED, "seed=2"]}, "leave out seed= or the list"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(runs, changes, message):
    with pytest.raises(UserError, match=message):
        ladder(changes)
    assert not runs.order


def test_a_file_of_a_ladder(runs, tmp_path):
    file = tmp_path / "my ladder.yaml"
    file.write_text(yaml.safe_dump(LADDER))
    assert str(Ladder(file).folder) == "runs/my ladder" and len(Ladder(file).rungs) == 9
    file.write_text("sizes: [")
    with pytest.raises(UserError, match="is no YAML"):
        Ladder(file)
    with pytest.raises(UserError, match=r"ladder=none\.yaml cannot be read"):
        Ladder("none.yaml")
