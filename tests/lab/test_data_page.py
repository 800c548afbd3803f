"""What is in the data as text and as a page."""

import json
import re

from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.lab.data_look import look_at
from gptlab.lab.data_page import as_text, write_data_page


def looked(tmp_path):
    sources = {}
    for name, text in (("small", "abc </script> \x1b[31m "), ("big", "XYZ ")):
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text(text * (i + 1))
        sources[name] = TextConfig(path=str(tmp_path / name))
    mixture = MixtureConfig(sources=sources, weights={"small": 0.25})
    return look_at(mixture, ByteConfig(), context_length=16, n_shown=5)


def test_a_mixture_as_text(tmp_path):
    look = looked(tmp_path)
    text = as_text(look, 2)
    assert "\x1b" not in text and "read of small" in text and "read of big" in text
    (row,) = (line for line in text.splitlines() if line.startswith("big  "))
    assert row.split()[1:3] == ["12", str(4 * 78)] and row.endswith("75.00%")
    assert text.split("documents at random\n")[1].count("\n") == 1
    assert "documents          24" in text and "repeated 13-grams" in text


def test_the_page_holds_what_was_seen(tmp_path):
    look = looked(tmp_path)
    write_data_page(look, tmp_path / "a page.html", title="data & more")
    page = (tmp_path / "a page.html").read_text()
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(content)
    assert data["look"]["n_documents"] == 24 and len(data["look"]["shown"]) == 5
    assert [source["name"] for source in data["look"]["sources"]] == ["big", "small"]
    assert all(text.startswith(('"', "'")) for _, text, *_ in data["look"]["frequent"])
    assert "<title>data &amp; more</title>" in page
