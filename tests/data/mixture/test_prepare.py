"""The sources of a mixture are prepared as each would be alone, with one tokenizer for all."""

import json

import pytest
from small_runs import write_text

from gptlab.data.mixture.config import MixtureConfig
from gptlab.data.mixture.prepare import inputs_of_run, learn_run_tokenizer, prepare_run
from gptlab.data.prepare import inputs_of, prepare
from gptlab.data.sources.config import TableConfig, TextConfig
from gptlab.data.tokenizers.config import BPEConfig, ByteConfig, CharConfig
from gptlab.errors import UserError


def mixture(folder, **given):
    (folder / "a b.txt").write_text("alpha beta gamma " * 200)
    (folder / "digits.txt").write_text("12 345 6789 " * 300)
    sources = {"words": TextConfig(path=str(folder / "a b.txt")), "digits": TextConfig(path=str(folder / "digits.txt"))}
    return MixtureConfig(**{"sources": sources, "weights": {"words": 0.5}, "cache_dir": str(folder / "cache"), **given})


def test_a_source_has_the_token_files_of_a_run_on_it_alone(tmp_path):
    data = mixture(tmp_path)
    prepared = prepare_run(data, ByteConfig(), progress=False)
    alone = prepare(data.corpora["words"], ByteConfig(), progress=False)
    assert list(prepared.corpora) == ["digits", "words"]
    assert (
        prepared.corpora["words"].folder == alone.folder and prepared.corpora["words"].fingerprint == alone.fingerprint
    )
    assert prepared.n_tokens("train") == sum(corpus.train.n_tokens for corpus in prepared.corpora.values()) == 6300
    assert prepare_run(data.corpora["words"], ByteConfig(), progress=False).fingerprint == alone.fingerprint


@pytest.mark.parametrize("tokenizer", [BPEConfig(vocab_size=300), CharConfig()])
def test_a_vocabulary_is_learned_from_all_sources_in_turn(tmp_path, tokenizer):
    prepared = prepare_run(mixture(tmp_path), tokenizer, progress=False)
    for text in ("alpha beta", "345 6789"):
        ids = prepared.tokenizer.encode(text)
        assert prepared.tokenizer.decode(ids) == text
        if tokenizer.type == "bpe":
            assert len(ids) < len(text) / 2  # pieces of both were learned
    fingerprints = {corpus.tokenizer.fingerprint for corpus in prepared.corpora.values()}
    assert fingerprints == {prepared.tokenizer.fingerprint} and prepared.tokenizer.type == tokenizer.type
    assert prepared.lost_text is None
    again = prepare_run(mixture(tmp_path), tokenizer, progress=False)
    assert (
        again.fingerprint == prepared.fingerprint and again.corpora["words"].folder == prepared.corpora["words"].folder
    )
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.endswith(".partial")]


def test_records_are_mixed_too(tmp_path):
    sources = {}
    for name, n in (("sums", 40), ("products", 20)):
        rows = ({"q": f"{i} and {i}", "a": str(2 * i if name == "sums" else i * i)} for i in range(n))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources[name] = TableConfig(path=str(tmp_path / f"{name}.jsonl"), prompt="{q}", response=" {a}")
    data = MixtureConfig(sources=sources, weights={"sums": 0.9}, cache_dir=str(tmp_path / "cache"))
    prepared = prepare_run(data, BPEConfig(vocab_size=260), progress=False)
    assert prepared.has_examples
    assert [len(c.examples["train"]) + len(c.examples["val"]) for c in prepared.corpora.values()] == [20, 40]


def test_what_is_read_is_known_source_by_source(tmp_path):
    data, tokenizer = mixture(tmp_path), ByteConfig()
    inputs = inputs_of_run(data, tokenizer)
    assert set(inputs) == {"data", "tokenizer", "data.sources.words", "data.sources.digits"}
    assert inputs["data.sources.words"] == inputs_of(data.corpora["words"], tokenizer)["data"]
    assert inputs == prepare_run(data, tokenizer, progress=False).inputs
    write_text(tmp_path / "a b.txt")
    changed = inputs_of_run(data, tokenizer)
    assert {key for key in inputs if changed[key] != inputs[key]} == {"data", "data.sources.words"}


def test_errors_name_the_source(tmp_path):
    data = mixture(tmp_path)
    (tmp_path / "digits.txt").unlink()
    for tokenizer in (ByteConfig(), BPEConfig(vocab_size=300)):
        with pytest.raises(UserError, match=r"data.sources.digits.path=.*digits.txt does not exist"):
            prepare_run(data, tokenizer, progress=False)
    (tmp_path / "digits.txt").write_text("x")
    with pytest.raises(UserError, match=r"data.sources.digits.*is empty: the corpus has 1 character"):
        prepare_run(data, ByteConfig(), progress=False)


def test_a_tokenizer_alone_is_learned_from_the_same_texts(tmp_path):
    data, config = mixture(tmp_path), BPEConfig(vocab_size=300)
    tokenizer = learn_run_tokenizer(data, config, progress=False)
    assert tokenizer.fingerprint == prepare_run(data, config, progress=False).tokenizer.fingerprint
    with pytest.raises(UserError, match="tokenizer=byte is not learned"):
        learn_run_tokenizer(data, ByteConfig(), progress=False)
