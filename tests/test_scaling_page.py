"""docs/scaling.md, tried: its commands are run, its ladder is listed and, in the slow tests, trained."""

import importlib
import json
import re
import shlex

import pytest
from small_runs import ROOT, start_sweep

PAGE = (ROOT / "docs" / "scaling.md").read_text()


def fences(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


LADDER, FITTED = fences("sh")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (ladder,) = fences("yaml")
    (tmp_path / "ladder.yaml").write_text(ladder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def say(line, capsys):
    _, verb, *arguments = (part.replace("tests/lab/", f"{ROOT}/tests/lab/") for part in shlex.split(line))
    code = importlib.import_module(f"gptlab.cli.{verb}").main(arguments)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_the_fit_of_the_page(folder, capsys):
    fit, optimum, plan = FITTED.splitlines()
    out = say(f"{fit} bootstrap=200", capsys)
    (shown,) = re.findall(r"^```\n +value .*\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in shown.splitlines():
        name, value = line.split()[:2]
        assert re.search(rf"^{name} +{re.escape(value)} ", out, re.MULTILINE)
    assert (folder / "chinchilla.png").is_file()
    assert "73.2B" in say(optimum, capsys) and "expected loss" in say(plan, capsys)


def test_the_ladder_of_the_page_is_listed(folder, capsys):
    listed, _ = LADDER.splitlines()
    found = json.loads(say(f"{listed} output=json", capsys))
    assert len(found) == 13 and [one["held_out"] for one in found] == [False] * 12 + [True]
    assert found[-1]["flops"] == pytest.approx(30 * max(one["flops"] for one in found[:-1]), rel=0.02)
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_the_ladder_of_the_page_is_trained_and_goes_on(folder):
    """Smaller, in real processes: it is stopped, started again, fitted, and its prediction comes true or not."""
    text = (
        (folder / "ladder.yaml").read_text().replace("[1e10, 2e10, 4e10]", "[2e8, 4e8, 8e8]").replace("1.2e12", "2e9")
    )
    (folder / "ladder.yaml").write_text(text)
    command = ["scaling", "ladder=ladder.yaml", "debug=smoke", "callbacks.sample=null", "bootstrap=50"]
    process = start_sweep(command, folder)
    while not list((folder / "runs").glob("ladder/ladder/*/summary.json")):
        assert process.poll() is None, process.communicate()
    process.terminate()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 143 and "no law yet" in out
    again = start_sweep(command, folder)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, out + err
    assert "predicted on 20" in out and "held out" in out and "measured" in out
    assert {path.name for path in (folder / "runs" / "ladder").iterdir()} >= {
        "law.json",
        "predictions.json",
        "scaling.png",
    }
