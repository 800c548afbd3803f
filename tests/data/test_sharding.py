"""Token shards: the same ones from any format, on any number of processes, and whenever a process was killed."""

import csv
import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from file_server import serving

from gptlab import UserError
from gptlab.data import shard_writer, sharding
from gptlab.data.config import Split
from gptlab.data.prepare import known_tokens, prepare
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources import remote
from gptlab.data.sources.config import HuggingFaceConfig, ShardsConfig, StdlibConfig, TableConfig, TextConfig
from gptlab.data.sources.remote import Place
from gptlab.data.token_file import TokenFile
from gptlab.data.token_shards import TokenShards, open_folder, read_manifest, verify_shards
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.config import BPEConfig, ByteConfig, CharConfig, TokenizerFileConfig, WordPieceConfig

SHARD_TOKENS = 700


def texts(n=60):
    draw = random.Random(0)
    words = ["the", "cat's", "12", "mats\n\n\tsat", '"on"', "éa漢", "it;", "see,"]
    found = [" ".join(draw.choices(words, k=draw.randint(1, 30))) for _ in range(n)]
    return [*found, found[3], found[7]]  # some twice


TEXTS = texts()


def written(root, name, texts=TEXTS):
    """The texts in a folder in one format."""
    root.mkdir()
    inner, *packed = name.split(".")[1:]
    pack = {"gz": lambda data: gzip.compress(data, mtime=0), "zst": lambda data: pyarrow.compress(data, "zstd", True)}
    packer = pack[packed[0]] if packed else lambda data: data
    if inner == "txt":
        for number, text in enumerate(texts):
            (root / f"{number:03d}.{name.partition('.')[2]}").write_bytes(packer(text.encode()))
        return root
    if inner == "parquet":
        table = pyarrow.table({"id": range(len(texts)), "text": texts})
        pyarrow.parquet.write_table(table, root / name, row_group_size=17)
        return root
    if inner in ("csv", "tsv"):
        with open(root / "plain", "w", newline="") as file:
            writer = csv.writer(file, delimiter="," if inner == "csv" else "\t")
            writer.writerows([["id", "text"], *enumerate(texts)])
        content = (root / "plain").read_bytes()
        (root / "plain").unlink()
    else:
        records = [json.dumps({"id": n, "text": text}) for n, text in enumerate(texts)]
        content = ("\n".join(records) if inner == "jsonl" else f"[{','.join(records)}]").encode()
    (root / name).write_bytes(packer(content))
    return root / name


def config(path, **settings):
    given = {"n_processes": 1, "split": Split.document, "val_fraction": 0.2, **settings}
    return TextConfig(path=str(path), cache_dir=f"{path.parent}/cache", **given)


def shards(data, folder, tokenizer=None, shard_tokens=SHARD_TOKENS):
    prepare_shards(data, tokenizer or ByteConfig(), folder, shard_tokens=shard_tokens)
    return content(folder)


def content(folder):
    """All but the manifest, which names the source."""
    skipped = {".lock", "manifest.json"}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in skipped}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    root = tmp_path_factory.mktemp("expected")
    return shards(config(written(root / "a.txt", "a.txt")), root / "out")


def tokens(content, part):
    names = sorted(name for name in content if name.startswith(part))
    return np.concatenate([np.frombuffer(content[name][4096:], dtype="<u2") for name in names]).tolist()


