"""Which hyperparameters decided a metric."""

import builtins
import math
import random

import pytest

from gptlab.lab.collect import RunRecord
from gptlab.lab.importance import importances, spans_decades


def records(n: int = 60, metric: str = "val/loss", sign: float = 1.0) -> list[RunRecord]:
    """Runs whose metric depends on one key alone, much; on another a little; on a third not at all."""
    draw = random.Random(0)
    found = []
    for i in range(n):
        lr, layers, name = 10 ** draw.uniform(-4, -1), draw.choice([1, 2, 3]), draw.choice(["gelu", "relu"])
        value = abs(draw.gauss(0, 0.01)) + abs(math.log10(lr) + 2.5) + 0.001 * layers
        config = {"optimizer.lr": lr, "model.n_layer": layers, "model.feedforward": name}
        rows = {"step": [1], "tokens": [8], metric: [sign * value]}
        found.append(RunRecord(str(i), None, "finished", config, rows, {}, {}, i))
    return found


KEYS = ["optimizer.lr", "model.n_layer", "model.feedforward"]


@pytest.mark.parametrize("metric, sign", [("val/loss", 1.0), ("val/accuracy", -1.0)])
def test_the_key_that_decides_comes_first(metric, sign):
    pytest.importorskip("optuna")
    found, reason = importances(records(metric=metric, sign=sign), KEYS, metric)
    assert reason == "" and next(iter(found)) == "optimizer.lr" and found["optimizer.lr"] > 0.6
    assert sum(found.values()) == pytest.approx(1) and set(found) == set(KEYS)


def test_without_enough_there_is_a_reason(monkeypatch):
    few = records(9)
    assert importances(few, KEYS, "val/loss") == ({}, "needs 10 runs that ended with val/loss; there are 9")
    assert "no hyperparameter" in importances(records(), [], "val/loss")[1]
    same = [RunRecord(**{**{f: getattr(r, f) for f in r.__slots__}, "rows": few[0].rows}) for r in records()]
    assert "is the same in all runs" in importances(same, KEYS, "val/loss")[1]
    real = builtins.__import__

    def without(name, *arguments):
        if name == "optuna":
            raise ModuleNotFoundError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'gptlab[sweep]'" in importances(records(), KEYS, "val/loss")[1]


def test_ratios_count_where_a_range_spans_a_decade():
    assert spans_decades([1e-4, 1e-3]) and not spans_decades([1e-4, 9e-4]) and not spans_decades([0, 1, 100])
