"""A run's identity over versions of gptlab."""

import copy
import re
from pathlib import Path

import pytest
from small_runs import small_run

import gptlab
from gptlab.config import ANY, LATER, to_plain
from gptlab.errors import UserError
from gptlab.models.decoder.config import DecoderConfig, Position, RopeType
from gptlab.training.resume import refuse_changes

README = Path(__file__).parents[1] / "README.md"


def older(config):
    """The config as versions wrote it that had none of the later keys."""
    plain = copy.deepcopy(to_plain(config))
    for group, kind, key in LATER:
        if kind in (ANY, plain[group]["type"]):
            plain[group].pop(key)
    if plain["data"]["type"] == "text":
        plain["data"]["extensions"] = [".txt", ".md", ".py", ".gz"]
    return plain


def test_the_first_run_has_the_name_that_the_readme_shows():
    (name,) = set(re.findall(r"runs/small-stdlib-(\w{8})", README.read_text()))
    assert gptlab.compose().run_id() == name


@pytest.mark.parametrize("data", ["stdlib", "text", "huggingface"])
def test_a_run_of_an_older_version_goes_on(data, tmp_path):
    needed = {"text": ["data.path=x"], "huggingface": ["data.dataset=a/b"]}.get(data, [])
    config = gptlab.compose(f"data={data}", "tokenizer=bpe", *needed)
    saved = older(config)
    refuse_changes(config.identity_fields(), saved, tmp_path)
    refuse_changes(config.identity_fields(), to_plain(config), tmp_path)
    if data == "huggingface":
        assert config.identity_fields()["data"]["text_column"] == "text", "a key that it always had"


def test_a_later_key_that_has_an_effect_is_another_run(tmp_path):
    model = DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=16, position=Position.rotary)
    config = small_run(tmp_path / "run", model=model)
    saved, name = older(config), config.run_id()
    config.model.rope_type, config.model.rope_factor = RopeType.linear, 2.0
    assert config.run_id() != name
    with pytest.raises(UserError, match=r"model\.rope_type was None and is linear"):
        refuse_changes(config.identity_fields(), saved, tmp_path)
