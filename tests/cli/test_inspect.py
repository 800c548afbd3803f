"""`gptlab inspect`, in this process."""

import json
from pathlib import Path

import pytest
from small_runs import overrides_of, small_run, write_text

import gptlab
from gptlab.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = small_run(tmp_path_factory.mktemp("some runs") / "run")
    train(config)
    return config


def test_a_run_is_shown_with_what_it_read(run, say):
    (result,) = [json.loads(say("step=3", f"run={run.run_dir}", "output=json", "n_shown=8"))]
    expected = gptlab.batch(run, 3)
    assert [example["tokens"]["ids"] for example in result["examples"]] == expected["tokens"].tolist()
    assert result["n_examples"] == 8 and result["n_targets"] == {"targets": 128}
    out = say("step=3", f"run={run.run_dir}", "n_shown=2")
    assert out.count("--- example ") == 2 and "step 3 of objective=causal_lm: 8 examples with 128 targets" in out
    half = json.loads(say("step=3", f"run={run.run_dir}", "rank=1", "world_size=2", "n_shown=9", "output=json"))
    assert [example["tokens"]["ids"] for example in half["examples"]] == expected["tokens"][4:].tolist()


def test_overrides_are_those_of_training_and_nothing_is_trained(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path / "my text.txt")
    overrides = [o for o in overrides_of(text) if not o.startswith("run_dir=")]
    # A strategy for many devices changes nothing of what is read.
    out = say("step=0", *overrides, "trainer.devices=8", "strategy=hsdp", "by_token=true", "n_shown=1")
    found = gptlab.batch(gptlab.compose(*overrides), 0)
    first = json.dumps(chr(found["tokens"][0, 0]))
    assert out.splitlines()[6].split()[:2] == ["0", str(int(found["tokens"][0, 0]))] and first in out
    assert not (tmp_path / "runs").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["step=-1"], "step=-1 must be at least 0"),
        (["step=x"], "step=x must be a whole number"),
        (["step=0", "model.n_layr=2"], "model.n_layr"),
        (["step=0", "run=none"], "none does not exist; name a run folder"),
        (["step=0", "rank=1"], "step=0 and rank=1 must be at least 0, and rank below world_size=1"),
        (["step=0", "-m", "seed=1,2"], "-m is not an option of gptlab inspect"),
    ],
)
def test_wrong_arguments_are_answered(say, arguments, message):
    assert message in say(*arguments, expect=2)


def test_a_run_takes_no_overrides_and_its_own_data_alone(run, say, tmp_path):
    assert "seed=3 has no effect on run=" in say(f"run={run.run_dir}", "seed=3", expect=2)
    text = Path(run.data.path)
    before = text.read_bytes()
    text.write_bytes(before + b"something new")
    try:
        assert "was trained on other data than" in say(f"run={run.run_dir}", expect=2)
    finally:
        text.write_bytes(before)


def test_the_source_of_each_example_of_a_mixture(say, tmp_path):
    small, capitals = write_text(tmp_path / "small.txt", 4_000), tmp_path / "my capitals.txt"
    capitals.write_text("SOME OTHER TEXT " * 200)
    overrides = [o for o in overrides_of(small) if not o.startswith(("run_dir=", "data=", "data.path="))]
    overrides += ["data=mixture", "data.sources.small=text", f"data.sources.small.path={small}"]
    overrides += [
        "data.sources.big=text",
        f"data.sources.big.path={capitals}",
        "data.weights.big=0.25",
        "tokenizer=byte",
    ]
    out = say("step=5", *overrides, "n_shown=4")
    assert "8 examples with 128 targets; 2 of big, 6 of small" in out
    assert out.count("\nfrom     small, example ") == 3 and out.count("\nfrom     big, example ") == 1
    found = json.loads(say("step=5", *overrides, "output=json", "n_shown=8"))
    for example, source in zip(found["examples"], found["sources"], strict=True):
        text = example["tokens"]["text"]
        assert example["from"] == source and source["name"] == ("big" if text.isupper() else "small")
        whole = (capitals if source["name"] == "big" else small).read_text()
        assert whole[16 * source["example"] :].startswith(text)
