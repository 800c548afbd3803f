"""Sources: what is read, in which order, and what is refused by name."""

import gzip
import hashlib
import http.server
import json
import os
import threading

import pyarrow
import pyarrow.parquet
import pytest

from gptlab import UserError
from gptlab.data.config import DataConfig
from gptlab.data.sources.config import DownloadConfig, HuggingFaceConfig, StdlibConfig, TextConfig
from gptlab.data.sources.source import SpooledCorpus


def read(config):
    return list(config.build(progress=False).documents())


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "texts"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "b.txt").write_text("b\r\ntext")
    (root / "a.md").write_text("ä text", encoding="utf-8")
    (root / "deep" / "er" / "c.py").write_text("c = 1\n")
    (root / "deep" / "Z.TXT").write_text("z")
    (root / "deep" / "d.txt.gz").write_bytes(gzip.compress("δ zipped".encode()))
    (root / "picture.png").write_bytes(b"\x89PNG\0")
    (root / ".hidden.txt").write_text("hidden_states")
    return root


DOCUMENTS = [
    ("a.md", "ä text"),
    ("b.txt", "b\r\ntext"),
    ("deep/Z.TXT", "z"),
    ("deep/d.txt.gz", "δ zipped"),
    ("deep/er/c.py", "c = 1\n"),
]


def test_a_folder_is_read_in_order(folder):
    assert read(TextConfig(path=str(folder))) == DOCUMENTS
    assert read(TextConfig(path=str(folder), extensions=["py", ".MD"])) == [DOCUMENTS[0], DOCUMENTS[4]]


def test_files_globs_and_several_paths(folder):
    assert read(TextConfig(path=str(folder / "deep" / "d.txt.gz"))) == [("d.txt.gz", "δ zipped")]
    assert read(TextConfig(path=f"{folder}/*.[mt][dx]*")) == DOCUMENTS[:2]
    assert read(TextConfig(path=f"{folder}/**/*.py")) == [DOCUMENTS[4]]
    both = TextConfig(path=str(folder / "b.txt"), paths=[str(folder / "a.md"), str(folder / "b.txt"), str(folder)])
    assert sorted(text for _, text in read(both)) == sorted(text for _, text in DOCUMENTS)
    assert len({name for name, _ in read(both)}) == 5


def test_a_bracket_in_a_name_is_no_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("one")
    assert read(TextConfig(path=str(tmp_path / "a[1].txt"))) == [("a[1].txt", "one")]


def test_files_of_one_name_keep_names_of_their_own(tmp_path):
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "f.txt").write_text(part)
    config = TextConfig(paths=[str(tmp_path / "x"), str(tmp_path / "y")])
    assert read(config) == [("f.txt", "x"), ("f.txt#2", "y")]


def test_large_files_come_in_pieces_that_make_the_whole(tmp_path):
    text = "aé漢🙂" * 200_000
    (tmp_path / "big.txt").write_text(text, encoding="utf-8")
    corpus = TextConfig(path=str(tmp_path / "big.txt")).build()
    assert len(list(corpus.chunks())) > 4
    assert list(corpus.documents()) == [("big.txt", text)]


def test_the_fingerprint_is_that_of_names_and_content(folder, tmp_path):
    def fingerprint():
        return TextConfig(path=str(folder)).build().fingerprint

    first = fingerprint()
    os.utime(folder / "b.txt", (1, 1))
    (folder / "picture.png").unlink()
    folder.rename(tmp_path / "moved")
    assert TextConfig(path=str(tmp_path / "moved")).build().fingerprint == first
    (tmp_path / "moved").rename(folder)
    (folder / "b.txt").write_text("b\ntext")
    second = fingerprint()
    (folder / "b.txt").rename(folder / "c.txt")
    assert len({first, second, fingerprint()}) == 3


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("empty.txt", b"", "is empty"),
        ("nul.txt", b"text\0text", "is binary.*NUL at byte 4"),
        ("latin.txt", "é".encode("latin-1") + b"text", "is not UTF-8"),
        ("cut.txt", "é".encode()[:1], "is not UTF-8"),
        ("empty.txt.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("fake.gz", b"no gzip", "is not a valid gzip"),
        ("short.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], "is not a valid gzip"),
        ("binary.gz", gzip.compress(b"\0", mtime=0), "is binary"),
    ],
)
def test_empty_and_binary_files_are_refused_by_name(tmp_path, name, content, why):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=f"{name} {why}"):
            read(TextConfig(path=str(path)))


