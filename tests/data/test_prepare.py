"""Prepared data: split as asked, tokenized alike on any number of processes, cached once, never half."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from gptlab.data import prepare as prepare_module
from gptlab.data.config import Split
from gptlab.data.encode import EncodeJob, Encoders, encode_texts
from gptlab.data.prepare import prepare
from gptlab.data.sources.config import HuggingFaceConfig, TextConfig
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.data.tokenizers.config import (
    BPEConfig,
    ByteConfig,
    CharConfig,
    GPT2Config,
    TokenizerFileConfig,
    WordPieceConfig,
)

SOURCE = str(Path(prepare_module.__file__).parents[2])
WORDS = ["the", "cat's", "12", "mats\n\n\tsat", "", "on", "éa漢", "it;", "and\r\nwe'll", "see.", ""]


def prose(seed, vocab_size=400):
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice((" ", " ", "\n", "  ", "\n\n")) for _ in range(vocab_size))


@pytest.fixture
def make(tmp_path):
    """Writes documents as files and gives their config."""

    def make(*texts, **settings):
        root = tmp_path / "texts"
        root.mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (root / f"{number:03d}.txt").write_bytes(text.encode())
        path = root / "000.txt" if len(texts) == 1 else root
        return TextConfig(**{"path": str(path), "cache_dir": str(tmp_path / "cache"), "n_processes": 1, **settings})

    return make


def run(config, tokenizer=None):
    return prepare(config, tokenizer or ByteConfig(), progress=False)


def built(tmp_path):
    """What lies in the cache beside the locks, hidden files included."""
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.name not in ("locks", "fingerprints"))


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.0), (0.0, 0.0), (0.3, 0.2), (0.05, 0.9), (0.0, 0.5)])
@pytest.mark.parametrize("tokenizer", [ByteConfig(), CharConfig(), BPEConfig(vocab_size=400)])
def test_fractions_of_one_text_are_its_parts_encoded(make, val, test, tokenizer):
    text = prose(0)
    data = run(make(text, val_fraction=val, test_fraction=test), tokenizer)
    cuts = [int(round(1 - val - test, 9) * len(text)), int(round(1 - test, 9) * len(text))]
    parts = {"train": text[: cuts[0]], "val": text[cuts[0] : cuts[1]], "test": text[cuts[1] :]}
    for name, part in parts.items():
        file = getattr(data, name)
        if not part:
            assert file is None
            continue
        assert file.tokens.tolist() == data.tokenizer.encode(part).tolist()
        assert (file.n_documents, file.n_bytes, file.n_characters) == (1, len(part.encode()), len(part))
        assert (file.vocab_size, file.tokenizer) == (data.tokenizer.vocab_size, data.tokenizer.fingerprint)
    if not val:
        assert data.val is None


def test_the_first_nine_tenths_are_nanogpts(make):
    for n in (20, 21, 999, 1003, 12_345):
        text = prose(n, 4000)[:n]
        data = run(make(text))
        assert data.train.n_characters == int(0.9 * n)


@pytest.mark.skipif(
    not os.environ.get("TIKTOKEN_CACHE_DIR"), reason="TIKTOKEN_CACHE_DIR is not set: no GPT-2 vocabulary"
)
def test_gpt2(make):
    import tiktoken

    text = prose(4)
    data = run(make(text), GPT2Config())
    at = int(0.9 * len(text))
    for file, part in ((data.train, text[:at]), (data.val, text[at:])):
        assert file.tokens.dtype == np.uint16
        assert file.tokens.tolist() == tiktoken.get_encoding("gpt2").encode_ordinary(part)


@pytest.mark.parametrize("tokenizer", [ByteConfig(), CharConfig(), BPEConfig(vocab_size=400)])
def test_fractions_cut_many_documents_where_the_joined_text_would_be(make, tokenizer):
    texts = [prose(seed, 30) for seed in range(10)]
    data = run(make(*texts, val_fraction=0.25, test_fraction=0.25), tokenizer)
    n = sum(map(len, texts))
    bounds = [0, int(0.5 * n), int(0.75 * n), n]
    eot = data.tokenizer.eot
    for number, file in enumerate((data.train, data.val, data.test)):
        expected, n_documents, position = [], 0, 0
        for text in texts:
            low, high = max(bounds[number] - position, 0), max(bounds[number + 1] - position, 0)
            part, position = text[low:high], position + len(text)
            if part:
                expected += [eot] * (n_documents > 0 and eot is not None) + data.tokenizer.encode(part).tolist()
                n_documents += 1
        assert file.tokens.tolist() == expected
        assert file.n_documents == n_documents
    assert sum(file.n_bytes for file in (data.train, data.val, data.test)) == sum(len(text.encode()) for text in texts)


def pieces(file, eot):
    return "".join(map(chr, file.tokens.tolist())).split(chr(eot)) if file else []


@pytest.mark.parametrize(
    ("n", "val", "test"), [(200, 0.1, 0.1), (40, 0.5, 0.2), (3, 0.01, 0.01), (2, 0.9, 0.0), (3, 0.4, 0.59)]
)
def test_documents_are_split_whole(make, n, val, test):
    texts = [f"document {number}" for number in range(n)]
    config = make(*texts, split=Split.document, val_fraction=val, test_fraction=test)
    data = run(config)
    parts = [pieces(file, 256) for file in (data.train, data.val, data.test)]
    assert sorted(chain(*parts)) == sorted(texts)
    assert data.train.n_documents >= 1 and data.val.n_documents >= 1
    assert (data.test is None) == (test == 0) and (data.test is None or data.test.n_documents >= 1)
    for part in parts:
        assert part == sorted(part, key=lambda text: int(text.split()[1]))
    if n == 200:
        assert 8 <= len(parts[1]) <= 36 and 8 <= len(parts[2]) <= 36


def test_a_documents_split_does_not_hang_on_the_others(make, tmp_path):
    texts = [f"document {number}" for number in range(100)]
    settings = {"split": Split.document, "val_fraction": 0.2}
    before = set(pieces(run(make(*texts, **settings)).val, 256))
    for number in range(0, 100, 2):
        (tmp_path / "texts" / f"{number:03d}.txt").unlink()
    after = set(pieces(run(make(path=str(tmp_path / "texts"), **settings)).val, 256))
    assert after == {text for text in before if int(text.split()[1]) % 2}


def test_too_little_text_for_the_splits_says_what_to_do(make, tmp_path):
    with pytest.raises(ValueError, match=r"train, val and the corpus has 1; use data\.split=fraction"):
        run(make("one", split=Split.document))
    with pytest.raises(ValueError, match=r"train, val, test and the corpus has 2; use data\.split=fraction"):
        run(make("one", "two", split=Split.document, test_fraction=0.1))
    with pytest.raises(ValueError, match=r"data\.val_fraction=0.01 is empty: the corpus has 3 characters"):
        run(make("abc", val_fraction=0.01, test_fraction=0.5))
    with pytest.raises(ValueError, match=r"the training split is empty: the corpus has 3 characters"):
        run(make("abc", val_fraction=0.9))
    with pytest.raises(ValueError, match=r"data\.val_fraction=1\.5 is outside"):
        run(make("abc", val_fraction=1.5))
    assert built(tmp_path) == []


def test_one_document_is_enough_without_other_splits(make):
    assert run(make("one", split=Split.document, val_fraction=0.0)).train.n_tokens == 3


def test_char_knows_the_whole_corpus_and_bpe_the_training_split(make):
    assert run(make("a" * 90 + "z" * 10), CharConfig()).tokenizer.characters == "az"
    data = run(make("ab" * 450 + "zq" * 50), BPEConfig(vocab_size=300))
    assert data.tokenizer.fingerprint == BPETokenizer.train(300, ["ab" * 450]).fingerprint


@pytest.mark.parametrize("tokenizer", [BPEConfig(vocab_size=400), GPT2Config(), "file"])
def test_processes_and_chunks_change_nothing(make, tmp_path, monkeypatch, tokenizer):
    if isinstance(tokenizer, GPT2Config) and not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR is not set: no GPT-2 vocabulary")
    if tokenizer == "file":
        tokenizer = TokenizerFileConfig(path=str(tmp_path / "t.json"))
        _library().save(tokenizer.path)
    texts = [prose(seed, random.Random(seed).randrange(1, 3000)) for seed in range(12)]
    settings = {"val_fraction": 0.2, "test_fraction": 0.1}
    contents = []
    for n_processes, small, job, block in ((1, 10**9, 10**9, 1 << 18), (2, 0, 1000, 777), (3, 0, 1, 64)):
        monkeypatch.setattr(prepare_module, "_SMALL_CORPUS_BYTES", small)
        monkeypatch.setattr(prepare_module, "JOB_CHARACTERS", job)
        monkeypatch.setattr("gptlab.data.sources.source.BLOCK_BYTES", block)
        data = run(
            make(*texts, n_processes=n_processes, cache_dir=str(tmp_path / f"c{n_processes}"), **settings), tokenizer
        )
        contents.append({name: (data.folder / f"{name}.bin").read_bytes() for name in ("train", "val", "test")})
    assert contents[0] == contents[1] == contents[2]


def _library():
    import tokenizers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trained.train_from_iterator([prose(1)], tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return trained


def jobs(*texts):
    return [EncodeJob(part="train", texts=[text], n_documents=1, n_characters=1, n_bytes=1) for text in texts]


def test_a_workers_refusal_is_the_callers_error():
    with Encoders(CharTokenizer("ab"), 2) as encoders:
        processes = list(encoders._workers)
        with pytest.raises(ValueError, match=r"character 'x' \(U\+0078\)"):
            list(encoders.map(jobs("ab", "axb", "b")))
    assert all(process.poll() is not None for process in processes)


def test_a_killed_worker_is_an_error_and_not_a_hang():
    with Encoders(ByteTokenizer(), 2) as encoders:
        assert len(list(encoders.map(jobs("a", "b", "c")))) == 3
        encoders._workers[0].send_signal(signal.SIGKILL)
        with pytest.raises(RuntimeError, match="tokenizing process ended early"):
            list(encoders.map(jobs(*"abcdefgh")))


def test_jobs_come_back_in_order_with_end_of_text_between():
    tokenizer = ByteTokenizer()
    wanted = jobs(*(prose(seed, 20) for seed in range(50)))
    for job in wanted:
        job.texts = [*job.texts, tokenizer.eot, "é"]
    with Encoders(tokenizer, 2) as encoders:
        for job, (same, (ids, sizes)) in zip(wanted, encoders.map(iter(wanted)), strict=True):
            assert same is job
            assert ids.tolist() == encode_texts(tokenizer, job.texts).ids.tolist()
            assert sizes == encode_texts(tokenizer, job.texts).sizes == [len(job.texts[0].encode()), 1, 2]
            assert ids.tolist() == [*job.texts[0].encode(), 256, *"é".encode()]


def test_the_second_call_prepares_nothing(make, monkeypatch):
    config = make(prose(0))
    first = run(config, BPEConfig(vocab_size=300))

    def build(*arguments, **options):
        raise AssertionError("prepared again")

    monkeypatch.setattr(prepare_module, "_build", build)
    second = run(config, BPEConfig(vocab_size=300))
    assert (second.folder, second.fingerprint, second.description) == (
        first.folder,
        first.fingerprint,
        first.description,
    )
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert np.array_equal(second.train.tokens, first.train.tokens)
    assert first.folder.name == f"text-{first.fingerprint[:16]}" and len(first.fingerprint) == 64
    assert "1 document, " in first.description and str(config.path) in first.description


def test_content_tokenizer_and_split_each_change_the_key(make):
    config = make(prose(0))
    folders = [
        run(config).folder,
        run(config, CharConfig()).folder,
        run(config, BPEConfig(vocab_size=300)).folder,
        run(config, BPEConfig(vocab_size=301)).folder,
        run(make(prose(0), val_fraction=0.2)).folder,
        run(make(prose(0), test_fraction=0.1)).folder,
        run(make(prose(1))).folder,
    ]
    assert len(set(folders)) == 7
    assert run(make(prose(1), context_length=5, stride=2, shuffle=False, n_workers=3)).folder == folders[-1]


def test_the_cache_lies_where_the_environment_says(make, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "elsewhere"))
    assert run(make(prose(0), cache_dir=None)).folder.parent == tmp_path / "elsewhere"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made.*set data\.cache_dir or GPTLAB_CACHE"):
        run(make(prose(0), cache_dir=str(tmp_path / "file" / "cache")))


def test_altered_caches_are_refused_by_name(make):
    config = make(prose(0))
    folder = run(config).folder
    for name in ("train.bin", "val.bin", "tokenizer.json", "corpus.json"):
        whole = (folder / name).read_bytes()
        for content in (whole[:-3], whole[:-3] + b"???"):
            (folder / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{folder}/{name}.*run again"):
                run(config)
        (folder / name).write_bytes(whole)
    (folder / "tokenizer.json").write_text(json.dumps({"type": "char", "characters": "a"} | _fingerprint_of("a")))
    with pytest.raises(ValueError, match="another tokenizer"):
        run(config)


def _fingerprint_of(characters):
    return {"fingerprint": CharTokenizer(characters).fingerprint}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_half_way_leaves_no_half_cache(make, tmp_path, monkeypatch, error):
    texts = [prose(seed) for seed in range(5)]
    config = make(*texts)
    whole = Encoders.map

    def broken(self, jobs):
        for number, result in enumerate(whole(self, jobs)):
            if number == 2:
                raise error("half way")
            yield result

    monkeypatch.setattr(prepare_module, "JOB_CHARACTERS", 100)
    with monkeypatch.context() as patch:
        patch.setattr(Encoders, "map", broken)
        with pytest.raises(error, match="half way"):
            run(config)
    assert built(tmp_path) == []
    assert run(config).train.n_documents == 5


BUILD_AND = """
import os, signal, sys, time
from gptlab.data import prepare as module
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.config import ByteConfig
whole = module.measure
def watched(corpus):
    with open(sys.argv[3], "a") as log:
        log.write("built\\n")
    if sys.argv[4] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return whole(corpus)
