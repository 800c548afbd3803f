"""Pictures and pages of a scaling law."""

import numpy as np
import pytest

from gptlab import UserError
from gptlab.lab.ladder import HeldOut
from gptlab.lab.scaling_law import Interval, fit_law, isoflops
from gptlab.lab.scaling_page import write_page
from gptlab.lab.scaling_plot import draw, picture_path


@pytest.fixture(scope="module")
def law():
    c, n = (v.ravel() for v in np.meshgrid([1e9, 4e9, 1.6e10], np.geomspace(1e3, 2e4, 5)))
    d = c / (6 * n)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(n)))
    return fit_law(n, d, (1.5 + 20 / n**0.3 + 300 / d**0.4) * noise, n_bootstrap=20)


HELD_OUT = HeldOut("large <b>", 100_000, 10_000_000, 40.0, Interval(2.6, 2.5, 2.7), "2026-01-01", 2.65)


def test_a_law_is_drawn(law, tmp_path):
    vector, pixels = tmp_path / "a b.svg", tmp_path / "a b.png"
    draw(law, isoflops(law.observations, law), vector, title="$ 1 <b>", held_out=[HELD_OUT])
    assert vector.read_text().startswith("<?xml") and "held out" in vector.read_text()
    few = law.observations.only(np.arange(3))
    draw(law, isoflops(few, law), pixels)
    assert pixels.read_bytes().startswith(b"\x89PNG") and sorted(tmp_path.iterdir()) == [pixels, vector]


def test_where_a_picture_goes(tmp_path):
    assert picture_path(tmp_path) == tmp_path / "scaling.png"
    assert picture_path(tmp_path / "x.SVG") == tmp_path / "x.SVG"
    for wrong in ("x.pdf", "none/x.png"):
        with pytest.raises(UserError, match="plots="):
            picture_path(tmp_path / wrong)
    with pytest.raises(UserError, match="plots= is empty"):  # not this folder
        picture_path("")


def test_a_page_holds_its_picture_and_escapes_its_title(law, tmp_path):
    file = tmp_path / "page.html"
    write_page(law, isoflops(law.observations, law), "a < b", file, title="<script>alert(1)</script>")
    page = file.read_text()
    assert "<script>alert(1)" not in page and "a &lt; b" in page and "data:image/png;base64," in page