def test_shards_are_the_documents_of_a_split_one_after_the_other(expected):
    """Counted by hand: a byte is its own id, 257 entries, 256 ends a document."""
    ids = {"train": [], "val": []}
    for text in TEXTS:
        unit = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        part = ids["val" if unit < 0.2 else "train"]
        part += [256] * bool(part) + list(text.encode())
    assert min(map(len, ids.values())) > SHARD_TOKENS
    for part, found in ids.items():
        assert tokens(expected, part) == found
        assert {name for name in expected if name.startswith(part)} == {
            f"{part}-{n:05d}.bin" for n in range(-(-len(found) // SHARD_TOKENS))
        }


FORMATS = "a.txt.gz a.txt.zst a.jsonl a.jsonl.gz a.jsonl.zst a.json a.csv a.csv.zst a.tsv.gz a.parquet".split()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_shards(tmp_path, expected, name):
    assert shards(config(written(tmp_path / "in", name)), tmp_path / "out") == expected


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_of_hugging_face_gives_the_same_shards(tmp_path, expected, streaming):
    root = written(tmp_path / "in", "a.parquet")
    data = HuggingFaceConfig(path=str(root), streaming=streaming, val_fraction=0.2, cache_dir=str(tmp_path / "cache"))
    assert shards(data, tmp_path / "out") == expected


def test_addresses_give_the_same_shards(tmp_path, expected):
    memory = fsspec.filesystem("memory")
    for path in written(tmp_path / "in", "a.txt").iterdir():
        memory.pipe(f"/corpus/{path.name}", path.read_bytes())
    local = config(tmp_path / "in")
    try:
        data = TextConfig(path="memory://corpus", split=Split.document, val_fraction=0.2, cache_dir=local.cache_dir)
        assert shards(data, tmp_path / "out") == expected
        data.path = "memory://corpus/0*.txt"
        assert shards(data, tmp_path / "glob") == expected
        memory.pipe("/corpus/001.txt", b"another")
        with pytest.raises(UserError, match="another source"):
            shards(data, tmp_path / "out")
    finally:
        memory.rm("/corpus", recursive=True)
    with pytest.raises(UserError, match=r"memory://corpus does not exist"):
        shards(TextConfig(path="memory://corpus", split=Split.document), tmp_path / "new")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(remote, "WAITS_SECONDS", (0.0,) * 3)
    monkeypatch.setattr(remote, "FIRST_WAITS_SECONDS", (0.0,) * 3)


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("a.txt", False),
        ("a.jsonl", False),
        ("a.jsonl.gz", True),
        ("a.csv.zst", True),
        ("a.json", False),
        ("a.parquet", True),
    ],
)
def test_a_server_that_fails_now_and_then_gives_the_same_shards(tmp_path, expected, name, ranges):
    source = written(tmp_path / "in", name)
    root = source if source.is_dir() else source.parent
    with serving(root, ranges=ranges, broken=2, busy=1, piece_bytes=500) as server:
        url = f"{server.url}/*{Path(name).suffix}" if source.is_dir() else f"{server.url}/{name}"
        data = TextConfig(path=url, split=Split.document, val_fraction=0.2, cache_dir=str(tmp_path / "cache"))
        assert shards(data, tmp_path / "out") == expected
        assert (server.broken, server.busy) == (0, 0)
        server.busy = 100
        with pytest.raises(UserError, match=r"4 attempts.*503"):
            shards(TextConfig(path=f"{server.url}/b.txt", split=Split.document), tmp_path / "new")


def at(url):
    """What is in a folder at an address, as `content`."""
    system, path = fsspec.core.url_to_fs(url)
    files = {info["name"].rsplit("/", 1)[-1]: system.cat_file(info["name"]) for info in system.ls(path, detail=True)}
    return {name: files[name] for name in sorted(files) if name != "manifest.json"}


@pytest.fixture
def addresses(tmp_path):
    yield ["memory://out", f"{tmp_path.as_uri()}/far away", f"dir://inner::{tmp_path.as_uri()}/outer"]
    memory = fsspec.filesystem("memory")
    if memory.exists("/out"):
        memory.rm("/out", recursive=True)


