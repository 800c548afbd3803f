"""experiments/check.py: what is claimed beside what a run comes to."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import overrides_of, write_text
from warm_python import warm_python

from gptlab import composition

FOLDER = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def check(monkeypatch):
    spec = importlib.util.spec_from_file_location("check", FOLDER / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "executable", warm_python())
    return module


def test_a_number_that_a_run_does_not_come_to_is_named(check, tmp_path, monkeypatch, capsys):
    overrides = overrides_of(write_text(tmp_path / "text.txt"))
    claim = {"overrides": overrides, "metric": "val/loss", "claimed": 2.9, "tolerance": 1.5, "minutes": 1}
    claims = {"right": claim, "wrong": {**claim, "claimed": 0.1, "tolerance": 0.01}, "long": {**claim, "minutes": 60}}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(claims))
    monkeypatch.setattr(
        sys, "argv", ["check.py", "--claims", str(tmp_path / "claims.yaml"), "--to", str(tmp_path / "runs")]
    )
    assert check.main() == 1
    title, right, wrong, last = capsys.readouterr().out.splitlines()
    (summary,) = tmp_path.glob("runs/*/summary.json")
    loss = json.loads(summary.read_text())["val/loss"]
    assert title.split()[:4] == ["claim", "metric", "claimed", "obtained"]
    assert right.endswith("holds") and f"{loss:.4f}" in right
    assert wrong.endswith("DOES NOT HOLD") and f"{loss - 0.1:+.4f}" in wrong
    assert last == "1 of 2 claims hold; 1 left out"


def test_overrides_reach_the_run(check, tmp_path, monkeypatch):
    overrides = overrides_of(write_text(tmp_path / "text.txt"))
    without_text = [one for one in overrides if not one.startswith("data.path=")]
    claim = {"overrides": without_text, "metric": "val/loss", "claimed": 2.9, "tolerance": 1.5, "minutes": 1}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump({"one": claim}))
    typed = ["check.py", "--claims", str(tmp_path / "claims.yaml"), "--to", str(tmp_path / "runs"), "one"]
    monkeypatch.setattr(sys, "argv", typed)
    assert check.main() == 1, "the text is missing"
    monkeypatch.setattr(sys, "argv", [*typed, "--", f"data.path={tmp_path / 'text.txt'}"])
    assert check.main() == 0


def test_claims_compose_and_are_those_of_the_pages(check):
    pages = "".join(page.read_text() for page in FOLDER.glob("*/README.md"))
    for name, claim in check.read_claims(FOLDER / "claims.yaml").items():
        composition.compose(*claim["overrides"])
        assert str(claim["claimed"]) in pages, name
