"""`gptlab prepare`, in this process."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from file_server import serving

import gptlab
from gptlab import composition
from gptlab.cli.main import VERBS
from gptlab.cli.prepare import OPTIONS
from gptlab.data.token_shards import read_manifest


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "my texts, a=b"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.txt").write_text(f"text {number} " * 20)
    return folder


def test_prepare_and_train(say, corpus, tmp_path):
    assert "prepare" in VERBS
    out = tmp_path / "my shards"
    given = [f"data.path={corpus}", "data=text", "tokenizer=byte", f"to={out}", "data.val_fraction=0"]
    first = say(*given, "shard_tokens=1k")
    assert "30 documents, 4,600 bytes" in first and "train  5 shards, 4,629 tokens, 30 documents" in first
    assert first.splitlines()[-1] == f"train on them with: gptlab train data=shards 'data.path={out}'"
    assert say(*given, "shard_tokens=1_000") == first
    assert say(f"verify={out}").startswith(f"{out}: 5 shards as written")
    shards = [f"data.path={out}", "data=shards", "data.val_fraction=0", "data.context_length=100", "batch_tokens=800"]
    text = [*given[:3], "data.split=document", *given[4:], *shards[3:]]
    batches = [gptlab.batch(gptlab.compose(*arguments, "micro_batch_size=8"), 3) for arguments in (shards, text)]
    for name, values in batches[0].items():  # a run reads the same samples as from one token file
        assert np.array_equal(values, batches[1][name])


def test_prepare_to_an_address_and_train_from_it(say, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    given = [f"data.path=file://{corpus}", "data=text", "tokenizer=byte", "data.val_fraction=0.1", "shard_tokens=500"]
    out = tmp_path / "my shards"
    there = out.as_uri().replace("%20", " ")
    said = say(*given, f"to={there}/")
    assert said.splitlines()[-1] == f"train on them with: gptlab train data=shards 'data.path={there}'"
    assert say(f"verify={there}").startswith(f"{there}: ")
    options = ["data=shards", "data.shuffle_shards=3", "data.context_length=50", "batch_tokens=800"]
    with serving(out) as server:
        places = (out, there, server.url)
        runs = [gptlab.compose(*options, f"data.path={place}", "micro_batch_size=8") for place in places]
        batches = [gptlab.batch(run, 3) for run in runs]
    for name, values in batches[0].items():
        assert all(np.array_equal(values, other[name]) for other in batches[1:])
    whole = gptlab.batch(gptlab.compose(options[0], *options[2:], f"data.path={out}", "micro_batch_size=8"), 3)
    assert not all(np.array_equal(values, whole[name]) for name, values in batches[0].items())
    mixed = ["data=mixture", "data.sources.a=shards", "data.weights.a=0.5", "data.sources.b=shards", *options[2:]]
    mixed += ["tokenizer=file", f"tokenizer.path={out}/tokenizer.json", "micro_batch_size=8"]
    batches = [
        gptlab.batch(
            gptlab.compose(
                *mixed,
                *(f"data.sources.{name}.path={place}" for name, place in (("a", path), ("b", out))),
                "data.sources.a.shuffle_shards=3",
            ),
            2,
        )
        for path in (out, there)
    ]
    assert all(np.array_equal(values, batches[1][name]) for name, values in batches[0].items())


def test_what_is_wrong_is_refused(say, corpus, tmp_path):
    given = ["data=text", f"data.path={corpus}", "tokenizer=byte", "data.val_fraction=0"]
    for arguments, what in (
        (given, "needs to=FOLDER"),
        ([*given, "to="], "to= is empty"),
        ([*given, f"to={tmp_path}/o", "shard_tokens=0"], "shard_tokens=0 must be a number of tokens, such as 100M"),
        ([*given, f"to={tmp_path}/o", "shard_tokens=1.5"], r"shard_tokens=1.5 must"),
        ([*given, f"to={tmp_path}/o", "data.split=fraction"], "split by document"),
        ([*given, f"to={tmp_path}/o", "--frob"], "--frob is not an option of gptlab prepare"),
        ([*given, f"verify={tmp_path}"], "no effect on verify="),
        ([f"verify={tmp_path}/none"], "does not exist"),
        (["verify"], "verify needs a value"),
        (["data=tabel", f"to={tmp_path}/o"], "did you mean"),
        (["data=shards", "data.path=x", f"to={tmp_path}/o"], "tokenized already"),
    ):
        assert what in say(*arguments, expect=2)
    assert not (tmp_path / "o" / "manifest.json").exists()


def test_verify_lists_what_is_damaged(say, corpus, tmp_path):
    out = tmp_path / "out"
    say("data=text", f"data.path={corpus}", "tokenizer=byte", f"to={out}", "shard_tokens=2k", "data.val_fraction=0")
    assert read_manifest(out).settings["shard_tokens"] == 2000
    (out / "train-00001.bin").unlink()
    content = bytearray((out / "train-00000.bin").read_bytes())
    content[-2] ^= 1
    (out / "train-00000.bin").write_bytes(content)
    error = say(f"verify={out}", expect=2)
    assert (
        "2 of 3 shards of" in error and "train-00000.bin: its contents" in error and "train-00001.bin does not" in error
    )


def test_commands_of_the_documentation(say, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    first, second = re.findall(
        r"^```sh\n(.*?)^```", page.partition("\n## Token shards\n")[2], re.DOTALL | re.MULTILINE
    )[:2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for number in range(100):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text {number} " * 20)
    *lines, train = first.splitlines()
    assert len(lines) == 2 and train.startswith("gptlab train ")
    for line in lines:
        assert "shards" in say(*shlex.split(line)[2:])
    assert gptlab.batch(gptlab.compose(*shlex.split(train)[2:]), 0)
    for line in second.splitlines():
        assert line.startswith("gptlab prepare ")
        given = [argument for argument in shlex.split(line)[2:] if argument.partition("=")[0] not in OPTIONS]
        composition.compose_plain(*given)