def test_missing_paths_say_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path=foo\.txt does not exist; give a file, a folder or a glob"):
        read(TextConfig(path="foo.txt"))
    os.mkfifo(tmp_path / "pipe.txt")  # which nobody writes to
    with pytest.raises(ValueError, match=r"pipe\.txt is a pipe, .*; write it into a file"):
        read(TextConfig(path=str(tmp_path / "pipe.txt")))
    with pytest.raises(ValueError, match=r"data\.path is not set"):
        read(TextConfig())
    with pytest.raises(ValueError, match=r"foo\*\.txt matches no file"):
        read(TextConfig(path=f"{tmp_path}/foo*.txt"))
    with pytest.raises(ValueError, match=r"no file ending in \.csv \.gz .* \.txt \.zst; set data\.extensions"):
        read(TextConfig(path=str(tmp_path)))
    with pytest.raises(NotImplementedError, match="DataConfig has no build method"):
        DataConfig().build()


def test_the_standard_library():
    documents = read(StdlibConfig())
    names = [name for name, _ in documents]
    assert names == sorted(names) and len(names) > 400
    assert {"argparse.py", "json/decoder.py", "pydoc_data/topics.py"} <= set(names)
    assert not [name for name in names if {"test", "tests", "site-packages", "__pycache__"} & set(name.split("/"))]
    corpora = [StdlibConfig().build() for _ in range(2)]
    assert corpora[0].fingerprint == corpora[1].fingerprint


