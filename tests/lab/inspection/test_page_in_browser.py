"""The page of a model in a real browser, opened from the disk, without any request.

GPTLAB_SCREENSHOTS=FOLDER keeps pictures of the pages.
"""

import os
from pathlib import Path

import pytest
from lab.inspection.subjects import plugin, subject

pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
from lab.test_page_in_browser import CHROMIUM, browser, visit  # noqa: F401

from gptlab.lab.inspection.page import look_at, write_inspection

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def page_of(one, path: Path) -> Path:
    write_inspection(one, path, title="what <the model> computes", found=look_at(one))
    return path


def test_a_head_is_chosen_and_its_weights_are_read(visit, tmp_path):  # noqa: F811
    one = subject("gpt2")
    shown = visit(page_of(one, tmp_path / "a page.html"))
    page = shown.page
    page.get_by_label("blocks.1.attn, head 2", exact=True).scroll_into_view_if_needed()
    page.get_by_label("blocks.1.attn, head 2", exact=True).click()
    large = page.get_by_label("attention map of blocks.1.attn, head 2", exact=True)
    weights = one.attention[1].weights[0, 2]
    n = len(weights)
    large.scroll_into_view_if_needed()
    box = large.bounding_box()
    left, top, cell = (float(large.get_attribute(f"data-{name}")) for name in ("left", "top", "cell"))
    found = {}
    for query, key in ((n - 1, 0), (n - 1, n - 2), (5, 3), (2, 7)):
        page.mouse.move(box["x"] + left + (key + 0.5) * cell, box["y"] + top + (query + 0.5) * cell)
        tip = page.locator(".map .tip")
        entry = tip.locator("[data-query]")
        at = int(entry.get_attribute("data-query")), int(entry.get_attribute("data-key"))
        found[at] = tip.locator(".number").inner_text()
    assert len(found) == 4
    for (query, key), text in found.items():
        if key > query:
            assert text == "not seen"
        else:
            weight = float(text.removeprefix("weight "))
            assert weight == pytest.approx(
                weights[query, key].item(), abs=weights[query, key].item() ** 0.5 / 255 + 6e-4
            )
    assert "head1" not in page.url and "head0=1.2" in page.url
    page.reload()
    assert page.get_by_label("blocks.1.attn, head 2", exact=True).get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("name", ["gpt2", "modern", "experts", "bert", "t5", "plugin"])
def test_pages_are_drawn_in_both_themes_and_widths(name, visit, tmp_path):  # noqa: F811
    one = plugin() if name == "plugin" else subject(name)
    path = page_of(one, tmp_path / "page.html")
    for width, theme in ((1280, "light"), (400, "dark")):
        shown = visit(path, width=width, theme=theme)
        page = shown.page
        for part in page.locator("main > section").all():
            part.scroll_into_view_if_needed()
            shown.settle()
            assert part.inner_text().strip() and "undefined" not in part.inner_text() and "NaN" not in part.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        if name != "plugin":
            drawn = page.evaluate(
                "[...document.querySelectorAll('.heads canvas')].every((c) => c.height === c.width || c.width)"
            )
            assert drawn
        page.get_by_label("color of the logit lens").select_option("entropy")
        if folder := os.environ.get("GPTLAB_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / f"inspect-{name}-{width}-{theme}.png"), full_page=True)
