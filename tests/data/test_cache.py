"""What was read once is not read again, and a changed file is always noticed."""

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from gptlab.data import cache
from gptlab.data.prepare import prepare
from gptlab.data.sources.config import TableConfig, TextConfig
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.tokenizers.config import ByteConfig


@pytest.fixture
def settled(monkeypatch):
    """Trust the ctime of files that were just written."""
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read for their checksum, in order."""
    names = []
    whole = cache.sha256_of

    def watched(path):
        names.append(path.name)
        return whole(path)

    monkeypatch.setattr(cache, "sha256_of", watched)
    return names


def write(path, content):
    path.write_text(content)
    time.sleep(0.02)  # longer than a tick of the file system's clock
    return path


def expected(*paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_only_changed_files_are_read_again(tmp_path, settled, read):
    files = [write(tmp_path / f"{name}.txt", f"text {name}") for name in "abc"]
    for _ in range(3):
        assert cache.checksums(files, str(tmp_path / "cache")) == expected(*files)
    assert read == ["a.txt", "b.txt", "c.txt"]
    write(files[1], "new text")
    assert cache.checksums(files, str(tmp_path / "cache")) == expected(*files)
    more = [*files, write(tmp_path / "d.txt", "text d")]
    assert cache.checksums(more, str(tmp_path / "cache")) == expected(*more)
    assert read == ["a.txt", "b.txt", "c.txt", "b.txt", "d.txt"]


def test_a_replaced_file_of_the_same_path_size_and_mtime_is_noticed(tmp_path, settled, read):
    path, other = write(tmp_path / "a.txt", "one"), write(tmp_path / "other", "two")
    cache.checksums([path], str(tmp_path / "cache"))
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert cache.checksums([path], str(tmp_path / "cache")) == expected(path)
    assert read == ["a.txt", "a.txt"]


def test_a_file_that_was_just_written_is_not_trusted(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_text("one")
    for _ in range(2):
        assert cache.checksums([path], str(tmp_path / "cache")) == expected(path)
    assert read == ["a.txt", "a.txt"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 500, b"{}", b"flip"])
def test_a_damaged_cache_is_ignored(tmp_path, settled, read, damage):
    path = write(tmp_path / "a.txt", "one")
    cache.checksums([path], str(tmp_path / "cache"))
    (remembered,) = (tmp_path / "cache" / "fingerprints").iterdir()
    content = bytearray(remembered.read_bytes())
    content[-10] ^= 1
    remembered.write_bytes(bytes(content) if damage == b"flip" else damage)
    for _ in range(2):
        assert cache.checksums([path], str(tmp_path / "cache")) == expected(path)
    assert read == ["a.txt", "a.txt"]


def test_without_a_usable_cache_folder_files_are_read(tmp_path, settled, read):
    path = write(tmp_path / "a.txt", "one")
    for _ in range(2):
        assert cache.checksums([path], str(path / "cache")) == expected(path)
    assert read == ["a.txt", "a.txt"]


RANK = """
import sys, time
from pathlib import Path
from gptlab.data import cache
cache._SETTLED_NS = 0
whole = cache.sha256_of
def slow(path):
    time.sleep(0.3)
    print("read")
    return whole(path)
cache.sha256_of = slow
print(cache.checksums([Path(sys.argv[1])], sys.argv[2])[0])
"""


def test_of_processes_that_start_at_once_one_reads(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    command = [sys.executable, "-c", RANK, str(path), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0].split() for process in processes]
    assert sorted(map(len, answers)) == [1, 1, 2]
    assert {answer[-1] for answer in answers} == set(expected(path))


def tokens(path, n=1000):
    with TokenWriter(path, vocab_size=300, tokenizer="x") as writer:
        writer.write(np.arange(n) % 300)
    return path


def test_token_files_are_verified_once_and_on_request(tmp_path, monkeypatch):
    path = tokens(tmp_path / "t.bin")
    verified = []
    whole = TokenFile.verify
    monkeypatch.setattr(TokenFile, "verify", lambda self: (verified.append(self.path.name), whole(self)))
    for verify, n in ((None, 1), (None, 1), (False, 1), (True, 2), (None, 2)):
        TokenFile.open(path, verify=verify)
        assert len(verified) == n
    time.sleep(0.02)
    path.write_bytes(path.read_bytes())  # touched
    TokenFile.open(path)
    assert len(verified) == 3
    (tmp_path / "t.bin.verified").write_text("[")
    TokenFile.open(path)
    assert len(verified) == 4


def test_an_alteration_after_the_first_opening_is_found(tmp_path):
    path = tokens(tmp_path / "t.bin")
    TokenFile.open(path)
    stat = path.stat()
    time.sleep(0.02)
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x01")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(ValueError, match="checksum does not match"):
            TokenFile.open(path)


def test_positions_are_remembered_with_the_content(tmp_path, monkeypatch):
    path = tokens(tmp_path / "t.bin")
    assert TokenFile.open(path).positions(7).tolist() == [7, 307, 607, 907]
    with monkeypatch.context() as patch:
        patch.setattr(TokenFile, "_blocks", None)
        file = TokenFile.open(path, verify=False)
        assert file.positions(7).tolist() == [7, 307, 607, 907]
    tokens(path, 400)
    assert TokenFile.open(path).positions(7).tolist() == [7, 307]
    (tmp_path / "t.bin.7.npy").write_bytes(b"x")
    assert TokenFile.open(path).positions(7).tolist() == [7, 307]
    assert TokenFile.open(tokens(tmp_path / "u.bin", 0)).positions(7).tolist() == []


@pytest.mark.parametrize("kind", ["text", "table"])
def test_the_second_start_reads_no_content(tmp_path, settled, monkeypatch, kind):
    settings = {"cache_dir": str(tmp_path / "cache"), "n_processes": 1}
    if kind == "text":
        config = TextConfig(path=str(write(tmp_path / "a.txt", "some text\n" * 100)), **settings)
    else:
        rows = "".join(f'{{"q": "{n}", "a": "{n + 1}"}}\n' for n in range(50))
        config = TableConfig(path=str(write(tmp_path / "a.jsonl", rows)), prompt="{q}", response="{a}", **settings)
    first = prepare(config, ByteConfig(), progress=False)

    def refuse(*arguments, **options):
        raise AssertionError("read again")

    monkeypatch.setattr(cache, "sha256_of", refuse)
    monkeypatch.setattr(TokenFile, "_blocks", refuse)
    monkeypatch.setattr("gptlab.data.examples.example_table._checksum", refuse)
    second = prepare(config, ByteConfig(), progress=False)
    assert second.fingerprint == first.fingerprint and second.train.checksum == first.train.checksum
    with pytest.raises(AssertionError, match="read again"):
        prepare(config, ByteConfig(), progress=False, verify=True)