def test_stdlib_reads_another_folder_and_skips_what_is_not_text(folder):
    (folder / "tests").mkdir()
    (folder / "tests" / "t.py").write_text("no")
    (folder / "empty.py").write_text("")
    (folder / "latin.py").write_bytes(b"\xe9")
    config = StdlibConfig(path=str(folder))
    assert read(config) == [("deep/er/c.py", "c = 1\n")]
    with pytest.raises(ValueError, match="is a file"):
        read(StdlibConfig(path=str(folder / "b.txt")))
    (folder / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.py files"):
        read(StdlibConfig(path=str(folder / "none")))


PUBLISHED = b"the published text\n" * 1000


@pytest.fixture
def server():
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/missing.txt":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(PUBLISHED)))
            self.end_headers()
            self.wfile.write(PUBLISHED[:100] if self.path == "/cut.txt" else PUBLISHED)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()


@pytest.fixture
def download(tmp_path, server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def config(name="input.txt", **settings):
        settings = {"sha256": hashlib.sha256(PUBLISHED).hexdigest()} | settings
        return DownloadConfig(url=f"{server[0]}/{name}", cache_dir=str(tmp_path / "cache"), **settings)

    return config


def downloads(tmp_path):
    return [path.name for path in (tmp_path / "cache" / "downloads").iterdir()]


def test_a_download_is_fetched_once(tmp_path, server, download):
    for _ in range(2):
        assert read(download()) == [("input.txt", PUBLISHED.decode())]
    assert server[1] == ["/input.txt"]
    (name,) = downloads(tmp_path)
    (tmp_path / "cache" / "downloads" / name).write_bytes(b"altered")
    assert read(download()) == [("input.txt", PUBLISHED.decode())]
    assert len(server[1]) == 2


@pytest.mark.parametrize(
    ("name", "sha256", "why"),
    [
        ("input.txt", "0" * 64, f"sha256 {hashlib.sha256(PUBLISHED).hexdigest()}, not 0000.*data.path=FILE"),
        ("missing.txt", "", "404.*put it at .*downloads/.*-missing.txt or give it with data.path=FILE"),
        ("cut.txt", "", "cannot be downloaded .*data.path=FILE"),
    ],
)
def test_a_bad_download_leaves_nothing(tmp_path, download, name, sha256, why):
    with pytest.raises(ValueError, match=why):
        read(download(name, sha256=sha256))
    assert downloads(tmp_path) == []


def test_without_a_network_the_message_says_where_to_put_the_file(tmp_path, server, download):
    config = download()
    config.url = "http://127.0.0.1:9/input.txt"
    with pytest.raises(ValueError, match=r"either put it at (\S+) or give it with data\.path=FILE") as caught:
        read(config)
    place = str(caught.value).split("put it at ")[1].split(" or give")[0]
    with open(place, "wb") as file:
        file.write(PUBLISHED)
    assert read(config) == [("input.txt", PUBLISHED.decode())]
    config.url = "file:///etc/passwd"
    with pytest.raises(ValueError, match=r"data\.url=file:///etc/passwd is not an http"):
        read(config)


def test_a_local_copy_stands_for_the_download(tmp_path, server, download):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(PUBLISHED)
    corpus = download(path=str(copy)).build()
    assert "local copy" in corpus.description and "not the published" not in corpus.description
    copy.write_text("edited")
    corpus = download(path=str(copy)).build()
    assert list(corpus.documents()) == [("copy.txt", "edited")]
    assert "not the published file" in corpus.description
    assert server[1] == []
    with pytest.raises(ValueError, match="is a folder"):
        read(download(path=str(tmp_path)))


@pytest.fixture
def records(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    root = tmp_path / "set"
    root.mkdir()
    for split, first in (("train", 0), ("test", 100)):
        lines = [{"text": f"record {first + n}", "n": n} for n in range(6)] + [
            {"text": "", "n": 1},
            {"text": None, "n": 2},
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.mark.parametrize("streaming", [True, False])
def test_huggingface_reads_local_data_sets(records, streaming):
    def config(**settings):
        return HuggingFaceConfig(streaming=streaming, **{"path": str(records), **settings})

    assert read(config()) == [(str(n), f"record {n}") for n in range(6)]
    assert read(config(hub_split="test"))[0] == ("0", "record 100")
    assert read(config(path=str(records / "test.jsonl")))[0] == ("0", "record 100")
    assert len(read(config(max_documents=4))) == 4
    with pytest.raises(ValueError, match=r"data\.text_column=words is not a column.*n, text"):
        read(config(text_column="words"))
    with pytest.raises(ValueError, match=r"data\.text_column=n holds int"):
        read(config(text_column="n"))
    with pytest.raises(ValueError, match=rf"data\.path={records} .*hub_split=dev.* cannot be opened.*'test'") as error:
        read(config(hub_split="dev"))
    assert "network" not in str(error.value)


def test_huggingface_reads_what_save_to_disk_wrote(records, tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"text": ["one", "two"]})
    table.save_to_disk(str(tmp_path / "one"))
    assert read(HuggingFaceConfig(path=str(tmp_path / "one"))) == [("0", "one"), ("1", "two")]
    datasets.DatasetDict({"dev": table}).save_to_disk(str(tmp_path / "more"))
    assert len(read(HuggingFaceConfig(path=str(tmp_path / "more"), hub_split="dev"))) == 2


def test_huggingface_errors_name_the_setting(records):
    with pytest.raises(ValueError, match=r"data\.dataset is not set"):
        read(HuggingFaceConfig())
    with pytest.raises(ValueError, match=r"data\.path=/no/such does not exist"):
        read(HuggingFaceConfig(path="/no/such"))
    (records / "words.doc").write_text("x")
    with pytest.raises(ValueError, match=r"cannot be opened.*'\.doc' are unknown; use \.json"):
        read(HuggingFaceConfig(path=str(records / "words.doc")))


def test_huggingface_keys():
    def key(**settings):
        return HuggingFaceConfig(dataset="a/b", **settings).build().fingerprint

    same = [key(), key(streaming=False)]
    other = [key(subset="x"), key(revision="x"), key(hub_split="x"), key(text_column="x"), key(max_documents=5)]
    assert same[0] == same[1] and len({same[0], *other}) == 6


def test_a_spool_gives_the_same_documents(folder, tmp_path):
    corpus = TextConfig(path=str(folder)).build()
    spooled = SpooledCorpus(corpus, tmp_path / "spool")
    for _ in range(2):
        assert [text for _, text in spooled.documents()] == [text for _, text in corpus.documents()]
    assert spooled.n_bytes == sum(len(text.encode()) for _, text in DOCUMENTS)


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone \ufeff two".encode())
    assert read(TextConfig(path=str(tmp_path / "a.txt"))) == [("a.txt", "one \ufeff two")]
    (tmp_path / "a.txt").write_bytes("\ufeff".encode())
    with pytest.raises(ValueError, match="nothing but a byte order mark"):
        read(TextConfig(path=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_bytes("one".encode("utf-16"))
    with pytest.raises(ValueError, match="UTF-16"):
        read(TextConfig(path=str(tmp_path / "a.txt")))
    (tmp_path / "a.csv").write_bytes("\ufefftext\n\ufeffone\n".encode())
    assert read(HuggingFaceConfig(path=str(tmp_path / "a.csv"))) == [("0", "one")]


@pytest.mark.parametrize("at", [0, 7, (1 << 18) - 1, 1 << 18, (1 << 18) + 40_356])
def test_an_undecodable_byte_is_refused_at_its_place(tmp_path, at):
    for before in (b"x" * at, ("\u00e9" * (at // 2)).encode() + b"x" * (at % 2)):
        (tmp_path / "a.txt").write_bytes(before + b"\x93quoted\x94")
        with pytest.raises(ValueError, match=rf"not UTF-8 text \(invalid start byte at byte {at:,}\)"):
            read(TextConfig(path=str(tmp_path / "a.txt")))


def test_links_are_followed_and_what_is_left_out_is_counted(tmp_path):
    root = tmp_path / "root"
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (root / "sub").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "c.txt").write_text("linked folder")
    (tmp_path / "plain.txt").write_text("linked file")
    (root / "b.txt").write_text("own")
    (root / "l.txt").symlink_to(tmp_path / "plain.txt")
    (root / "far").symlink_to(tmp_path / "far")
    (root / "sub" / "loop").symlink_to(root)
    corpus = TextConfig(path=str(root)).build()
    assert list(corpus.documents()) == [("b.txt", "own"), ("far/deep/c.txt", "linked folder"), ("l.txt", "linked file")]
    assert corpus.left_out == ["1 link to what is read already"]
    (root / "again.txt").symlink_to(root / "b.txt")
    (root / ".hidden.txt").write_text("x")
    (root / "d.doc").write_text("x")
    (root / "e.doc").write_text("x")
    corpus = TextConfig(path=str(root)).build()
    assert [name for name, _ in corpus.documents()] == ["b.txt", "far/deep/c.txt", "l.txt"]
    counts = ["2 files with another ending", "1 hidden file or folder", "2 links to what is read already"]
    assert corpus.left_out == counts


@pytest.mark.parametrize("folder", [False, True])
def test_text_that_other_readers_take_for_missing_or_a_number_is_kept(tmp_path, records, folder):
    texts = ["NA", "null", "None", "nan", "N/A", "1.10", "007", "true", "", "words"]
    (tmp_path / "na").mkdir()
    (tmp_path / "na" / "train.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    path = tmp_path / "na" if folder else tmp_path / "na" / "train.csv"
    for settings in ({"path": str(path)}, {"dataset": str(path)})[: 1 + folder]:
        corpus = HuggingFaceConfig(**settings).build()
        assert [text for _, text in corpus.documents()] == [text for text in texts if text]
        assert corpus.left_out == ["1 record without text"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.json.gz"])
def test_a_field_that_changes_its_type_late_is_no_obstacle(tmp_path, records, name):
    import gzip

    lines = [json.dumps({"text": f"words {n}", "meta": n if n < 50 else f"no {n}"}) + "\n" for n in range(60)]
    (tmp_path / "late").mkdir()
    content = "".join(lines).encode()
    (tmp_path / "late" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for path in (tmp_path / "late", tmp_path / "late" / name):
        assert read(HuggingFaceConfig(path=str(path)))[-1] == ("59", "words 59")
    (tmp_path / "late" / name).unlink()
    (tmp_path / "late" / "train.jsonl").write_text("".join(lines) + '{"text": 60, "meta": 1}\n')
    with pytest.raises(ValueError, match=r"record 61.*data\.text_column=text holds int"):
        read(HuggingFaceConfig(path=str(tmp_path / "late")))


def test_tables_are_documents_by_their_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n\n{"text": "\ufefftwo"}\n{"text": null}')
    (tmp_path / "b.csv.zst").write_bytes(pyarrow.compress(b'n,text\n1,"th,ree"\n2,\n3,NA\n', "zstd", True))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["five", None], "n": [1, 2]}), tmp_path / "c.parquet")
    config = TextConfig(path=str(tmp_path))
    corpus = config.build(progress=False)
    found = list(corpus.documents())
    assert found == [("a.jsonl#0", "one"), ("a.jsonl#1", "two"), ("b.csv.zst#0", "th,ree"), ("b.csv.zst#2", "NA"),
                     ("c.parquet#0", "five")]  # fmt: skip
    assert corpus.left_out == ["3 records without text"]
    assert corpus.n_bytes_read == corpus.n_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    later = [(one.section, one.number, "".join(one.texts())) for one in corpus.documents_from(2)]
    assert later == [(2, 0, "five"), (2, 1, "")]
    other = TextConfig(path=str(tmp_path), text_column="n", extensions=[".csv"])
    assert [text for _, text in read(other)] == ["1", "2", "3"]
    assert other.build().fingerprint != TextConfig(path=str(tmp_path), extensions=["csv"]).build().fingerprint
    plain = TextConfig(path=str(tmp_path / "a.jsonl"), text_column=None)
    assert read(plain) == [("a.jsonl", (tmp_path / "a.jsonl").read_text())]


def test_a_folder_of_text_and_tables_is_refused_until_one_is_named(tmp_path):
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}'))
    with pytest.raises(ValueError, match=r"tables, such as a\.jsonl\.gz, and text, such as README\.md.*=\[\.jsonl\]"):
        read(TextConfig(path=str(tmp_path)))
    assert read(TextConfig(path=str(tmp_path), extensions=[".jsonl"])) == [("a.jsonl.gz#0", "one")]
    assert len(read(TextConfig(path=str(tmp_path), extensions=[".jsonl", ".md"]))) == 2
    assert read(TextConfig(path=str(tmp_path), text_column=None))[0] == ("README.md", "about")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b'{"text": 3}', "record 1 of .*a.jsonl: data.text_column=text holds int, not text"),
        ("a.jsonl", b'{"body": ""}', "record 1 of .*: data.text_column=text is not a column; there are body; name one"),
        ("a.csv.zst", b"no zstd", r"a\.csv\.zst is not a valid Zstandard file"),
        (
            "a.txt.zst",
            pyarrow.compress(b"text" * 1000, "zstd", True)[:-4],
            r"a\.txt\.zst is not a valid Zstandard file",
        ),
        ("a.parquet", b"no parquet", r"a\.parquet is not a valid Parquet file"),
        ("a.parquet.gz", b"", "has its own compression; decompress it"),
    ],
)
def test_tables_without_text_are_refused_by_name(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why):
        read(TextConfig(path=str(tmp_path / name)))


def test_parquet_columns_that_hold_no_text(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(UserError, match="holds int64, not text"):
        read(TextConfig(path=str(path)))
    with pytest.raises(UserError, match="text_column=body is not a column"):
        read(TextConfig(path=str(path), text_column="body"))
    words = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": words}), path)
    assert [text for _, text in read(TextConfig(path=str(path)))] == ["a", "b", "a"]


def test_zstandard_of_several_frames(tmp_path):
    frames = [pyarrow.compress(text.encode(), "zstd", True) for text in ("one ", "two ", "three")]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert read(TextConfig(path=str(tmp_path / "a.txt.zst"))) == [("a.txt.zst", "one two three")]


def test_an_address_never_shows_a_password():
    with pytest.raises(UserError) as caught:
        read(TextConfig(path="nope://me:SECRET@host/a.txt"))
    assert "SECRET" not in str(caught.value) and "nope://me:***@host" in str(caught.value)