def test_shards_are_written_to_addresses(tmp_path, expected, addresses):
    data = config(written(tmp_path / "in", "a.txt"))
    work = tmp_path / "cache" / "prepare"
    for url in addresses:
        manifest = prepare_shards(data, ByteConfig(), url, shard_tokens=SHARD_TOKENS)
        assert at(url) == expected and not list(work.iterdir())
        assert read_manifest(open_folder(url)) == manifest
        assert not any(error for _, error in verify_shards(open_folder(url), 2))
        assert prepare_shards(data, ByteConfig(), f"{url}/", shard_tokens=SHARD_TOKENS) == manifest  # left as it is
        with pytest.raises(UserError, match=r"was prepared with shard_tokens=700, not 5"):
            prepare_shards(data, ByteConfig(), url, shard_tokens=5)
    system, path = fsspec.core.url_to_fs(addresses[1])
    system.rm_file(f"{path}/train-00001.bin")
    with pytest.raises(UserError, match=r"far away/train-00001\.bin is missing"):
        prepare_shards(data, ByteConfig(), addresses[1], shard_tokens=SHARD_TOKENS)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz"])
def test_writing_to_an_address_goes_on(tmp_path, expected, monkeypatch, name):
    """After a death at any fsync or rename; with the folder of work, and on another machine, which has none."""
    source = written(tmp_path / "in", name)
    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 200)
    for n_calls in (3, 9, 20, 31, 44, 60, 90):
        url = f"{tmp_path.as_uri()}/out{n_calls}"
        interrupt(monkeypatch, n_calls, lambda url=url: shards_at(config(source), url))
        before = at(url) if (tmp_path / f"out{n_calls}").exists() else {}
        assert all(expected[name] == before[name] for name in before if name.endswith(".bin"))  # whole ones alone
        if n_calls % 2:
            shutil.rmtree(tmp_path / "cache" / "prepare", ignore_errors=True)
        uploads: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(Place, "upload", recording(Place.upload, uploads))
            shards_at(config(source), url)
        assert {name: data for name, data in at(url).items() if name in expected} == expected
        assert not {name for name in before if name.endswith(".bin")} & set(uploads)


def recording(upload, names):
    def recorded(self, file, name):
        names.append(name)
        upload(self, file, name)

    return recorded


def shards_at(data, url):
    prepare_shards(data, ByteConfig(), url, shard_tokens=SHARD_TOKENS)


def test_an_address_that_cannot_be_written_to(tmp_path, expected, monkeypatch):
    data = config(written(tmp_path / "in", "a.txt"))
    with serving(tmp_path) as server, pytest.raises(UserError, match=r"tokenizer\.json cannot be written to http"):
        shards_at(data, f"{server.url}/new")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files, such as notes\.md"):
        shards_at(data, (tmp_path / "other").as_uri())
    with pytest.raises(UserError, match=r"to=s3://me:\*\*\*@bucket has a password"):
        shards_at(data, "s3://me:hunter2@bucket")
    url, real = (tmp_path / "full").as_uri(), Place.upload

    def failing(self, file, name):
        if name == "train-00002.bin":
            raise UserError("the network is down")
        real(self, file, name)

    monkeypatch.setattr(Place, "upload", failing)
    with pytest.raises(UserError, match="network is down"):
        shards_at(data, url)
    monkeypatch.setattr(Place, "upload", real)
    assert sharding.is_begun(url, data.cache_dir)
    (tmp_path / "full" / "train-00000.bin").unlink()
    with pytest.raises(UserError, match=r"full/train-00000\.bin is not there as it was written"):
        shards_at(data, url)


def test_two_processes_give_the_same_shards(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(sharding, "_SMALL_CORPUS_BYTES", 0)
    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 300)
    monkeypatch.setattr("gptlab.data.tokenizers.byte.ByteTokenizer.one_process", False)
    assert shards(config(written(tmp_path / "in", "a.jsonl"), n_processes=2), tmp_path / "out") == expected


