"""What filters make of documents, in this process or on several cores.

Worker processes of our own, as `gptlab.data.encode` has them: a worker imports the modules that register the filters.
"""

import importlib
import json
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from subprocess import Popen
from typing import Any, BinaryIO

import numpy as np

from gptlab.data.child_process import end_child, map_in_order, own_replies, pipes_of, start_child
from gptlab.data.curation.config import FilterConfig, filter_configs
from gptlab.data.curation.filter import Candidate, CorpusFilter, DocumentFilter, Removal
from gptlab.errors import UserError
from gptlab.registry import config_class

PASSES, NO_TEXT = 255, 254  # in the column `outcome`; below these the number of the document filter that removes it
_FAILED, _N_WORDS = -1, 2


@dataclass(slots=True)
class ExamineJob:
    """Consecutive documents: their texts, their other columns, and their names for messages."""

    texts: list[str] = field(default_factory=list)
    fields: list[Mapping[str, str | None]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sections: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    n_characters: int = 0


class Examiner:
    """Filters in their order, applied to one document after the other."""

    def __init__(self, configs: Mapping[str, FilterConfig], cache_dir: str | None = None) -> None:
        if len(configs) >= NO_TEXT:
            raise UserError(f"data.filters has {len(configs)} filters; there may be {NO_TEXT - 1}")
        self.names = list(configs)
        self.filters = [config.build(cache_dir) for config in configs.values()]
        self.columns: dict[str, np.dtype] = {"outcome": np.dtype("u1"), "rule": np.dtype("u1")}
        # The size of a text as it comes, and after each filter that rewrites.
        n_rewriting = sum(isinstance(one, DocumentFilter) and one.rewrites for one in self.filters)
        self.columns |= {f"size{number}": np.dtype("<u8") for number in range(n_rewriting + 1)}
        for number, one in enumerate(self.filters):
            if isinstance(one, CorpusFilter):
                self.columns |= {f"{number}.{name}": dtype for name, dtype in one.columns.items()}

    @property
    def rewrites(self) -> bool:
        """Whether some filter changes texts."""
        return any(isinstance(one, DocumentFilter) and one.rewrites for one in self.filters)

    def rewritten(self, text: str, before: int | None = None) -> str:
        """The text that is left by all filters, or by those before a number."""
        for one in self.filters[:before]:
            if isinstance(one, DocumentFilter) and one.rewrites:
                text = one.rewrite(text)
        return text

    def examine(self, job: ExamineJob) -> dict[str, np.ndarray]:
        """The entries of the job's documents in each column."""
        n = len(job.texts)
        found = {name: np.zeros(n, dtype=dtype) for name, dtype in self.columns.items()}
        for row, (text, fields, name) in enumerate(zip(job.texts, job.fields, job.names, strict=True)):
            self._examine(row, Candidate(text, fields, name), found)
        return found

    def _examine(self, row: int, candidate: Candidate, found: dict[str, np.ndarray]) -> None:
        if not candidate.text:
            found["outcome"][row] = NO_TEXT
            return
        found["outcome"][row] = PASSES
        found["size0"][row] = candidate.n_bytes
        n_rewriting = 0
        for number, one in enumerate(self.filters):
            if isinstance(one, CorpusFilter):
                for name, value in one.measure(candidate).items():
                    found[f"{number}.{name}"][row] = value
                continue
            if one.rewrites:
                candidate, n_rewriting = _rewritten(one, candidate), n_rewriting + 1
                found[f"size{n_rewriting}"][row] = candidate.n_bytes
            removal = _removal(one, candidate)
            if removal is not None:
                found["outcome"][row] = number
                found["rule"][row] = one.rules.index(removal.rule)
                return

    def why(self, number: int, candidate: Candidate) -> tuple[Candidate, Removal | None]:
        """A document as it comes to a filter, and why that one removes it; None of a filter of all documents."""
        candidate = Candidate(self.rewritten(candidate.text, number), candidate.fields, candidate.where)
        one = self.filters[number]
        if isinstance(one, CorpusFilter):
            return candidate, None
        after = _rewritten(one, candidate) if one.rewrites else candidate
        return candidate, _removal(one, after)


def _removal(one: DocumentFilter, candidate: Candidate) -> Removal | None:
    removal = one.check(candidate)
    if removal is None and one.rewrites and not candidate.text:
        return Removal(one.rules[0], "no text is left")
    return removal


def _rewritten(one: DocumentFilter, candidate: Candidate) -> Candidate:
    text = one.rewrite(candidate.text)
    return candidate if text == candidate.text else Candidate(text, candidate.fields, candidate.where)


class Examiners:
    """The same in `n_processes` processes; one means this one. A filter of a script itself stays in this process."""

    def __init__(
        self, configs: Mapping[str, FilterConfig], cache_dir: str | None, examiner: Examiner, n_processes: int
    ) -> None:
        modules = sorted({config_class("filter", config.type).__module__ for config in configs.values()})
        self._examiner = examiner
        self._n_processes = n_processes if "__main__" not in modules else 1
        options = {name: _options(config) for name, config in configs.items()}
        self._setup = json.dumps({"modules": modules, "filters": options, "cache_dir": cache_dir}).encode()
        self._workers: list[Popen] = []

    def __enter__(self) -> "Examiners":
        if self._n_processes > 1:
            try:
                for _ in range(self._n_processes):
                    self._workers.append(start_child(__name__, {"OMP_NUM_THREADS": "1"}))
                for worker in self._workers:
                    _send(pipes_of(worker)[0], self._setup)
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *error) -> None:
        for worker in self._workers:
            end_child(worker)

    def map(self, jobs: Iterable[ExamineJob]) -> Iterator[tuple[ExamineJob, dict[str, np.ndarray]]]:
        """Each job with its columns, in the order given; holds a few jobs per process at a time."""
        if not self._workers:
            for job in jobs:
                yield job, self._examiner.examine(job)
            return
        yield from map_in_order(self._workers, self._ask, jobs)

    def _ask(self, worker: Popen, job: ExamineJob) -> dict[str, np.ndarray]:
        requests, replies = pipes_of(worker)
        try:
            _send(requests, json.dumps([job.texts, list(map(dict, job.fields)), job.names]).encode())
            status, n_bytes = _numbers(replies)
            content = _read(replies, n_bytes)
        except (BrokenPipeError, EOFError):
            raise RuntimeError(
                f"a filtering process ended early (exit code {worker.wait()}); see its output above"
            ) from None
        if status == _FAILED:
            raise UserError(content.decode())
        found, begin, n = {}, 0, len(job.texts)
        for name, dtype in self._examiner.columns.items():
            size = n * dtype.itemsize
            found[name] = np.frombuffer(content[begin : begin + size], dtype=dtype.base).reshape(n, *dtype.shape)
            begin += size
        return found


