"""Filtered corpora: the same documents on any number of processes, after a kill, and however they are prepared."""

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from gptlab import UserError
from gptlab.data.config import Split
from gptlab.data.curation import curate
from gptlab.data.curation.corpus import CuratedCorpus, open_source
from gptlab.data.curation.samples import removed_samples
from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.mixture.prepare import prepare_run
from gptlab.data.prepare import known_tokens, prepare
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import HuggingFaceConfig, ShardsConfig, TableConfig, TextConfig
from gptlab.data.token_shards import read_manifest
from gptlab.data.tokenizers.config import ByteConfig

WORDS = [f"{a}{b}" for a in "ba ce di fo gu ha je ki lo mu".split() for b in "r n st l mp ck".split()]


def records():
    """120 documents: 10 are copies, 10 nearly so, 12 have a low score, 20 are of a denied domain, 9 are short."""
    draw = random.Random(0)
    found = []
    for number in range(100):
        n = 10 if number % 11 == 0 and number else 40 + number
        text = " ".join(draw.choices(WORDS, k=n))
        url = f"https://{'www.bad.org' if number % 5 == 0 else f'a{number % 3}.org'}/page/{number}"
        found.append({"text": text, "url": url, "score": number % 8 + 2, "source": "web"})
    for number in range(21, 31):
        found.append({**found[number], "url": "https://copy.org", "score": 9})
    for number in range(31, 41):
        words = found[number]["text"].split()
        words[len(words) // 2] = "changed"
        found.append({**found[number], "text": " ".join(words), "url": "https://near.org", "score": 9})
    draw.shuffle(found)
    return [*found, {"text": "", "url": "https://empty.org", "score": 3, "source": "web"}]


RECORDS = records()
FILTERS = {
    "score": {"min_score": 3},
    "addresses": {"deny_domains": ["bad.org"]},
    "length": {"min_words": 20},
    "exact_duplicates": {},
    "near_duplicates": {"n_hashes": 64},
    "again": {"type": "length", "max_words": 135},
}


def expected():
    """What stays, by counting: near copies have one word in 71 or more changed, and are all found."""
    kept, gone = [], {name: [] for name in FILTERS}
    texts, alike = set(), set()
    for number, record in enumerate(RECORDS[:-1]):
        words = record["text"].split()
        key = tuple(words[: len(words) // 2])
        if record["score"] < 3:
            gone["score"].append(number)
        elif "bad.org" in record["url"]:
            gone["addresses"].append(number)
        elif len(words) < 20:
            gone["length"].append(number)
        elif record["text"] in texts:
            gone["exact_duplicates"].append(number)
        elif key in alike:
            gone["near_duplicates"].append(number)
        elif len(words) > 135:
            gone["again"].append(number)
        else:
            kept.append(record["text"])
        if not any(number in gone[name] for name in ("score", "addresses", "length")):
            texts.add(record["text"])
            alike.add(key)
    return kept, gone


KEPT, GONE = expected()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    for number, begin in enumerate(range(0, len(RECORDS), 50)):  # three files
        part = RECORDS[begin : begin + 50]
        (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return folder


def config(source, **options):
    given = {"filters": FILTERS, "n_processes": 1, "split": Split.document, "val_fraction": 0.2}
    return TextConfig(path=str(source), **{**given, "cache_dir": str(source.parent / "cache"), **options})


def opened(data):
    corpus = open_source(data, progress=False)
    assert isinstance(corpus, CuratedCorpus)
    return corpus


def test_each_filter_counts_what_comes_to_it_and_what_it_removes(source):
    assert all(GONE.values())  # each removes something
    corpus = opened(config(source))
    assert [text for _, text in corpus.documents()] == KEPT
    texts = [record["text"] for record in RECORDS[:-1]]
    alive = set(range(len(texts)))
    for one in corpus.counts:
        assert (one.n_documents_in, one.n_bytes_in) == (len(alive), sum(len(texts[n]) for n in alive))
        alive -= set(GONE[one.name])
        assert (one.n_documents_out, one.n_bytes_out) == (len(alive), sum(len(texts[n]) for n in alive))
        assert sum(one.rules.values()) == len(GONE[one.name])
    assert corpus.left_out[-1] == "1 record without text"
    assert corpus.left_out[0] == f"{len(GONE['score'])} documents removed by score"


def test_a_clean_corpus_loses_nothing(tmp_path):
    draw = random.Random(1)
    stop_words = "the be to of and that have with".split()

    def sentence():
        words = [draw.choice(choices) for choices in (WORDS, stop_words) for _ in range(6)]
        draw.shuffle(words)
        return f"{' '.join(words).capitalize()}."

    texts = ["\n".join(sentence() for _ in range(30)) for _ in range(150)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "tests.txt").write_text(" ".join(draw.choices(WORDS, k=500)))
    filters = {
        "length": {"min_characters": 512},
        **{name: {} for name in ("gopher_quality", "gopher_repetition", "c4", "exact_duplicates", "near_duplicates")},
        "contamination": {"paths": [str(tmp_path / "tests.txt")]},
    }
    data = TextConfig(path=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path), filters=filters)
    corpus = opened(data)
    assert [text for _, text in corpus.documents()] == texts
    assert all(one.n_bytes_out == sum(map(len, texts)) for one in corpus.counts)


def test_formats_and_sources_give_the_same_documents(source, tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: [record[name] for record in RECORDS] for name in RECORDS[0]})
    (tmp_path / "parquet").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "a.parquet", row_group_size=17)
    pyarrow.csv = pytest.importorskip("pyarrow.csv")
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    for data in (
        config(tmp_path / "parquet" / "a.parquet"),
        config(tmp_path / "a.csv"),
        HuggingFaceConfig(path=str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"), filters=FILTERS),
    ):
        assert [text for _, text in opened(data).documents()] == KEPT


def test_two_processes_decide_alike(source, monkeypatch):
    corpus = opened(config(source))
    assert [text for _, text in corpus.documents()] == KEPT
    monkeypatch.setattr(curate, "SMALL_CORPUS_BYTES", 0)
    monkeypatch.setattr(curate, "JOB_CHARACTERS", 2_000)
    other = opened(config(source, cache_dir=str(source.parent / "other"), n_processes=2))
    assert [text for _, text in other.documents()] == KEPT
    assert other.counts == corpus.counts and other.fingerprint == corpus.fingerprint
    for name in ("outcomes", "sections", "starts"):
        assert np.array_equal(getattr(other.verdicts, name), getattr(corpus.verdicts, name))


def test_an_error_in_another_process_is_the_same(source, monkeypatch):
    monkeypatch.setattr(curate, "SMALL_CORPUS_BYTES", 0)
    for n_processes in (1, 2):
        with pytest.raises(UserError, match=r"0\.jsonl#0: the score url=https.* is no number"):
            opened(config(source, n_processes=n_processes, filters={"score": {"column": "url"}})).counts  # noqa: B018


def test_a_call_that_was_interrupted_goes_on(source, monkeypatch):
    monkeypatch.setattr(curate, "JOB_CHARACTERS", 1_500)
    monkeypatch.setattr(curate, "CHECKPOINT_SECONDS", 0)
    whole = opened(config(source)).verdicts
    examine, n_examined = curate.Examiner.examine, [0]

    def counted(self, job):
        if n_examined[0] == stop:
            raise OSError("dead")
        n_examined[0] += 1
        return examine(self, job)

    monkeypatch.setattr(curate.Examiner, "examine", counted)
    n_jobs = 0
    for stop in (1, 2, 7, 15):
        data = config(source, cache_dir=str(source.parent / f"cache{stop}"))
        n_examined[0] = 0
        with pytest.raises(OSError, match="dead"):
            opened(data).counts  # noqa: B018
        stop, n_before = -1, stop
        n_examined[0] = 0
        found = opened(data).verdicts
        assert found.counts == whole.counts and np.array_equal(found.outcomes, whole.outcomes)
        n_jobs = n_jobs or n_before + n_examined[0]
        assert n_before + n_examined[0] == n_jobs  # none is done again
    assert n_jobs > 15


def test_a_killed_process_is_continued(source):
    program = f"""
import os, signal
from gptlab.data.config import Split
from gptlab.data.curation import curate
from gptlab.data.curation.corpus import open_source
from gptlab.data.sources.config import TextConfig
curate.JOB_CHARACTERS, curate.CHECKPOINT_SECONDS = 1500, 0
checkpoint, left = curate._Columns.checkpoint, [5]
def dying(self):
    checkpoint(self)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
curate._Columns.checkpoint = dying
data = TextConfig(path={str(source)!r}, cache_dir={str(source.parent / "killed")!r}, filters={FILTERS!r}, n_processes=1)
open_source(data, progress=False).counts
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    corpus = opened(config(source, cache_dir=str(source.parent / "killed")))
    partial = corpus.folder.with_name(f".{corpus.folder.name}.partial")
    assert json.loads((partial / "progress.json").read_text())["n"] > 5
    (partial / "outcome.column").write_bytes((partial / "outcome.column").read_bytes() + b"torn")
    assert [text for _, text in corpus.documents()] == KEPT
    assert not partial.exists()


def test_shards_and_token_files_hold_what_passes(source, tmp_path):
    data = config(source)
    manifest = prepare_shards(data, ByteConfig(), tmp_path / "out", shard_tokens=1000)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in KEPT))
    other = prepare_shards(config(plain, filters={}), ByteConfig(), tmp_path / "other", shard_tokens=1000)
    assert manifest.fingerprint == other.fingerprint and manifest.shards == other.shards
    assert "filters" not in other.source
    found = read_manifest(tmp_path / "out").source["filters"]
    assert [one["name"] for one in found] == list(FILTERS)
    assert found[2]["min_words"] == 20 and found[2]["counts"]["rules"] == {"min_words": len(GONE["length"])}
    prepared = prepare(data, ByteConfig(), progress=False)
    assert f"without {len(GONE['score'])} documents removed by score" in prepared.description
    assert known_tokens(data, ByteConfig()) == prepared.train.n_tokens
    alone = prepare(config(plain, filters={}, split=Split.fraction), ByteConfig(), progress=False)
    both = prepare(config(source, split=Split.fraction), ByteConfig(), progress=False)
    assert np.array_equal(both.train.tokens, alone.train.tokens) and both.fingerprint != alone.fingerprint
    mixture = MixtureConfig(sources={"web": config(source, n_processes=None, cache_dir=None)}, cache_dir=data.cache_dir)
    mixed = prepare_run(mixture, ByteConfig(), progress=False)
    assert mixed.corpora["web"].fingerprint == prepared.fingerprint


def test_other_filters_are_other_data(source, tmp_path):
    first = prepare(config(source), ByteConfig(), progress=False)
    prepare_shards(config(source), ByteConfig(), tmp_path / "out", shard_tokens=1000)
    renamed = {f"my_{name}": {"type": name, **options} for name, options in FILTERS.items() if name != "again"}
    renamed["again"] = FILTERS["again"]
    assert prepare(config(source, filters=renamed), ByteConfig(), progress=False).fingerprint == first.fingerprint
    assert [one.name for one in opened(config(source, filters=renamed)).counts] == list(renamed)
    for filters, what in (
        (
            {**FILTERS, "score": {"min_score": 4}},
            r"data\.filters\.score\.min_score=3\.0, not 4\.0; name another folder",
        ),
        ({**FILTERS, "again": None}, r"data\.filters score addresses .* again, not score addresses"),
        ({}, r"data\.filters score .* again, not none"),
        (dict(reversed(FILTERS.items())), r"data\.filters score .*, not again near"),
    ):
        other = config(source, filters=filters)
        assert prepare(other, ByteConfig(), progress=False).fingerprint != first.fingerprint
        with pytest.raises(UserError, match=what):
            prepare_shards(other, ByteConfig(), tmp_path / "out", shard_tokens=1000)
    prepare_shards(config(source), ByteConfig(), tmp_path / "out", shard_tokens=1000)


def test_shards_of_filtered_documents_go_on_after_a_kill(source, tmp_path, monkeypatch):
    from gptlab.data import sharding

    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 500)
    whole = prepare_shards(config(source), ByteConfig(), tmp_path / "whole", shard_tokens=1000)
    write, left = sharding._Preparation._write, [0]

    def dying(self, *arguments):
        left[0] -= 1
        if left[0] == 0:
            raise OSError("dead")
        return write(self, *arguments)

    monkeypatch.setattr(sharding._Preparation, "_write", dying)
    for stop in (2, 5, 9):
        left[0] = stop
        out = tmp_path / f"out{stop}"
        with pytest.raises(OSError, match="dead"):
            prepare_shards(config(source), ByteConfig(), out, shard_tokens=1000)
        left[0] = -1
        assert prepare_shards(config(source), ByteConfig(), out, shard_tokens=1000).shards == whole.shards


def test_texts_that_a_filter_shortens(tmp_path):
    texts = [
        "One two three four five.\nMenu\nSix seven eight nine ten.",
        "Menu",
        "A b c d e f. G h i j k l. M n o p q.",
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    filters = {"c4": {"min_sentences": 2}, "length": {"max_characters": 53}, "exact_duplicates": {}}
    corpus = opened(TextConfig(path=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path), filters=filters))
    left = "One two three four five.\nSix seven eight nine ten."
    assert [text for _, text in corpus.documents()] == [left, texts[2]]
    c4, length, exact = corpus.counts
    assert (c4.n_bytes_in, c4.n_bytes_out, c4.n_rewritten) == (sum(map(len, texts)), len(left) + len(texts[2]), 1)
    assert (c4.n_documents_out, c4.rules) == (2, {"lines": 1})
    assert (length.n_bytes_in, exact.n_bytes_out) == (c4.n_bytes_out, c4.n_bytes_out)
    (removed, rewritten), *_ = removed_samples(corpus, 5, 0)
    assert (removed.text, removed.reason) == ("Menu", "lines: no line is left")
    assert (rewritten.text, rewritten.rewritten) == (texts[0], left)


def test_samples_are_random_documents_that_were_removed(source):
    corpus = opened(config(source))
    found = dict(zip(FILTERS, removed_samples(corpus, 4, 0), strict=True))
    places = {f"{number // 50}.jsonl#{number % 50}": number for number in range(len(RECORDS))}
    for name, samples in found.items():
        assert len(samples) == min(4, len(GONE[name]))
        for sample in samples:
            number = places[sample.name]
            assert number in GONE[name] and sample.text == RECORDS[number]["text"]
            assert sample.fields == {"score": str(RECORDS[number]["score"]), "url": RECORDS[number]["url"]}
    assert found["addresses"][0].reason.startswith("deny_domains: https://www.bad.org/page/")
    for sample in found["near_duplicates"]:
        assert sample.resembled is not None and places[sample.resembled.name] < places[sample.name]
        assert 0.75 < sample.resembled.similarity < 1
    assert all(sample.resembled and sample.resembled.text == sample.text for sample in found["exact_duplicates"])
    assert removed_samples(corpus, 4, 0) == list(found.values()) != removed_samples(corpus, 4, 1)


def test_what_is_wrong_is_refused(source, tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    for data, what in (
        (config(source, filters={"length": {"min_words": 1000}}), r"left no document of .*: length removed 120 of 120"),
        (
            config(source, filters={"addresses": {"column": "link", "deny_domains": ["a"]}}),
            "link is not a column.*score",
        ),
        (
            config(tmp_path / "a.txt", filters={"score": {}}),
            r"a\.txt has no column score, which the filter score reads",
        ),
    ):
        with pytest.raises(UserError, match=what):
            prepare(data, ByteConfig(), progress=False)
    filters = {"length": {"min_words": 1}}
    table = TableConfig(path=str(source / "0.jsonl"), label_column="source", class_names=["web", "b"], filters=filters)
    for data, what in (
        (table, r"data\.filters is for documents, and data=table has records"),
        (ShardsConfig(path="x", filters=filters), r"data\.filters is an option of gptlab prepare"),
    ):
        with pytest.raises(UserError, match=what):
            data.check()


def test_a_corpus_that_changed_meanwhile_and_damaged_verdicts_are_refused(source):
    corpus = opened(config(source))
    corpus.counts  # noqa: B018
    (source / "2.jsonl").write_text(json.dumps(RECORDS[0]))
    with pytest.raises(UserError, match="has changed since it was filtered"):
        list(corpus.documents_from(1))
    corpus = opened(config(source))
    corpus.counts  # noqa: B018
    (corpus.folder / "outcomes.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged .*; delete it"):
        list(opened(config(source)).documents())
