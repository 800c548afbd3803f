"""The config of a mixture: what is typed is obeyed, and what cannot be is refused with what to type."""

import json
from fractions import Fraction

import pytest

from gptlab import compose
from gptlab.config import config_from_plain, to_plain
from gptlab.data.config import Split
from gptlab.data.mixture.config import MixtureConfig, of_source
from gptlab.data.sources.config import HuggingFaceConfig, StdlibConfig, TableConfig, TextConfig
from gptlab.errors import UserError

TYPED = ("data=mixture", "data.sources.code=stdlib", "data.sources.prose=text", "data.sources.prose.path=a b.txt")


def mixture(**given) -> MixtureConfig:
    sources = {"code": StdlibConfig(), "prose": TextConfig(path="a.txt")}
    return MixtureConfig(**{"sources": sources, "weights": {"code": 0.51}, **given})


def test_a_source_is_any_preset_with_its_keys():
    config = compose(*TYPED, "data.weights.code=0.51")
    code, prose = config.data.corpora.values()
    assert isinstance(code, StdlibConfig) and code.val_fraction == 0.02 and code.split is Split.document  # the preset's
    assert isinstance(prose, TextConfig) and prose.path == "a b.txt" and prose.val_fraction == 0.1
    assert config.data.points() == ((0, (Fraction(51, 100), Fraction(49, 100))),)
    assert config.data_tag == "mixture"
    wiki = compose("data=mixture", "data.sources.wiki=wikitext103", "data.sources.wiki.max_documents=7").data.first
    assert isinstance(wiki, HuggingFaceConfig) and wiki.dataset == "Salesforce/wikitext" and wiki.max_documents == 7


def test_text_stays_what_was_typed():
    config = compose("data=mixture", "data.sources.a=text", "data.sources.a.path=2024", "data.sources.a.paths=[1.10,b]")
    assert config.data.first.path == "2024" and config.data.first.paths == ["1.10", "b"]


def test_a_config_comes_back_from_json_and_the_order_of_sources_is_that_of_their_names():
    config = compose(*TYPED, "data.weights.code=0.51", "data.max_epochs.prose=4")
    again = config_from_plain(json.loads(json.dumps(to_plain(config))))
    assert again == config and again.run_id() == config.run_id()
    turned = compose("data.weights.code=0.51", *reversed(TYPED))
    assert (
        turned.data.points() == config.data.points() and turned.run_id() == config.run_id()
    )  # a limit changes nothing
    assert compose(*TYPED, "data.weights.code=0.5").run_id() != config.run_id()


def test_a_yaml_names_presets(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - mixture\ndata:\n  sources:\n    mine: {preset: notes, stride: 3}\n"
        "    code: {preset: stdlib}\n  weights: {code: 0.25}\n"
    )
    (tmp_path / "data" / "notes.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /schema/data/text@data\ndata: {path: notes.txt}\n"
    )
    data = compose("data=own", "data.sources.code.val_fraction=0.5", config_dir=tmp_path).data
    assert data.corpora["mine"].path == "notes.txt" and data.corpora["mine"].stride == 3
    assert data.corpora["code"].val_fraction == 0.5
    assert [float(weight) for weight in data.points()[0][1]] == [0.25, 0.75]


def test_what_the_mixture_says_holds_for_all_sources():
    sources = {"a": TextConfig(path="a.txt", stride=5), "b": StdlibConfig()}
    data = MixtureConfig(sources=sources, weights={"a": 1, "b": 0}, val_fraction=0.25, context_length=8, cache_dir="c")
    data.check()
    for corpus in data.corpora.values():
        assert (corpus.val_fraction, corpus.context_length, corpus.cache_dir) == (0.25, 8, "c")
    assert data.corpora["a"].stride == 5 and data.corpora["b"].split is Split.document


def test_weights_between_the_points_of_a_schedule():
    data = mixture(weights={}, schedule={"code": [[0, 0.1], [1e6, 0.9]]})
    assert data.points() == ((0, (Fraction(1, 10), Fraction(9, 10))), (1_000_000, (Fraction(9, 10), Fraction(1, 10))))
    three = mixture(
        sources={name: StdlibConfig() for name in "abc"},
        weights={"c": 0.5},
        schedule={"a": [[100, 0.5], [300, 0]], "b": [[200, 0], [300, 0.5]]},
    )
    with pytest.raises(UserError, match=r"at 200 tokens sum to 0\.75"):
        three.points()
    three.schedule["b"] = None
    three = mixture(sources=three.sources, weights={"c": 0.5}, schedule={"a": [[100, 0.5], [300, 0]]})
    assert three.points()[1:] == (
        (100, (Fraction(1, 2), Fraction(0), Fraction(1, 2))),
        (300, (Fraction(0), Fraction(1, 2), Fraction(1, 2))),
    )


