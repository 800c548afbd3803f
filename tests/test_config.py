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
        part = plain[group] if group else plain
        if kind in (ANY, part.get("type")):
            part.pop(key)
    if plain["data"]["type"] == "text":
        plain["data"]["extensions"] = [".txt", ".md", ".py", ".gz"]
    return plain


def test_the_first_run_has_the_name_that_the_readme_shows():
    (name,) = set(re.findall(r"runs/small-stdlib-(\w{8})", README.read_text()))
    assert gptlab.compose().run_id() == name


@pytest.mark.parametrize("data", ["stdlib", "text", "huggingface", "shards"])
def test_a_run_of_an_older_version_goes_on(data, tmp_path):
    needed = {"text": ["data.path=x"], "huggingface": ["data.dataset=a/b"], "shards": ["data.path=x"]}.get(data, [])
    tokenizer = [] if data == "shards" else ["tokenizer=bpe"]
    config = gptlab.compose(f"data={data}", *tokenizer, *needed)
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
    with pytest.raises(UserError, match=r"model\.rope_type was default and is linear"):
        refuse_changes(config.identity_fields(), saved, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "was"),
    [
        (["model.rope_type=linear", "model.rope_factor=2"], "model.rope_type was linear and is default"),
        (["length_warmup=[[4096,32]]"], r"length_warmup was \[\[4096, 32\]\] and is \[\]"),
        (["batch_warmup=[[4096,1024]]"], r"batch_warmup was \[\[4096, 1024\]\] and is \[\]"),
        (["data.packing=best_fit", "data.attention=document"], "data.attention was document and is sequence"),
        (["data.boundary_targets=false"], "data.boundary_targets was False and is True"),
        (["filters=[length]"], r"data\.filters\.length\.\w+ was \w+ and is None"),
        (
            ["model.parametrization=mup", "model.base_d_model=64", "model.base_d_head=32"],
            "model.parametrization was mup and is standard",
        ),
        (["tokenizer=bpe", "tokenizer.pattern=gpt4"], "tokenizer.pattern was gpt4 and is gpt2"),
    ],
)
def test_a_later_key_that_had_an_effect_and_is_left_out_is_another_run(tmp_path, overrides, was):
    common = ["data=text", "data.path=x", *(["tokenizer=bpe"] if "tokenizer=bpe" in overrides else ["tokenizer=byte"])]
    saved, now = gptlab.compose(*common, *overrides), gptlab.compose(*common)
    with pytest.raises(UserError, match=was):
        refuse_changes(now.identity_fields(), to_plain(saved), tmp_path)
    refuse_changes(saved.identity_fields(), to_plain(saved), tmp_path)


@pytest.mark.parametrize(
    ("then", "now"),
    [([], ["filters=[c4]"]), (["filters=[length]", "data.filters.length.max_characters=7000"], ["filters=[length]"])],
    ids=["one without options", "one with an option less"],
)
def test_other_filters_are_another_run(tmp_path, then, now):
    saved, config = (gptlab.compose("data=text", "data.path=x", "tokenizer=byte", *typed) for typed in (then, now))
    with pytest.raises(UserError, match=r"data\.filters\.(c4|length)"):
        refuse_changes(config.identity_fields(), to_plain(saved), tmp_path)


def of_shards(path, *overrides):
    return gptlab.compose("data=shards", f"data.path={path}", *overrides)


def test_the_order_of_shards_is_of_the_run_and_their_place_is_not(tmp_path):
    config = of_shards("s3://bucket/shards", "data.cache_gib=3", f"data.cache_dir={tmp_path}")
    moved = of_shards("https://host/a")
    assert config.run_id() == moved.run_id() == of_shards("s3://bucket/b", "data.shuffle_shards=8").run_id()
    refuse_changes(moved.identity_fields(), to_plain(config), tmp_path)
    other = of_shards("s3://bucket/shards", "data.shuffle_shards=9")
    ordered = of_shards("s3://bucket/shards", "data.shuffle=false")
    assert len({config.run_id(), other.run_id(), ordered.run_id()}) == 3
    with pytest.raises(UserError, match=r"data\.shuffle_shards was 8 and is 9"):
        refuse_changes(other.identity_fields(), to_plain(config), tmp_path)
    # A folder is what it was: part of the run, and in the order of all sequences.
    assert of_shards("x").run_id() != of_shards("y").run_id()
    assert of_shards("x").run_id() != of_shards("x", "data.shuffle_shards=8").run_id()
    assert "shuffle_shards" not in of_shards("x").identity_fields()["data"]


def test_the_same_holds_for_a_source_of_a_mixture():
    def mixed(path, *overrides):
        sources = [
            "data.sources.a=shards",
            f"data.sources.a.path={path}",
            "data.sources.b=stdlib",
            "data.weights.a=0.5",
        ]
        return gptlab.compose("data=mixture", *sources, "tokenizer=byte", *overrides).run_id()

    assert mixed("s3://bucket/a") == mixed("gs://b") == mixed("gs://b", "data.sources.a.cache_gib=3")
    assert mixed("s3://bucket/a") != mixed("s3://bucket/a", "data.sources.a.shuffle_shards=4")


@pytest.mark.parametrize(
    ("path", "override", "says"),
    [
        ("x", "data.cache_gib=3", r"data\.cache_gib=3 is for shards at an address"),
        ("x", "data.shuffle_shards=0", r"data\.shuffle_shards=0 must be"),
        ("s3://a/b", "data.cache_gib=0", r"data\.cache_gib=0"),
        ("s3://a:hunter2@b", "data.cache_gib=1", r"s3://a:\*\*\*@b has a password"),
    ],
)
def test_options_of_shards_are_obeyed_or_refused(path, override, says):
    with pytest.raises(UserError, match=says):
        of_shards(path, override)
    with pytest.raises(UserError, match=r"data\.shuffle_shards=2 has no effect with data\.shuffle=false"):
        of_shards("x", "data.shuffle_shards=2", "data.shuffle=false")
