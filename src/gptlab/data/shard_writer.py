"""Writing token shards so that a killed process can be continued."""

import hashlib
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.sources.remote import Place
from gptlab.data.token_file import PAYLOAD_OFFSET_BYTES, header_bytes, read_header, token_dtype
from gptlab.data.token_shards import HEAD_TOKENS, Shard
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError

PARTIAL = ".partial"  # after the name of a shard that is not published
_WRITE_BYTES = 1 << 20


class ShardWriter:
    """Writes the shards of one split, each under a name of its own until it is published.

    With a `place` the folder is for work alone: a shard that is published is there, and here no longer.

    `synced` gives a state that is on disk, and `restore` goes on from there, whatever was written since.
    """

    def __init__(
        self, folder: Path, part: str, tokenizer: Tokenizer, shard_tokens: int, place: Place | None = None
    ) -> None:
        self.part = part
        self._place = place
        self._folder, self._shard_tokens = folder, shard_tokens
        self._vocab_size, self._tokenizer = tokenizer.vocab_size, tokenizer.fingerprint
        self._dtype = token_dtype(tokenizer.vocab_size)
        self.finished: list[Shard] = []
        self._unpublished: list[str] = []
        self._pending = [0, 0, 0]  # documents, bytes and characters of documents that begin with the next token
        self._remedy = f"delete {folder} and begin again"
        self._file: Any = None
        self._clear()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error) -> None:
        if self._file is not None:
            with suppress(OSError):  # of a full disk, which has been reported
                self._file.close()

    def _clear(self) -> None:
        self._n, self._counts, self._digest, self._head = 0, [0, 0, 0], hashlib.sha256(), hashlib.sha256()

    @property
    def n_tokens(self) -> int:
        """All that are written."""
        return sum(shard.n_tokens for shard in self.finished) + self._n

    @property
    def is_full(self) -> bool:
        """Whether a shard waits for a checkpoint."""
        return bool(self._unpublished)

    def _name(self, number: int) -> str:
        return f"{self.part}-{number:05d}.bin"

    @property
    def _partial(self) -> Path:
        return self._folder / (self._name(len(self.finished)) + PARTIAL)

    def begin_document(self, n_bytes: int, n_characters: int) -> None:
        """Count a document, which begins with the next id."""
        self._pending = [self._pending[0] + 1, self._pending[1] + n_bytes, self._pending[2] + n_characters]

    def write(self, ids: np.ndarray) -> None:
        """Append ids of the type of a token file."""
        while len(ids):
            if self._n == self._shard_tokens:
                self._end_shard()
            if self._file is None:
                self._open("w+b")
                self._put(bytes(PAYLOAD_OFFSET_BYTES))
            self._count()
            block = ids[: self._shard_tokens - self._n]
            ids = ids[len(block) :]
            data = np.ascontiguousarray(block, dtype=self._dtype).data
            self._digest.update(data)
            self._head.update(data[: max(0, HEAD_TOKENS - self._n)])
            self._put(data)
            self._n += len(block)

    def _count(self) -> None:
        self._counts = [a + b for a, b in zip(self._counts, self._pending, strict=True)]
        self._pending = [0, 0, 0]

    def end(self) -> None:
        """No id follows: the last shard is as long as it is."""
        if self._n:
            self._count()
            self._end_shard()
        if not self.finished:
            raise UserError(f"the {self.part} split has no token; give more text")

    def _end_shard(self) -> None:
        shard = Shard(
            name=self._name(len(self.finished)),
            n_tokens=self._n,
            n_documents=self._counts[0],
            n_bytes=self._counts[1],
            n_characters=self._counts[2],
            sha256=self._digest.hexdigest(),
            head_sha256=self._head.hexdigest(),
        )
        self._file.seek(0)
        self._put(header_bytes(shard.header(self._vocab_size, self._tokenizer)))
        self._sync()
        self._file.close()
        self._file = None
        self._unpublished.append(shard.name)
        self.finished.append(shard)
        self._clear()

    def synced(self) -> dict[str, Any]:
        """The state for progress.json; all of it is on disk."""
        if self._file is not None:
            self._sync()
        current = [self._n, *self._counts, self._digest.hexdigest()]
        return {"finished": [asdict(s) for s in self.finished], "current": current, "pending": self._pending}

    def publish(self) -> None:
        """Give the full shards their names; UserError where they cannot be written to the place."""
        while self._unpublished:
            path = self._folder / self._unpublished[0]
            if not path.exists():
                os.replace(path.with_name(path.name + PARTIAL), path)
            if self._place is not None:
                self._upload(path, self._place)
            del self._unpublished[0]

    def _upload(self, path: Path, place: Place) -> None:
        # It may be there: whole, by a process on another machine that did not come to the end.
        with open(path, "rb") as file:
            header = file.read(PAYLOAD_OFFSET_BYTES)
        if place.read(path.name, PAYLOAD_OFFSET_BYTES) != header:
            place.upload(path, path.name)
        path.unlink()

    def restore(self, state: dict[str, Any]) -> list[str]:
        """Go on from what `synced` gave; returns the names of the shards that are there."""
        self.finished = [Shard(**shard) for shard in state["finished"]]
        sizes_bytes = {} if self._place is None else self._place.sizes_bytes()
        for shard in self.finished:
            path, partial = self._folder / shard.name, self._folder / (shard.name + PARTIAL)
            if partial.exists() and not path.exists():  # killed before it had its name
                os.replace(partial, path)
            if self._place is not None:
                if path.exists():
                    self._unpublished.append(shard.name)
                elif sizes_bytes.get(shard.name) != shard.size_bytes(self._vocab_size):
                    raise UserError(
                        f"{self._place}/{shard.name} is not there as it was written; {self._remedy}, or name another "
                        "address with to="
                    )
                else:
                    continue
            if read_header(path, self._remedy) != shard.header(self._vocab_size, self._tokenizer):
                raise UserError(f"{path} is another shard than was written; {self._remedy}")
        self._n, *self._counts, checksum = state["current"]
        self._pending = state["pending"]
        names = [shard.name for shard in self.finished]
        if self._n:
            self._reopen(checksum)
            names.append(self._name(len(self.finished)))
        return names

    def _reopen(self, checksum: str) -> None:
        path = self._partial
        try:
            self._open("r+b")
            self._file.truncate(PAYLOAD_OFFSET_BYTES + self._n * self._dtype.itemsize)
            self._file.seek(PAYLOAD_OFFSET_BYTES)
            left = HEAD_TOKENS * self._dtype.itemsize
            while block := self._file.read(_WRITE_BYTES):
                self._digest.update(block)
                self._head.update(block[:left])
                left -= min(left, len(block))
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); delete {self._folder} and begin again"
            ) from None
        if self._digest.hexdigest() != checksum:
            raise UserError(f"{path} was altered; delete {self._folder} and begin again")

    def _open(self, mode: str) -> None:
        try:
            self._file = open(self._partial, mode, buffering=_WRITE_BYTES)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error

    def _put(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def _sync(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OSError:
        advice = "free some space and run the same command again, which goes on"
        return OSError(error.errno, f"cannot write {self._partial}: {error.strerror or error}; {advice}")
