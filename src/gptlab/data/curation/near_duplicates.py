"""Filter: documents that share most of their n-grams with an earlier one, found by MinHash and banding.

A document is the set of its n-grams of words. The least value of a hash function over a set is the same for two sets
with the probability of their Jaccard similarity (Broder 1997). Documents that agree in all hashes of some band are
compared by all hashes, of each one byte (Li and Koenig 2010); those alike enough are linked, and of linked ones
the first stays.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gptlab.data.curation.banding import bands_for
from gptlab.data.curation.config import NearDuplicatesConfig
from gptlab.data.curation.filter import Candidate, CorpusFilter
from gptlab.data.curation.words import mixed, ngram_hashes, word_hashes

_BLOCK_NGRAMS = 1 << 10  # hashed at a time, so that products stay in the processor's cache
_PAIRS = 1 << 13  # that are compared at a time
_SPREAD = np.uint32(0x9E3779B1)  # so that a byte depends on all bits


class NearDuplicates(CorpusFilter):
    """MinHash signatures; see the module."""

    def __init__(self, config: NearDuplicatesConfig) -> None:
        found = bands_for(config.jaccard, config.n_hashes)
        assert found is not None, "checked by the config"
        self.n_rows, self.n_bands = found
        self._config = config
        n = self.n_rows * self.n_bands
        numbers = mixed(np.arange(1, 2 * n + 1, dtype=np.uint64) + np.uint64(config.seed) * np.uint64(2 * n))
        # Modulo 2^32, with odd factors: permutations of the hashes of n-grams.
        numbers = (numbers >> np.uint64(32)).astype(np.uint32)
        self._factors, self._terms = numbers[:n, None] | np.uint32(1), numbers[n:, None]

    @property
    def columns(self) -> dict[str, np.dtype]:
        bands = {f"band{number}": np.dtype("<u8") for number in range(self.n_bands)}
        return {**bands, "bytes": np.dtype(("u1", (self.n_rows * self.n_bands,)))}

    def ngrams(self, candidate: Candidate) -> np.ndarray:
        """The hashes of a document's n-grams; of one with fewer words all of them are one, and without any its text."""
        words = candidate.word_hashes
        if not len(words):
            words = word_hashes([candidate.text])
        return np.unique(ngram_hashes(words, min(self._config.ngram, len(words))))

    def signature(self, candidate: Candidate) -> np.ndarray:
        """The least value of each hash function over the n-grams, uint32 (n_rows * n_bands,)."""
        ngrams = (self.ngrams(candidate) >> np.uint64(32)).astype(np.uint32)
        least = np.full(len(self._factors), 2**32 - 1, dtype=np.uint32)
        for start in range(0, len(ngrams), _BLOCK_NGRAMS):
            values = ngrams[start : start + _BLOCK_NGRAMS] * self._factors
            values += self._terms
            np.minimum(least, values.min(axis=1), out=least)
        return least

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        signature = self.signature(candidate)
        rows = signature.astype(np.uint64).reshape(self.n_bands, self.n_rows)
        bands = np.zeros(self.n_bands, dtype=np.uint64)
        for row in range(self.n_rows):
            bands = mixed(bands + rows[:, row])
        found: dict[str, Any] = {f"band{number}": value for number, value in enumerate(bands)}
        return found | {"bytes": (signature * _SPREAD >> np.uint32(24)).astype(np.uint8)}

    def duplicates(self, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(ids)
        cluster = np.arange(n)  # of each document the first that it is linked to
        partner = np.full(n, -1)  # the first that it was found to be like
        for number in range(self.n_bands if n else 0):
            values = columns[f"band{number}"][ids]
            order = np.argsort(values, kind="stable")  # so that equal values are in the order of the documents
            values = values[order]
            same = values[1:] == values[:-1]
            begins = np.concatenate([[True], ~same])
            in_group = np.concatenate([same, [False]]) | ~begins
            members, group = order[in_group], np.cumsum(begins)[in_group]
            del values, order, same, begins, in_group
            # All of a group are compared with its first; those that are not like it are a group again.
            while len(members):
                begins = np.concatenate([[True], group[1:] != group[:-1]])
                firsts = members[begins][np.cumsum(begins) - 1]
                rest = ~begins
                one, other, group = firsts[rest], members[rest], group[rest]
                linked = cluster[one] == cluster[other]
                unknown = np.flatnonzero(~linked)
                alike = self._alike(columns["bytes"], ids[one[unknown]], ids[other[unknown]])
                found = unknown[alike]
                new = found[partner[other[found]] < 0]
                partner[other[new]] = one[new]
                cluster = _joined(cluster, one[found], other[found])
                linked[found] = True
                members, group = other[~linked], group[~linked]
        removed = np.flatnonzero(cluster != np.arange(n))
        like = np.where(partner[removed] >= 0, partner[removed], cluster[removed])
        return ids[removed], ids[like]

    def _alike(self, signatures: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        found = np.empty(len(one), dtype=bool)
        for start in range(0, len(one), _PAIRS):
            part = slice(start, start + _PAIRS)
            equal = (signatures[one[part]] == signatures[other[part]]).mean(axis=1)
            found[part] = (equal - 1 / 256) / (1 - 1 / 256) >= self._config.jaccard  # less those equal by chance
        return found

    def similarity(self, one: Candidate, other: Candidate) -> float:
        a, b = self.ngrams(one), self.ngrams(other)
        shared = len(np.intersect1d(a, b, assume_unique=True))
        return shared / (len(a) + len(b) - shared)


def _joined(cluster: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The clusters after linking pairs, each named by its first document."""
    if not len(one):
        return cluster
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(cluster)
    ends = np.concatenate([np.arange(n), cluster[one]]), np.concatenate([cluster, cluster[other]])
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(n, n))
    _, number = connected_components(graph, directed=False)
    first = np.full(number.max() + 1, n)
    np.minimum.at(first, number, np.arange(n))
    return first[number]
