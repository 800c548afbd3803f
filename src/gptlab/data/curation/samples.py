"""Random documents that filters removed or rewrote, each with the reason, read again from the corpus."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gptlab.data.curation.corpus import CuratedCorpus
from gptlab.data.curation.curate import fields_of
from gptlab.data.curation.filter import Candidate, CorpusFilter, DocumentFilter
from gptlab.data.sources.source import Document


@dataclass(kw_only=True, slots=True)
class Resembled:
    """The earlier document that a duplicate resembles."""

    name: str
    text: str
    similarity: float  # from 0 to 1, of the texts themselves
    is_kept: bool  # or a duplicate itself


@dataclass(kw_only=True, slots=True)
class Sample:
    """A document as it came to a filter that removed it, or rewrote it and let it through."""

    name: str
    text: str
    reason: str
    fields: dict[str, str | None]
    rewritten: str | None = None  # what a filter left of a document that stays
    resembled: Resembled | None = None


def removed_samples(corpus: CuratedCorpus, n: int, seed: int) -> list[list[Sample]]:
    """At most n documents that each filter removed, and as many that it rewrote; a function of corpus, n and seed.

    Only sections with one of them are read.
    """
    verdicts, filters = corpus.verdicts, corpus.examiner.filters
    removed, rewritten, like = [], [], {}
    for number, one in enumerate(filters):
        removed.append(_drawn(np.flatnonzero(verdicts.outcomes == number), n, f"{seed} removed {number}"))
        is_rewriting = isinstance(one, DocumentFilter) and one.rewrites
        changed = np.flatnonzero(verdicts.rewritten == number + 1) if is_rewriting else np.empty(0, int)
        rewritten.append(_drawn(changed, n, f"{seed} rewritten {number}"))
        if number in verdicts.partners:
            gone, resembled = verdicts.partners[number]
            like |= {document: int(resembled[np.searchsorted(gone, document)]) for document in removed[-1]}
    documents = _read(corpus, [*(one for part in (*removed, *rewritten) for one in part), *like.values()])
    found = []
    for number, one in enumerate(filters):
        samples = []
        for document in removed[number]:
            candidate, removal = corpus.examiner.why(number, documents[document])
            reason = f"{removal.rule}: {removal.reason}" if removal is not None else ""
            sample = Sample(name=candidate.where, text=candidate.text, reason=reason, fields=dict(candidate.fields))
            if isinstance(one, CorpusFilter):
                other, _ = corpus.examiner.why(number, documents[like[document]])
                sample.resembled = Resembled(
                    name=other.where,
                    text=other.text,
                    similarity=one.similarity(other, candidate),
                    is_kept=int(verdicts.outcomes[like[document]]) != number,
                )
            samples.append(sample)
        for document in rewritten[number]:
            assert isinstance(one, DocumentFilter)
            candidate, _ = corpus.examiner.why(number, documents[document])
            left = one.rewrite(candidate.text)
            samples.append(
                Sample(
                    name=candidate.where, text=candidate.text, reason="", fields=dict(candidate.fields), rewritten=left
                )
            )
        found.append(samples)
    return found


def _drawn(documents: np.ndarray, n: int, seed: str) -> list[int]:
    if len(documents) <= n:
        return documents.tolist()
    return sorted(int(documents[place]) for place in random.Random(seed).sample(range(len(documents)), n))


def _read(corpus: CuratedCorpus, wanted: Iterable[int]) -> dict[int, Candidate]:
    """Documents by their numbers, each section read up to the last of them that it has."""
    verdicts, found = corpus.verdicts, {}
    waiting = sorted(set(wanted), reverse=True)
    while waiting:
        section = verdicts.section_of(waiting[-1])
        for number, document in enumerate(corpus.source.documents_from(section), verdicts.start_of(section)):
            if number == waiting[-1]:
                found[waiting.pop()] = _candidate(document)
                # The next may be far away, in a section that reading may begin with.
                if not waiting or verdicts.section_of(waiting[-1]) > document.section + 1:
                    break
    return found


def _candidate(document: Document) -> Candidate:
    return Candidate("".join(document.texts()), fields_of(document), document.name)
