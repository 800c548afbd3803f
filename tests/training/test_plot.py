"""The curves of several runs in one picture."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gptlab.training.plot import OverlaidRun, plot_overlaid


@pytest.fixture
def drawn(monkeypatch):
    figures = []

    def keep(figure, path, **options):
        figures.append(figure)
        Path(path).write_bytes(b"picture")

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def run(group: str, last: float, **more) -> OverlaidRun:
    return OverlaidRun(group, {"tokens": [8, 16], "train/loss": [3.0, last], "val/loss": [None, last], **more})


def test_groups_are_named_by_their_mean_the_best_first(drawn, tmp_path):
    runs = [run("a", 2.5), run("a", 2.7), run("b", 2.0), OverlaidRun("none", {"tokens": [], "train/loss": []})]
    assert plot_overlaid(runs, tmp_path / "loss.png", title="sweep")
    (figure,) = drawn
    above, beneath = figure.axes
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["b (2.0000)", "a (2.6000)"]
    curves = sorted(tuple(line.get_ydata()) for line in above.lines if len(line.get_ydata()))
    assert curves == [(2.0,), (2.5,), (2.7,)] and len(beneath.lines) == 3
    assert above.get_title() == "sweep" and (tmp_path / "loss.png").read_bytes() == b"picture"


def test_of_many_groups_the_ten_best_are_named_and_one_that_diverged_flattens_none(drawn, tmp_path):
    runs = [run(f"g{i:02}", 2.0 + i / 100) for i in range(60)]
    runs += [run("diverged", 1e6), run("broken", math.nan)]
    assert plot_overlaid(runs, tmp_path / "loss.png", title="sweep")
    texts = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert len(texts) == 11 and texts[0] == "g00 (2.0000)" and texts[-1] == "and 52 more"
    assert drawn[0].axes[0].get_ylim()[1] < 3


def test_without_steps_there_is_no_picture(drawn, tmp_path):
    assert not plot_overlaid([OverlaidRun("a", {"tokens": []})], tmp_path / "loss.png", title="sweep")
    assert not (tmp_path / "loss.png").exists() and not drawn
