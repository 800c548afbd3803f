"""Filter: documents with the text of an earlier one."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from gptlab.data.curation.filter import Candidate, CorpusFilter


class ExactDuplicates(CorpusFilter):
    """Of documents with equal text the first stays. Equal means 128 equal bits of a hash (BLAKE2b)."""

    @property
    def columns(self) -> dict[str, np.dtype]:
        return {"high": np.dtype("<u8"), "low": np.dtype("<u8")}

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        digest = blake2b(candidate.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        high, low = np.frombuffer(digest, dtype="<u8")
        return {"high": high, "low": low}

    def duplicates(self, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(ids):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        high, low = columns["high"][ids], columns["low"][ids]
        order = np.lexsort((low, high))  # stable: equal ones are in their order
        high, low = high[order], low[order]
        begins = np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])
        firsts = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
        again = ~begins
        removed = ids[order[again]]
        by_number = np.argsort(removed, kind="stable")
        return removed[by_number], ids[firsts[again]][by_number]
