"""Spans of a text replaced by sentinels, and written out one after the other (T5, arXiv:1910.10683, section 3.1.4)."""

import numpy as np
import torch
from torch import nn

from gptlab.data.config import DataConfig
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.order import uniforms
from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.nn.loss import linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, PreviewContext, marked
from gptlab.objectives.config import SpanCorruptionConfig


class SpanCorruption(Objective):
    """The encoder reads a text with holes, and the decoder writes what was in them.

    A window has as much text as leaves `context_length` tokens for the encoder, so nothing is filled up.
    """

    def __init__(
        self,
        config: SpanCorruptionConfig,
        tokenizer: Tokenizer,
        *,
        data: DataConfig,
        context_length: int,
        seed: int,
        decoder_start_token_id: int,
    ):
        self.config, self.data, self.context_length, self.seed = config, data, context_length, seed
        self.decoder_start_token_id = decoder_start_token_id
        self.sentinels = np.array(tokenizer.sentinels, dtype=np.int64)
        self.end = [] if tokenizer.eot is None else [tokenizer.eot]  # of both texts
        self.n_tokens = self._text_length()
        n_noise, n_spans = self.sizes(self.n_tokens)
        self.target_length = n_noise + n_spans + len(self.end)
        if n_spans > len(self.sentinels):
            raise UserError(
                f"objective=span_corruption with context_length={context_length} makes {n_spans} spans, and "
                f"tokenizer={tokenizer.type} has {len(self.sentinels) or 'no'} sentinels for them; "
                f"set tokenizer.n_sentinel_tokens={max(100, n_spans)}"
            )

    def sizes(self, n_tokens: int) -> tuple[int, int]:
        """How many tokens of a text are replaced, in how many spans."""
        config = self.config
        n_noise = min(max(round(n_tokens * config.noise_density), 1), n_tokens - 1)
        return n_noise, min(max(round(n_noise / config.mean_noise_span_length), 1), n_tokens - n_noise)

    def _text_length(self) -> int:
        n_tokens = room = self.context_length

        def read(n: int) -> int:  # by the encoder
            n_noise, n_spans = self.sizes(n)
            return n - n_noise + n_spans + len(self.end)

        if room < read(2):
            raise UserError(f"objective=span_corruption has no room in context_length={room}; use {read(2)} or more")
        while read(n_tokens) > room:
            n_tokens -= 1
        while read(n_tokens + 1) <= room:
            n_tokens += 1
        return n_tokens

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SlidingWindows:
        # A window has one token more than its `context_length`, which here is text like the others.
        tokens, n = data.part(split).tokens, self.n_tokens
        if evaluating:
            return SlidingWindows(tokens, max(1, min(n, len(tokens)) - 1), n, split=split)
        return SlidingWindows(tokens, n - 1, self.data.stride or n, split=split)

    def collate(self, windows: np.ndarray, numbers: np.ndarray) -> Batch:
        """Of texts (B, N): what the encoder reads (B, S), what the decoder reads and what it writes, (B, T) each."""
        n_tokens = windows.shape[1]
        n_noise, n_spans = self.sizes(n_tokens)
        draws = uniforms(self.seed, numbers, 2 * n_tokens)
        sources, targets = [], []
        for text, row in zip(windows, draws, strict=True):
            noise = _parts(n_noise, n_spans, row[:n_tokens])
            kept = _parts(n_tokens - n_noise, n_spans, row[n_tokens:])
            source, target, at = [], [], 0
            for sentinel, n_kept, n_hidden in zip(self.sentinels, kept, noise, strict=False):
                source += [text[at : at + n_kept], [sentinel]]
                target += [[sentinel], text[at + n_kept : at + n_kept + n_hidden]]
                at += n_kept + n_hidden
            sources.append(np.concatenate([*source, self.end]))
            targets.append(np.concatenate([*target, self.end]))
        source, target = (torch.from_numpy(np.stack(rows).astype(np.int64)) for rows in (sources, targets))
        start = target.new_full((len(target), 1), self.decoder_start_token_id)
        return {"source": source, "tokens": torch.cat([start, target[:, :-1]], 1), "targets": target}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"targets": batch["targets"].numel()}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        hidden = model.hidden_states(batch["tokens"], source=batch["source"])  # (B, T, D)
        return {"loss": LossTerm(linear_cross_entropy(hidden, model.head, batch["targets"]))}

    def preview(self, context: PreviewContext) -> str:
        """A text with what was replaced, each span beside the model's guess of every token from those before it."""
        batch = context.to_device(self.collate(context.examples, np.array([-1])))
        hidden = context.model.hidden_states(batch["tokens"], source=batch["source"])
        guesses = context.model.head.logits(hidden)[0].argmax(-1).tolist()
        spans, sentinels = {}, set(self.sentinels.tolist())
        for word, guess in zip(batch["targets"][0].tolist(), guesses, strict=True):
            if word in sentinels:
                truth, told = spans[word] = [], []
            elif [word] != self.end:
                truth.append(word)
                told.append(guess)
        source = batch["source"][0].tolist()
        return marked(context.tokenizer, source, {i: spans[word] for i, word in enumerate(source) if word in spans})


def _parts(n: int, n_parts: int, draws: np.ndarray) -> np.ndarray:
    """Divide `n` into so many parts of at least one, each way as likely as any other."""
    cuts = np.sort(np.argsort(draws[: n - 1], kind="stable")[: n_parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [n]]))