def test_thirds_are_close_enough():
    data = mixture(sources={name: StdlibConfig() for name in "abc"}, weights=dict.fromkeys("abc", 0.333333))
    assert data.points() == ((0, (Fraction(1, 3),) * 3),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": {"code": 0.51, "prose": 0.4}}, r"sum to 0.91 .*not to 1.*data.weights.prose=0.49"),
        ({"weights": {}}, "code and prose have no weight.*set data.weights.code="),
        ({"weights": {"code": -0.1}}, r"data.weights.code=-0.1 is outside \[0, 1\]"),
        ({"weights": {"code": 1.5}}, r"data.weights.code=1.5 is outside \[0, 1\]"),
        ({"weights": {"code": float("nan")}}, r"data.weights.code=nan is outside \[0, 1\]"),
        ({"weights": {"code": 0.5, "prosa": 0.5}}, "data.weights.prosa: .*did you mean prose"),
        ({"max_epochs": {"cod": 2}}, "data.max_epochs.cod: .*did you mean code"),
        ({"max_epochs": {"code": 0}}, "data.max_epochs.code=0 must be above 0"),
        ({"schedule": {"code": [[0, 0.1]]}}, "data.weights.code=0.51 and data.schedule.code both"),
        ({"weights": {}, "schedule": {"code": 0.5}}, r"data.schedule.code=0.5 is no list of points.*\[\[0,0.1\]"),
        ({"weights": {}, "schedule": {"code": [[5, 0.1], [5, 0.2]]}}, "data.schedule.code: .*must increase"),
        ({"weights": {}, "schedule": {"code": [[0.5, 0.1]]}}, "data.schedule.code: a point at 0.5 tokens"),
        ({"weights": {}, "schedule": {"code": [[0, 1.1]]}}, r"data.schedule.code at 0 tokens=1.1 is outside"),
        ({"sources": {}, "weights": {}}, "data.sources.NAME=PRESET"),
        ({"sources": {"code": "stdlib"}}, "data.sources.code=stdlib is no source.*preset: text"),
        ({"sources": {"code": mixture()}}, "data.sources.code=mixture: a source is one corpus"),
        ({"sources": {"a.b": StdlibConfig()}, "weights": {}}, "data.sources.a.b: .*letters, digits"),
        ({"sources": {"code": TextConfig()}}, "data.sources.code=text .*data.sources.code.path=FILE"),
        ({"sources": {"code": StdlibConfig(context_length=4)}}, "data.sources.code.context_length .*set data.context"),
        ({"sources": {"code": StdlibConfig(val_fraction=2.0)}}, r"data.sources.code.val_fraction=2.0 is outside"),
        (
            {"sources": {"code": StdlibConfig(), "t": TableConfig(path="t.csv", response="{a}")}},
            "one kind of target.*code text, t a response",
        ),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        mixture(**given).check()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources.code=stdlb"], "data.sources.code=stdlb is not a preset; did you mean stdlib"),
        (["data.sources.my/code=stdlib"], "data.sources.my/code: .*letters, digits"),
        (["data.sources.4=stdlib"], "data.sources.4: .*begin with no digit"),
        (["data.sources.code.pth=x"], "unknown config key data.sources.code.pth.*did you mean path"),
        (["data.sources.code.dataset=x"], "unknown config key data.sources.code.dataset of data.type=stdlib"),
        (["data.sources.code.val_fraction=x"], "data.sources.code.val_fraction=x must be a number"),
        (["data.sources.code.type=text"], "choose one with data.sources.code=text"),
        (["data.sources.other.path=x"], "data.sources.other names no preset"),
        (["data.weights=0.5"], "write data.weights.NAME=0.5"),
        (["data.max_epochs=2"], "write data.max_epochs.NAME=2"),
        (["data.weights.code.x=0.5"], "data.weights.NAME, with a name without dots"),
        (["data.weights.code=much"], "data.weights.code=much"),
        (["tokenizer=shards"], "tokenizer.path is made of data.path, which is not there; give it a value"),
        (["data=stdlib"], "data.sources.code is a key of a mixture; add data=mixture"),
        (["data.path=x"], "data.path does not belong to the chosen data"),
    ],
)
def test_what_is_typed_wrong_is_answered(overrides, message):
    typed = [override for override in TYPED if override.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    with pytest.raises(UserError, match=message):
        compose(*typed, *overrides)


def test_errors_name_the_keys_of_the_source():
    assert of_source("x", "data.path= is empty") == "data.sources.x.path= is empty"
    assert of_source("x", "the text has 3 tokens; set data.context_length=2") == (
        "data.sources.x: the text has 3 tokens; set data.context_length=2"
    )