@pytest.mark.parametrize("tokenizer", [BPEConfig(vocab_size=300), CharConfig()])
def test_trained_tokenizers_learn_the_same_from_any_format(tmp_path, tokenizer):
    found = [
        shards(config(written(tmp_path / name, name)), tmp_path / f"out {name}", tokenizer)
        for name in ("a.txt", "a.csv")
    ]
    assert found[0] == found[1]
    if tokenizer.type == "bpe":  # from the training split alone
        train = [t for t in TEXTS if int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") / 2**64 >= 0.2]
        learned = BPETokenizer.train(300, train)
        assert json.loads(found[0]["tokenizer.json"])["fingerprint"] == learned.fingerprint


def test_a_long_document_is_never_in_memory_and_has_the_same_tokens(tmp_path, monkeypatch):
    text = "".join(TEXTS) * 40 + "a" * 40_000  # without a place to cut at its end
    (tmp_path / "long.txt").write_text(text)
    whole = shards(config(tmp_path / "long.txt", val_fraction=0.0), tmp_path / "out", BPEConfig(vocab_size=300))
    tokenizer = TokenizerFileConfig(path=str(tmp_path / "out" / "tokenizer.json"))
    assert tokens(whole, "train") == tokenizer.build(lambda: iter(())).encode(text).tolist()
    monkeypatch.setattr(sharding, "_HELD_CHARACTERS", 100)
    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 5_000)
    data, others = config(tmp_path / "long.txt", val_fraction=0.0), []
    for stop in range(2, 60, 9):  # most of them in the middle of the document
        out = tmp_path / f"out{stop}"
        interrupt(monkeypatch, stop, lambda out=out: shards(data, out, tokenizer))
        others.append(shards(data, out, tokenizer))
    for other in others:
        assert {name: other[name] for name in other if name.endswith(".bin")} == {
            name: whole[name] for name in whole if name.endswith(".bin")
        }


def interrupt(monkeypatch, n_calls, work):
    """Do some work in a process that dies, as far as the disk can tell, at the n-th fsync or rename."""
    left = [n_calls]
    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            real = getattr(os, name)

            def dying(*arguments, real=real):
                left[0] -= 1
                if left[0] <= 0:
                    raise OSError(errno.EIO, "dead")
                return real(*arguments)

            patch.setattr(os, name, dying)
        try:
            work()
        except OSError:
            return True
    return False


@pytest.mark.parametrize(("name", "step"), [("a.txt", 2), ("a.jsonl.gz", 5)])
def test_a_process_that_dies_anywhere_is_continued(tmp_path, expected, monkeypatch, name, step):
    source = written(tmp_path / "in", name)
    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 200)
    died, n_calls = True, 0
    while died:
        n_calls += step
        out = tmp_path / f"out{n_calls}"
        died = interrupt(monkeypatch, n_calls, lambda out=out: shards(config(source), out))
        finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.bin")}
        assert shards(config(source), out) == expected
        assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished  # not done again
    assert n_calls > 20


