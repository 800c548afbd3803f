"""Encoding on several cores: worker processes of our own, each fed by a thread through a pipe.

Processes, since two threads in one process reach 1.4 times the speed of one (tiktoken 0.14, two cores) and two
processes 2 times. Not forked, since a fork copies held locks; and not by `multiprocessing`, which would import the
caller's main module again. A worker has the caller's `sys.path` and imports the module that registers the tokenizer.
"""

import json
import os
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

import numpy as np

from gptlab.data.child_process import end_child, map_in_order, own_replies, pipes_of, start_child
from gptlab.data.token_file import token_dtype
from gptlab.data.tokenizers.tokenizer import Tokenizer, from_portable
from gptlab.errors import UserError
from gptlab.registry import config_class

_FAILED = -1


@dataclass(kw_only=True, slots=True)
class EncodeJob:
    """A stretch of one split, a few hundredths of a second of work; an integer is a token id."""

    part: str
    texts: list[str | int]
    n_documents: int
    n_characters: int
    n_bytes: int


class HasTexts(Protocol):
    """What `Encoders.map` encodes."""

    texts: list[str | int]


Job = TypeVar("Job", bound=HasTexts)


class Encoded(NamedTuple):
    """The ids of texts, one after the other, in the type of a token file, and how many of them each text has."""

    ids: np.ndarray
    sizes: list[int]


def encode_texts(tokenizer: Tokenizer, texts: list[str | int]) -> Encoded:
    """Encode texts one by one; an integer is a token id."""
    dtype = token_dtype(tokenizer.vocab_size)
    parts = [np.array([text]) if isinstance(text, int) else tokenizer.encode(text) for text in texts]
    if not parts:
        return Encoded(np.empty(0, dtype), [])
    return Encoded(np.concatenate([ids.astype(dtype, copy=False) for ids in parts]), [len(ids) for ids in parts])


class Encoders:
    """`n_processes` worker processes with the same tokenizer; one process means this one.

    A tokenizer that a script or a notebook itself registers stays in this process: no other could import it.
    """

    def __init__(self, tokenizer: Tokenizer, n_processes: int) -> None:
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._workers: list[subprocess.Popen] = []
        self._n_processes = n_processes if config_class("tokenizer", tokenizer.type).__module__ != "__main__" else 1

    def __enter__(self) -> "Encoders":
        if self._n_processes > 1:
            environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
            content = json.dumps(self._tokenizer.portable()).encode()
            try:
                for _ in range(self._n_processes):
                    self._workers.append(start_child(__name__, environment))
                for worker in self._workers:
                    pipes_of(worker)[0].write(array("q", [len(content)]).tobytes() + content)
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *error) -> None:
        for worker in self._workers:
            end_child(worker)

    def map(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Encoded]]:
        """Each job with its ids, in the order given; holds a few jobs per process at a time."""
        if not self._workers:
            for job in jobs:
                yield job, encode_texts(self._tokenizer, job.texts)
            return
        yield from map_in_order(self._workers, lambda worker, job: _ask(worker, job.texts, self._dtype), jobs)


def _ask(worker: subprocess.Popen, texts: list[str | int], dtype: np.dtype) -> Encoded:
    requests, replies = pipes_of(worker)
    try:
        _send_texts(requests, texts)
        (n_bytes,) = _read_numbers(replies, 1)
        if n_bytes == _FAILED:
            (n_bytes,) = _read_numbers(replies, 1)
            raise UserError(_read(replies, n_bytes).decode())
        sizes = _read_numbers(replies, len(texts)).tolist()
        return Encoded(np.frombuffer(_read(replies, n_bytes), dtype=dtype), sizes)
    except (BrokenPipeError, EOFError):
        raise RuntimeError(
            f"a tokenizing process ended early (exit code {worker.wait()}); see its output above"
        ) from None


def _send_texts(pipe: BinaryIO, texts: list[str | int]) -> None:
    data = [text if isinstance(text, int) else text.encode("utf-8", "surrogatepass") for text in texts]
    # A token id is sent as a negative length: -1 - id.
    pipe.write(array("q", [len(data), *(-1 - text if isinstance(text, int) else len(text) for text in data)]).tobytes())
    pipe.writelines(text for text in data if not isinstance(text, int))
    pipe.flush()


def _read_numbers(pipe: BinaryIO, n: int) -> array:
    numbers = array("q")
    numbers.frombytes(_read(pipe, 8 * n))
    return numbers


def _read(pipe: BinaryIO, n_bytes: int) -> bytes:
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    tokenizer = from_portable(json.loads(_read(requests, *_read_numbers(requests, 1))))
    while True:
        try:
            (n_texts,) = _read_numbers(requests, 1)
        except EOFError:
            return
        sizes = _read_numbers(requests, n_texts)
        texts = [-1 - n if n < 0 else _read(requests, n).decode("utf-8", "surrogatepass") for n in sizes]
        try:
            ids, sizes = encode_texts(tokenizer, texts)
        except UserError as error:
            message = str(error).encode()
            replies.write(array("q", [_FAILED, len(message)]).tobytes() + message)
        else:
            replies.write(array("q", [ids.nbytes, *sizes]).tobytes())
            replies.write(ids.data)
        replies.flush()


def main() -> None:
    """Serve encoding requests on standard input and output, as a worker process."""
    try:
        _serve(sys.stdin.buffer, own_replies())
    except BrokenPipeError:  # the other process was killed
        os._exit(1)
