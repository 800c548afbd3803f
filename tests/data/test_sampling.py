"""Samples of a corpus: bounded, the same for a seed, and whole where the corpus is small."""

import json

import numpy as np
import pytest

from gptlab.data.sampling import sample_corpus, sample_shards
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import TextConfig
from gptlab.data.token_shards import TokenShards, open_tokenizer
from gptlab.data.tokenizers.config import ByteConfig


def folder_of(path, n: int, size: int):
    path.mkdir()
    for i in range(n):
        (path / f"{i:04}.txt").write_text(f"{i:04}" + "x" * (size - 4))
    return path


def test_a_small_corpus_is_read_whole_and_a_large_one_from_many_files(tmp_path):
    corpus = TextConfig(path=str(folder_of(tmp_path / "texts", 300, 1000))).build()
    whole = sample_corpus(corpus, 1_000_000)
    assert whole.is_whole and [one.name for one in whole.documents] == [f"{i:04}.txt" for i in range(300)]
    part = sample_corpus(corpus, 64_000, seed=1)
    names = [one.name for one in part.documents]
    assert not part.is_whole and 40_000 <= sum(len(one.text) for one in part.documents) <= 64_000
    assert names == [one.name for one in sample_corpus(corpus, 64_000, seed=1).documents]
    assert len({name[:2] for name in names}) == 3 and len(set(names)) == len(names)
    assert part.share == sum(len(one.text) for one in part.documents) / 300_000


def test_what_is_read_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    from gptlab.data.sources import source

    read = []
    original = source._read_text
    monkeypatch.setattr(source, "_read_text", lambda file, *more: (read.append(file), original(file, *more))[1])
    monkeypatch.setattr(source, "keys_of", lambda *arguments: 1 / 0)
    for n in (500, 2000):
        read.clear()
        corpus = TextConfig(path=str(folder_of(tmp_path / str(n), n, 500))).build()
        sample_corpus(corpus, 20_000)
        assert len(read) < 140, "neither checksums nor all files"


def test_one_long_document_and_records_of_a_table(tmp_path):
    (tmp_path / "long.txt").write_text("abc " * 100_000)
    sample = sample_corpus(TextConfig(path=str(tmp_path / "long.txt")).build(), 10_000)
    assert not sample.is_whole and not sample.documents[0].is_whole
    assert sum(len(one.text) for one in sample.documents) == 10_000
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps({"text": f"record {i}"}) + "\n" for i in range(5000)))
    sample = sample_corpus(TextConfig(path=str(table), text_column="text").build(), 1000)
    assert not sample.is_whole and [one.text for one in sample.documents[:3]] == ["record 0", "record 1", "record 2"]
    assert sample.share is None or 0 < sample.share <= 1
    rows = [
        {"text": f"a longer record with the number {i} and more of the same, again and again"} for i in range(40_000)
    ]
    table.write_text("".join(json.dumps(row | {"another column": 12345}) + "\n" for row in rows))
    sample = sample_corpus(TextConfig(path=str(table), text_column="text").build(), 1_000_000)
    assert sample.share == pytest.approx(len(sample.documents) / len(rows), rel=0.1), "by what is stored"


def test_shards_give_documents_back(tmp_path):
    texts = folder_of(tmp_path / "texts", 200, 50)
    data = TextConfig(path=str(texts), val_fraction=0.0, split="document")
    manifest = prepare_shards(data, ByteConfig(), tmp_path / "shards", shard_tokens=1000)
    tokens = TokenShards.open(tmp_path / "shards", manifest, "train")
    tokenizer = open_tokenizer(tmp_path / "shards", manifest)
    whole = sample_shards(tokens, tokenizer, 10**6)
    assert whole.is_whole and [one.text for one in whole.documents] == [p.read_text() for p in sorted(texts.iterdir())]
    part = sample_shards(tokens, tokenizer, 16_000)
    everything = {p.read_text() for p in texts.iterdir()}
    assert not part.is_whole and part.total_tokens == tokens.n_tokens and part.total_documents == 200
    assert all(one.text in everything for one in part.documents if one.is_whole)
    assert all(np.array_equal(tokenizer.encode(one.text), one.ids) for one in part.documents)