def test_a_killed_process_is_continued(tmp_path, expected):
    source = written(tmp_path / "in", "a.csv")
    program = f"""
import os, signal
from gptlab.data import shard_writer, sharding
from gptlab.data.config import Split
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.config import ByteConfig
sharding.JOB_CHARACTERS = 200
publish = shard_writer.ShardWriter.publish
def killed(self):
    publish(self)
    if len(self.finished) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
shard_writer.ShardWriter.publish = killed
data = TextConfig(path={str(source)!r}, n_processes=1, split=Split.document, val_fraction=0.2)
sharding.prepare_shards(data, ByteConfig(), {str(tmp_path / "out")!r}, shard_tokens={SHARD_TOKENS})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.bin")}
    assert len(before) >= 4 and not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(UserError, match="is not finished"):
        read_manifest(tmp_path / "out")
    assert shards(config(source), tmp_path / "out") == expected
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before


def test_a_finished_folder_is_left_alone_and_others_are_refused(tmp_path, expected):
    source = written(tmp_path / "in", "a.txt")
    out = tmp_path / "out"
    shards(config(source), out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    assert shards(config(source), out) == expected
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for change, what in (
        (lambda: shards(config(source), out, shard_tokens=9), "shard_tokens=700, not 9"),
        (lambda: shards(config(source, val_fraction=0.1), out), r"data\.val_fraction=0\.2, not 0\.1"),
        (lambda: shards(config(source), out, CharConfig()), "another tokenizer"),
        (lambda: shards(config(written(tmp_path / "b", "a.csv")), out), "another source"),
    ):
        with pytest.raises(UserError, match=f"{what}.*to="):
            change()
    (source / "005.txt").write_text("changed")
    with pytest.raises(UserError, match=r"such as 005\.txt"):
        shards(config(source), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds other files, such as letter\.txt"):
        shards(config(source), tmp_path / "mine")


def test_a_source_may_change_where_it_was_not_read(tmp_path, monkeypatch):
    source = written(tmp_path / "in", "a.txt")
    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 200)
    (source / "040.txt").write_bytes(b"binary\0")
    for number in range(2):
        with pytest.raises(UserError, match=r"040\.txt is binary"):
            shards(config(source), tmp_path / f"out{number}")
    before = {path.name for path in (tmp_path / "out0").glob("*.bin")}
    assert before
    (source / "040.txt").write_text("mended")
    found = shards(config(source), tmp_path / "out0")
    assert found == shards(config(source), tmp_path / "new")
    (source / "001.txt").write_text("changed")
    with pytest.raises(UserError, match=r"read already and have changed, such as 001\.txt"):
        shards(config(source), tmp_path / "out1")


def test_a_source_that_changed_the_vocabulary_is_refused(tmp_path, monkeypatch):
    tokenizer = BPEConfig(vocab_size=270)
    source = written(tmp_path / "in", "a.txt")
    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 200)
    assert interrupt(monkeypatch, 20, lambda: shards(config(source), tmp_path / "out", tokenizer))
    assert (tmp_path / "out" / sharding.PROGRESS).exists()
    last = max(source.glob("*.txt"))
    last.write_text("quite another text, zzzz qqqq zzzz qqqq " * 40)
    for number in range(30):
        (source / f"99{number}.txt").write_text(f"more {number} " * 9)
    with pytest.raises(UserError, match=r"have changed since .*, and with them the splits or the vocabulary"):
        shards(config(source), tmp_path / "out", tokenizer)


def test_a_table_that_changed_before_the_place_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 200)
    source = written(tmp_path / "in", "a.jsonl")
    lines = source.read_text().split("\n")
    source.write_text("\n".join([*lines[:50], "{", *lines[50:]]))
    for name in ("a", "b"):
        with pytest.raises(UserError, match="line 51: not JSON"):
            shards(config(source), tmp_path / name)
    source.write_text("\n".join(lines))  # mended behind the place
    assert shards(config(source), tmp_path / "a") == shards(config(source), tmp_path / "new")
    source.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match="has changed where it was read already"):
        shards(config(source), tmp_path / "b")


def test_what_cannot_be_sharded_is_refused(tmp_path):
    source = written(tmp_path / "in", "a.txt")
    with pytest.raises(UserError, match="split by document"):
        shards(config(source, split=Split.fraction), tmp_path / "out")
    with pytest.raises(UserError, match="shard_tokens=0"):
        shards(config(source), tmp_path / "out", shard_tokens=0)
    table = TableConfig(path=str(source / "x.csv"), label_column="a", class_names=["b", "c"])
    (source / "x.csv").write_text("text,a\nb,b\n")
    with pytest.raises(UserError, match="has records"):
        shards(table, tmp_path / "out")
    with pytest.raises(UserError, match="tokenized already"):
        shards(ShardsConfig(path="x"), tmp_path / "out")
    (tmp_path / "one.txt").write_text("one document")
    with pytest.raises(UserError, match=r"train, val and the corpus has 1; set data\.val_fraction=0"):
        shards(config(tmp_path / "one.txt"), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        shards(config(source, extensions=[".txt"]), tmp_path / "file" / "out")


def test_small_corpora_have_every_split(tmp_path):
    source = written(tmp_path / "in", "a.jsonl", ["a", "b", "c"])
    found = shards(config(source, val_fraction=0.001, test_fraction=0.001), tmp_path / "out")
    assert sorted(tokens(found, "train") + tokens(found, "val") + tokens(found, "test")) == list(b"abc")


def test_records_without_text_are_counted(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.jsonl").write_text('{"text": ""}\n{"text": "one"}\n{"text": null}\n{"text": "two"}\n{"text": ""}')
    shards(config(root / "a.jsonl", val_fraction=0.0), tmp_path / "out")
    found = read_manifest(tmp_path / "out").documents
    assert found["left_out"] == ["3 records without text"] and found["n_documents"] == 2
    assert (found["n_tokens"], found["n_bytes"], found["n_characters"]) == (7, 6, 6)


def test_documents_are_counted_in_the_shard_in_which_they_begin(tmp_path):
    source = written(tmp_path / "in", "a.jsonl", ["abcd", "é", "xyz" * 4, "w"])
    shards(config(source, val_fraction=0.0), tmp_path / "out", shard_tokens=5)
    # abcd| é|xyzxyz..|w, 4 + 3 + 13 + 2 tokens, of which | and what follows it are of one document
    found = read_manifest(tmp_path / "out").shards["train"]
    assert [(s.n_tokens, s.n_documents, s.n_bytes, s.n_characters) for s in found] == [
        (5, 2, 6, 5), (5, 1, 12, 12), (5, 0, 0, 0), (5, 0, 0, 0), (2, 1, 1, 1)
    ]  # fmt: skip


def test_what_a_tokenizer_loses_is_in_the_manifest(tmp_path):
    source = written(tmp_path / "in", "a.jsonl", ["Big  word"] * 5)
    prepare_shards(config(source, val_fraction=0.0), WordPieceConfig(vocab_size=40), tmp_path / "o", shard_tokens=9)
    assert "Big  word" in read_manifest(tmp_path / "o").documents["lost_text"]


def test_a_corpus_that_only_has_chunks(tmp_path):
    class Small(StdlibConfig):
        def build(self, *, progress=True):
            corpus = config(written(tmp_path / f"in{len(list(tmp_path.iterdir()))}", "a.txt")).build()

            class Chunks(sharding.Corpus):
                description, fingerprint = "chunks", "0" * 64

                def chunks(self):
                    return corpus.chunks()

            return Chunks()

    small = Small(val_fraction=0.2, n_processes=1)
    small.type = "stdlib"
    source = config(written(tmp_path / "in", "a.txt"))
    assert shards(small, tmp_path / "out") == shards(source, tmp_path / "out2")


@pytest.fixture
def prepared(tmp_path):
    out = tmp_path / "my shards"
    shards(config(written(tmp_path / "in", "a.txt")), out)
    return out


def opened(folder, tokenizer=None, **settings):
    own = TokenizerFileConfig(path=str(folder / "tokenizer.json"))
    return prepare(ShardsConfig(path=str(folder), **settings), tokenizer or own, progress=False)


def test_a_split_of_shards_is_like_one_token_file(prepared, expected, tmp_path):
    data = opened(prepared)
    assert isinstance(data.train, TokenShards) and data.test is None
    ids = tokens(expected, "train")
    one = TokenFile.open(write_one(tmp_path / "one.bin", ids))
    assert data.train.tokens[:].tolist() == ids and len(data.train) == len(ids)
    assert data.train.positions(256).tolist() == one.positions(256).tolist()
    assert data.train.unigram_entropy() == one.unigram_entropy()
    assert data.train.n_bytes == one.n_bytes + sum(len(t.encode()) for t in train_texts())
    assert known_tokens(ShardsConfig(path=str(prepared)), ByteConfig()) == len(ids)
    assert opened(prepared, ByteConfig()).fingerprint == data.fingerprint
    assert opened(prepared, val_fraction=0.0).val is None


def train_texts():
    return [t for t in TEXTS if int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") / 2**64 >= 0.2]


def write_one(path, ids):
    from gptlab.data.token_file import TokenWriter

    with TokenWriter(path, vocab_size=257, tokenizer="one") as writer:
        writer.write(np.array(ids))
    return path


def test_damage_is_refused_with_the_name_of_the_shard(prepared, tmp_path):
    first, second = prepared / "train-00000.bin", prepared / "train-00001.bin"
    whole = first.read_bytes()

    def damaged():
        return [(shard.name, str(error)) for shard, error in verify_shards(prepared, 2) if error is not None]

    assert not damaged()
    for at in (3, 9, 25, 2000, 4096, 5000):  # magic, version, header, padding, ids
        first.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        ((name, why),) = damaged()
        assert name == "train-00000.bin" and "train-00000.bin" in why and "gptlab prepare" in why
        if at < 4096:
            with pytest.raises(UserError, match=r"train-00000\.bin"):
                opened(prepared)
        else:
            opened(prepared)  # the ids are not read at every start
            with pytest.raises(UserError, match=r"train-00000\.bin: its contents were altered"):
                prepare(ShardsConfig(path=str(prepared)), ByteConfig(), verify=True)
    for content in (whole[:-2], whole + b"ab", b"", second.read_bytes()):
        first.write_bytes(content)
        assert [name for name, _ in damaged()] == ["train-00000.bin"]
        with pytest.raises(UserError, match=r"train-00000\.bin"):
            opened(prepared)
    first.unlink()
    (prepared / "val-00000.bin").unlink()
    assert [name for name, _ in damaged()] == ["train-00000.bin", "val-00000.bin"]
    with pytest.raises(UserError, match=r"train-00000\.bin does not exist; restore it"):
        opened(prepared)


def test_a_shard_of_another_tokenizer_is_refused(prepared, tmp_path):
    other = tmp_path / "other"
    shards(config(tmp_path / "in"), other, BPEConfig(vocab_size=300))
    (other / "val-00000.bin").rename(prepared / "val-00000.bin")
    with pytest.raises(UserError, match=r"val-00000\.bin was made by another tokenizer"):
        opened(prepared)
    with pytest.raises(UserError, match=r"tokenized with bpe.*leave tokenizer= out"):
        opened(other, ByteConfig())
    with pytest.raises(UserError, match="would learn another vocabulary"):
        opened(other, BPEConfig(vocab_size=300))
    (prepared / "tokenizer.json").rename(other / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer of the shards"):
        list(verify_shards(other, 1))


def test_an_altered_manifest_is_refused(prepared):
    path = prepared / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"n_tokens": 700', '"n_tokens": 701', 1))
    with pytest.raises(UserError, match=r"manifest\.json was altered"):
        opened(prepared, ByteConfig())
    path.write_text(text[:-9])
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        opened(prepared, ByteConfig())
    path.unlink()
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        opened(prepared, ByteConfig())
    with pytest.raises(UserError, match="does not exist; name a folder"):
        opened(Path("nowhere"), ByteConfig())


def test_splits_that_are_not_there(tmp_path):
    shards(config(written(tmp_path / "in", "a.txt"), val_fraction=0.0), tmp_path / "out")
    with pytest.raises(UserError, match=r"no validation split; set data\.val_fraction=0"):
        opened(tmp_path / "out")
    assert opened(tmp_path / "out", val_fraction=0.0).val is None
    for name, value in (("val_fraction", 0.1), ("n_processes", 2), ("split", Split.fraction), ("path", None)):
        with pytest.raises(UserError, match=rf"data\.{name}"):
            opened(tmp_path / "out", **{name: value}) if name != "path" else ShardsConfig().check()


def test_a_full_disk_says_how_to_go_on(tmp_path, expected, monkeypatch):
    source = written(tmp_path / "in", "a.txt")
    real, left = shard_writer.os.fsync, [6]

    def full(descriptor):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(sharding, "JOB_CHARACTERS", 200)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            shards(config(source), tmp_path / "out")
    assert shards(config(source), tmp_path / "out") == expected


def test_two_at_once_are_refused(tmp_path):
    from gptlab.files import locked

    source = written(tmp_path / "in", "a.txt")
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another process prepares"):
        shards(config(source), tmp_path / "out")
