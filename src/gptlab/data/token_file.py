"""Token files: what a tokenizer made of a text, memory-mapped and checksummed.

bytes 0-7     magic          8-11   version        12-15  length of the JSON header
bytes 16-19   CRC-32 of the JSON header            20-    the JSON header
from 4096     the ids, little-endian, 2 bytes each up to a vocabulary of 65,536, then 4
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptlab.data.cache import is_verified, mark_verified
from gptlab.errors import UserError
from gptlab.files import replacing, stat_key

_MAGIC = b"GPTLABTK"
_VERSION = 1
_PREFIX = struct.Struct("<8sIII")
PAYLOAD_OFFSET_BYTES = 4096
_BLOCK_TOKENS = 4 * 1024 * 1024
ENTROPY_TOKENS = 50_000_000


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id of the vocabulary."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenHeader:
    """What a token file says of its ids: their number, the text they came from, the tokenizer's fingerprint, and the
    SHA-256 of the ids."""

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
            raise ValueError("a count is not an integer")
        if type(self.vocab_size) is not int or self.vocab_size < 1:
            raise ValueError("the vocabulary is empty")
        if not (isinstance(self.tokenizer, str) and isinstance(self.checksum, str)):
            raise ValueError("a fingerprint is not text")


def header_bytes(header: "TokenHeader") -> bytes:
    """What stands in a token file before its ids."""
    text = json.dumps(asdict(header)).encode()
    assert _PREFIX.size + len(text) <= PAYLOAD_OFFSET_BYTES
    return (_PREFIX.pack(_MAGIC, _VERSION, len(text), zlib.crc32(text)) + text).ljust(PAYLOAD_OFFSET_BYTES, b"\0")


class TokenFile:
    """The ids of one split, read-only; `tokens` is a memory map, so opening costs no memory.

    `n_bytes` and `n_characters` measure the text (as UTF-8) the ids came from, without end-of-text tokens;
    `tokenizer` is the fingerprint of the tokenizer that made them.
    """

    def __init__(self, path: Path, header: TokenHeader, remedy: str | None = None) -> None:
        self.path = path
        self._remedy = remedy  # what to do about an altered file; None: make it again
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
            self.tokens = np.memmap(path, dtype=dtype, mode="r", offset=PAYLOAD_OFFSET_BYTES, shape=(header.n_tokens,))
        else:
            self.tokens = np.empty(0, dtype=dtype)  # an empty range cannot be mapped

    @classmethod
    def open(cls, path: str | Path, *, verify: bool | None = None) -> "TokenFile":
        """Open a token file.

        Its size and the CRC of its header are always checked. Its ids are read against their checksum and the
        vocabulary when the file is first opened, and again if its size, mtime or ctime changed since; at every call
        with `verify=True`, never with `verify=False`. UserError names a missing, truncated or altered file and what to
        delete.
        """
        path = Path(path)
        file = cls(path, read_header(path))
        if verify or (verify is None and not is_verified(path, file.checksum)):
            file.verify()
        return file

    def verify(self) -> None:
        """Read all ids against the checksum and the vocabulary; UserError where they differ."""
        key = stat_key(self.path)
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
                    self._remedy,
                )
            start += len(block)
        if digest.hexdigest() != self.checksum:
            raise _refused(self.path, "its contents were altered (the checksum does not match)", self._remedy)
        mark_verified(self.path, self.checksum, key)

    def positions(self, token_id: int) -> np.ndarray:
        """Where a token stands, int64 (n,), in order; the first call reads the file and keeps the result beside it."""

        def search() -> np.ndarray:
            blocks, start = [np.empty(0, dtype=np.int64)], 0
            for block in self._blocks(self.n_tokens):
                blocks.append(np.flatnonzero(block == token_id) + start)
                start += len(block)
            return np.concatenate(blocks)

        return self.remembered(str(token_id), search)

    def remembered(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What `make` finds out about the ids, int64 (n,), kept beside the file under a name where that is possible."""
        return remembered(self.path.with_name(f"{self.path.name}.{name}.npy"), self.checksum, make)

    def part_at(self, position: int) -> "TokenPart":
        """The file with a token of the split, which is this one."""
        assert 0 <= position < self.n_tokens
        return TokenPart(0, 0, self)

    def _blocks(self, n_tokens: int) -> Iterator[np.ndarray]:
        tokens = self.tokens.view(np.ndarray)[:n_tokens]
        for start in range(0, len(tokens), _BLOCK_TOKENS):
            yield tokens[start : start + _BLOCK_TOKENS]

    def __len__(self) -> int:
        return self.n_tokens

    def __reduce__(self):
        """Pickled by name: a worker maps the file again."""
        return TokenFile, (self.path, self._header, self._remedy)

    def unigram_entropy(self) -> float:
        """Entropy of the token frequencies in nats per token, of the first 50M tokens: the loss of the best model that
        ignores all context."""
        return entropy_of(self._blocks(ENTROPY_TOKENS), self.vocab_size)


