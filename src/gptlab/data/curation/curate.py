"""Which documents of a corpus pass its filters: decided once, kept in the cache, and going on after a kill.

The documents are read in order, and what filters make of each is appended to files with a column each. Filters that
judge a document by itself decide there. Then those that judge all together, such as of duplicates, read their columns,
each with the documents that all filters before it let through. So the text is read once, and the result depends on the
documents and the filters alone.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.curation.config import FilterConfig
from gptlab.data.curation.examine import NO_TEXT, PASSES, ExamineJob, Examiner, Examiners
from gptlab.data.curation.filter import CorpusFilter
from gptlab.data.progress import byte_progress
from gptlab.data.sources.source import Corpus, Document
from gptlab.data.sources.table_file import spelled
from gptlab.errors import UserError
from gptlab.files import write_text_atomic

JOB_CHARACTERS = 1 << 18
SMALL_CORPUS_BYTES = 4_000_000
CHECKPOINT_SECONDS = 30
_BLOCK = 1 << 22  # entries of a column that are added up at a time
_PROGRESS, _REPORT = "progress.json", "report.json"


@dataclass(kw_only=True, slots=True)
class FilterCounts:
    """Documents and bytes of text that came to a filter and that left it, and why others did not."""

    name: str
    type: str
    n_documents_in: int
    n_documents_out: int
    n_bytes_in: int
    n_bytes_out: int
    n_rewritten: int = 0  # of those that it let through, those whose text it changed
    rules: dict[str, int] = field(default_factory=dict)  # documents removed, by rule


@dataclass(kw_only=True, slots=True)
class Verdicts:
    """What was decided of every document, in the order of the corpus."""

    counts: list[FilterCounts]
    outcomes: np.ndarray  # uint8 (n,): PASSES, NO_TEXT or the number of the filter that removed it
    sections: np.ndarray  # int64 (m,): the sections with documents
    starts: np.ndarray  # int64 (m,): the number of the first document in each
    rewritten: (
        np.ndarray
    )  # uint8 (n,): 1 + the number of the first filter that changed its text and let it through, or 0
    partners: dict[int, tuple[np.ndarray, np.ndarray]]  # by filter: documents it removed, and what each resembles

    def start_of(self, section: int) -> int:
        """The number of the first document in a section, or in the next that has any."""
        place = int(np.searchsorted(self.sections, section))
        return int(self.starts[place]) if place < len(self.starts) else len(self.outcomes)

    def section_of(self, document: int) -> int:
        """The section in which a document is."""
        return int(self.sections[np.searchsorted(self.starts, document, side="right") - 1])


def is_decided(folder: Path) -> bool:
    """Whether a folder holds verdicts."""
    return (folder / _REPORT).is_file()


def read_verdicts(folder: Path) -> Verdicts:
    """What `decide` wrote; UserError where it is damaged."""
    try:
        report = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        counts = [FilterCounts(**one) for one in report["counts"]]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("outcomes", "rewritten")}
        sections, starts = (np.load(folder / f"{name}.npy") for name in ("sections", "starts"))
        partners = {int(number): np.load(folder / f"partners{number}.npy") for number in report["partners"]}
        if len(arrays["outcomes"]) != report["n_documents"]:
            raise ValueError("another number of documents")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"what {folder} says of filtered documents is damaged ({error}); delete it") from None
    return Verdicts(
        counts=counts,
        sections=sections,
        starts=starts,
        partners={number: (pairs[0], pairs[1]) for number, pairs in partners.items()},
        **arrays,
    )


def decide(
    corpus: Corpus,
    configs: Mapping[str, FilterConfig],
    folder: Path,
    partial: Path,
    *,
    cache_dir: str | None,
    n_processes: int,
    progress: bool,
) -> None:
    """Decide of every document of a corpus, and write the verdicts into `folder`; `partial` holds what is unfinished.

    A call that was interrupted is continued by the next one.
    """
    examiner = Examiner(configs, cache_dir)
    partial.mkdir(exist_ok=True)
    with ExitStack() as stack:
        columns = stack.enter_context(_Columns(partial, examiner.columns))
        if 0 < corpus.n_bytes < SMALL_CORPUS_BYTES:  # starting a process costs as much as filtering some megabytes
            n_processes = 1
        examiners = stack.enter_context(Examiners(configs, cache_dir, examiner, n_processes))
        advance = stack.enter_context(byte_progress("filtering", corpus.n_bytes or None, show=progress))
        n_read = 0
        newest = time.monotonic()
        try:
            for job, found in examiners.map(_jobs(corpus, columns.cursor)):
                columns.append(job, found)
                advance(corpus.n_bytes_read - n_read)
                n_read = corpus.n_bytes_read
                if time.monotonic() - newest > CHECKPOINT_SECONDS:
                    columns.checkpoint()
                    newest = time.monotonic()
        except BaseException:
            with suppress(OSError):  # the error that is on its way says more
                columns.checkpoint()
            raise
        columns.checkpoint()
    _write_verdicts(examiner, _mapped(partial, examiner.columns), list(configs.items()), partial)
    for name in (*examiner.columns, "section"):
        (partial / f"{name}.column").unlink()
    (partial / _PROGRESS).unlink()
    if folder.is_dir():  # a damaged one
        shutil.rmtree(folder)
    os.rename(partial, folder)


def _jobs(corpus: Corpus, cursor: tuple[int, int]) -> Iterator[ExamineJob]:
    """The documents after those that are done: `cursor` is a section, and how many of its documents are."""
    job = ExamineJob()
    for document in corpus.documents_from(cursor[0]):
        if (document.section, document.number) < cursor:
            continue
        text = "".join(document.texts())
        job.texts.append(text)
        job.fields.append(fields_of(document))
        job.names.append(document.name)
        job.sections.append(document.section)
        job.numbers.append(document.number)
        job.n_characters += len(text)
        if job.n_characters >= JOB_CHARACTERS:
            yield job
            job = ExamineJob()
    if job.texts:
        yield job


def fields_of(document: Document) -> dict[str, str | None]:
    """The columns of a document's record as text, as its file spells them."""
    return {name: None if value is None else spelled(value) for name, value in document.fields.items()}


