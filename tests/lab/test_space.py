"""The space of a sweep: what its file may say, and how it is answered otherwise."""

import random

import pytest

from gptlab import composition
from gptlab.errors import UserError
from gptlab.lab.space import Dimension, check_space, read_space, refuse_both

PRESETS = composition.preset_names()


def read(tmp_path, text):
    file = tmp_path / "my space.yaml"
    file.write_text(text)
    return read_space(file, PRESETS)


@pytest.mark.parametrize(
    "text, listed",
    [
        ("optimizer.lr: {low: 1e-4, high: 1e-2, log: true}", None),  # which YAML alone takes for texts
        ("optimizer.lr: {low: 1e-4, high: 1e-2, log: true, n: 3}", (1e-4, 1e-3, 1e-2)),
        ("optimizer.lr: {low: 0, high: 1, n: 3}", (0.0, 0.5, 1.0)),
        ("optimizer.lr: {low: 0.1, high: 0.4, step: 0.1}", (0.1, 0.2, 0.3, 0.4)),
        ("model.n_layer: {low: 2, high: 8, step: 3}", (2, 5, 8)),
        ("model.n_layer: {low: 1, high: 3}", (1, 2, 3)),
        ("model.n_layer: {low: 1, high: 64, log: true, n: 4}", (1, 4, 16, 64)),
        ("optimizer: [adamw, muon]", ("adamw", "muon")),
        ("optimizer.lr: {choices: [1e-3, 3e-3]}", (1e-3, 3e-3)),
        ("model.n_kv_head: [null, 2]", (None, 2)),
        ("model.qk_norm: [true, false]", (True, False)),
        ("data.path: [on, '1.10', \"a, b\"]", ("on", "1.10", "a, b")),
        ("tokenizer.special_tokens: [[a, b], ['c, d']]", ("[a,b]", "['c, d']")),
    ],
)
def test_values(tmp_path, text, listed):
    (dimension,) = read(tmp_path, text)
    found = dimension.listed()
    assert (found if found is None else tuple(found)) == listed
    source = random.Random(0)
    for _ in range(50):
        drawn = dimension.draw(source)
        assert drawn in listed if listed is not None else dimension.low <= drawn <= dimension.high
    assert read_space({dimension.key: dimension.plain()}, PRESETS) == [dimension] if dimension.choices else True


@pytest.mark.parametrize(
    "text, message",
    [
        ("optimizer.lrr: [1]", "my space.yaml: unknown config key optimizer.lrr; did you mean optimizer.lr?"),
        ("model.n_embd: {low: 1, high: 2}", "unknown config key model.n_embd; did you mean model.d_model?"),
        ("optimizer: [adam]", "optimizer=adam is not a preset; did you mean adamw?"),
        ("optimizer: {low: 1, high: 2}", "optimizer is a group of presets; list some of them: [adamw, muon]"),
        ("seed: 3", "seed: 3 is one value; give it as an override seed=3, or write {low"),
        ("seed: [1, 1]", "seed has 1 twice"),
        ("optimizer.lr: [1e-3, 0.001]", "optimizer.lr has 0.001 twice"),
        ("seed: []", "seed has no values"),
        ("seed: [x]", "seed=x must be a whole number"),
        ("seed: ['']", "an empty text is no value"),
        ("seed: [1]\nseed: [2]", "my space.yaml has seed twice"),
        ("optimizer.lr: {min: 1, max: 2}", "optimizer.lr: unknown min; did you mean low?"),
        ("optimizer.lr: {low: 1, hihg: 2}", "optimizer.lr: unknown hihg; did you mean high?"),
        ("optimizer.lr: {low: 1}", "optimizer.lr has no high"),
        ("optimizer.lr: {low: 2, high: 1}", "low=2.0 has to be below high=1.0"),
        ("optimizer.lr: {low: 0, high: 1, log: true}", "log needs a range above 0, and low=0.0"),
        ("optimizer.lr: {low: 1, high: 2, log: perhaps}", "log=perhaps must be true or false"),
        ("optimizer.lr: {low: nan, high: 1}", "low=nan has to be finite"),
        ("optimizer.lr: {low: 0, high: 1, step: 0.3}", "use high=0.9"),
        ("optimizer.lr: {low: 1, high: 2, log: true, step: 1}", "step=1.0 has no effect with log"),
        ("optimizer.lr: {low: 1, high: 2, n: 1}", "n=1 has to be at least 2"),
        ("optimizer.lr: {choices: [1], low: 2}", "optimizer.lr has choices and low"),
        ("model.n_layer: {low: 1.5, high: 3}", "model.n_layer: low=1.5 must be a whole number"),
        ("model.n_layer: {low: 1e0, high: 3}", "model.n_layer: low=1e0 must be a whole number; write low=1"),
        ("data.path: {low: 1, high: 2}", "data.path holds no number, and so has no range"),
        ("run_dir: [a, b]", "run_dir cannot differ between trials"),
        ("hydra.sweep.dir: [a, b]", "hydra.sweep.dir cannot differ between trials"),
        ("- seed", "has to be a mapping of config keys"),
        ("", "has to be a mapping of config keys"),
        ("a: b: c", "is no YAML: mapping values are not allowed here"),
        ("seed: !!python/object/apply:os.system [touch here]", "seed"),
    ],
)
def test_refusals(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        read(tmp_path, text)
    assert message in str(refused.value) and not (tmp_path / "here").exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"space=.*none\.yaml cannot be read: No such file"):
        read_space(tmp_path / "none.yaml", PRESETS)
    (tmp_path / "latin.yaml").write_bytes("seed: [\xe9]".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_space(tmp_path / "latin.yaml", PRESETS)


def test_a_value_is_refused_that_no_trial_can_have():
    """One that works beside other values is not, and neither is a combination."""

    def compose(overrides):
        given = dict(override.split("=") for override in overrides)
        width, heads = int(given.get("model.d_model", 32)), int(given.get("model.n_head", 2))
        if width % heads or heads > 4:
            raise UserError(f"model.d_model={width} is not divisible by model.n_head={heads}")

    widths = Dimension("model.d_model", (32, 48))
    check_space([widths, Dimension("model.n_head", (2, 3))], compose, "s")
    with pytest.raises(UserError, match=r"s: model\.d_model=32 is not divisible by model\.n_head=5"):
        check_space([widths, Dimension("model.n_head", (2, 5))], compose, "s")
    with pytest.raises(UserError, match=r"n_head=9"):
        check_space([widths, Dimension("model.n_head", low=2, high=9, whole=True)], compose, "s")


def test_a_key_is_given_once():
    with pytest.raises(UserError, match=r"seed=3 and the space's seed: leave one of them out"):
        refuse_both([Dimension("seed", (1, 2))], ["optimizer.lr=1", "seed=3"])


def test_weights_of_a_mixture_are_numbers_and_keys_of_its_sources_have_their_types():
    presets = composition.preset_names()
    (weight,) = read_space({"data.weights.code": {"low": 0.1, "high": 0.9}}, presets)
    assert (weight.low, weight.high, weight.whole) == (0.1, 0.9, False)
    (listed,) = read_space({"data.weights.code": [0.1, 0.5]}, presets)
    assert listed.choices == (0.1, 0.5)
    (fraction,) = read_space({"data.sources.code.val_fraction": {"low": 0.1, "high": 0.2}}, presets)
    assert fraction.high == 0.2
    (preset,) = read_space({"data.sources.code": ["text", "stdlib"]}, presets)
    assert preset.choices == ("text", "stdlib")