class TokenPart(NamedTuple):
    """A token file among those of a split: how many tokens and separators of documents are in the files before it."""

    begin: int
    n_separators: int
    file: TokenFile


def remembered(path: Path, checksum: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The integers that `make` returned for ids of a checksum, int64 (n,): mapped from `path`, or made and saved."""
    with suppress(OSError, ValueError, EOFError):
        about, found = np.load(path, mmap_mode="r", allow_pickle=False), None
        # The checksum of the ids, as 32 bytes, before the integers.
        if about.dtype == np.dtype("<i8") and about.ndim == 1 and about[:4].tobytes().hex() == checksum:
            found = about[4:].view(np.ndarray)
        if found is not None:
            return found
    content = np.concatenate([np.frombuffer(bytes.fromhex(checksum), dtype="<i8"), make()]).astype("<i8")
    with suppress(OSError), replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, content, allow_pickle=False)
    return content[4:]


def entropy_of(blocks: Iterable[np.ndarray], vocab_size: int) -> float:
    """Entropy of the token frequencies in nats per token."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for block in blocks:
        counts += np.bincount(block, minlength=vocab_size)
    frequencies = counts[counts > 0] / max(1, counts.sum())
    return float(-(frequencies * np.log(frequencies)).sum()) + 0.0  # + 0.0: no negative zero


def _refused(path: Path, what: str, remedy: str | None = None) -> UserError:
    return UserError(f"token file {path}: {what}; {remedy or f'delete it (or its folder {path.parent}) and run again'}")


def read_header(path: Path, remedy: str | None = None) -> TokenHeader:
    """The header of a token file that has the right size; UserError for another, which ends with `remedy`."""

    def refused(what: str) -> UserError:
        return _refused(path, what, remedy)

    try:
        size_bytes = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(PAYLOAD_OFFSET_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        again = remedy or f"delete the folder {path.parent} and run again"
        raise UserError(f"token file {path} does not exist; {again}") from None
    except IsADirectoryError:
        raise refused("is a folder") from None
    if head[: len(_MAGIC)] != _MAGIC:
        if not head or _MAGIC.startswith(head):
            raise refused(f"truncated: {size_bytes:,} bytes, expected at least {PAYLOAD_OFFSET_BYTES:,}")
        raise refused("not a token file of gptlab (its first bytes differ)")
    if len(head) < PAYLOAD_OFFSET_BYTES:
        raise refused(f"truncated: {size_bytes:,} bytes, expected at least {PAYLOAD_OFFSET_BYTES:,}")
    _, version, length_bytes, crc = _PREFIX.unpack_from(head)
    if version != _VERSION:
        raise refused(f"version {version}, this gptlab reads version {_VERSION}")
    text = head[_PREFIX.size : _PREFIX.size + length_bytes]
    if len(text) != length_bytes or zlib.crc32(text) != crc:
        raise refused("its header was altered")
    try:
        header = TokenHeader(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise refused(f"its header is invalid ({error})") from None
    expected_bytes = PAYLOAD_OFFSET_BYTES + header.n_tokens * token_dtype(header.vocab_size).itemsize
    if size_bytes != expected_bytes:
        what = "truncated" if size_bytes < expected_bytes else "too long"
        raise refused(f"{what}: {size_bytes:,} bytes, expected {expected_bytes:,}")
    if any(head[_PREFIX.size + length_bytes :]):
        raise refused("its header was altered")
    return header


class TokenWriter:
    """Writes a token file, which appears at `path` when the `with` block ends without an error.

    After an error in the block, a full disk included, nothing is left of it, and an older file at `path` stays.
    """

    def __init__(self, path: str | Path, *, vocab_size: int, tokenizer: str) -> None:
        self.path = Path(path)
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._dtype = token_dtype(vocab_size)
        self._digest = hashlib.sha256()
        self._n_tokens = self._n_documents = self._n_bytes = self._n_characters = 0

    def __enter__(self) -> "TokenWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self.path))
            self._file = stack.enter_context(open(temporary, "wb", buffering=0))
            self._put(bytes(PAYLOAD_OFFSET_BYTES))
            self._stack = stack.pop_all()
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
        with self._stack as stack:
            if error is not None:
                stack.__exit__(kind, error, trace)
                return
            header = TokenHeader(
                n_tokens=self._n_tokens,
                n_documents=self._n_documents,
                n_bytes=self._n_bytes,
                n_characters=self._n_characters,
                vocab_size=self._vocab_size,
                tokenizer=self._tokenizer,
                checksum=self._digest.hexdigest(),
            )
            self._file.seek(0)
            self._put(header_bytes(header))

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            reason = f"cannot write {self.path}: {error.strerror or error}; free some space or set data.cache_dir"
            raise OSError(error.errno, reason) from error
