"""A step as text and as a page."""

import json
import math
import re

from gptlab.lab.step import DocumentRead, ExampleRead, ShownToken, StepRead
from gptlab.lab.step_page import documents_text, legend, scale_of, tokens_of, tokens_text, write_step_page


def read() -> StepRead:
    noise = [ShownToken("</script>\x1b[31m", 5.0), ShownToken("a\nb", 0.1), ShownToken("c", None)]
    return StepRead(
        examples=[
            ExampleRead(number=0, source="", index=7, texts={"tokens": [ShownToken("calm", 0.5)]}, nats=[0.5]),
            ExampleRead(number=1, source="", index=9, texts={"tokens": noise}, nats=[5.0, 0.1]),
        ],
        documents=[
            DocumentRead(source="", number=4, begin=100, end=160, parts=[(1, 110, 118)], text="noise", nats=[5.0, 0.1]),
            DocumentRead(
                source="", number=1, begin=0, end=40, parts=[(0, 2, 4)], text="calm", nats=[0.5], name="b.txt"
            ),
        ],
        scored=True,
        notes=["something to know"],
    )


def test_columns_and_places():
    lines = documents_text(read()).splitlines()
    assert lines[0].split() == ["raises", "loss", "targets", "document", "file", "or", "record", "tokens", "text"]
    assert "10-18 of 60" in lines[1] and lines[1].endswith('"noise"') and "b.txt" in lines[2]
    assert len({line.index(text) for line, text in zip(lines[1:], ('"noise"', '"calm"'), strict=True)}) == 1
    assert documents_text(read(), 1).endswith("and 1 more, which the page and output=json list")
    often = DocumentRead(source="", number=0, begin=0, end=90, parts=[(0, n, n + 9) for n in (0, 20, 40, 60)])
    assert tokens_of(often) == "0-9, 20-29, 40-49 and 1 part of 90"
    unknown = DocumentRead(source="", number=None, begin=30, end=47, parts=[(0, 30, 47)])
    assert tokens_of(unknown) == "30-47"


def test_colors_are_of_the_loss_and_nothing_in_a_text_is_one():
    scale = scale_of(257)
    assert scale == math.log(257)
    plain = tokens_text(read(), scale, color=False)
    assert "\x1b" not in plain and plain.index("example 2 of") < plain.index("example 1 of")
    assert 'highest: "</script>\\x1b[31m" 5.00, "a\\nb" 0.10' in plain
    colored = tokens_text(read(), scale, color=True)
    assert "\x1b[48;5;203m\x1b[38;5;16m</script>\\x1b[31m\x1b[0m" in colored and "a\nb" in colored
    assert legend(scale).count("\x1b[48;5;") == 5


def test_the_page_holds_the_data_as_data(tmp_path):
    path = tmp_path / "a page.html"
    write_step_page(path, read(), title="step 3 of <b>", facts=[("data", "some")], vocab_size=257)
    page = path.read_text()
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(content)
    assert data["examples"][0]["texts"]["tokens"][0] == ["</script>\\x1b[31m", 5.0]
    assert [one["document"] for one in data["documents"]] == [4, 1] and ["note", "something to know"] in data["facts"]
    assert "<title>step 3 of &lt;b&gt;</title>" in page and "http://" not in page.replace("http://www.w3.org", "")
