"""`gptlab compare`, in this process."""

import json

import pytest
from small_runs import write_trained

from gptlab.cli.compare import split
from gptlab.training.config import AdamWConfig


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs" / "sweep"
    for lr in (0.001, 0.002):
        for seed in (1, 2):
            losses = [3.0, 2.0 + lr + seed / 100]
            write_trained(folder / f"optimizer.lr={lr},seed={seed}", losses, optimizer=AdamWConfig(lr=lr), seed=seed)
    return folder


def test_runs_are_given_as_folders_globs_and_sweeps(say, sweep):
    whole = say("my runs/sweep")
    assert whole.splitlines()[0].split()[:2] == ["lr", "n"] and "val/loss against lr=0.001" in whole
    assert say("my runs/*") == say("my runs/sweep/*") == say(sweep) == whole
    one = say("my runs/sweep/optimizer.lr=0.001,seed=1", "my runs/sweep/optimizer.lr=0.002,seed=1", "by_run=true")
    assert one.count("finished") == 2 and "1 paired seed" in one
    found = json.loads(say(sweep, "output=json", "metric=val/bits_per_byte", "baseline=optimizer.lr=0.002"))
    assert found["metric"] == "val/bits_per_byte" and found["baseline"] == "optimizer.lr=0.002"
    assert found["comparisons"][0]["group"] == "optimizer.lr=0.001"


def test_a_path_with_an_equals_sign_is_no_option(sweep, monkeypatch):
    monkeypatch.chdir(sweep)
    runs, options = split(["optimizer.lr=0.001,seed=1", "a/b=c", "*=1", "at=best", "metrc=x", "seeds"])
    assert runs == ["optimizer.lr=0.001,seed=1", "a/b=c", "*=1", "seeds"] and options == ["at=best", "metrc=x"]
    runs, options = split(["optimizer.lr=*", "my runs=x", "metrc=*", "metric=*"])
    assert runs == ["optimizer.lr=*", "my runs=x"] and options == ["metrc=*", "metric=*"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["metric=val/loss"], "needs runs"),
        (["my runs", "metrc=val/loss"], "unknown option metrc of gptlab compare; did you mean metric?"),
        (["my runs", "at=worst"], "at=worst is unknown; known: last, best"),
        (["my runs", "effect=0"], "effect=0.0 must be above 0"),
        (["my runs", "effect=inf"], "effect=inf must be finite"),
        (["my runs", "html="], "html= is empty; name a file that ends in .html or a folder, such as html=compare.html"),
        (["my runs", "by_run=maybe"], "by_run=maybe must be true or false"),
        (["my runs", "metric=val/accuracy"], "metric=val/accuracy is a metric of none of these runs"),
        (["elsewhere"], "elsewhere does not exist"),
        (["."], ""),
    ],
)
def test_wrong_options(say, sweep, arguments, message):
    assert message in say(*arguments, expect=2 if message else 0)


def test_help(say):
    assert say("--help") == say() and "best_first" in say()


def test_a_page_is_written_where_it_is_asked_for(say, sweep, tmp_path):
    assert say(sweep, "html=a page.html").splitlines()[-1] == "page in a page.html"
    assert (tmp_path / "a page.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads(say(sweep, f"html={tmp_path}", "output=json"))["page"] == str(tmp_path / "compare.html")
    (tmp_path / "compare.html").unlink()
    out = say(sweep, "watch=true")  # nothing is running: it ends at once
    assert out.splitlines()[0] == "4 finished: compare.html" and out.splitlines()[-1] == "page in compare.html"
    assert "does not end in .html" in say(sweep, "html=my runs/sweep.csv", expect=2)
    assert "leave out" in say(sweep, "watch=true", "output=json", expect=2)
    assert "every=0.5 must be at least 1" in say(sweep, "watch=true", "every=0.5", expect=2)


def test_runs_that_have_not_ended_have_a_page_too(say, tmp_path):
    folder = write_trained(tmp_path / "runs" / "a", [3.0, 2.0])
    (folder / "summary.json").unlink()
    error = say(tmp_path / "runs", f"html={tmp_path / 'a.html'}", expect=2)
    assert f"page in {tmp_path / 'a.html'}" in error and "is not finished" in error
