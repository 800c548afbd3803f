"""The parts of the page, and the file that it is."""

import json
import re

import pytest
import torch
from lab.inspection.subjects import MODELS, plugin, subject, tokenizer

from gptlab.lab.inspection.page import PARTS, look_at, summary, write_inspection
from gptlab.lab.inspection.subject import subject_of
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig


def written(one, path):
    found = look_at(one)
    write_inspection(one, path, title="a <model>", found=found)
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return found, json.loads(content)


@pytest.mark.parametrize("name", [*MODELS, "plugin"])
def test_every_kind_of_model_has_a_page(name, tmp_path):
    one = plugin() if name == "plugin" else subject(name)
    found, data = written(one, tmp_path / "a page.html")
    assert list(found) == list(PARTS)
    there = [part["name"] for part in data["parts"]]
    assert there == [part for part in PARTS if found[part] is not None] and "norms" in there
    lacking = {text for key, text in summary(one, found) if key == "not shown"}
    assert lacking == {f"{PARTS[part].title} needs {PARTS[part].needs}" for part in PARTS if part not in there}
    assert ("attention" in there) == (name != "plugin")
    assert ("logit_lens" in there) == (name != "bert without heads")
    assert data["tokens"] == one.labels() and (data["source"] is None) == (name != "t5")


def test_a_large_model_with_a_long_text_is_below_five_megabytes(tmp_path):
    config = DecoderConfig(n_layer=12, n_head=12, d_model=24, context_length=128)
    own = tokenizer()
    torch.manual_seed(0)
    one = subject_of(build_model(config, own.vocab_size, seed=0).eval(), own, "To be, or not to be. " * 10)
    found, data = written(one, tmp_path / "page.html")
    assert found["attention"]["groups"][0]["n_keys"] == 128 and found["attention"]["cut_to"] is None
    assert len(data["attention"]["groups"][0]["layers"]) == 12
    assert (tmp_path / "page.html").stat().st_size < 5_000_000