class _Columns:
    """Files that are appended to; a checkpoint says up to where they count."""

    def __init__(self, folder: Path, dtypes: Mapping[str, np.dtype]) -> None:
        self._folder = folder
        self._dtypes = {"section": np.dtype("<u4"), **dtypes}
        self.cursor = (0, 0)
        self._n = 0
        self._files: dict[str, Any] = {}

    def __enter__(self) -> "_Columns":
        with suppress(OSError, ValueError, KeyError, TypeError):  # else from the beginning
            state = json.loads((self._folder / _PROGRESS).read_text(encoding="utf-8"))
            sizes = [(self._path(name).stat().st_size, dtype.itemsize) for name, dtype in self._dtypes.items()]
            if all(size >= state["n"] * item for size, item in sizes):
                self._n, self.cursor = state["n"], (state["section"], state["number"])
        for name, dtype in self._dtypes.items():
            file = open(self._path(name), "r+b" if self._path(name).exists() else "w+b")
            self._files[name] = file
            file.truncate(self._n * dtype.itemsize)
            file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *error) -> None:
        for file in self._files.values():
            with suppress(OSError):
                file.close()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.column"

    def append(self, job: ExamineJob, found: Mapping[str, np.ndarray]) -> None:
        for name, dtype in self._dtypes.items():
            values = np.array(job.sections) if name == "section" else found[name]
            self._files[name].write(np.ascontiguousarray(values, dtype=dtype.base).tobytes())
        # In one step: an interrupt in between would have the next checkpoint name one without the other.
        self._n, self.cursor = self._n + len(job.texts), (job.sections[-1], job.numbers[-1] + 1)

    def checkpoint(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        state = {"n": self._n, "section": self.cursor[0], "number": self.cursor[1]}
        write_text_atomic(self._folder / _PROGRESS, json.dumps(state))


def _mapped(folder: Path, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    found = {}
    for name, dtype in {"section": np.dtype("<u4"), **dtypes}.items():
        path = folder / f"{name}.column"
        n = path.stat().st_size // dtype.itemsize
        shape = (n, *dtype.shape)
        found[name] = np.memmap(path, dtype=dtype.base, mode="r", shape=shape) if n else np.empty(shape, dtype.base)
    return found


def _write_verdicts(
    examiner: Examiner, columns: Mapping[str, np.ndarray], configs: list[tuple[str, FilterConfig]], folder: Path
) -> None:
    outcome = columns["outcome"]
    verdict = np.where(outcome == NO_TEXT, NO_TEXT, PASSES).astype(np.uint8)
    rewritten = np.zeros(len(outcome), dtype=np.uint8)
    counts, partners, n_rewriting = [], {}, 0
    for number, (one, (name, config)) in enumerate(zip(examiner.filters, configs, strict=True)):
        alive = verdict == PASSES
        found = FilterCounts(
            name=name,
            type=config.type,
            n_documents_in=int(alive.sum()),
            n_bytes_in=_sum(columns[f"size{n_rewriting}"], alive),
            n_documents_out=0,
            n_bytes_out=0,
        )
        if isinstance(one, CorpusFilter):
            prefix = f"{number}."
            own = {key.removeprefix(prefix): column for key, column in columns.items() if key.startswith(prefix)}
            removed, like = one.duplicates(own, np.flatnonzero(alive))
            verdict[removed] = number
            np.save(folder / f"partners{number}.npy", np.stack([removed, like]))
            partners[number] = len(removed)
            found.rules = {one.rules[0]: len(removed)} if len(removed) else {}
        else:
            removed = alive & (outcome == number)
            verdict[removed] = number
            rules = np.bincount(columns["rule"][removed], minlength=len(one.rules))
            found.rules = {rule: int(n) for rule, n in zip(one.rules, rules, strict=True) if n}
            if one.rewrites:
                before, after = columns[f"size{n_rewriting}"], columns[f"size{n_rewriting + 1}"]
                changed = (verdict == PASSES) & (before != after)
                found.n_rewritten = int(changed.sum())
                rewritten[changed & (rewritten == 0)] = number + 1
                n_rewriting += 1
        alive = verdict == PASSES
        found.n_documents_out = int(alive.sum())
        found.n_bytes_out = _sum(columns[f"size{n_rewriting}"], alive)
        counts.append(found)
    sections, starts = np.unique(columns["section"], return_index=True)
    arrays = {"outcomes": verdict, "rewritten": rewritten, "sections": sections.astype(np.int64), "starts": starts}
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    report = {"n_documents": len(verdict), "counts": [asdict(one) for one in counts], "partners": list(partners)}
    write_text_atomic(folder / _REPORT, json.dumps(report))


def _sum(column: np.ndarray, mask: np.ndarray) -> int:
    """The sum of a column where a mask is set, a block at a time."""
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(column), _BLOCK))
    return sum(int(column[block][mask[block]].sum()) for block in blocks)
