"""Filters of documents: how often near duplicates are found, how fast filters are, and their memory.

    python benchmarks/curation.py                       # all of it
    python benchmarks/curation.py --parts pairs speed   # a part: pairs, speed, memory

`speed` also times MinHash signatures of datasketch and rensa, where they are installed.
"""

import argparse
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np

from gptlab.data.curation.banding import chance
from gptlab.data.curation.config import NearDuplicatesConfig, filter_configs
from gptlab.data.curation.filter import Candidate, CorpusFilter
from gptlab.data.curation.near_duplicates import NearDuplicates

SIMILARITIES = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
N_PAIRS = 1_000
N_NGRAMS = 500


class _Sets(NearDuplicates):
    """Documents whose n-grams are given as numbers."""

    def ngrams(self, candidate: Candidate) -> np.ndarray:
        return candidate.numbers  # type: ignore[attr-defined]


def pairs() -> None:
    """The share of pairs that are compared, and that are linked, by their Jaccard similarity."""
    one, draw = _Sets(NearDuplicatesConfig()), np.random.default_rng(0)
    print(f"{one.n_bands} bands of {one.n_rows} hashes; {N_PAIRS:,} pairs of sets of {N_NGRAMS} n-grams\n")
    print("| similarity | compared | by the formula | removed |\n|---|---|---|---|")
    for similarity in SIMILARITIES:
        shared = round(2 * N_NGRAMS * similarity / (1 + similarity))
        actual = shared / (2 * N_NGRAMS - shared)
        n_compared = n_removed = 0
        for _ in range(N_PAIRS):
            numbers = draw.integers(0, 2**64, 2 * N_NGRAMS - shared, dtype=np.uint64)
            found = {name: np.zeros(2, dtype=dtype) for name, dtype in one.columns.items()}
            for row, own in enumerate((numbers[:N_NGRAMS], numbers[N_NGRAMS - shared :])):
                candidate = Candidate("")
                candidate.numbers = own  # type: ignore[attr-defined]
                for name, value in one.measure(candidate).items():
                    found[name][row] = value
            n_compared += any(found[f"band{k}"][0] == found[f"band{k}"][1] for k in range(one.n_bands))
            n_removed += len(one.duplicates(found, np.arange(2))[0])
        formula = chance(actual, one.n_rows, one.n_bands)
        print(f"| {actual:.2f} | {n_compared / N_PAIRS:.1%} | {formula:.1%} | {n_removed / N_PAIRS:.1%} |", flush=True)


def _documents(n: int) -> Iterator[str]:
    draw = random.Random(0)
    stop_words = "the be to of and that have with".split()
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 10))) for _ in range(20_000)]
    for _ in range(n):
        lines = [draw.choices(words, k=8) + draw.choices(stop_words, k=6) for _ in range(40)]
        for line in lines:
            draw.shuffle(line)
        yield "\n".join(f"{' '.join(line).capitalize()}." for line in lines)


def speed(n: int = 300) -> None:
    """MB/s of each filter on one core, in documents of 3 kB."""
    texts = list(_documents(n))
    n_bytes = sum(map(len, texts))

    def report(name: str, work: Callable[[str], object]) -> None:
        work(texts[0])
        start = time.process_time()
        for text in texts:
            work(text)
        print(f"{name:<30} {n_bytes / (time.process_time() - start) / 1e6:6.1f} MB/s", flush=True)

    options = {"length": {"min_words": 1}, "contamination": {"paths": [__file__]}}
    for (
        name
    ) in "length gopher_quality gopher_repetition c4 exact_duplicates near_duplicates contamination language".split():
        try:
            (one,) = (config.build() for config in filter_configs({name: options.get(name, {})}).values())
        except ValueError as error:
            print(f"{name:<30} {error}")
            continue
        judge = (
            one.measure
            if isinstance(one, CorpusFilter)
            else lambda c, one=one: one.check(Candidate(one.rewrite(c.text)))
        )
        report(name, lambda text, judge=judge: judge(Candidate(text)))
    own = NearDuplicates(NearDuplicatesConfig())
    n_hashes = own.n_rows * own.n_bands

    def shingles(text: str) -> list[str]:
        words = Candidate(text).plain_words
        return [" ".join(words[i : i + 5]) for i in range(len(words) - 4)]

    try:
        from datasketch import MinHash

        def sketch(text: str) -> None:
            MinHash(num_perm=n_hashes).update_batch([shingle.encode() for shingle in shingles(text)])

        report(f"datasketch, {n_hashes} hashes", sketch)
    except ImportError:
        print("datasketch is not installed")
    try:
        from rensa import RMinHash

        report(f"rensa, {n_hashes} hashes", lambda text: RMinHash(n_hashes, 0).update(shingles(text)))
    except ImportError:
        print("rensa is not installed")


def memory(n: int = 200_000) -> None:
    """Memory of deciding on near duplicates, for each document, of which a third are copies."""
    one, draw = NearDuplicates(NearDuplicatesConfig()), np.random.default_rng(0)
    copies = np.concatenate([np.arange(n - n // 3), draw.integers(0, n - n // 3, n // 3)])
    columns = {}
    for name, dtype in one.columns.items():
        values = draw.integers(0, np.iinfo(dtype.base).max, (n, *dtype.shape), dtype=dtype.base)
        columns[name] = values[copies]
    tracemalloc.start()
    removed, _ = one.duplicates(columns, np.arange(n))
    _, peak = tracemalloc.get_traced_memory()
    disk = sum(dtype.itemsize for dtype in one.columns.values())
    print(f"{n:,} documents, {len(removed):,} removed: {peak / n:.0f} bytes of memory and {disk} of disk for each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--parts", nargs="+", default=["pairs", "speed", "memory"], choices=["pairs", "speed", "memory"]
    )
    for part in parser.parse_args().parts:
        print(f"\n{part}\n")
        {"pairs": pairs, "speed": speed, "memory": memory}[part]()


if __name__ == "__main__":
    from ending import finish

    finish(main)