module.measure = watched
data = module.prepare(TextConfig(path=sys.argv[1], cache_dir=sys.argv[2]), ByteConfig(), progress=False)
print(data.folder, data.train.n_tokens)
"""


def start(config, tmp_path, what):
    command = [sys.executable, "-c", BUILD_AND, config.path, config.cache_dir, str(tmp_path / "log"), what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCE})


def test_of_processes_that_start_at_once_one_prepares(make, tmp_path):
    config = make(prose(0))
    processes = [start(config, tmp_path, "build") for _ in range(2)]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1] and str(tmp_path) in answers[0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_kill_leaves_nothing_that_the_next_call_trips_over(make, tmp_path):
    config = make(prose(0))
    process = start(config, tmp_path, "kill")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert all(name.startswith(".") for name in built(tmp_path))
    folder = run(config).folder
    assert built(tmp_path) == [folder.name]


@pytest.mark.parametrize("n_processes", [1, 2])
def test_special_tokens_and_wordpieces_reach_the_tokenizing_processes(make, monkeypatch, n_processes):
    monkeypatch.setattr(prepare_module, "_SMALL_CORPUS_BYTES", 0)
    texts = [prose(seed) for seed in range(3)]
    for tokenizer in (WordPieceConfig(vocab_size=120), BPEConfig(vocab_size=300, special_tokens=["<mask>"])):
        data = run(make(*texts, split=Split.document, n_processes=n_processes, val_fraction=0), tokenizer)
        tokens, eot = data.tokenizer, [data.tokenizer.eot]
        encoded = [tokens.encode(text).tolist() for text in texts]
        assert data.train.tokens.tolist() == encoded[0] + eot + encoded[1] + eot + encoded[2]
        assert data.train.vocab_size == tokens.vocab_size and tokens.mask is not None


def test_huggingface_is_read_once(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    texts = [prose(seed, 20) for seed in range(30)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = HuggingFaceConfig(path=str(tmp_path / "records.jsonl"), cache_dir=str(tmp_path / "cache"), n_processes=1)
    data = run(config, BPEConfig(vocab_size=300))
    assert data.train.n_documents + data.val.n_documents == 30
    found = [data.tokenizer.decode(file.tokens).split("<|endoftext|>") for file in (data.train, data.val)]
    assert sorted(chain(*found)) == sorted(texts)
    assert sorted(path.name for path in data.folder.iterdir()) == [
        "corpus.json",
        "tokenizer.json",
        "train.bin",
        "train.bin.verified",
        "val.bin",
        "val.bin.verified",
    ]


def test_the_files_are_the_same_on_every_machine(make):
    """The bytes of a token file are a format: a changed checksum here is a new version of it."""
    data = run(make("abc\n" * 10, val_fraction=0.0))
    assert data.train.checksum == hashlib.sha256(np.array([97, 98, 99, 10] * 10, dtype="<u2").tobytes()).hexdigest()
    assert data.train.tokenizer == hashlib.sha256(b"byte\0").hexdigest()


def test_nothing_heavy_is_imported(make):
    code = (
        "import sys; from gptlab.data import prepare, order; from gptlab.data.examples import windows;"
        "heavy = {'torch', 'lightning', 'datasets', 'tiktoken', 'tokenizers', 'rich'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": SOURCE})


def test_the_progress_bar_goes_to_standard_error(make, capfd):
    prepare(make(prose(0)), ByteConfig(), progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "tokenizing" in err
    assert err.count("\n") == 1  # one line, where there is no terminal


@pytest.mark.parametrize("split", list(Split))
def test_equal_documents_are_never_in_two_splits(tmp_path, split):
    import datasets

    datasets.disable_progress_bars()
    texts = [f"document {n % 12} of few" for n in range(60)] + ["one", "two"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = HuggingFaceConfig(
        path=str(tmp_path / "t.jsonl"), split=split, val_fraction=0.3, test_fraction=0.2, cache_dir=str(tmp_path)
    )
    data = run(config)
    eot = data.tokenizer.eot
    found = {}
    for part in ("train", "val", "test"):
        ids = data.existing_part(part).tokens.tolist()
        found[part] = set(data.tokenizer.decode(ids).split(data.tokenizer.decode([eot])))
    cut = 0 if split is Split.document else 4  # documents of which a part is in another split
    whole = {part: {text for text in documents if text in texts} for part, documents in found.items()}
    assert all(whole.values())
    assert not whole["train"] & whole["val"] and not whole["train"] & whole["test"] and not whole["val"] & whole["test"]
    assert len(set.union(*whole.values())) >= 14 - cut
    assert data.train.n_bytes + data.val.n_bytes + data.test.n_bytes == sum(map(len, texts))


def test_without_equal_documents_the_splits_are_as_their_names_say(make):
    from gptlab.data.split import measure, split_documents, unit_hash

    config = make(*(f"text {n}" for n in range(40)), split=Split.document, val_fraction=0.3)
    corpus = config.build()
    part_of = split_documents(config, measure(corpus))
    for number, (name, _) in enumerate(corpus.documents()):
        assert part_of(number) == [("val" if unit_hash(name.encode()) < 0.3 else "train", 0)]


def test_what_was_left_out_is_said_at_every_start(make, tmp_path):
    config = make("one text", "two texts")
    (tmp_path / "texts" / "a.doc").write_text("x")
    (tmp_path / "texts" / ".b.txt").write_text("x")
    for _ in range(2):
        data = run(make("one text", "two texts"))
        assert "17 bytes, without 1 file with another ending, without 1 hidden file or folder" in data.description
    assert config.path


@pytest.mark.parametrize(
    ("tokenizer", "text", "lost"),
    [
        (ByteConfig(), "naïve  Text", None),
        (CharConfig(), "naïve  Text", None),
        (BPEConfig(vocab_size=300), "naïve  Text", None),
        (WordPieceConfig(vocab_size=60), "Big  words", "becomes"),
    ],
)
def test_what_encoding_loses_is_found(make, tokenizer, text, lost):
    data = run(make(f"{text} " * 50), tokenizer)
    assert (data.lost_text is None) == (lost is None) and (lost is None or lost in data.lost_text)


def test_a_file_tokenizer_is_measured(make, tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(["abc abc"], trainers.BpeTrainer(vocab_size=20, show_progress=False))
    made.save(str(tmp_path / "t.json"))
    config = TokenizerFileConfig(path=str(tmp_path / "t.json"))
    assert run(make("abc cab " * 50), config).lost_text is None
    data = run(make("abc cab xyz " * 50), config)
    assert data.lost_text is not None and "xyz" in data.lost_text
    (note,) = data.notes
    assert "no end-of-text token" in note and "tokenizer.eot=TOKEN" in note


def test_the_end_of_text_token_is_read_from_the_files_beside(make, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<begin>", "<stop>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(vocab_size=20, special_tokens=special, show_progress=False)
    made.train_from_iterator(["abc abc"], trainer)
    folder = tmp_path / "a tokenizer"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = TokenizerFileConfig(path=str(folder / "tokenizer.json"))
    corpus = make("abc", "cab", val_fraction=0.0)
    assert "<stop>" in run(corpus, config).notes[0]
    beside = [
        ("config.json", {"eos_token_id": 1}, "<stop>"),
        ("generation_config.json", {"eos_token_id": [2, 1]}, "<|eot_id|>"),
        ("tokenizer_config.json", {"eos_token": {"content": "<stop>"}}, "<stop>"),
        ("tokenizer_config.json", {"eos_token": "<|eot_id|>"}, "<|eot_id|>"),
        ("tokenizer_config.json", {"eos_token": "<elsewhere>"}, "<|eot_id|>"),
    ]
    for name, content, token in beside:
        (folder / name).write_text(json.dumps(content))
        data = run(corpus, config)
        assert data.tokenizer.eot_token == token and not data.notes
        assert data.train.tokens.tolist().count(data.tokenizer.eot) == 1
    named = TokenizerFileConfig(path=config.path, eot="<begin>")
    assert run(corpus, named).tokenizer.eot_token == "<begin>"
