"""What one optimizer step read: its documents, and the loss of each token under a checkpoint."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gptlab.data.documents import Documents
from gptlab.data.examples.example_table import ExampleTable
from gptlab.data.mixture.examples import MixedExamples
from gptlab.data.mixture.prepare import PreparedMixture
from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.pieces import pieces
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.evaluation.progress import progress
from gptlab.models.base import LanguageModel
from gptlab.nn.loss import IGNORE_INDEX, target_nats
from gptlab.objectives.base import Batch, Objective
from gptlab.training.datamodule import TrainBatches

SPLIT = "train"
SCORED_TOKENS = 16_384  # in one forward pass
WORDS_TOKENS = 24  # of a document that are decoded for its first words


@dataclass(kw_only=True, slots=True)
class DocumentRead:
    """A document, or a record of a table, that a step read a part of."""

    source: str  # of a mixture; else empty
    number: int | None  # in the training split, from 0; None: where documents begin is not known
    begin: int  # its tokens in the split, [begin, end)
    end: int
    parts: list[tuple[int, int, int]] = field(default_factory=list)  # example of the step, and which of these it reads
    text: str = ""  # what is read of it, the beginning
    name: str | None = None  # the file or record, where it was looked for
    nats: list[float] = field(default_factory=list)  # of its targets
    raises: float = 0.0  # the step's loss above the usual, by so much

    @property
    def loss(self) -> float | None:
        """The mean over its targets; None without any."""
        return math.fsum(self.nats) / len(self.nats) if self.nats else None

    @property
    def n_tokens(self) -> int:
        """How many tokens the step read of it."""
        return sum(end - begin for _, begin, end in self.parts)


class ShownToken(NamedTuple):
    """A piece of text of one token or several, and what predicting it cost; None: it is no target."""

    text: str
    nats: float | None


@dataclass(kw_only=True, slots=True)
class ExampleRead:
    """An example of a step: what the model read, and beside an encoder's source what it wrote."""

    number: int  # in the step, from 0
    source: str
    index: int  # of the example among those of its source
    texts: dict[str, list[ShownToken]] = field(default_factory=dict)  # `tokens`, `source`, `targets`
    nats: list[float] = field(default_factory=list)

    @property
    def loss(self) -> float | None:
        return math.fsum(self.nats) / len(self.nats) if self.nats else None


@dataclass(kw_only=True, slots=True)
class StepRead:
    """What a step read."""

    examples: list[ExampleRead]
    documents: list[DocumentRead]  # those that raise the loss most first, where it is known
    scored: bool  # whether there are losses
    notes: list[str]

    @property
    def loss(self) -> float | None:
        """The mean over all targets."""
        nats = [one for example in self.examples for one in example.nats]
        return math.fsum(nats) / len(nats) if nats else None


class _Place(NamedTuple):
    """Where an example is from."""

    source: str
    index: int
    ranges: list[tuple[int, int]] | None  # tokens of the split
    record: int | None  # of a table


def read_step(
    data: PreparedData | PreparedMixture,
    batches: TrainBatches,
    item: int,
    *,
    model: LanguageModel | None = None,
    usual: float | None = None,
    n_texts: int = 3,
    shows_progress: bool = False,
) -> StepRead:
    """What `batches[item]` is made of, and the loss of each of its targets under `model`, where one is given.

    `usual` is the loss that is expected (None: the median of the examples'); what a document raises the step's loss by
    is measured from there: where one dominates the step, the step's own mean is its loss.

    `n_texts` examples have texts: those with the highest loss. Documents are found by a binary search among the
    separators of their file.
    """
    batch, tokenizer, notes = batches[item], data.tokenizer, []
    places = _places(data, batches, item)
    examples = [ExampleRead(number=n, source=place.source, index=place.index) for n, place in enumerate(places)]
    nats = None
    if model is not None:
        nats = _scored(batches.objective, model, batch, shows_progress=shows_progress)
        if nats is None:
            notes.append("this objective has no loss of single tokens, so none is shown")
    if batch["tokens"].ndim > 2:  # sequences in parts, which follow each other
        batch = {name: value.flatten(1) for name, value in batch.items()}
    indexes = {name: Documents(corpus.train, tokenizer.eot) for name, corpus in data.corpora.items()}
    read: dict[tuple[str, int], DocumentRead] = {}
    for example, place in zip(examples, places, strict=True):
        found = sorted(_documents(place, indexes[place.source], example.number), key=lambda document: document.begin)
        for document in found:
            known = read.setdefault((document.source, document.begin), document)
            if known is not document:
                known.parts += document.parts
        if nats is None:
            continue
        begins = [document.begin for document in found]
        for text in _texts(batch, example.number, nats[example.number], tokenizer, place).values():
            for one in text:
                if one.nats is None:
                    continue
                example.nats.append(one.nats)
                if one.position is not None and found:
                    begin = begins[max(0, bisect_right(begins, one.position) - 1)]
                    read[place.source, begin].nats.append(one.nats)
                elif len(found) == 1:
                    read[place.source, begins[0]].nats.append(one.nats)
    for example in by_loss(examples)[:n_texts]:
        own = None if nats is None else nats[example.number]
        texts = _texts(batch, example.number, own, tokenizer, places[example.number])
        example.texts = {name: shown_tokens(tokenizer, text) for name, text in texts.items()}
    if any(place.ranges is None for place in places):
        notes.append("the examples of this objective do not say which tokens they read, so no document is named")
    unknown = [index for index in indexes.values() if not index.are_known]
    if any(index.is_remote for index in unknown):
        notes.append(
            "shards at an address are not searched for their documents; copy them to this machine to see what was read"
        )
    if not all(index.is_remote for index in unknown):
        notes.append(
            f"tokenizer={tokenizer.type} has no end-of-text token, so where documents begin is not known; what is read "
            "is named by its tokens of the split"
        )
    documents = list(read.values())
    _describe(data, documents, tokenizer)
    if usual is None:
        known = [one.loss for one in examples if one.loss is not None]
        usual = float(np.median(known)) if known else 0.0
    return StepRead(examples=examples, documents=_ranked(documents, usual), scored=nats is not None, notes=notes)


