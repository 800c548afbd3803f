"""The page of several runs, as a file: what it holds, how large it is, and that no text in it is markup."""

import base64
import csv
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from lab.page_runs import HOSTILE, make_run

from gptlab.lab.collect import RunRecord, collect
from gptlab.lab.page import Verdicts, write_page


class Parsed(HTMLParser):
    """The elements of a page, and the texts of its scripts and its title."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.texts, self._within = [], {}, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = f"{tag} {dict(attrs).get('type', '')}".strip()

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within:
            self.texts[self._within] = self.texts.get(self._within, "") + data

    @property
    def data(self) -> dict:
        return json.loads(self.texts["script application/json"])


def unpacked(packed: dict) -> tuple[list[int], list[float]]:
    """Steps and values of a curve, read as its format is described."""
    steps = packed["s"]
    if isinstance(steps, str):
        steps = np.frombuffer(base64.b64decode(steps[3:]), dtype=f"<{steps[:2]}").astype(int).cumsum().tolist()
    else:
        steps = [steps[0] + i * steps[1] for i in range(steps[2])]
    values = packed["v"]
    return steps, np.frombuffer(base64.b64decode(values[3:]), dtype=f"<{values[:2]}").astype(float).tolist()


@pytest.fixture
def records(tmp_path):
    for lr in (1e-3, 1e-2):
        for seed in (0, 1, 2):
            make_run(tmp_path / "runs" / f"lr={lr:g} seed={seed}", lr=lr, seed=seed)
    make_run(tmp_path / "runs" / "z", lr=1e-1, n_steps=25, state="interrupted", name=HOSTILE)
    return collect([tmp_path / "runs"])


def test_numbers_are_those_of_metrics_csv(records, tmp_path):
    page = Parsed(write_page(records, tmp_path / "page.html"))
    assert len(page.data["runs"]) == 7
    for record, shown in zip(records, page.data["runs"], strict=True):
        with open(record.folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert shown["state"] == ("interrupted" if shown["name"] == HOSTILE else "finished")
        for metric in ("train/loss", "val/loss", "train/lr"):
            written = {int(row["step"]): float(row[metric]) for row in rows if row[metric]}
            steps, values = unpacked(shown["curves"][metric])
            found = dict(zip(steps, values, strict=True))
            assert found == {step: written[step] for step in found}
            assert metric == "train/lr" or found == written  # a rate that does not change needs no points between
            assert shown["last"][metric] == written[max(written)]
        losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
        assert shown["best"]["val/loss"] == min(losses)
        assert shown["bestStep"]["val/loss"] == 10 * (losses.index(min(losses)) + 1)
        assert (shown["tokens"], shown["seconds"]) == (128 * len(rows), pytest.approx(128 * len(rows) / 640))
        assert shown["flops"] == (None if shown["name"] == HOSTILE else 1000.0 * 128 * len(rows))


def test_configs_are_whole_and_written_once(records, tmp_path):
    data = Parsed(write_page(records, tmp_path / "page.html")).data
    for record, shown in zip(records, data["runs"], strict=True):
        assert json.loads(json.dumps(record.config)) == {**data["config"], **shown["config"]}
    assert "optimizer.lr" not in data["config"] and data["config"]["optimizer.beta1"] == 0.9
    assert data["keys"] == [{"key": "optimizer.lr", "numeric": True, "log": True}]
    assert len(data["groups"]) == 3


def test_texts_are_no_markup(records, tmp_path):
    (tmp_path / "runs" / "z" / "forecast.json").write_text(json.dumps({"before": {"x": HOSTILE}, "loss": []}))
    said = Verdicts(HOSTILE, HOSTILE, records[0].group, {records[-1].group: HOSTILE}, [HOSTILE])
    path = write_page(records, tmp_path / "page.html", title=HOSTILE, verdicts=said)
    page = Parsed(path)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and "img" not in tags and "b" not in tags
    assert page.texts["title"] == HOSTILE
    assert page.data["title"] == HOSTILE and page.data["verdicts"]["notes"] == [HOSTILE]
    named = next(run for run in page.data["runs"] if run["name"] == HOSTILE)
    assert named["samples"][-1] == [20, named["samples"][-1][1], f"written after 20 steps {HOSTILE}"]
    assert named["forecast"]["before"] == {"x": HOSTILE}


def test_nothing_is_loaded(records, tmp_path):
    path = write_page(records, tmp_path / "page.html")
    page, text = Parsed(path), path.read_text(encoding="utf-8")
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "connect-src" not in policy
    addresses = set(re.findall(r"https?://[\w/.-]+|(?<=[\"'(=])//[a-z][\w/.-]+", text))
    # The library's own line about itself, and the name of a format.
    assert addresses <= {"https://github.com/leeoniya/uPlot", "http://www.w3.org/2000/svg"}
    assert not re.search(
        r"\bfetch\(|XMLHttpRequest|WebSocket|import\(|@import|url\((?!#|\$)", text.replace("url(#${clip})", "")
    )
    assert "Permission is hereby granted, free of charge" in text and "Leon Sorokin" in text


def test_links_lead_to_the_run_folders(records, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = write_page(records, tmp_path / "elsewhere" / "page.html")
    for record, shown in zip(records, Parsed(path).data["runs"], strict=True):
        assert shown["href"].startswith("./../runs/")
        assert (path.parent / unquote(shown["href"])).resolve() == record.folder.resolve()


def test_two_hundred_long_runs_are_less_than_3_mb(tmp_path):
    noise = random.Random(0)
    steps = list(range(1, 601))
    columns = [[5 / step**0.1 + noise.gauss(0, 0.1) for step in steps] for _ in range(10)]
    names = ["train/loss", "train/grad_norm", "train/z_loss", "perf/tokens_per_second", "train/accuracy"]
    records = []
    for i in range(200):
        rows = {"step": steps, "tokens": [512 * step for step in steps]}
        rows |= {name: columns[(i + j) % 10] for j, name in enumerate(names)}
        rows["val/loss"] = [
            value if step % 50 == 0 else None for step, value in zip(steps, columns[i % 10], strict=True)
        ]
        config = {"optimizer.lr": 1e-4 * (1 + i // 4), "seed": i % 4, **{f"model.key_{j}": j for j in range(150)}}
        folder = tmp_path / f"run {i}"
        records.append(RunRecord(f"run {i}", folder, "finished", config, rows, {}, {}, i % 4, group=f"lr {i // 4}"))
    path = write_page(records, tmp_path / "page.html")
    assert 1_000_000 < path.stat().st_size < 3_000_000
    data = Parsed(path).data
    for run in data["runs"][::20]:
        packed = run["curves"]["train/loss"]
        found, values = unpacked(packed)
        full = columns[data["runs"].index(run) % 10]
        assert packed["n"] == 600 and 60 < len(found) < 600
        assert values == [full[step - 1] for step in found]
        assert min(values) == min(full) and max(values) == max(full)


def test_a_page_without_steps_or_of_one_run_is_written(tmp_path):
    folder = make_run(tmp_path / "runs" / "a", n_steps=0, state="running")
    data = Parsed(write_page(collect([folder]), tmp_path / "page.html")).data
    assert data["runs"][0]["curves"] == {} and data["runs"][0]["clock"] is None and data["mainMetric"] is None
    assert Parsed(write_page([], tmp_path / "none.html")).data["runs"] == []


def test_forecasts_are_shown_with_their_errors(records, tmp_path):
    forecast = {
        "before": {"steps": 60, "tokens": 7680, "flops": 768_000, "memory_bytes": 2e6, "seconds": 20.0},
        "loss": [
            {"step": step, "metric": "val/loss", "loss": 2.0 + step / 100, "low": 1.9, "high": 2.3, "seconds": 11.0}
            for step in (6, 12, 18)
        ],
    }
    outcome = {"metric": "val/loss", "loss": 2.0, "seconds": 10.0, "memory_bytes": 1e6}
    (records[0].folder / "forecast.json").write_text(json.dumps(forecast | {"outcome": outcome}))
    (tmp_path / "runs" / "z" / "forecast.json").write_text(json.dumps(forecast))
    ended, *_, interrupted = Parsed(write_page(records, tmp_path / "page.html")).data["runs"]
    assert ended["forecast"]["fifth"]["step"] == 12
    errors = ended["forecast"]["errors"]
    assert errors["loss"] == pytest.approx(2.12 / 2.0 - 1) and errors["held"] is True
    assert errors["seconds"] == pytest.approx(0.1) and errors["seconds_before"] == errors["memory"] == pytest.approx(1)
    assert interrupted["forecast"]["outcome"] is None and interrupted["forecast"]["errors"]["loss"] is None
    assert interrupted["flopsPerToken"] == 100.0  # as it was planned
