"""A bounded sample of a corpus: whole where it is small, else documents from many places of it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from gptlab.data.order import example_index
from gptlab.data.sources.source import Corpus
from gptlab.data.token_shards import TokenShards
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.units import plural

SAMPLE_BYTES = 16 * 2**20
MOST_PLACES = 64  # that a sample is read from
_BYTES_PER_TOKEN = 4  # roughly: how much text tokens are is not known before they are decoded


@dataclass(frozen=True, slots=True)
class SampledDocument:
    """A document, or its beginning."""

    name: str
    text: str
    ids: np.ndarray | None = None  # where it is tokenized already
    is_whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Some documents of a source, or all."""

    documents: list[SampledDocument]
    is_whole: bool  # whether these are all
    how: str  # they were chosen, for a person
    share: float | None = None  # of the source as it is stored, that was read; None: unknown
    total_tokens: int | None = None  # of a source that is tokenized
    total_documents: int | None = None


def sample_corpus(corpus: Corpus, most_bytes: int = SAMPLE_BYTES, *, seed: int = 0) -> Sample:
    """About `most_bytes` of text; memory and time do not grow with the corpus.

    Of a corpus of many files, whole documents from up to `MOST_PLACES` of them, in an order that follows from the seed;
    otherwise the first documents.
    """
    total = corpus.n_bytes or None
    n = corpus.n_sections
    if total is not None and total > most_bytes and n > 1:
        documents = list(_from_sections(corpus, n, most_bytes, seed))
        places = min(n, MOST_PLACES)
        how = f"{plural(len(documents), 'document')} from {places} of {n:,} files"
        return Sample(documents=documents, is_whole=False, how=how, share=_share(documents, corpus))
    documents, is_whole = _first(_texts_of(corpus), most_bytes)
    how = "all of it" if is_whole else f"the first {plural(len(documents), 'document')}"
    share = _share(documents, corpus)
    if share is None and total is not None and 0 < corpus.n_bytes_read < total:
        share = corpus.n_bytes_read / total  # compressed, or with other columns
    return Sample(documents=documents, is_whole=is_whole, how=how, share=share)


def _share(documents: list[SampledDocument], corpus: Corpus) -> float | None:
    if not corpus.stores_text or not corpus.n_bytes:
        return None
    return sum(_n_bytes(document.text) for document in documents) / corpus.n_bytes


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _texts_of(corpus: Corpus) -> Iterator[tuple[str, Iterator[str]]]:
    """Name and text in parts of each document; of one that is not read to its end nothing more is held."""
    for (_, name), run in groupby(corpus.chunks(), key=lambda chunk: (chunk.document, chunk.name)):
        yield name, (chunk.text for chunk in run)


def _first(texts: Iterable[tuple[str, Iterator[str]]], most_bytes: int) -> tuple[list[SampledDocument], bool]:
    """The first documents of so many bytes, and whether there are no others."""
    found, n_bytes = [], 0
    for name, parts in texts:
        if n_bytes >= most_bytes:
            return found, False
        # One is cut only where nothing follows that would be read: what is passed over is read as well.
        document = _read(name, parts, most_bytes - n_bytes)
        if document.text:
            found.append(document)
            n_bytes += _n_bytes(document.text)
        if not document.is_whole and n_bytes >= most_bytes:
            return found, False
    return found, all(document.is_whole for document in found)


def _from_sections(corpus: Corpus, n: int, most_bytes: int, seed: int) -> Iterator[SampledDocument]:
    places = min(n, MOST_PLACES)
    left, order = most_bytes, example_index(seed, np.arange(min(n, 50 * MOST_PLACES)), n)
    share = max(1, most_bytes // places)
    for n_read, section in enumerate(order.tolist()):
        if left <= 0 or (n_read >= places and left < share):
            return
        room = min(share, left)
        for document in corpus.documents_from(section):
            if document.section != section or room <= 0:
                break
            one = _read(document.name, document.texts(), room)
            if one.text:
                size = _n_bytes(one.text)
                room, left = room - size, left - size
                yield one


def _read(name: str, parts: Iterator[str], most_characters: int) -> SampledDocument:
    texts, room = [], most_characters
    for part in parts:
        if room <= 0:
            return SampledDocument(name, "".join(texts), is_whole=False)
        texts.append(part[:room])
        if len(part) > room:
            return SampledDocument(name, "".join(texts), is_whole=False)
        room -= len(part)
    return SampledDocument(name, "".join(texts))


def sample_shards(tokens: TokenShards, tokenizer: Tokenizer, most_bytes: int = SAMPLE_BYTES) -> Sample:
    """The documents that begin in stretches of tokens from shards that are evenly apart, about `most_bytes` of text."""
    most_tokens = max(1, most_bytes // _BYTES_PER_TOKEN)
    lengths = tokens.tokens.lengths
    places, is_whole = [], tokens.n_tokens <= most_tokens
    if is_whole:
        documents = _of_tokens(tokens, tokenizer, 0, tokens.n_tokens)
    else:
        n_places = min(len(lengths), MOST_PLACES, max(1, most_tokens // 4096))
        places = sorted({i * len(lengths) // n_places for i in range(n_places)})
        ends, documents = np.cumsum(lengths), []
        for number in places:
            begin = int(ends[number]) - lengths[number]
            size = min(lengths[number], max(1, most_tokens // n_places))
            documents += _of_tokens(tokens, tokenizer, begin, begin + size)
    how = (
        "all of it"
        if is_whole
        else f"{plural(len(documents), 'document')} from {len(places):,} of {len(lengths):,} shards"
    )
    return Sample(
        documents=documents,
        is_whole=is_whole,
        how=how,
        total_tokens=tokens.n_tokens,
        total_documents=tokens.n_documents,
    )


def _of_tokens(tokens: TokenShards, tokenizer: Tokenizer, begin: int, end: int) -> list[SampledDocument]:
    """The documents that begin in [begin, end), as far as they go there."""
    ids = np.asarray(tokens.tokens[begin:end]).astype(np.int64)
    if tokenizer.eot is None:
        return [SampledDocument(f"tokens {begin:,}-{end:,}", tokenizer.decode(ids), ids, is_whole=False)]
    separators = np.flatnonzero(ids == tokenizer.eot)
    starts = np.append(0, separators + 1) if begin == 0 else separators + 1
    stops = np.append(separators, len(ids)) if begin == 0 else np.append(separators[1:], len(ids))
    found = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if start == stop:
            continue
        whole = stop < len(ids) or end == tokens.n_tokens
        own = ids[start:stop]
        found.append(SampledDocument(f"tokens {begin + start:,}-{begin + stop:,}", tokenizer.decode(own), own, whole))
    return found
