"""Filter: documents that contain evaluation text, by n-grams of words (Brown et al. 2020, appendix C).

Words are compared in small letters and without punctuation, by 64-bit hashes of n of them in a row. An evaluation text
with fewer words than n is looked for as a whole. The whole document is removed, not 200 characters around the place.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from gptlab.data.curation.config import ContaminationConfig
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal
from gptlab.data.curation.words import ngram_hashes, plain_words, word_hashes
from gptlab.data.sources.source import FileCorpus
from gptlab.errors import UserError


class Contamination(DocumentFilter):
    """Tables of the n-grams of the evaluation texts: 12 bytes each, in every process."""

    rules = ("min_overlaps",)

    def __init__(self, config: ContaminationConfig, cache_dir: str | None = None) -> None:
        self._config = config
        self._names: list[str] = []
        found: dict[int, list[tuple[np.ndarray, int]]] = {}
        for name, text in evaluation_texts(config, cache_dir):
            words = plain_words(text)
            n = min(config.ngram, len(words))
            if n < config.min_ngram:
                continue
            found.setdefault(n, []).append((np.unique(ngram_hashes(word_hashes(words), n)), len(self._names)))
            self._names.append(name)
        if not found:
            raise UserError(
                f"data.filters.contamination: no text in {', '.join(config.paths)} has {config.min_ngram} words, so "
                "that it could be looked for; name other files, or lower data.filters.contamination.min_ngram"
            )
        self._tables = {n: _table(grams) for n, grams in sorted(found.items(), reverse=True)}

    def check(self, candidate: Candidate) -> Removal | None:
        hashes, n_found, first = candidate.word_hashes, 0, None
        for n, (grams, texts) in self._tables.items():
            own = ngram_hashes(hashes, n)
            if not len(own):
                continue
            places = np.searchsorted(grams, own)
            places[places == len(grams)] = 0
            hits = np.flatnonzero(grams[places] == own)
            n_found += len(hits)
            if len(hits) and first is None:
                at = int(hits[0])
                shared = " ".join(candidate.plain_words[at : at + n])
                first = f"{shared!r} is in {self._names[texts[places[at]]]}"
            if n_found >= self._config.min_overlaps:
                return Removal(
                    "min_overlaps", f"{first}" if n_found == 1 else f"{first}; {n_found:,} n-grams are shared"
                )
        return None


def _table(grams: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """All n-grams in order, uint64 (n,), and of each the first text that has it, uint32 (n,)."""
    every = np.concatenate([hashes for hashes, _ in grams])
    owners = np.concatenate([np.full(len(hashes), text, dtype=np.uint32) for hashes, text in grams])
    distinct, first = np.unique(every, return_index=True)
    return distinct, owners[first]


def evaluation_texts(config: ContaminationConfig, cache_dir: str | None = None) -> Iterator[tuple[str, str]]:
    """Name and text of each evaluation text; of a table each value in a column is one."""
    with _own_keys():
        for column, corpus in _corpora(config, cache_dir):
            for name, text in corpus.documents():
                yield (name if len(config.text_columns) == 1 else f"{name} ({column})"), text


def fingerprint_of_texts(config: ContaminationConfig, cache_dir: str | None = None) -> str:
    """A SHA-256 that changes with the names or the content of the files."""
    with _own_keys():
        keys = [corpus.fingerprint for _, corpus in _corpora(config, cache_dir)]
    return hashlib.sha256("".join(keys).encode()).hexdigest()


def _corpora(config: ContaminationConfig, cache_dir: str | None) -> Iterator[tuple[str, FileCorpus]]:
    from gptlab.data.sources.config import TextConfig
    from gptlab.data.sources.text import open_text

    for column in config.text_columns:
        yield column, open_text(TextConfig(paths=config.paths, text_column=column, cache_dir=cache_dir))


@contextmanager
def _own_keys() -> Iterator[None]:
    """Let an error of data=text name the keys of this filter."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("data.path=", "data.filters.contamination.paths: ")
        text = text.replace("data.text_column", "data.filters.contamination.text_columns")
        raise UserError(text.replace(", or null to read the file as plain text", "")) from None
