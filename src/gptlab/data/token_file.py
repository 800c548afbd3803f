"""Token files: what a tokenizer made of a text, memory-mapped and checksummed.

bytes 0-7     magic          8-11   version        12-15  length of the JSON header
bytes 16-19   CRC-32 of the JSON header            20-    the JSON header
from 4096     the ids, little-endian, 2 bytes each up to a vocabulary of 65,536, then 4
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gptlab.errors import UserError

_MAGIC = b"GPTLABTK"
_VERSION = 1
_PREFIX = struct.Struct("<8sIII")
_PAYLOAD_OFFSET_BYTES = 4096
_BLOCK_TOKENS = 4 * 1024 * 1024


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id of the vocabulary."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    n_tokens: int
    n_documents: int
    n_bytes: int
    n_characters: int
    vocab_size: int
    tokenizer: str
    checksum: str

    def __post_init__(self) -> None:
        counts = (self.n_tokens, self.n_documents, self.n_bytes, self.n_characters)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a count is not a whole number")
        if type(self.vocab_size) is not int or self.vocab_size < 1:
            raise ValueError("the vocabulary is empty")
        if not (isinstance(self.tokenizer, str) and isinstance(self.checksum, str)):
            raise ValueError("a fingerprint is not text")


class TokenFile:
    """The ids of one split, read-only; `tokens` is a memory map, so opening costs no memory.

    `n_bytes` and `n_characters` measure the text (as UTF-8) the ids came from, without end-of-text words;
    `tokenizer` is the fingerprint of the tokenizer that made them.
    """

    def __init__(self, path: Path, header: _Header) -> None:
        self.path = path
        self._header = header
        self.n_tokens = header.n_tokens
        self.n_documents = header.n_documents
        self.n_bytes = header.n_bytes
        self.n_characters = header.n_characters
        self.vocab_size = header.vocab_size
        self.tokenizer = header.tokenizer
        self.checksum = header.checksum
        dtype = token_dtype(header.vocab_size)
        if header.n_tokens:
            self.tokens = np.memmap(path, dtype=dtype, mode="r", offset=_PAYLOAD_OFFSET_BYTES, shape=(header.n_tokens,))
        else:
            self.tokens = np.empty(0, dtype=dtype)  # an empty range cannot be mapped

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "TokenFile":
        """Open a token file; `verify` also reads it once, against its checksum and its vocabulary.

        A missing, cut or altered file is a ValueError that says what to delete.
        """
        path = Path(path)
        file = cls(path, _read_header(path))
        if verify:
            file._verify()
        return file

    def _verify(self) -> None:
        digest = hashlib.sha256()
        start = 0
        for block in self._blocks(self.n_tokens):
            digest.update(block.data)
            if block.max() >= self.vocab_size:
                at = int(np.argmax(block >= self.vocab_size))
                raise _refused(
                    self.path,
                    f"token id outside the vocabulary: id {int(block[at])} at position {start + at:,}, "
                    f"vocabulary {self.vocab_size:,}",
                )
            start += len(block)
        if digest.hexdigest() != self.checksum:
            raise _refused(self.path, "its contents were altered (the checksum does not match)")

    def _blocks(self, n_tokens: int) -> Iterator[np.ndarray]:
        tokens = self.tokens.view(np.ndarray)[:n_tokens]
        for start in range(0, len(tokens), _BLOCK_TOKENS):
            yield tokens[start : start + _BLOCK_TOKENS]

    def __len__(self) -> int:
        return self.n_tokens

    def __reduce__(self):
        """Pickled by name: a worker maps the file again."""
        return TokenFile, (self.path, self._header)

    def unigram_entropy(self) -> float:
        """The entropy in nats per token of the word frequencies, from the first 50M tokens: what a model that ignores
        all context would reach."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for block in self._blocks(50_000_000):
            counts += np.bincount(block, minlength=self.vocab_size)
        shares = counts[counts > 0] / max(1, counts.sum())
        return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0.0: no negative zero for a single word


def _refused(path: Path, what: str) -> UserError:
    return UserError(f"token file {path}: {what}; delete it (or its folder {path.parent}) and run again")


