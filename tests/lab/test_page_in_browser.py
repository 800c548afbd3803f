"""The page of several runs in a real browser, opened from the disk: what a person does with it, without any request.

GPTLAB_SCREENSHOTS=FOLDER keeps pictures of the slow test's pages.
"""

import csv
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from lab.page_runs import HOSTILE, make_run
from small_runs import small_run

from gptlab.data.sources.config import TextConfig
from gptlab.lab.collect import collect
from gptlab.lab.page import Verdicts, write_page
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
CHART = ".figure:has(.uplot)"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what the browser said and asked for meanwhile."""

    def __init__(self, browser, path: Path, *, width: int = 1280, theme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on(
            "request", lambda request: self.said.append(request.url) if self._is_foreign(request.url) else None
        )
        self.address = path.as_uri()
        self.page.goto(self.address)

    def _is_foreign(self, url: str) -> bool:
        return not (url.startswith(("data:", "blob:")) or url.split("#")[0] == self.address)

    def chart(self, title: str):
        return self.page.locator(CHART, has=self.page.get_by_role("heading", name=title, exact=True))

    def over(self, title: str) -> dict:
        """Where the chart's lines are drawn, in pixels."""
        area = self.chart(title).locator(".u-over")
        area.scroll_into_view_if_needed()
        return area.bounding_box()

    def lines(self, title: str) -> list[str]:
        return self.page.evaluate("title => CHARTS.get(title).lines.map((line) => line.name)", title)

    def view(self, title: str) -> dict:
        return self.page.evaluate("title => CHARTS.get(title).view", title)

    def drag(self, title: str) -> None:
        """Zoom into the middle third of a chart's x axis, and of its y axis."""
        box = self.over(title)
        self.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 30)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] - 30, steps=4)
        self.page.mouse.up()
        self.settle()

    def settle(self) -> None:
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))")

    def close(self) -> None:
        self.context.close()
        assert self.said == []


