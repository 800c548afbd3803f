"""Which part of a corpus is for training, validation and test."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from gptlab.data.config import DataConfig, Split
from gptlab.data.sources.source import Corpus, TextChunk
from gptlab.errors import UserError

PARTS = ("train", "val", "test")

# For each document, where its parts begin in characters, e.g. [("train", 0), ("val", 3105)].
PartOf = Callable[[int], list[tuple[str, int]]]


def parts_of(data: DataConfig) -> list[str]:
    """The parts that a config asks for, `train` first."""
    fractions = dict(zip(PARTS, (1, *data.held_out), strict=True))
    return [part for part in PARTS if fractions[part]]


def unit_hash(content: bytes) -> float:
    """A hash in [0, 1), the same on every platform."""
    return unit_of(hashlib.sha256(content).digest())


def unit_of(digest: bytes) -> float:
    """The number in [0, 1) that a SHA-256 begins with."""
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


@dataclass(kw_only=True, slots=True)
class DocumentSizes:
    """What a split needs to know of the documents."""

    characters: array  # of each document
    hashes: array  # of each document's name, in [0, 1)
    contents: array  # a 64-bit hash of each document's text
    n_bytes: int

    def first_alike(self) -> np.ndarray:
        """For each document the number of the first with the same text."""
        _, first, distinct = np.unique(np.array(self.contents), return_index=True, return_inverse=True)
        return first[distinct]


def measure(corpus: Corpus) -> DocumentSizes:
    """Read a corpus once for the sizes of its documents; UserError where there are none."""
    sizes = DocumentSizes(characters=array("q"), hashes=array("d"), contents=array("Q"), n_bytes=0)
    for _, chunks in groupby(corpus.chunks(), key=lambda chunk: chunk.document):
        digest = hashlib.blake2b(digest_size=8)
        n_characters, name = 0, ""
        for chunk in chunks:
            data = chunk.text.encode("utf-8", "surrogatepass")
            digest.update(data)
            n_characters += len(chunk.text)
            sizes.n_bytes += len(data)
            name = chunk.name
        sizes.characters.append(n_characters)
        sizes.hashes.append(unit_hash(name.encode("utf-8", "surrogatepass")))
        sizes.contents.append(int.from_bytes(digest.digest(), "big"))
    if not sizes.characters:
        raise UserError(f"{corpus.description} holds no readable text; give another with data.path=")
    return sizes


def split_examples(data: DataConfig, content_hashes: array) -> Callable[[int], str]:
    """The split of each example by the hash of its content: equal examples are never in two splits."""
    parts = parts_of(data)
    hashes, distinct = np.unique(np.array(content_hashes), return_inverse=True)
    if len(hashes) < len(parts):
        alike = f" ({len(hashes):,} of them different)" if len(hashes) < len(content_hashes) else ""
        raise UserError(
            f"the table has {len(content_hashes):,} record{'s' * (len(content_hashes) > 1)}{alike}, and each of "
            f"{', '.join(parts)} needs one; give more records, or set data.val_fraction=0 and data.test_fraction=0"
        )
    part_of = _split_by_document(data, hashes)
    return lambda number: part_of(int(distinct[number]))[0][0]


def split_documents(data: DataConfig, sizes: DocumentSizes) -> PartOf:
    """The parts of each document: it is in one as a whole, or the text itself is cut.

    Equal documents are divided alike, as the first of them is; a fraction is one of the text without repetitions.
    """
    alike = sizes.first_alike()
    firsts, distinct = np.unique(alike, return_inverse=True)
    if Split(data.split) is Split.document:
        part_of = _split_by_document(data, np.array(sizes.hashes)[firsts], n_documents=len(alike))
    else:
        part_of = _split_by_characters(data, np.array(sizes.characters)[firsts])
    return lambda document: part_of(int(distinct[document]))


def _split_by_characters(data: DataConfig, characters: np.ndarray) -> PartOf:
    n = int(characters.sum())
    # Rounded, so that 1 - 0.1 is 0.9 and its product with n the one that everybody else computes.
    val, test = data.held_out
    ends = [int(round(1 - val - test, 12) * n), int(round(1 - test, 12) * n), n]
    starts = [0, *ends[:2]]
    for part, fraction, start, end in zip(PARTS, (1, val, test), starts, ends, strict=True):
        if fraction and start == end:
            setting = "the training split" if part == "train" else f"data.{part}_fraction={fraction}"
            raise UserError(f"{setting} is empty: the corpus has {n:,} characters; give more text or other fractions")
    offsets = np.concatenate([[0], np.cumsum(characters)])

    def part_of(document: int) -> list[tuple[str, int]]:
        first, last = int(offsets[document]), int(offsets[document + 1])
        return [
            (part, max(start, first) - first)
            for part, start, end in zip(PARTS, starts, ends, strict=True)
            if max(start, first) < min(end, last)
        ]

    return part_of


def hash_bounds(data: DataConfig, hashes: Iterable[float]) -> tuple[float, float]:
    """Below which hashes a document is for validation, and below which others for a test; the rest is for training.

    `hashes` are those of the documents in their order, read until each split has one: then the bounds are the
    fractions. In a corpus that ends before, an empty split takes the document with the next hash. UserError where there
    are too few different documents.
    """
    bounds = data.held_out[0], sum(data.held_out)
    missing = set(parts_of(data))
    seen: set[float] = set()
    n_documents = 0
    for unit in hashes:
        n_documents += 1
        seen.add(unit)
        missing.discard("val" if unit < bounds[0] else "test" if unit < bounds[1] else "train")
        if not missing:
            return bounds
    advice = "set data.val_fraction=0 and data.test_fraction=0"
    n_val, n_test = _n_held_out(data, np.array(list(seen)), n_documents, advice)
    ordered = sorted(seen)
    return ordered[n_val] if n_val else 0.0, ordered[n_val + n_test] if n_val + n_test else 0.0


def _split_by_document(data: DataConfig, hashes: np.ndarray, n_documents: int | None = None) -> PartOf:
    n_val, n_test = _n_held_out(data, hashes, n_documents, "use data.split=fraction, which cuts the text itself")
    codes = np.zeros(len(hashes), dtype=np.uint8)
    order = np.argsort(hashes, kind="stable")
    codes[order[:n_val]] = 1
    codes[order[n_val : n_val + n_test]] = 2
    return lambda document: [(PARTS[codes[document]], 0)]


def _n_held_out(data: DataConfig, hashes: np.ndarray, n_documents: int | None, advice: str) -> tuple[int, int]:
    """How many of the documents, in the order of their hashes, are for validation, and then for a test."""
    n = len(hashes)
    wanted = [part for part, fraction in zip(PARTS[1:], data.held_out, strict=True) if fraction]
    if n <= len(wanted):
        alike = f" different among {n_documents}" if n_documents not in (None, n) else ""
        raise UserError(
            f"data.split=document needs a document for each of train, {', '.join(wanted)} and the corpus has "
            f"{n}{alike}; {advice}"
        )
    n_val = int((hashes < data.held_out[0]).sum())
    n_test = int((hashes < sum(data.held_out)).sum()) - n_val
    # In the order of the hashes the parts are neighbors: an empty one takes the next document.
    n_val, n_test = max(n_val, "val" in wanted), max(n_test, "test" in wanted)
    n_val = min(n_val, n - 1 - ("test" in wanted))
    return n_val, min(n_test, n - 1 - n_val)


def cut_into_parts(chunks: Iterable[TextChunk], part_of: PartOf) -> Iterator[tuple[str, TextChunk]]:
    """The chunks of a corpus, cut where a part ends, each with its part."""
    for document, run in groupby(chunks, key=lambda chunk: chunk.document):
        waiting = part_of(document)
        position = 0
        part = ""
        for chunk in run:
            text = chunk.text
            while text:
                if waiting and waiting[0][1] == position:
                    part = waiting.pop(0)[0]
                length = waiting[0][1] - position if waiting else len(text)
                yield part, TextChunk(document, chunk.name, text[:length])
                position += min(length, len(text))
                text = text[length:]


def by_document(
    parts: Iterable[tuple[str, TextChunk]],
) -> Iterator[tuple[tuple[str, int], Iterator[tuple[str, TextChunk]]]]:
    """Chunks grouped by (part, document)."""
    return groupby(parts, key=lambda item: (item[0], item[1].document))