def _places(data: PreparedData | PreparedMixture, batches: TrainBatches, item: int) -> list[_Place]:
    samples = batches.samples(item)
    indices = batches.order.indices(samples)
    examples, names = batches.examples, list(data.corpora)
    if not isinstance(examples, MixedExamples):
        return _of_source(names[0], examples, batches.objective, indices, samples)
    sources = examples.sources_of(indices)
    found: dict[int, _Place] = {}
    for k in np.unique(sources):
        where = np.flatnonzero(sources == k)
        own = indices[where] - examples.offsets[k]
        places = _of_source(names[k], examples.parts[k], batches.objective, own, samples[where])
        found |= dict(zip(where.tolist(), places, strict=True))
    return [found[n] for n in range(len(indices))]


def _of_source(
    name: str, examples: Any, objective: Objective, indices: np.ndarray, samples: np.ndarray
) -> list[_Place]:
    ranges = objective.token_ranges(examples, indices, samples)
    records = examples.numbers(indices).tolist() if isinstance(examples, ExampleTable) else [None] * len(indices)
    return [
        _Place(name, int(index), None if ranges is None else ranges[n], records[n]) for n, index in enumerate(indices)
    ]


def _documents(place: _Place, index: Documents, example: int) -> Iterator[DocumentRead]:
    """What an example of the step reads, a document at a time."""
    for begin, end in place.ranges or ():
        if place.record is not None:
            yield DocumentRead(
                source=place.source, number=place.record, begin=begin, end=end, parts=[(example, begin, end)]
            )
        elif not index.are_known:
            yield DocumentRead(source=place.source, number=None, begin=begin, end=end, parts=[(example, begin, end)])
        else:
            for span in index.within(begin, end):
                part = (example, max(begin, span.begin), min(end, span.end))
                if part[1] < part[2] or span.begin == span.end:
                    yield DocumentRead(
                        source=place.source, number=span.number, begin=span.begin, end=span.end, parts=[part]
                    )


class _Token(NamedTuple):
    token: int
    nats: float | None
    position: int | None  # in the split


