"""Pictures as files."""

import re

import numpy as np
import pytest
from small_runs import write_run

from gptlab.lab.inspection.page import PARTS, look_at
from gptlab.lab.inspection.plots import PLOTS, attention_maps, softmax, write_plots
from gptlab.lab.inspection.subject import open_subject

COURSE = np.array([1.5, -1.8, 0.9, -3.2])


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("some runs") / "run")
    (run / "layers.csv").write_text("step,tokens,weight_norm/tok_emb\n1,10,2.5\n2,20,2.25\n")
    subject = open_subject(str(run), prompt="$x_1$ & <b> 猫")
    return subject, look_at(subject)


def test_the_courses_temperatures():
    assert softmax(COURSE) == pytest.approx([0.62704177, 0.02312729, 0.34412782, 0.00570312], abs=1e-8)
    assert softmax(COURSE, 0.1)[0] == pytest.approx(0.99753, abs=5e-6)


def test_each_part_has_a_picture():
    assert {plot.part for plot in PLOTS.values()} == set(PARTS)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_files(looked_at, tmp_path, suffix):
    subject, found = looked_at
    texts = {"tokens": subject.labels(), "source": []}
    folder = tmp_path / "my pictures" / "new"
    written = write_plots(folder, found, texts, suffix=suffix)
    assert [path.name for path in written] == [f"{name}.{suffix}" for name in PLOTS]
    assert sorted(folder.iterdir()) == sorted(written)  # and no temporary file
    starts = {"png": b"\x89PNG", "svg": b"<?xml"}
    assert all(path.read_bytes().startswith(starts[suffix]) for path in written)
    if suffix == "svg":
        text = (folder / "token_loss.svg").read_text(encoding="utf-8")
        assert "perplexity" in text and re.search(r"'x'", text) and "'$'" in text
        again = write_plots(tmp_path / "again", found, texts, suffix=suffix)
        assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_parts_that_do_not_apply_have_none(looked_at, tmp_path):
    _, found = looked_at
    written = write_plots(tmp_path, {"sampling": found["sampling"], "attention": None}, {"tokens": [], "source": []})
    assert [path.name for path in written] == ["temperatures.png", "next_token.png"]


def test_maps_are_the_attention_weights(looked_at):
    subject, found = looked_at
    (group,) = found["attention"]["groups"]
    layer, record = group["layers"][0], subject.attention[0]
    maps = attention_maps(layer, group["n_queries"], group["n_keys"], causal=group["causal"])
    assert np.abs(maps - record.weights[0].numpy()).max() < 1 / 255 + 1e-6
