"""A corpus without the documents that its filters remove."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gptlab.data.cache import cache_lock, cache_root
from gptlab.data.config import DataConfig
from gptlab.data.curation.config import FilterConfig
from gptlab.data.curation.curate import FilterCounts, Verdicts, decide, is_decided, read_verdicts
from gptlab.data.curation.examine import NO_TEXT, PASSES, Examiner
from gptlab.data.sources.source import Corpus, Document, RecordSource, TextChunk, records_without_text
from gptlab.errors import UserError
from gptlab.units import plural

_VERSION = 1  # of what filters decide; another wherever one decides otherwise


def open_source(data: DataConfig, *, progress: bool = True) -> Corpus | RecordSource:
    """What a config's `build` opens, without the documents that `data.filters` remove."""
    source = data.build(progress=progress)
    filters = data.filter_configs
    if not filters:
        return source
    if not isinstance(source, Corpus):
        raise UserError(
            f"data.filters is for documents, and data={data.type} has records; leave it out, or use data=text"
        )
    return CuratedCorpus(source, filters, data.cache_dir, n_processes=data.n_processes, progress=progress)


class CuratedCorpus(Corpus):
    """The documents of another corpus that pass filters, in their order, with the text that is left.

    Opening one reads nothing but what identifies the filters. The first that asks for documents has the corpus read and
    its documents judged; the verdicts are kept in the cache.
    """

    def __init__(
        self,
        corpus: Corpus,
        filters: Mapping[str, FilterConfig],
        cache_dir: str | None = None,
        *,
        n_processes: int | None = None,
        progress: bool = False,
    ) -> None:
        self.source, self.configs = corpus, dict(filters)
        self._cache_dir, self._n_processes, self._progress = cache_dir, n_processes, progress
        self.description, self.n_bytes, self.slow = corpus.description, corpus.n_bytes, corpus.slow
        self.sections = corpus.sections
        self.filters: list[dict[str, Any]] = [
            {"name": name, **config.identity(cache_dir)} for name, config in filters.items()
        ]
        key = json.dumps([_VERSION, corpus.fingerprint, [without_name(one) for one in self.filters]], sort_keys=True)
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()
        self._n_empty = 0

    @property
    def n_bytes_read(self) -> int:
        return self.source.n_bytes_read

    @property
    def left_out(self) -> list[str]:
        removed = [
            f"{plural(n, 'document')} removed by {one.name}"
            for one in self.counts
            if (n := one.n_documents_in - one.n_documents_out)
        ]
        empty = [records_without_text(self._n_empty)] if self._n_empty else []
        return [*self.source.left_out, *removed, *empty]

    @property
    def counts(self) -> list[FilterCounts]:
        """What each filter let through."""
        return self.verdicts.counts

    @cached_property
    def examiner(self) -> Examiner:
        """The filters."""
        return Examiner(self.configs, self._cache_dir)

    @property
    def folder(self) -> Path:
        """Where the verdicts are kept."""
        return cache_root(self._cache_dir) / f"curation-{self.fingerprint[:16]}"

    @cached_property
    def verdicts(self) -> Verdicts:
        """What was decided of each document; the first call decides."""
        from gptlab.data.prepare import n_cores

        folder = self.folder
        if not is_decided(folder):
            with cache_lock(folder.parent, folder.name):
                if not is_decided(folder):
                    decide(
                        self.source,
                        self.configs,
                        folder,
                        folder.with_name(f".{folder.name}.partial"),
                        cache_dir=self._cache_dir,
                        n_processes=self._n_processes or n_cores(),
                        progress=self._progress,
                    )
        verdicts = read_verdicts(folder)
        for one, name in zip(verdicts.counts, self.configs, strict=True):
            one.name = name  # other names are no other filters
        return verdicts

    def chunks(self) -> Iterator[TextChunk]:
        number = n_empty = 0
        for document in self.documents_from():
            is_empty = True
            for text in document.texts():
                is_empty = False
                yield TextChunk(number, document.name, text)
            number, n_empty = number + (not is_empty), n_empty + is_empty
        self._n_empty = n_empty

    def documents_from(self, section: int = 0) -> Iterator[Document]:
        verdicts = self.verdicts
        if not verdicts.counts[-1].n_documents_out:
            raise UserError(f"data.filters left no document of {self.description}: {most_removed(self.counts)}")
        outcomes, place = verdicts.outcomes, verdicts.start_of(section)
        rewrites = self.examiner.rewrites
        changed = UserError(f"{self.description} has changed since it was filtered; delete {self.folder} and run again")
        current, number = -1, 0
        for document in self.source.documents_from(section):
            if place >= len(outcomes):
                raise changed
            outcome, place = int(outcomes[place]), place + 1
            if outcome not in (PASSES, NO_TEXT):
                continue
            if document.section != current:
                current, number = document.section, 0
            texts = document.texts if not rewrites else partial(self._rewritten, document)
            yield Document(document.section, number, document.name, texts, document.fields)
            number += 1
        if place != len(outcomes):
            raise changed

    def _rewritten(self, document: Document) -> Iterator[str]:
        text = self.examiner.rewritten("".join(document.texts()))
        if text:
            yield text


def most_removed(counts: list[FilterCounts]) -> str:
    """Which filter removed most, for a person."""
    one = max(counts, key=lambda one: one.n_documents_in - one.n_documents_out)
    n = one.n_documents_in - one.n_documents_out
    rule = f" ({max(one.rules, key=lambda rule: one.rules[rule])})" if one.rules else ""
    return (
        f"{one.name} removed {n:,} of {one.n_documents_in:,}{rule}; change its options, or data.filters.{one.name}=null"
    )


def without_name(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a filter does, whatever it is called."""
    return {key: value for key, value in identity.items() if key != "name"}
