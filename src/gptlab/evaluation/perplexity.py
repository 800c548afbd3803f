"""Perplexity and bits per byte of a corpus."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from gptlab.data.sources.source import Corpus
from gptlab.data.tokenizers.tokenizer import Tokenizer, lost_text
from gptlab.errors import UserError
from gptlab.evaluation.progress import progress
from gptlab.generation.scoring import strided_nats
from gptlab.models.base import LanguageModel


@dataclass(kw_only=True, slots=True)
class EncodedText:
    """The tokens of a corpus, documents separated by the end-of-text token."""

    tokens: np.ndarray
    n_bytes: int  # of the text
    description: str
    lost_text: str | None = None  # an example of what the tokenizer does not give back
    sha256: str = ""  # of the documents' texts, whatever their names and the tokenizer


def encode(corpus: Corpus, tokenizer: Tokenizer) -> EncodedText:
    """The tokens of all documents; UserError names the one that the tokenizer cannot encode."""
    parts: list[np.ndarray] = []
    lost: str | None = None
    digest = sha256()
    n_bytes = n_documents = 0
    between = np.array([] if tokenizer.eot is None else [tokenizer.eot], dtype=np.int64)
    for name, text in corpus.documents():
        if n_documents:
            parts.append(between)
        try:
            parts.append(tokenizer.encode(text).astype(np.int32))
        except UserError as error:
            raise UserError(f"{corpus.description}, {name}: {error}") from None
        if not tokenizer.is_lossless and lost is None:
            lost = lost_text(text, tokenizer.decode(parts[-1]))
        stored = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(stored)} ".encode() + stored)
        n_bytes += len(stored)
        n_documents += 1
    counts = [f"{n:,} {what}{'' if n == 1 else 's'}" for n, what in ((n_documents, "document"), (n_bytes, "byte"))]
    description = f"{corpus.description}: {', '.join(counts)}"
    return EncodedText(
        tokens=np.concatenate(parts),
        n_bytes=n_bytes,
        description=description,
        lost_text=lost,
        sha256=digest.hexdigest(),
    )


def perplexity(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: EncodedText,
    *,
    stride: int | None = None,
    context_length: int | None = None,
    separator: int | None = None,
    show: bool = False,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Loss in nats per token, perplexity, and bits per byte of a text; the last not where its tokens lose some of it.

    The window moves as in `strided_nats`, with None for its defaults, and `separator` is as there. The first token is
    predicted from the tokenizer's beginning-of-text token; without one it is context alone. Bytes are those of the
    whole text, as in a run's validation. `between` is called after each batch. UserError where there is no token to
    predict.
    """
    context_length = context_length or model.config.context_length
    stride = stride or context_length - context_length // 2
    if stride > context_length:
        raise UserError(
            f"stride={stride} is more than the context of {context_length}, and would skip tokens; "
            f"use stride={context_length} or less"
        )
    tokens = text.tokens
    if tokenizer.beginning:
        tokens = np.concatenate([np.array(tokenizer.beginning, dtype=np.int32), tokens])
    n_tokens = len(tokens) - 1
    if n_tokens < 1:
        raise UserError(f"{text.description}: there is no token to predict; give a longer text")
    total = 0.0
    with progress("tokens", n_tokens, show=show, between=between) as advance:
        found = strided_nats(model, tokens, stride=stride, context_length=context_length, separator=separator)
        for nats in found:
            total += nats.double().sum().item()
            advance(len(nats))
    loss = total / n_tokens
    per_byte = {} if text.lost_text is not None else {"bits_per_byte": total / math.log(2) / text.n_bytes}
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        **per_byte,
        "n_tokens": n_tokens,
        "n_bytes": text.n_bytes,
        "context_length": context_length,
        "stride": stride,
    }
