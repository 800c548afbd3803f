"""Pages that follow runs, and what a sweep leaves behind."""

import json
import re

import pytest
from lab.page_runs import make_run

from gptlab.errors import UserError
from gptlab.lab import report
from gptlab.lab.collect import collect
from gptlab.runs.folder import RunFolder


def data_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_page_is_an_html_file_or_in_a_folder(tmp_path):
    assert report.page_path(tmp_path) == tmp_path / "compare.html"
    assert report.page_path(tmp_path / "a.html") == tmp_path / "a.html"
    with pytest.raises(UserError, match=r"metrics\.html"):
        report.page_path(tmp_path / "metrics.csv")
    with pytest.raises(UserError, match="create"):
        report.page_path(tmp_path / "none" / "a.html")


def test_a_sweep_leaves_a_table_a_page_and_a_picture(tmp_path):
    sweep = tmp_path / "my sweep"
    for lr in (1e-3, 1e-2):
        for seed in (0, 1):
            make_run(sweep / f"lr={lr:g} seed={seed}", lr=lr, seed=seed)
    make_run(sweep / "broken", lr=1e-1, n_steps=3, state="interrupted")
    text = report.report_sweep(sweep)
    lines = text.splitlines()
    assert re.match(r"lr +n +val/loss", lines[0]) and lines[1].split()[:2] == ["0.01", "2"]  # the best first
    assert "broken: interrupted" in text
    assert f"all trials on one page in {sweep / 'compare.html'}" in lines
    assert (sweep / "loss.png").read_bytes().startswith(b"\x89PNG")
    data = data_of(sweep / "compare.html")
    assert data["title"] == "my sweep: 5 runs" and data["reloadSeconds"] is None
    said = data["verdicts"]
    assert said["metric"] == "val/loss" and said["values"] == "last values, lower is better"
    assert said["baseline"] == "optimizer.lr=0.001" and list(said["sentences"]) == ["optimizer.lr=0.01"]
    assert said["sentences"]["optimizer.lr=0.01"].startswith("suggested: better by ")
    assert report.report_sweep(sweep) == text  # once more, with its own files in the folder


def test_a_sweep_without_a_finished_trial_still_has_a_page(tmp_path):
    make_run(tmp_path / "s" / "a", n_steps=5, state="interrupted")
    text = report.report_sweep(tmp_path / "s")
    assert "nothing to compare" in text and (tmp_path / "s" / "compare.html").is_file()
    (tmp_path / "empty").mkdir()
    assert report.report_sweep(tmp_path / "empty").startswith("no report of the sweep: ")
    assert not list((tmp_path / "empty").iterdir())


def test_a_page_follows_runs_until_none_goes_on(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "runs" / "a", n_steps=20, state="running")
    make_run(tmp_path / "runs" / "b", n_steps=20)
    path, lines, pages = tmp_path / "compare.html", [], []
    holds = RunFolder(folder, writes=True).lock()
    holds.__enter__()

    def sleep(seconds):
        pages.append(data_of(path))
        if len(pages) == 1:
            make_run(tmp_path / "runs" / "c", n_steps=20)
        else:
            holds.__exit__(None, None, None)

    monkeypatch.setattr(report.time, "sleep", sleep)
    monkeypatch.setattr(report.time, "monotonic", lambda: 0.0)

    def read():
        if len(pages) == 2:  # nothing runs any more, and so much time has passed
            monkeypatch.setattr(report.time, "monotonic", lambda: 100.0)
        return collect([tmp_path / "runs"])

    report.follow(read, path, every_seconds=7, say=lines.append)
    assert [page["reloadSeconds"] for page in pages] == [7, 7]
    assert [len(page["runs"]) for page in pages] == [2, 3]
    assert [run["state"] for run in pages[0]["runs"]] == ["running", "finished"]
    assert data_of(path)["reloadSeconds"] is None
    assert lines == [
        f"1 running, 1 finished: {path}",
        f"1 running, 2 finished: {path}",
        f"1 interrupted, 2 finished: {path}",
    ]


def test_ctrl_c_leaves_a_page_that_does_not_wait(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "runs" / "a", n_steps=20, state="running")

    def interrupt(seconds):
        assert data_of(tmp_path / "compare.html")["reloadSeconds"] == 5
        raise KeyboardInterrupt

    monkeypatch.setattr(report.time, "sleep", interrupt)
    with RunFolder(folder, writes=True).lock(), pytest.raises(KeyboardInterrupt):
        report.follow(
            lambda: collect([tmp_path / "runs"]), tmp_path / "compare.html", every_seconds=5, say=lambda _: None
        )
    assert data_of(tmp_path / "compare.html")["reloadSeconds"] is None


def test_a_sweep_that_has_just_been_started_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    lines = []
    monkeypatch.setattr(report.time, "sleep", lambda seconds: make_run(tmp_path / "runs" / "a", n_steps=20))
    path = tmp_path / "compare.html"
    report.follow(lambda: collect([tmp_path / "runs"]), path, every_seconds=5, waits=True, say=lines.append)
    assert lines == ["no run yet; Ctrl-C ends the waiting", f"1 finished: {path}"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no run"):
        report.follow(lambda: collect([empty]), path, every_seconds=5, say=lines.append)


def test_a_page_that_cannot_be_written_costs_nothing_else(tmp_path):
    folder = make_run(tmp_path / "s" / "a", n_steps=20)
    (tmp_path / "s" / "compare.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        report.write_comparison(collect([folder]), tmp_path / "s" / "compare.html")
    text = report.report_sweep(tmp_path / "s")
    assert "no page of the trials: html=" in text and "curves of all trials in" in text
    assert report.report_sweep(tmp_path / "s", table=False).splitlines() == text.splitlines()[-2:]
