"""Token files: what is written is read, what was cut or altered is refused, what failed leaves nothing."""

import errno
import json
import math
import pickle
import struct
import zlib

import numpy as np
import pytest

from gptlab.data.token_file import TokenFile, TokenWriter


def write(path, ids, vocab_size=1000):
    with TokenWriter(path, vocab_size=vocab_size, tokenizer="f" * 64) as writer:
        writer.write(np.asarray(ids))
        writer.end_documents(2, n_bytes=30, n_characters=20)
    return path


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (200_000, "<u4")])
def test_what_is_written_is_read(tmp_path, vocab_size, dtype):
    ids = np.random.default_rng(0).integers(0, vocab_size, 10_000)
    ids[-1] = vocab_size - 1
    with TokenWriter(tmp_path / "t.bin", vocab_size=vocab_size, tokenizer="abc") as writer:
        for part in np.array_split(ids, 7):
            writer.write(part)
            writer.end_documents(1, n_bytes=5, n_characters=4)
    file = TokenFile.open(tmp_path / "t.bin")
    assert isinstance(file.tokens, np.memmap) and file.tokens.dtype == np.dtype(dtype)
    assert np.array_equal(file.tokens, ids)
    assert (file.n_tokens, file.n_documents, file.n_bytes, file.n_characters) == (10_000, 7, 35, 28)
    assert (file.vocab_size, file.tokenizer, len(file)) == (vocab_size, "abc", 10_000)
    with pytest.raises(ValueError, match="read-only"):
        file.tokens[0] = 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.bin", "t.bin.verified"]


def test_an_empty_file_is_a_file(tmp_path):
    file = TokenFile.open(write(tmp_path / "t.bin", np.empty(0, dtype=np.int64)))
    assert len(file.tokens) == 0 and file.unigram_entropy() == 0


def test_a_cut_file_is_refused_with_its_sizes(tmp_path):
    path = write(tmp_path / "t.bin", range(1000))
    whole = path.read_bytes()
    assert len(whole) == 6096
    for n_bytes in (0, 5, 100, 4096, 6000, 6095):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(ValueError, match=rf"{path}: truncated: {n_bytes:,} bytes.*delete it"):
            TokenFile.open(path, verify=False)
    path.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="too long: 6,097 bytes, expected 6,096"):
        TokenFile.open(path, verify=False)


def test_any_altered_byte_is_refused(tmp_path):
    path = write(tmp_path / "t.bin", np.arange(1000))
    whole = bytearray(path.read_bytes())
    end_of_header = 20 + struct.unpack_from("<I", whole, 12)[0]
    for at in (*range(end_of_header), 4096, 5000, 6095):
        altered = bytearray(whole)
        altered[at] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"run again"):
            TokenFile.open(path)


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "t.bin"
    path.write_bytes(b"PK\x03\x04" * 3000)
    with pytest.raises(ValueError, match="not a token file"):
        TokenFile.open(path)
    with pytest.raises(ValueError, match="does not exist"):
        TokenFile.open(tmp_path / "other.bin")


def test_an_invalid_header_is_refused(tmp_path):
    path = write(tmp_path / "t.bin", range(10))
    content = bytearray(path.read_bytes())
    header = json.loads(content[20 : 20 + struct.unpack_from("<I", content, 12)[0]])
    for change in ({"n_tokens": -1}, {"n_tokens": 1.5}, {"vocab_size": 0}, {"checksum": 5}, {"more": 1}):
        text = json.dumps(header | change).encode()
        content[12:20] = struct.pack("<II", len(text), zlib.crc32(text))
        content[20 : 20 + len(text)] = text
        path.write_bytes(content)
        with pytest.raises(ValueError, match="header is invalid"):
            TokenFile.open(path)


def test_an_id_outside_the_vocabulary_is_refused(tmp_path):
    path = write(tmp_path / "t.bin", np.zeros(50, dtype=int))
    content = bytearray(path.read_bytes())
    content[4096 + 2 * 41 : 4096 + 2 * 42] = struct.pack("<H", 1000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="outside the vocabulary: id 1000 at position 41, vocabulary 1,000"):
        TokenFile.open(path)
    for ids in ([1, 2, 1000], [1, 2, -1], np.array([1, 2, 1000], dtype=np.uint16)):
        with pytest.raises(ValueError, match=r"id (1000|-1) at position 2, vocabulary 1,000"):
            write(tmp_path / "u.bin", ids)
    with pytest.raises(ValueError, match="integers"):
        write(tmp_path / "u.bin", [1.0])
    assert [path.name for path in tmp_path.iterdir()] == ["t.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_and_spares_the_old_file(tmp_path, error):
    path = write(tmp_path / "t.bin", [1, 2, 3])
    before = path.read_bytes()
    with pytest.raises(error), TokenWriter(path, vocab_size=10, tokenizer="x") as writer:
        writer.write(np.arange(5))
        raise error
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_oserror_that_leaves_nothing(tmp_path):
    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.file.close()

    writer = TokenWriter(tmp_path / "t.bin", vocab_size=10, tokenizer="x")
    with pytest.raises(OSError, match=r"cannot write .*t\.bin: No space left") as caught, writer:
        writer._file = Full(writer._file)
        writer.write(np.arange(5))
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_unigram_entropy(tmp_path):
    file = TokenFile.open(write(tmp_path / "t.bin", [3] * 6 + [7] * 3 + [9] * 3))
    assert file.unigram_entropy() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert TokenFile.open(write(tmp_path / "u.bin", [3] * 6)).unigram_entropy() == 0


def test_pickling_maps_the_file_again(tmp_path):
    file = TokenFile.open(write(tmp_path / "t.bin", np.arange(1000)))
    content = pickle.dumps(file)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content).tokens, file.tokens)
