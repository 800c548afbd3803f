"""What is in the data of a run: lengths, sources, tokens, repetitions, and how sequences cut documents.

Of a large corpus a sample is read, so neither memory nor time grows with it.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.data.config import DataConfig, RunDataConfig
from gptlab.data.curation.corpus import open_source
from gptlab.data.mixture.config import MixtureConfig, with_name
from gptlab.data.mixture.prepare import learn_run_tokenizer
from gptlab.data.prepare import learn_vocabulary
from gptlab.data.sampling import SAMPLE_BYTES, Sample, SampledDocument, sample_corpus, sample_shards
from gptlab.data.sources.config import ShardsConfig
from gptlab.data.sources.source import Corpus
from gptlab.data.token_shards import TokenShards, open_tokenizer, read_manifest
from gptlab.data.tokenizers.config import TokenizerConfig
from gptlab.data.tokenizers.pieces import pieces, visible
from gptlab.data.tokenizers.tokenizer import Tokenizer, lost_text
from gptlab.errors import UserError

N_GRAM = 13  # tokens, as in the search for contamination of GPT-3 (arXiv:2005.14165, appendix C)
N_FREQUENT = 30
N_REPEATED = 10
SHOWN_CHARACTERS = 2000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of documents, in tokens."""

    least: int
    median: float
    mean: float
    p90: float
    p99: float
    most: int
    bins: list[tuple[int, int, int]]  # from, up to but without, and how many documents


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLook:
    """One source, or the only one, whose name is empty."""

    name: str
    description: str
    how: str  # what of it was read
    is_whole: bool
    n_documents: int
    n_cut: int  # documents of which only the beginning was read
    n_bytes: int
    n_characters: int
    n_tokens: int
    total_tokens: int | None  # of all of it
    is_estimate: bool  # of the total
    weights: tuple[float, float] | None  # in a mixture, at the beginning and at the end of its schedule
    lengths: Lengths

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / max(1, self.n_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """A document or an n-gram that is there several times."""

    text: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """How sequences of `length` tokens cut the documents of the sample, one after the other."""

    length: int
    documents_per_sequence: float
    share_with_several: float  # of the sequences, that hold parts of several documents
    share_cut: float  # of the documents, that are in more than one sequence
    pieces_per_document: float
    median_piece: float  # tokens of a document that one sequence holds
    bins: list[tuple[int, int]]  # documents in a sequence, and how many sequences; the last with as many or more


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDocument:
    """A document that was drawn at random."""

    source: str
    name: str
    n_tokens: int
    n_characters: int
    text: str  # its beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLook:
    """What a sample of the data shows."""

    sources: list[SourceLook]
    tokenizer: str
    vocab_size: int
    notes: list[str]
    lengths: Lengths
    frequent: list[tuple[int, str, int, float]]  # token, its text, count, share
    n_used: int  # entries of the vocabulary that occur
    n_duplicates: int  # documents that equal an earlier one
    share_duplicate: float  # of the tokens, in such documents
    repeated_documents: list[Repeated]
    share_repeated: float  # of the n-grams, that occurred before
    repeated_ngrams: list[Repeated]
    n_gram: int
    n_unknown: int  # tokens that stand for text which the vocabulary lacks
    outside: list[tuple[str, int]]  # characters that the vocabulary lacks, and how often
    n_lossy: int  # documents that decoding does not give back
    lossy_example: str | None
    cuts: Cuts
    shown: list[ShownDocument]

    @property
    def n_documents(self) -> int:
        return sum(source.n_documents for source in self.sources)

    @property
    def n_tokens(self) -> int:
        return sum(source.n_tokens for source in self.sources)

    def plain(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return asdict(self) | {"n_documents": self.n_documents, "n_tokens": self.n_tokens}


def look_at(
    data: RunDataConfig,
    tokenizer: TokenizerConfig,
    *,
    context_length: int,
    seed: int = 0,
    n_shown: int = 3,
    sample_bytes: int = SAMPLE_BYTES,
) -> DataLook:
    """Look at a corpus or at each source of a mixture, as a run with this tokenizer and context would read it.

    `sample_bytes` of text are read of each source; less where it has less. A tokenizer that is learned learns as for a
    run where all of the text is read, else from the sample. UserError for a table, whose records have no text as such.
    """
    data.check()
    tokenizer.check()
    sources = data.corpora
    shards = {name: one for name, one in sources.items() if isinstance(one, ShardsConfig)}
    samples: dict[str, Sample] = {}
    descriptions: dict[str, str] = {}
    made, notes = None, []
    for name, one in shards.items():
        made, samples[name], descriptions[name] = (
            with_name(name, _shards, one, sample_bytes) if name else _shards(one, sample_bytes)
        )
    for name, one in sources.items():
        if name not in shards:
            corpus = with_name(name, _build, one) if name else _build(one)
            descriptions[name] = corpus.description
            call = (corpus, sample_bytes)
            samples[name] = (
                with_name(name, sample_corpus, *call, seed=seed) if name else sample_corpus(*call, seed=seed)
            )
            if not samples[name].documents:
                raise UserError(f"{corpus.description} holds no readable text; give another with data.path=")
            notes += [f"{name}: without {what}" if name else f"without {what}" for what in corpus.left_out]
    if made is None:
        made, note = _tokenizer(data, tokenizer, samples)
        notes += [note] if note else []
    look = _Look(data, made, {name: samples[name] for name in sources}, descriptions, notes)
    name = made.type if shards else tokenizer.type
    return look.result(tokenizer=name, context_length=context_length, seed=seed, n_shown=n_shown)


def _build(data: DataConfig) -> Corpus:
    corpus = open_source(data, progress=False)
    if not isinstance(corpus, Corpus):
        raise UserError(
            f"data={data.type} has records and not documents; gptlab inspect step=1 shows examples made of them"
        )
    return corpus


def _shards(data: ShardsConfig, sample_bytes: int) -> tuple[Tokenizer, Sample, str]:
    folder = Path(data.path or "").expanduser()
    manifest = read_manifest(folder)
    tokenizer = open_tokenizer(folder, manifest)
    tokens = TokenShards.open(folder, manifest, "train")
    return tokenizer, sample_shards(tokens, tokenizer, sample_bytes), f"training split of the shards in {data.path}"


def _tokenizer(
    data: RunDataConfig, config: TokenizerConfig, samples: dict[str, Sample]
) -> tuple[Tokenizer, str | None]:
    if not config.trained:
        return config.build(lambda: iter(())), None
    if all(sample.is_whole for sample in samples.values()):
        try:
            return learn_run_tokenizer(data, config, progress=False), None
        except UserError:  # the splits cannot be made, which a look does not need
            pass

    def texts() -> Iterator[str]:
        for sample in samples.values():
            yield from (document.text for document in sample.documents)

    note = f"tokenizer={config.type} was learned from what is shown here, and not from the training split"
    return learn_vocabulary(config, texts, progress=False), note


class _Look:
    def __init__(
        self,
        data: RunDataConfig,
        tokenizer: Tokenizer,
        samples: dict[str, Sample],
        descriptions: dict[str, str],
        notes: list[str],
    ) -> None:
        self._data, self._tokenizer, self._samples, self._notes = data, tokenizer, samples, notes
        self._descriptions = descriptions
        self._outside: Counter[str] = Counter()
        self._known = set(getattr(tokenizer, "characters", "")) or None
        self._documents = [(name, one) for name, sample in samples.items() for one in sample.documents]
        self._ids = [self._encoded(document) for _, document in self._documents]
        self._lengths = np.array([len(ids) for ids in self._ids])

    def _encoded(self, document: SampledDocument) -> np.ndarray:
        if document.ids is not None:
            return document.ids
        text = document.text
        if self._known is not None and not self._known.issuperset(text):
            self._outside.update(character for character in text if character not in self._known)
            text = "".join(character for character in text if character in self._known)
        parts = [self._tokenizer.encode(part) for part in self._tokenizer.chunks([text])]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def result(self, *, tokenizer: str, context_length: int, seed: int, n_shown: int) -> DataLook:
        everything = np.concatenate(self._ids) if self._ids else np.empty(0, np.int64)
        n_tokens = max(1, len(everything))
        counts = np.bincount(everything, minlength=self._tokenizer.vocab_size)
        order = np.argsort(-counts, kind="stable")[:N_FREQUENT]
        frequent = [
            (int(token), self._spelled([token]), int(counts[token]), float(counts[token] / n_tokens))
            for token in order
            if counts[token]
        ]
        n_duplicates, share_duplicate, repeated = self._duplicates()
        share_repeated, ngrams = self._repeated_ngrams(everything)
        n_lossy, lossy_example = self._lossy()
        return DataLook(
            sources=[self._source(name) for name in self._samples],
            tokenizer=tokenizer,
            vocab_size=self._tokenizer.vocab_size,
            notes=self._notes,
            lengths=_lengths(self._lengths),
            frequent=frequent,
            n_used=int((counts > 0).sum()),
            n_duplicates=n_duplicates,
            share_duplicate=share_duplicate,
            repeated_documents=repeated,
            share_repeated=share_repeated,
            repeated_ngrams=ngrams,
            n_gram=N_GRAM,
            n_unknown=int(counts[list(self._tokenizer.specials)].sum()) if self._tokenizer.specials else 0,
            outside=self._outside.most_common(N_FREQUENT),
            n_lossy=n_lossy,
            lossy_example=lossy_example,
            cuts=cuts_of(self._lengths, context_length, separated=self._tokenizer.eot is not None),
            shown=self._shown(seed, n_shown),
        )

    def _spelled(self, ids: Any) -> str:
        return "".join(piece.text for piece in pieces(self._tokenizer, ids) if piece.part == 1)

    def _source(self, name: str) -> SourceLook:
        sample, own = self._samples[name], [i for i, (of, _) in enumerate(self._documents) if of == name]
        n_tokens = int(self._lengths[own].sum())
        n_bytes = sum(_n_bytes(self._documents[i][1].text) for i in own)
        total = sample.total_tokens if sample.total_tokens is not None else n_tokens if sample.is_whole else None
        is_estimate = total is None
        if total is None and sample.share:
            total = round(n_tokens / sample.share)
        weights = None
        if isinstance(self._data, MixtureConfig):
            k, points = self._data.names.index(name), self._data.points()
            weights = float(points[0][1][k]), float(points[-1][1][k])
        return SourceLook(
            name=name,
            description=self._descriptions[name],
            how=sample.how,
            is_whole=sample.is_whole,
            n_documents=len(own),
            n_cut=sum(not self._documents[i][1].is_whole for i in own),
            n_bytes=n_bytes,
            n_characters=sum(len(self._documents[i][1].text) for i in own),
            n_tokens=n_tokens,
            total_tokens=total,
            is_estimate=is_estimate and total is not None,
            weights=weights,
            lengths=_lengths(self._lengths[own]),
        )

    def _duplicates(self) -> tuple[int, float, list[Repeated]]:
        seen: Counter[bytes] = Counter()
        first: dict[bytes, int] = {}
        again = []
        for i, (_, document) in enumerate(self._documents):
            key = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            again += [i] if key in seen else []
            seen[key] += 1
            first.setdefault(key, i)
        repeated = [
            Repeated(text=self._documents[first[key]][1].text[:SHOWN_CHARACTERS], count=count)
            for key, count in seen.most_common(N_REPEATED)
            if count > 1
        ]
        return len(again), float(self._lengths[again].sum() / max(1, self._lengths.sum())), repeated

    def _repeated_ngrams(self, ids: np.ndarray) -> tuple[float, list[Repeated]]:
        """The share of the n-grams of all documents that occurred before, and the most frequent of them."""
        if len(ids) < N_GRAM:
            return 0.0, []
        n = len(ids) - N_GRAM + 1
        hashes = np.zeros(n, dtype=np.uint64)
        for k in range(N_GRAM):
            hashes = hashes * _FACTOR + ids[k : k + n].astype(np.uint64) + np.uint64(1)
        hashes ^= hashes >> np.uint64(29)
        begins = np.cumsum(self._lengths) - self._lengths
        inside = np.zeros(len(ids) + 1, dtype=np.int32)  # of a document, where a whole n-gram is left
        for begin, length in zip(begins.tolist(), self._lengths.tolist(), strict=True):
            if length >= N_GRAM:
                inside[begin] += 1
                inside[begin + length - N_GRAM + 1] -= 1
        where = np.flatnonzero(np.cumsum(inside)[:n] > 0)
        if not len(where):
            return 0.0, []
        _, at, counts = np.unique(hashes[where], return_index=True, return_counts=True)
        found: list[Repeated] = []
        taken: list[np.ndarray] = []
        for i in np.argsort(-counts, kind="stable")[: 50 * N_REPEATED]:
            gram = ids[where[at[i]] : where[at[i]] + N_GRAM]
            # Of a longer repetition each place is one: the first of those that overlap stands for it.
            if counts[i] < 2 or len(found) == N_REPEATED:
                break
            if any(_overlap(gram, other) for other in taken):
                continue
            taken.append(gram)
            found.append(Repeated(text=self._spelled(gram), count=int(counts[i])))
        return float(1 - len(counts) / len(where)), found

    def _lossy(self) -> tuple[int, str | None]:
        if self._tokenizer.is_lossless and not self._outside:
            return 0, None
        n, example = 0, None
        for (_, document), ids in zip(self._documents, self._ids, strict=True):
            if document.ids is None and (lost := lost_text(document.text, self._tokenizer.decode(ids))) is not None:
                n, example = n + 1, example or lost
        return n, example

    def _shown(self, seed: int, n_shown: int) -> list[ShownDocument]:
        draw = random.Random(seed)
        chosen = sorted(draw.sample(range(len(self._documents)), min(n_shown, len(self._documents))))
        return [
            ShownDocument(
                source=self._documents[i][0],
                name=self._documents[i][1].name,
                n_tokens=int(self._lengths[i]),
                n_characters=len(self._documents[i][1].text),
                text=self._documents[i][1].text[:SHOWN_CHARACTERS],
            )
            for i in chosen
        ]


def _overlap(gram: np.ndarray, other: np.ndarray) -> bool:
    """Whether one n-gram is another, moved by less than half of its length."""
    n = len(gram)
    return any(
        np.array_equal(gram[k:], other[: n - k]) or np.array_equal(other[k:], gram[: n - k]) for k in range(n - n // 3)
    )


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _lengths(lengths: np.ndarray) -> Lengths:
    """Bins are powers of two: the axis is logarithmic."""
    if not len(lengths):
        return Lengths(least=0, median=0.0, mean=0.0, p90=0.0, p99=0.0, most=0, bins=[])
    at = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    counts = np.bincount(at)
    first = int(at.min())
    bins = [
        (0 if k == 0 and lengths.min() == 0 else 1 << k, 1 << (k + 1), int(counts[k]))
        for k in range(first, len(counts))
    ]
    median, p90, p99 = (float(np.quantile(lengths, q)) for q in (0.5, 0.9, 0.99))
    return Lengths(
        least=int(lengths.min()),
        median=median,
        mean=float(lengths.mean()),
        p90=p90,
        p99=p99,
        most=int(lengths.max()),
        bins=bins,
    )


def cuts_of(lengths: np.ndarray, sequence_length: int, *, separated: bool) -> Cuts:
    """How sequences of so many tokens cut documents of these lengths (tokens) that follow each other.

    `separated`: a token stands between two of them; it is of none.
    """
    lengths = np.asarray(lengths)[np.asarray(lengths) > 0]
    begins = np.cumsum(lengths + separated) - lengths - separated
    total = int(begins[-1] + lengths[-1]) if len(lengths) else 0
    first, last = begins // sequence_length, (begins + lengths - 1) // sequence_length
    n_pieces = last - first + 1
    n_sequences = max(1, -(-total // sequence_length))
    changes = np.zeros(n_sequences + 1, dtype=np.int64)
    np.add.at(changes, first, 1)
    np.add.at(changes, last + 1, -1)
    per_sequence = np.cumsum(changes)[:n_sequences]
    # A document's first and last piece may be short; those between are whole sequences.
    head = np.minimum(lengths, sequence_length - begins % sequence_length)
    tail = np.where(n_pieces > 1, (begins + lengths - 1) % sequence_length + 1, 0)
    n_full = int(np.maximum(n_pieces - 2, 0).sum())
    sizes = np.concatenate([head, tail[tail > 0]])
    most = 9
    counts = np.bincount(np.minimum(per_sequence, most), minlength=1)
    return Cuts(
        length=sequence_length,
        documents_per_sequence=float(per_sequence.mean()),
        share_with_several=float((per_sequence > 1).mean()),
        share_cut=float((n_pieces > 1).mean()) if len(lengths) else 0.0,
        pieces_per_document=float(n_pieces.mean()) if len(lengths) else 0.0,
        median_piece=_median(sizes, n_full, sequence_length),
        bins=[(k, int(count)) for k, count in enumerate(counts) if k],
    )


def _median(sizes: np.ndarray, n_full: int, full: int) -> float:
    """The median of sizes, none above `full`, and of so many that are full."""
    ordered, n = np.sort(sizes), len(sizes) + n_full
    if not n:
        return 0.0
    middle = [float(ordered[i]) if i < len(ordered) else float(full) for i in ((n - 1) // 2, n // 2)]
    return sum(middle) / 2


def shown_text(text: str, most: int) -> str:
    """A text in quotes on one line, cut after so many characters."""
    shown = visible(text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