def _read_header(path: Path) -> _Header:
    try:
        size_bytes = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_PAYLOAD_OFFSET_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"token file {path} does not exist; delete the folder {path.parent} and run again") from None
    except IsADirectoryError:
        raise _refused(path, "is a folder") from None
    if head[: len(_MAGIC)] != _MAGIC:
        if not head or _MAGIC.startswith(head):
            raise _refused(path, f"truncated: {size_bytes:,} bytes, expected at least {_PAYLOAD_OFFSET_BYTES:,}")
        raise _refused(path, "not a token file of gptlab (its first bytes are other)")
    if len(head) < _PAYLOAD_OFFSET_BYTES:
        raise _refused(path, f"truncated: {size_bytes:,} bytes, expected at least {_PAYLOAD_OFFSET_BYTES:,}")
    _, version, length_bytes, crc = _PREFIX.unpack_from(head)
    if version != _VERSION:
        raise _refused(path, f"version {version}, this gptlab reads version {_VERSION}")
    text = head[_PREFIX.size : _PREFIX.size + length_bytes]
    if len(text) != length_bytes or zlib.crc32(text) != crc:
        raise _refused(path, "its header was altered")
    try:
        header = _Header(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise _refused(path, f"its header is not sound ({error})") from None
    expected_bytes = _PAYLOAD_OFFSET_BYTES + header.n_tokens * token_dtype(header.vocab_size).itemsize
    if size_bytes != expected_bytes:
        word = "truncated" if size_bytes < expected_bytes else "too long"
        raise _refused(path, f"{word}: {size_bytes:,} bytes, expected {expected_bytes:,}")
    return header


class TokenWriter:
    """Writes a token file under a temporary name; leaving the `with` block without an error gives it its own.

    An error inside the block, a full disk included, removes the temporary file; one that stood at `path` before stays.
    """

    def __init__(self, path: str | Path, *, vocab_size: int, tokenizer: str) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._dtype = token_dtype(vocab_size)
        self._digest = hashlib.sha256()
        self._n_tokens = self._n_documents = self._n_bytes = self._n_characters = 0

    def __enter__(self) -> "TokenWriter":
        self._file = open(self._temporary, "wb", buffering=0)
        try:
            self._put(bytes(_PAYLOAD_OFFSET_BYTES))
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, ids: np.ndarray) -> None:
        """Append ids (any integer type, 1-D)."""
        ids = np.asarray(ids)
        if not ids.size:
            return
        if ids.dtype.kind not in "iu":
            raise UserError(f"token ids must be integers, not {ids.dtype}")
        if ids.max() >= self._vocab_size or (ids.dtype.kind == "i" and ids.min() < 0):
            at = int(np.argmax((ids >= self._vocab_size) | (ids < 0)))
            raise UserError(
                f"token id outside the vocabulary: id {int(ids[at])} at position {self._n_tokens + at:,}, "
                f"vocabulary {self._vocab_size:,}"
            )
        block = np.ascontiguousarray(ids, dtype=self._dtype)
        self._digest.update(block.data)
        self._put(block.data.cast("B"))
        self._n_tokens += len(block)

    def end_documents(self, n_documents: int, *, n_bytes: int, n_characters: int) -> None:
        """Count documents and the size of their text."""
        self._n_documents += n_documents
        self._n_bytes += n_bytes
        self._n_characters += n_characters

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            header = _Header(
                n_tokens=self._n_tokens,
                n_documents=self._n_documents,
                n_bytes=self._n_bytes,
                n_characters=self._n_characters,
                vocab_size=self._vocab_size,
                tokenizer=self._tokenizer,
                checksum=self._digest.hexdigest(),
            )
            text = json.dumps(asdict(header)).encode()
            assert _PREFIX.size + len(text) <= _PAYLOAD_OFFSET_BYTES
            self._file.seek(0)
            self._put(_PREFIX.pack(_MAGIC, _VERSION, len(text), zlib.crc32(text)) + text)
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        except BaseException:
            self._discard()
            raise

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            reason = f"cannot write {self.path}: {error.strerror or error}; free some space or set data.cache_dir"
            raise OSError(error.errno, reason) from error

    def _discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)
