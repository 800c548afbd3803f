"""`gptlab prepare`, in this process."""

import json
import random
import re
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from file_server import serving

import gptlab
from gptlab import composition
from gptlab.cli.main import VERBS
from gptlab.cli.prepare import OPTIONS
from gptlab.data.token_shards import read_manifest
from gptlab.registry import variants


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


def test_filters(say, tmp_path):
    path = tmp_path / "my pages.jsonl"
    records = [
        {"text": f"text {number} " * 20, "url": f"http://a{number % 2}.org", "score": number} for number in range(30)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    given = [
        f"data.path={path}",
        "data=text",
        "tokenizer=byte",
        "data.val_fraction=0",
        f"data.cache_dir={tmp_path}/cache",
    ]
    chosen = [
        "filters=[webtext,duplicates]",
        "data.filters.length=null",
        "data.filters.addresses.deny_domains=[a1.org]",
    ]
    page = tmp_path / "page.html"
    seen = say(*given, *chosen, f"html={page}")
    assert re.search(r"^score +30 +3 +10\.0%", seen, re.MULTILINE)
    assert re.search(r"^addresses +27 +14 +51\.9%", seen, re.MULTILINE) and "near_duplicates" in seen
    assert seen.splitlines()[-1] == f"samples of what was removed: {page}" and page.is_file()
    out = tmp_path / "out"
    said = say(*given, *chosen, f"to={out}", "shard_tokens=1k")
    assert "without 3 documents removed by score" in said and (out / "curation.html").is_file()
    assert say(*given, *chosen, f"to={out}", "shard_tokens=1k", "n_shown=1") == said
    assert [one["name"] for one in read_manifest(out).source["filters"]][:2] == ["score", "addresses"]
    for arguments, what in (
        (
            [*given, "filters=[webtext]", f"to={out}", "shard_tokens=1k"],
            r"was prepared with data.filters score addresses",
        ),
        ([*given, f"to={out}", "shard_tokens=1k"], "exact_duplicates near_duplicates, not none"),
        ([*given, f"html={page}"], "html= is about filters, and there is none"),
        ([*given, f"to={out}", "seed=1"], "seed= is about filters"),
        ([*given, *chosen, "html=page.txt"], "does not end in .html"),
        ([*given, *chosen, f"html={page}", "n_shown=-1"], "n_shown=-1 must be at least 0"),
        ([*given, "filters=[webtxt]", f"html={page}"], "did you mean webtext?"),
        ([*given, "filters=webtext", "data.filters.length.min_word=3", f"html={page}"], "did you mean min_words?"),
        ([*given, "data.filters.lenth.min_words=3", f"html={page}"], "there is no filter lenth; did you mean length?"),
        ([*given, "data.filters.length.min_words=many", f"html={page}"], "must be a whole number"),
        ([*given, "data.filters.c4.min_sentences=0", f"html={page}"], "must be at least 1"),
        (["data=mixture", "data.sources.a=stdlib", "filters=[c4]", f"html={page}"], "data.sources.NAME.filters"),
        (
            ["data=shards", f"data.path={out}", "filters=[c4]", f"html={page}"],
            "data.filters is an option of gptlab prepare",
        ),
    ):
        assert what in say(*arguments, expect=2), arguments


def test_commands_of_the_page_on_curation(say, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "curation.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    words = [f"{a}{b}" for a in "ba ce di fo gu ha je ki lo mu".split() for b in "rk nd st lm mp ck".split()]
    words += 6 * "the be to of and that have with".split()

    def sentence():
        return f"{' '.join(draw.choices(words, k=12)).capitalize()}."

    texts = ["\n".join(sentence() for _ in range(20)) for _ in range(40)]
    records = [{"text": text, "url": f"http://a{n}.org", "score": n} for n, text in enumerate(texts)]
    records.append({"text": texts[0].upper(), "url": "http://b.org", "score": 5})
    Path("pages.jsonl").write_text("\n".join(map(json.dumps, records)))
    Path("tests.jsonl").write_text(
        json.dumps({"question": f"Is it so that {' '.join(texts[7].splitlines()[3:5])}", "id": 1})
    )
    (plugin,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    Path("shouting.py").write_text(plugin)
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)).split("\n")
    said = []
    for line in filter(None, lines):
        command, verb, *arguments = shlex.split(line)
        assert (command, verb) in (("gptlab", "prepare"), ("gptlab", "train"))
        if verb == "train":
            composition.compose(*arguments)
        else:
            said.append(say(*arguments))
    assert len(said) == 4 and Path("curation.html").is_file() and Path("pages-shards/curation.html").is_file()
    assert re.search(r"^contamination +41 +1 ", said[2], re.MULTILINE)
    assert re.search(r"^shouting +41 +1 ", said[3], re.MULTILINE)


def test_every_filter_option_and_preset_is_on_the_page_on_curation():
    page = (Path(__file__).parents[2] / "docs" / "curation.md").read_text()
    for name, config in variants("filter").items():
        if config.__module__.startswith("gptlab."):
            (options,) = re.findall(rf"^\| `{name}` \| .*\| ([^|]*)\|$", page, re.MULTILINE)[-1:]
            assert options.strip(" `").split() == [f.name for f in fields(config) if f.name != "type"], name
    for name in composition.preset_names()["filters"]:
        assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE)