@torch.no_grad()
def _scored(
    objective: Objective, model: LanguageModel, batch: Batch, *, shows_progress: bool
) -> list[np.ndarray] | None:
    """The loss of each target of each example, NaN where none is; None where the objective has none of tokens."""
    device = next(model.parameters()).device
    n = len(batch["tokens"])
    size = max(1, SCORED_TOKENS * n // batch["tokens"].numel())
    found: list[np.ndarray] = []
    with progress("token losses", n, show=shows_progress) as advance:
        for start in range(0, n, size):
            part: dict[str, Tensor] = {name: value[start : start + size].to(device) for name, value in batch.items()}
            predicted = objective.predictions(model, part)
            if predicted is None:
                return None
            nats = target_nats(predicted.states, model.head, predicted.targets)
            found += list(nats.float().cpu().numpy())
            advance(len(nats))
    return found


def _texts(
    batch: Batch, n: int, nats: np.ndarray | None, tokenizer: Tokenizer, place: _Place
) -> dict[str, list[_Token]]:
    """The tokens of an example as a text is read, each with its loss and its position in the split."""
    mask = batch.get("attention_mask")
    length = batch["tokens"].shape[1] if mask is None else int(mask[n].sum())
    tokens = batch["tokens"][n, :length].tolist()
    losses = None if nats is None else nats.tolist()
    if "masked_positions" in batch:
        return {"tokens": _masked(batch, n, tokens, losses, place)}
    if "targets" not in batch:
        return {"tokens": [_Token(token, None, None) for token in tokens]}
    targets = batch["targets"][n, :length].tolist()
    if "source" in batch:
        source_mask = batch.get("source_mask")
        source = batch["source"][n]
        source = (source if source_mask is None else source[source_mask[n]]).tolist()
        where = _target_positions(source, targets, tokenizer, place)
        written = [
            _Token(target, _loss(losses, i), at)
            for i, (target, at) in enumerate(zip(targets, where, strict=True))
            if target != IGNORE_INDEX
        ]
        return {"source": [_Token(token, None, None) for token in source], "targets": written}
    # Each target is the token after: one text.
    begin = place.ranges[0][0] if place.ranges is not None and len(place.ranges) == 1 else None
    text = [_Token(tokens[0], None, begin)]
    for i, target in enumerate(targets):
        ignored = target == IGNORE_INDEX
        if ignored and i + 1 == length:
            break
        at = None if begin is None or place.record is not None else begin + i + 1
        text.append(_Token(tokens[i + 1] if ignored else target, None if ignored else _loss(losses, i), at))
    return {"tokens": text}


def _loss(losses: list[float] | None, i: int) -> float | None:
    return None if losses is None or math.isnan(losses[i]) else losses[i]


def _masked(batch: Batch, n: int, tokens: list[int], losses: list[float] | None, place: _Place) -> list[_Token]:
    """A text with its masked tokens as they were; its special tokens have no position."""
    # One special token before the first segment, and one after each.
    where: list[int | None] = [None]
    for begin, end in place.ranges or ():
        where += [*range(begin, end), None]
    where += [None] * (len(tokens) - len(where))
    text = [_Token(token, None, at) for token, at in zip(tokens, where, strict=False)]
    pairs = zip(batch["masked_positions"][n].tolist(), batch["labels"][n].tolist(), strict=True)
    for i, (position, label) in enumerate(pairs):
        if label != IGNORE_INDEX:
            text[position] = _Token(label, _loss(losses, i), text[position].position)
    return text


def _target_positions(source: list[int], targets: list[int], tokenizer: Tokenizer, place: _Place) -> list[int | None]:
    """Where in the split the target tokens are of which a span is masked in the source; a sentinel is at its span."""
    if place.ranges is None or place.record is not None:
        return [None] * len(targets)
    sentinels, position, found = set(tokenizer.sentinels), place.ranges[0][0], []
    spans = iter(source)
    for target in targets:
        if target in sentinels:
            for token in spans:  # what stands between two spans
                if token == target:
                    break
                position += 1
            found.append(position)
        else:
            found.append(position)
            position += 1
    end = place.ranges[0][1] - 1
    return [min(at, end) for at in found]


class Scored(Protocol):
    """A token and its loss, None where it is no target."""

    @property
    def token(self) -> int: ...

    @property
    def nats(self) -> float | None: ...


def shown_tokens(tokenizer: Tokenizer, text: Sequence[Scored]) -> list[ShownToken]:
    """The pieces of a text with their losses: where a character is of several tokens, the sum of theirs."""
    found: list[ShownToken] = []
    for piece, one in zip(pieces(tokenizer, [one.token for one in text]), text, strict=True):
        if piece.part == 1:
            found.append(ShownToken(piece.text, one.nats))
        elif one.nats is not None:
            found[-1] = ShownToken(piece.text, (found[-1].nats or 0.0) + one.nats)
    return found


def _describe(data: PreparedData | PreparedMixture, documents: list[DocumentRead], tokenizer: Tokenizer) -> None:
    for document in documents:
        begin = min(begin for _, begin, _ in document.parts)
        end = max(end for _, _, end in document.parts)
        tokens = data.corpora[document.source].train.tokens[begin : min(end, begin + WORDS_TOKENS)]
        document.text = tokenizer.decode(np.asarray(tokens).astype(np.int64))


def _ranked(documents: list[DocumentRead], usual: float) -> list[DocumentRead]:
    """Those first that raise the loss of the step most: what their targets cost beyond the usual."""
    n = sum(len(document.nats) for document in documents)
    if not n:
        return sorted(documents, key=lambda document: min(document.parts))
    for document in documents:
        document.raises = (math.fsum(document.nats) - usual * len(document.nats)) / n
    return sorted(documents, key=lambda document: -document.raises)


def to_plain(read: StepRead, *, n_examples: int) -> Mapping[str, Any]:
    """The same as JSON holds it, with the text of the first examples by loss."""
    first = by_loss(read.examples)[:n_examples]
    return {
        "loss": read.loss,
        "documents": [
            {
                **({"source": one.source} if one.source else {}),
                "document": one.number,
                "name": one.name,
                "begin": one.begin,
                "end": one.end,
                "parts": [
                    {"example": example, "begin": begin - one.begin, "end": end - one.begin}
                    for example, begin, end in one.parts
                ],
                "text": one.text,
                "n_targets": len(one.nats),
                "loss": one.loss,
                "raises": one.raises if read.scored else None,
            }
            for one in read.documents
        ],
        "token_losses": [
            {
                "example": one.number,
                "loss": one.loss,
                "texts": {name: [list(token) for token in text] for name, text in one.texts.items()},
            }
            for one in first
        ]
        if read.scored
        else None,
        "notes": read.notes,
    }


def by_loss(examples: Sequence[ExampleRead]) -> list[ExampleRead]:
    """Examples with the highest loss first; in their order where none is known."""
    return sorted(examples, key=lambda one: -(one.loss or 0.0))