@pytest.fixture
def visit(browser):
    visits = []

    def open_page(path, **options):
        visits.append(Visit(browser, path, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for lr in (1e-3, 1e-2):
        for seed in (0, 1, 2):
            make_run(folder / "runs" / f"lr={lr:g} seed={seed}", lr=lr, seed=seed)
    make_run(folder / "runs" / "z", lr=1e-1, n_steps=25, state="interrupted", name=HOSTILE)
    records = collect([folder / "runs"])
    return records, write_page(records, folder / "a page, of runs.html")


def rows_of(record) -> list[dict[str, str]]:
    with open(record.folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_hover_zoom_log_and_toggles(runs, visit):
    records, path = runs
    one = visit(path)
    page = one.page
    page.get_by_label("lines").select_option("runs")
    one.settle()
    assert set(one.lines("train/loss")) == {record.name for record in records}

    box = one.over("train/loss")
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.8)
    shown = one.chart("train/loss").locator(".tip div[data-id]")
    assert shown.count() >= 3
    for entry in shown.all():
        record = records[int(entry.get_attribute("data-id").split()[1])]
        (row,) = (row for row in rows_of(record) if row["tokens"] == entry.get_attribute("data-x"))
        assert float(row["train/loss"]) == float(entry.get_attribute("data-y"))
        assert record.name in entry.inner_text() and f"{float(row['train/loss']):.5g}"[:5] in entry.inner_text()

    whole = one.view("train/loss")
    one.drag("train/loss")
    near = one.view("train/loss")
    width = whole["x"][1] - whole["x"][0]
    assert near["x"] == pytest.approx([whole["x"][0] + 0.3 * width, whole["x"][0] + 0.6 * width], abs=0.02 * width)
    assert near["y"][1] < whole["y"][1] and near["y"][0] > whole["y"][0]
    assert one.view("val/loss")["x"] == near["x"]  # the charts share their x axis
    page.mouse.dblclick(box["x"] + 40, box["y"] + 40)
    one.settle()
    assert one.view("train/loss") == whole

    page.get_by_role("button", name="log x").click()
    page.get_by_role("button", name="log y").click()
    one.settle()
    assert one.view("train/loss")["x"][0] == 128 and one.view("train/loss")["y"][0] > 0
    middle = page.evaluate("() => CHARTS.get('train/loss').plot.valToPos(Math.sqrt(128 * 7680), 'x')")
    assert middle == pytest.approx(one.over("train/loss")["width"] / 2, abs=2)

    page.get_by_placeholder("filter").fill("seed=1")
    page.get_by_role("button", name="none").click()
    one.settle()
    assert set(one.lines("train/loss")) == {record.name for record in records if "seed=1" not in record.name}
    page.reload()  # the address keeps what was chosen
    one.settle()
    assert len(one.lines("train/loss")) == 5
    assert page.get_by_role("button", name="log x").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="all").click()
    page.locator(".entry", has_text=HOSTILE[:20]).get_by_role("checkbox").uncheck()
    one.settle()
    assert HOSTILE not in one.lines("train/loss") and len(one.lines("train/loss")) == 6
    assert page.title() == "Runs compared"  # no text became a script


def test_the_table_has_the_numbers_of_metrics_csv_and_sorts(runs, visit):
    records, path = runs
    one = visit(path)
    for record in records:
        cells = one.page.locator(f"#table tr[data-run='{records.index(record)}'] td[data-column]")
        found = {cell.get_attribute("data-column"): cell.get_attribute("data-value") for cell in cells.all()}
        rows = rows_of(record)
        losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
        assert float(found["last val/loss"]) == losses[-1] and float(found["best val/loss"]) == min(losses)
        assert float(found["last train/loss"]) == float(rows[-1]["train/loss"])
        assert float(found["config optimizer.lr"]) == record.config["optimizer.lr"]
    ranked = sorted(range(len(records)), key=lambda i: records[i].best("val/loss"))
    for key in (ranked, ranked[::-1]):
        order = [int(row.get_attribute("data-run")) for row in one.page.locator("#table tbody tr").all()]
        assert order == key
        one.page.locator("#table").get_by_role("button", name="best val/loss").click()
    one.page.get_by_label("rows").select_option("groups")
    (cell,) = (
        one.page.locator("#table tbody tr", has_text="lr=0.01").get_by_title("sample standard deviation").all()[:1]
    )
    finals = [record.best("val/loss") for record in records if record.config["optimizer.lr"] == 1e-2]
    mean = sum(finals) / 3
    deviation = (sum((value - mean) ** 2 for value in finals) / 2) ** 0.5
    words = cell.get_attribute("title").replace(",", "").split()
    assert [float(words[1]), float(words[5]), int(words[7])] == pytest.approx([mean, deviation, 3])


def test_the_mean_and_the_band_are_those_of_the_seeds(runs, visit):
    records, path = runs
    one = visit(path)
    assert one.page.get_by_label("lines").input_value() == "groups"
    lines = one.page.evaluate(
        "() => CHARTS.get('train/loss').lines"
        ".map(({ name, xs, ys, band }) => [name, [...xs], [...ys], band && [...band.high]])"
    )
    ((_, xs, ys, high),) = (line for line in lines if "0.01" in line[0])
    seeds = [record for record in records if record.config["optimizer.lr"] == 1e-2]
    assert xs == seeds[0].rows["tokens"]
    for i, values in enumerate(zip(*(record.rows["train/loss"] for record in seeds), strict=True)):
        mean = sum(values) / 3
        assert ys[i] == pytest.approx(mean)
        assert high[i] == pytest.approx(mean + (sum((value - mean) ** 2 for value in values) / 2) ** 0.5)


def test_smoothing_is_a_weighted_fit_of_a_line_at_each_step(runs, visit):
    records, path = runs
    one = visit(path)
    steps, values = records[0].rows["step"], records[0].rows["train/loss"]
    # Weights exp(-distance / (share x range)), times the steps that a point stands for: 1, and a half at the ends.
    found = one.page.evaluate(
        "([steps, values]) => [...smoothed(steps, Float64Array.from(values), 0.1)]", [steps, values]
    )
    x, y = np.array(steps, dtype=float), np.array(values)
    widths = np.array([0.5, *[1.0] * (len(x) - 2), 0.5])
    for i, at in enumerate(x):
        root = np.sqrt(widths * np.exp(-np.abs(x - at) / (0.1 * (x[-1] - x[0]))))
        (expected, _), *_ = np.linalg.lstsq(np.stack([root, root * (x - at)], 1), root * y, rcond=None)
        assert found[i] == pytest.approx(expected)
    line = one.page.evaluate(
        "() => [...smoothed([1, 2, 5, 9, 10, 20], Float64Array.from([3, 5, 11, 19, 21, 41]), 0.3)]"
    )
    assert line == pytest.approx([3, 5, 11, 19, 21, 41])  # neither lag nor bias


def test_labels_of_an_axis_tell_its_ticks_apart(runs, visit):
    _, path = runs
    one = visit(path)
    draw = random.Random(0)
    ranges = []
    for _ in range(300):
        size = 10 ** draw.uniform(-9, 22)
        kind = draw.choice(["count", "flops", "seconds", None])
        ranges += [[size, size * 10 ** draw.uniform(0.01, 8), True, kind], [0, size, False, kind]]
        ranges.append([size, size * (1 + 10 ** draw.uniform(-2, 2)), False, kind])
    found = one.page.evaluate(
        "ranges => ranges.map(([low, high, log, kind]) => ticksOf(low, high, 6, log, kind ?? undefined))"
        ".map((ticks, i) => [ticks, tickLabels(ticks, ranges[i][3] ?? undefined)])",
        ranges,
    )
    for (low, high, log, kind), (ticks, labels) in zip(ranges, found, strict=True):
        about = (low, high, log, kind, labels)
        assert 1 <= len(ticks) <= 11 and len(ticks) >= (1 if log else 3), about
        assert len(set(labels)) == len(labels), about
        assert low * 0.999 <= min(ticks) and max(ticks) <= high * 1.001, about
    hours = one.page.evaluate("() => tickLabels(ticksOf(0, 20000, 6, false, 'seconds'), 'seconds')")
    assert hours == ["0", "1 h", "2 h", "3 h", "4 h", "5 h"]


@pytest.mark.slow
def test_figures_are_saved_as_svg_and_png(runs, visit, tmp_path):
    _, path = runs
    one = visit(path)
    one.page.locator("#sweep").scroll_into_view_if_needed()
    one.page.get_by_text("parallel coordinates").wait_for()
    for figure in one.page.locator(".figure:has(svg), .figure:has(.uplot)").all():
        for kind, start in (("SVG", b"<svg "), ("PNG", b"\x89PNG\r\n")):
            with one.page.expect_download() as waiting:
                figure.get_by_role("button", name=kind, exact=True).click()
            file = tmp_path / waiting.value.suggested_filename
            waiting.value.save_as(file)
            content = file.read_bytes()
            assert content.startswith(start) and b"var(--" not in content and len(content) > 1000
            if file.name == "train-loss.svg":
                assert b"lr=0.001" in content and content.count(b"<path") > 8 and b">tokens<" in content


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_readable_on_a_telephone_and_in_the_dark(runs, visit, theme, tmp_path):
    records, _ = runs
    long = "eval/grammar/determiner_noun_agreement_and_more_of_it/accuracy"
    measured = [replace(one, rows=one.rows | {long: one.rows["val/loss"]}) for one in records]
    one = visit(write_page(measured, tmp_path / "a page.html"), width=400, theme=theme)
    chip = one.page.locator(".chips button", has_text=long)
    assert chip.evaluate("chip => chip.scrollWidth <= chip.clientWidth")
    assert one.page.evaluate("() => document.documentElement.scrollWidth") == 400
    for part in ("curves", "table", "sweep", "config", "samples"):
        one.page.locator(f"#{part}").scroll_into_view_if_needed()
        one.settle()
        assert one.page.locator(f"#{part}").bounding_box()["width"] <= 400
    assert one.page.evaluate("() => document.documentElement.scrollWidth") == 400
    brightness = (
        "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)"
        ".reduce((sum, part) => sum + Number(part), 0) / 3"
    )
    assert (one.page.evaluate(brightness) > 128) == (theme == "light")
    one.page.get_by_role("button", name="dark" if theme == "light" else "light", exact=True).click()
    assert (one.page.evaluate(brightness) > 128) == (theme != "light")


def test_configs_samples_and_links(runs, visit):
    _, path = runs
    one = visit(path)
    one.page.locator("#config").scroll_into_view_if_needed()
    one.page.locator("#config .value", has_text="0.01").click()
    one.settle()
    assert one.page.locator(".runs").get_by_text("3 of 7 shown").is_visible()
    one.page.get_by_label("all keys").check()
    text = one.page.locator("#config").inner_text()
    assert "optimizer.beta1" in text and "0.9" in text
    one.page.locator("#samples").scroll_into_view_if_needed()
    samples = one.page.locator("#samples pre").all_inner_texts()
    assert len(samples) == 3 and all(HOSTILE in sample for sample in samples)
    assert one.page.locator("img").count() == 0
    one.page.locator("#table a").first.click()
    one.page.get_by_text("metrics.csv").first.wait_for()  # Chromium lists the folder
    one.said.clear()  # the listing is Chromium's own page


def test_forecasts_stand_beside_what_came_out(visit, tmp_path):
    for seed in (0, 1):
        folder = make_run(tmp_path / "runs" / f"seed {seed}", seed=seed)
        loss = collect([folder])[0].last("val/loss")
        entries = [
            {
                "step": step,
                "metric": "val/loss",
                "loss": loss * (1 + 0.6 / step),
                "low": loss,
                "high": 2 * loss,
                "seconds": 9.0,
            }
            for step in (6, 12, 24)
        ]
        outcome = {"metric": "val/loss", "loss": loss * (1 + seed / 2), "seconds": 10.0, "memory_bytes": None}
        before = {"steps": 60, "tokens": 7680, "flops": 1e6, "memory_bytes": 2**30, "seconds": None}
        forecast = {"before": before, "loss": entries, "outcome": outcome}
        (folder / "forecast.json").write_text(json.dumps(forecast))
    one = visit(write_page(collect([tmp_path / "runs"]), tmp_path / "page.html"))
    section = one.page.locator("#forecasts")
    section.scroll_into_view_if_needed()
    section.get_by_text("error of the loss forecast").wait_for()
    text = section.inner_text()
    assert "the 80% interval held 2 of 2" in text and "time at a fifth of the run: 10% off at the median" in text
    rows = section.locator("tbody tr").all_inner_texts()
    assert "+5%" in rows[0] and "\u221230%" in rows[1] and "1 GiB" in rows[0]  # 1.05, and 1.05 of 1.5
    errors = one.page.evaluate("() => errorChart.lines[0].ys.map((y) => Math.round(1000 * y) / 1000)")
    assert errors == [10, 5, 2.5]
    one.page.locator(".runs .entry").get_by_role("checkbox").first.uncheck()
    one.settle()
    assert section.locator("tbody tr").count() == 1


def test_keys_that_change_together_are_named_once(visit, tmp_path):
    shapes = ({"n_layer": 1, "d_model": 8}, {"n_layer": 2, "d_model": 16})
    for i, shape in enumerate(shapes):
        for lr in (1e-3, 1e-2):
            for seed in (0, 1):
                model = DecoderConfig(n_head=1, context_length=16, **shape)
                folder = tmp_path / "runs" / f"{i} {lr} {seed}"
                make_run(folder, lr=lr, seed=seed, model=model, model_tag=("custom", f"size{i}")[i])
    records = collect([tmp_path / "runs"])
    said = Verdicts("val/loss", "last values", records[0].group, {records[-1].group: "better by 1 nat"})
    one = visit(write_page(records, tmp_path / "page.html", verdicts=said))
    names = one.page.locator(".runs .entry .name").all_inner_texts()
    assert sorted(names) == sorted(f"model={model}, lr={lr}" for model in ("custom", "size1") for lr in (0.001, 0.01))
    lead = one.page.locator(".lead").inner_text()
    assert "val/loss against model=custom, lr=0.001 (last values):" in " ".join(lead.split())
    assert "model=size1, lr=0.01: better by 1 nat" in " ".join(lead.split())
    one.page.locator("#sweep").scroll_into_view_if_needed()
    note = "model.d_model: these change together with model.n_layer"
    one.page.get_by_text(note).wait_for()
    assert one.page.get_by_role("heading", name="val/loss by model.d_model").count() == 0
    one.page.get_by_role("button", name="1 more hyperparameters").click()
    assert one.page.get_by_role("heading", name="val/loss by model.d_model").count() == 1
    assert "model.d_model" in one.page.locator("#table thead").inner_text()


@pytest.mark.slow
def test_odd_runs_are_shown(visit, tmp_path):
    make_run(tmp_path / "runs" / "not begun", n_steps=0, state="running")
    make_run(tmp_path / "runs" / "one step", n_steps=1, lr=3e-3)
    diverged = make_run(tmp_path / "runs" / "diverged #1?%20:", n_steps=80, lr=1.0, state="failed")
    text = (diverged / "metrics.csv").read_text().splitlines()
    for i in (41, 42, 80):
        text[i] = text[i].replace(text[i].split(",")[2], "nan" if i < 80 else "inf")
    (diverged / "metrics.csv").write_text("\n".join(text) + "\n")
    others = {
        "data": TextConfig(path="other", extensions=[".c", ".h"]),
        "model": EncoderConfig(n_layer=1, n_head=1, d_model=8),
    }
    make_run(tmp_path / "runs" / "b", n_steps=3000, **others)
    for patterns in (["*"], ["one step"], ["not begun"], ["diverged*", "one step"]):
        records = collect([tmp_path / "runs" / pattern for pattern in patterns])
        one = visit(write_page(records, tmp_path / "odd.html"))
        for lines in ("runs", "groups"):
            if one.page.get_by_label("lines", exact=True).count():
                one.page.get_by_label("lines", exact=True).select_option(lines)
                one.page.get_by_label("smoothing").fill("50")
                for switch in ("log x", "log y", "clip top"):
                    one.page.get_by_role("button", name=switch).click()
                    one.settle()
        for part in ("table", "sweep", "config", "samples"):
            if one.page.locator(f"#{part}").count():
                one.page.locator(f"#{part}").scroll_into_view_if_needed()
                one.settle()
        assert one.page.locator("#table tbody tr").count() == len(records)
        # An address with marks of its own leads to the folder.
        for link in one.page.locator("#table a").all():
            assert Path(unquote(urlsplit(link.evaluate("a => a.href")).path)).name in {r.folder.name for r in records}


@pytest.mark.slow
def test_a_page_of_running_runs_reads_itself_again(runs, visit, tmp_path):
    records, _ = runs
    path = write_page(records, tmp_path / "live.html", reload_seconds=1)
    one = visit(path)
    one.page.get_by_role("button", name="log y").click()
    write_page(records[:3], path, title="newer")
    one.page.wait_for_function("() => document.title === 'newer'", timeout=20_000)
    assert one.page.get_by_role("button", name="log y").get_attribute("aria-pressed") == "true"
    one.page.wait_for_timeout(1500)


@pytest.mark.slow
def test_pages_of_40_real_runs_and_of_200(visit, tmp_path):
    from gptlab.training.config import AdamWConfig, CosineConfig
    from gptlab.training.loop import train

    (tmp_path / "runs").mkdir()
    for seed in range(4):
        for i in range(10):
            model = DecoderConfig(n_layer=1 + i % 2, n_head=2, d_model=16, context_length=16)
            options = {
                "model": model,
                "optimizer": AdamWConfig(lr=1e-3 * 3 ** (i // 2)),
                "schedule": CosineConfig(warmup_steps=2),
            }
            train(small_run(tmp_path / "runs" / f"{i} {seed}", seed=seed, budget_steps=80, **options))
    for run in [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]:
        for k in range(4):
            copy = tmp_path / "runs" / f"{run.name} {k}"
            shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
            config = yaml.safe_load((copy / "config.yaml").read_text())
            config["optimizer"]["weight_decay"] = 0.01 * (k + 1)
            (copy / "config.yaml").write_text(yaml.safe_dump(config))
    real = [tmp_path / "runs" / f"{i} {seed}" for seed in range(4) for i in range(10)]
    for patterns, n in ((real, 40), ([tmp_path / "runs"], 200)):
        records = collect(patterns)
        path = write_page(records, tmp_path / f"{n}.html")
        assert len(records) == n and path.stat().st_size < 3_000_000
        for width in (1280, 400):
            one = visit(path, width=width)
            one.page.get_by_label("lines").select_option("runs")
            one.settle()
            assert len(one.lines("val/loss")) == n
            box = one.over("val/loss")
            one.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            entry = one.chart("val/loss").locator(".tip div[data-id]").first
            record = records[int(entry.get_attribute("data-id").split()[1])]
            (row,) = (row for row in rows_of(record) if row["tokens"] == entry.get_attribute("data-x"))
            assert float(row["val/loss"]) == float(entry.get_attribute("data-y"))
            whole = one.view("val/loss")["x"]
            one.drag("val/loss")
            near = one.view("val/loss")["x"]
            assert (near[1] - near[0]) / (whole[1] - whole[0]) == pytest.approx(0.3, abs=0.05)
            one.chart("val/loss").get_by_role("button", name="reset zoom").click()
            one.page.get_by_role("button", name="log x").click()
            one.page.locator(".runs .entry").get_by_role("checkbox").first.uncheck()
            one.settle()
            assert len(one.lines("val/loss")) == n - 4 and one.view("val/loss")["x"][0] > 0
            for part in ("table", "sweep", "config", "samples"):
                one.page.locator(f"#{part}").scroll_into_view_if_needed()
                one.settle()
            if (folder := os.environ.get("GPTLAB_SCREENSHOTS")) is not None:
                one.page.screenshot(path=f"{folder}/{n}-{width}.png", full_page=True)