def _options(config: FilterConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config), default=lambda value: value.value))


def _send(pipe: BinaryIO, content: bytes) -> None:
    pipe.write(array("q", [len(content), 0]).tobytes())
    pipe.write(content)
    pipe.flush()


def _numbers(pipe: BinaryIO) -> tuple[int, int]:
    numbers = array("q")
    numbers.frombytes(_read(pipe, 8 * _N_WORDS))
    return numbers[0], numbers[1]


def _read(pipe: BinaryIO, n: int) -> bytes:
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError
    return data


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    setup = json.loads(_read(requests, _numbers(requests)[0]))
    for module in setup["modules"]:
        importlib.import_module(module)
    examiner = None
    while True:
        try:
            n_bytes, _ = _numbers(requests)
        except EOFError:
            return
        texts, fields, names = json.loads(_read(requests, n_bytes))
        try:
            examiner = examiner or Examiner(filter_configs(setup["filters"]), setup["cache_dir"])
            found = examiner.examine(ExamineJob(texts=texts, fields=fields, names=names))
        except UserError as error:
            message = str(error).encode("utf-8", "replace")
            replies.write(array("q", [_FAILED, len(message)]).tobytes() + message)
        else:
            content = b"".join(found[name].tobytes() for name in examiner.columns)
            replies.write(array("q", [0, len(content)]).tobytes() + content)
        replies.flush()


def main() -> None:
    """Serve requests on standard input and output, as a worker process."""
    try:
        _serve(sys.stdin.buffer, own_replies())
    except BrokenPipeError:  # the other process was killed
        os._exit(1)
