"""Documents of one file: escaping, embedding, links."""

import json
import math
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from gptlab.lab import html


def test_json_reads_back_and_ends_no_script():
    data = {"</script><!--<script>": ["\u2028", "\ud83d\ude00", "\"&'", None, True, 1.5, 2**60], "set": ("a", "b")}
    text = html.embed_json(data)
    assert "<" not in text and ">" not in text
    assert json.loads(text) == {**data, "set": ["a", "b"]}


def test_what_json_lacks_has_a_name():
    assert json.loads(html.embed_json([math.nan, math.inf, -math.inf])) == ["NaN", "Infinity", "-Infinity"]
    assert json.loads(html.embed_json({1: Path("a")})) == {"1": "a"}


def test_a_document_is_whole_and_escapes_its_title():
    text = html.document("<b>&", "<p>{{js}}</p>", data={"x": "{{body}}"}, charts=False)
    assert "<title>&lt;b&gt;&amp;</title>" in text and "<p>{{js}}</p>" in text  # a part is not looked through
    assert '{"x":"{{body}}"}' in text and "var uPlot" not in text
    assert text.count("</script>") == 2 and text.count("<script") == 2
    charts = html.document("a", "")
    assert "new uPlot" in charts and charts.count("</script>") == 2 and html.asset("uPlot.LICENSE") in charts


def test_what_utf8_cannot_hold_costs_no_page(tmp_path):
    html.write_document(tmp_path / "a.html", html.document("a\udce9b", "", data={"name": "\udce9"}, charts=False))
    assert "<title>a?b</title>" in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["plain", "a b", "a#b?c%20d&e", "lr=0.1,seed=2", "c:d", "ä'\"<", "100%"])
def test_links_are_relative_and_lead_back(tmp_path, name):
    link = html.link(tmp_path / "runs" / name, tmp_path / "pages" / "a.html")
    assert link.startswith("./../runs/") and not {'"', "<", " ", "#", "?"} & set(link)
    there = urlsplit((tmp_path / "pages" / "a.html").as_uri().rsplit("/", 1)[0] + "/" + link)
    assert Path(unquote(there.path)).resolve() == (tmp_path / "runs" / name).resolve()
