"""A look at data against counting by hand."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import ShardsConfig, TableConfig, TextConfig
from gptlab.data.tokenizers.config import ByteConfig, CharConfig, TokenizerFileConfig
from gptlab.data.tokenizers.tokenizer import load_tokenizer
from gptlab.errors import UserError
from gptlab.lab.data_look import N_GRAM, cuts_of, look_at


def write(folder, texts):
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:03}.txt").write_text(text)
    return TextConfig(path=str(folder))


def by_hand(lengths, length, separated):
    """Which documents each sequence holds, token by token."""
    stream = []
    for i, n in enumerate(lengths):
        stream += ([None] if i and separated else []) + [i] * n
    return [stream[start : start + length] for start in range(0, len(stream), length)]


@pytest.mark.parametrize("separated", [True, False])
def test_how_sequences_cut_documents(separated):
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, 60)
    cuts = cuts_of(lengths, 16, separated=separated)
    sequences = by_hand(lengths.tolist(), 16, separated)
    held = [Counter(one for one in sequence if one is not None) for sequence in sequences]
    n_pieces = Counter(i for counts in held for i in counts)
    assert cuts.documents_per_sequence == pytest.approx(np.mean([len(counts) for counts in held]))
    assert cuts.share_with_several == pytest.approx(np.mean([len(counts) > 1 for counts in held]))
    assert cuts.share_cut == pytest.approx(np.mean([n > 1 for n in n_pieces.values()]))
    assert cuts.pieces_per_document == pytest.approx(np.mean(list(n_pieces.values())))
    assert cuts.median_piece == pytest.approx(np.median([n for counts in held for n in counts.values()]))
    assert sum(n for _, n in cuts.bins) == len(sequences)


def test_lengths_tokens_and_repetitions(tmp_path):
    draw = np.random.default_rng(1)
    texts = ["".join(draw.choice(list("abcdefgh"), int(n))) for n in draw.integers(1, 300, 50)]
    texts += [texts[3], texts[3], texts[7]]
    look = look_at(write(tmp_path / "texts", texts), ByteConfig(), context_length=32)
    assert look.n_documents == 53 and look.n_tokens == sum(map(len, texts)) == look.sources[0].n_bytes
    counts = Counter("".join(texts))
    assert {text: count for _, text, count, _ in look.frequent} == dict(counts)
    assert look.n_used == 8 and look.n_unknown == 0 and look.n_lossy == 0
    assert look.n_duplicates == 3
    repeated = 2 * len(texts[3]) + len(texts[7])
    assert look.share_duplicate == pytest.approx(repeated / look.n_tokens)
    assert [(one.text, one.count) for one in look.repeated_documents] == [(texts[3], 3), (texts[7], 2)]
    grams = [text[i : i + N_GRAM] for text in texts for i in range(len(text) - N_GRAM + 1)]
    assert look.share_repeated == pytest.approx(1 - len(set(grams)) / len(grams))
    assert all(one.count == Counter(grams)[one.text] for one in look.repeated_ngrams)
    assert max(Counter(grams).values()) == look.repeated_ngrams[0].count == 3
    assert sum(n for _, _, n in look.lengths.bins) == 53
    for begin, end, n in look.lengths.bins:
        assert n == sum(begin <= len(text) < end for text in texts)
    assert look.lengths.median == np.median([len(text) for text in texts])
    json.dumps(look.plain())


def test_random_documents_follow_from_the_seed(tmp_path):
    data = write(tmp_path / "texts", [f"document {i}" for i in range(100)])
    first, again, other = (
        [one.name for one in look_at(data, ByteConfig(), context_length=8, seed=seed, n_shown=5).shown]
        for seed in (1, 1, 2)
    )
    assert first == again != other and len(set(first)) == 5


def test_text_that_the_vocabulary_lacks(tmp_path):
    learned = look_at(write(tmp_path / "texts", ["abc abc", "ab"]), CharConfig(), context_length=4)
    assert learned.vocab_size == 4 and not learned.outside
    tokenizer_of = tmp_path / "tokenizer.json"
    from gptlab.data.tokenizers.char import CharTokenizer

    CharTokenizer(" abc").save(tokenizer_of)
    assert load_tokenizer(tokenizer_of).vocab_size == 4
    data = write(tmp_path / "others", ["abc é", "ab éx"])
    look = look_at(data, TokenizerFileConfig(path=str(tokenizer_of)), context_length=4)
    assert look.outside == [("é", 2), ("x", 1)] and look.n_tokens == 7 and look.n_lossy == 2


def test_the_same_of_records_compressed_and_of_shards(tmp_path):
    texts = [f"text number {i} " * (1 + i % 4) for i in range(60)]
    plain = look_at(write(tmp_path / "texts", texts), ByteConfig(), context_length=16)
    table = tmp_path / "table.jsonl.gz"
    table.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
    records = look_at(TextConfig(path=str(table), text_column="text"), ByteConfig(), context_length=16)
    data = TextConfig(path=str(tmp_path / "texts"), val_fraction=0.0, split="document")
    prepare_shards(data, ByteConfig(), tmp_path / "shards", shard_tokens=500)
    shards = look_at(ShardsConfig(path=str(tmp_path / "shards"), val_fraction=0), ByteConfig(), context_length=16)
    for other in (records, shards):
        for name in ("lengths", "frequent", "n_duplicates", "share_repeated", "cuts", "n_tokens", "n_used"):
            assert getattr(other, name) == getattr(plain, name), name
    assert shards.sources[0].total_tokens == plain.n_tokens + 59, "with a separator between two documents"


def test_sources_of_a_mixture(tmp_path):
    sources = {"a": write(tmp_path / "a", ["abc " * 9] * 4), "b": write(tmp_path / "b", ["xyz"] * 6)}
    mixture = MixtureConfig(sources=sources, weights={"a": 0.75}, schedule={})
    look = look_at(mixture, ByteConfig(), context_length=8)
    assert [(one.name, one.n_documents, one.n_tokens, one.weights) for one in look.sources] == [
        ("a", 4, 4 * 36, (0.75, 0.75)),
        ("b", 6, 18, (0.25, 0.25)),
    ]
    assert look.n_duplicates == 3 + 5


def test_a_sample_says_so_and_estimates(tmp_path):
    data = write(tmp_path / "texts", ["abcd" * 50] * 500)
    look = look_at(data, ByteConfig(), context_length=8, sample_bytes=10_000)
    (source,) = look.sources
    assert not source.is_whole and source.n_bytes <= 10_000 and "of 500 files" in source.how
    assert source.is_estimate and source.total_tokens == 100_000


def test_tables_are_refused_by_name(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"q": "a", "a": "b"}\n')
    data = TableConfig(path=str(tmp_path / "t.jsonl"), prompt="{q}", response="{a}")
    with pytest.raises(UserError, match=r"data=table has records.*step=1"):
        look_at(data, ByteConfig(), context_length=8)
