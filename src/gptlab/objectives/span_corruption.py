"""Span corruption: spans replaced by sentinels are predicted in turn (T5, arXiv:1910.10683, section 3.1.4)."""

import numpy as np
import torch
from torch import Tensor

from gptlab.data.config import DataConfig
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.order import uniforms
from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.nn.loss import linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, Predictions, PreviewContext, annotate
from gptlab.objectives.config import SpanCorruptionConfig


class SpanCorruption(Objective):
    """Predict the masked spans of a text from the text around them.

    A sequence is as long as leaves `context_length` tokens of source, so nothing is padded.
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
        n_tokens = length = self.context_length

        def source_length(n: int) -> int:
            n_noise, n_spans = self.sizes(n)
            return n - n_noise + n_spans + len(self.end)

        least = source_length(2)
        if length < least:
            raise UserError(f"context_length={length} is too short for objective=span_corruption; use {least} or more")
        while source_length(n_tokens) > length:
            n_tokens -= 1
        while source_length(n_tokens + 1) <= length:
            n_tokens += 1
        return n_tokens

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SlidingWindows:
        # Of the n + 1 tokens of a sliding window of n the last is no target here, but text like the others.
        tokens, n = data.existing_part(split).tokens, self.n_tokens
        if evaluating:
            return SlidingWindows(tokens, max(1, min(n, len(tokens)) - 1), n, split=split)
        return SlidingWindows(tokens, n - 1, self.data.stride or n, split=split)

    def collate(self, examples: np.ndarray, sample_ids: np.ndarray) -> Batch:
        """Of texts (B, N): the source (B, S), the targets (B, T), and the targets shifted right as `tokens` (B, T)."""
        n_tokens = examples.shape[1]
        n_noise, n_spans = self.sizes(n_tokens)
        draws = uniforms(self.seed, sample_ids, 2 * n_tokens)
        sources, targets = [], []
        for text, draw in zip(examples, draws, strict=True):
            noise = _partition(n_noise, n_spans, draw[:n_tokens])
            kept = _partition(n_tokens - n_noise, n_spans, draw[n_tokens:])
            source, target, at = [], [], 0
            for sentinel, n_kept, n_masked in zip(self.sentinels, kept, noise, strict=False):
                source += [text[at : at + n_kept], [sentinel]]
                target += [[sentinel], text[at + n_kept : at + n_kept + n_masked]]
                at += n_kept + n_masked
            sources.append(np.concatenate([*source, self.end]))
            targets.append(np.concatenate([*target, self.end]))
        source, target = (torch.from_numpy(np.stack(texts).astype(np.int64)) for texts in (sources, targets))
        start = target.new_full((len(target), 1), self.decoder_start_token_id)
        return {"source": source, "tokens": torch.cat([start, target[:, :-1]], 1), "targets": target}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"targets": batch["targets"].numel()}

    def loss(self, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
        hidden_states, targets = self.predictions(model, batch)
        return {"loss": LossTerm(linear_cross_entropy(hidden_states, model.head, targets))}

    def predictions(self, model: LanguageModel, batch: Batch) -> Predictions:
        """The next token at each position."""
        return Predictions(self._hidden_states(model, batch), batch["targets"])  # (B, T, D), (B, T)

    def _hidden_states(self, model: LanguageModel, batch: Batch) -> Tensor:
        return model.hidden_states(batch["tokens"], source=batch["source"])

    def preview(self, context: PreviewContext) -> str:
        """A text with its masked spans, each beside the model's prediction of every token from those before it."""
        batch = context.to_device(self.collate(context.examples, np.array([-1])))
        logits = context.model.head.logits(self._hidden_states(context.model, batch))
        spans, span, sentinels = {}, ([], []), set(self.sentinels.tolist())
        for target, guess in zip(batch["targets"][0].tolist(), logits[0].argmax(-1).tolist(), strict=True):
            if target in sentinels:
                span = spans[target] = [], []
            elif [target] != self.end:
                span[0].append(target)
                span[1].append(guess)
        source = batch["source"][0].tolist()
        return annotate(
            context.tokenizer, source, {i: spans[token] for i, token in enumerate(source) if token in spans}
        )


def _partition(n: int, n_parts: int, draws: np.ndarray) -> np.ndarray:
    """Partition `n` into that many parts of at least one, each way with the same probability."""
    cuts = np.sort(np.argsort(draws[: n - 1], kind="stable")[: n_parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [n]]))
