"""Masked language modeling and next-sentence prediction (BERT, arXiv:1810.04805, section 3.1 and appendix A.1)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.data.config import DataConfig
from gptlab.data.examples.pairs import N_DRAWS, Chunks, SegmentPairs
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.order import uniforms
from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.nn.loss import IGNORE_INDEX, count_correct, linear_cross_entropy
from gptlab.objectives.base import Batch, Examples, LossTerm, Objective, Predictions, PreviewContext, annotate
from gptlab.objectives.config import MaskedLMConfig

N_SPECIAL = 3  # special tokens of a pair: one before it and one after each segment


class MaskedLM(Objective):
    """Predict masked tokens from both sides and, for pairs of segments, whether the second follows the first."""

    perplexity_of = "mlm_loss"

    def __init__(
        self, config: MaskedLMConfig, tokenizer: Tokenizer, *, data: DataConfig, context_length: int, seed: int
    ):
        self.config, self.data, self.context_length, self.seed = config, data, context_length, seed
        roles = {"<mask>": tokenizer.mask, "<cls>": tokenizer.cls, "<sep>": tokenizer.sep, "<pad>": tokenizer.pad}
        found = {token: token_id for token, token_id in roles.items() if token_id is not None}
        missing = [token for token in roles if token not in found]
        if missing:
            raise UserError(
                f"objective=masked_lm needs special tokens, and tokenizer={tokenizer.type} has no "
                f"{', '.join(missing)}; use tokenizer=wordpiece, or add tokenizer.special_tokens=[{','.join(missing)}]"
            )
        least = (N_SPECIAL if config.next_sentence else 2) + 2
        if context_length < least:
            raise UserError(
                f"context_length={context_length} is too short for objective=masked_lm; use {least} or more"
            )
        self.mask, self.cls, self.sep, self.pad = found.values()
        self.separator = tokenizer.eot
        self.special = np.zeros(tokenizer.vocab_size, dtype=bool)
        self.special[list(tokenizer.specials)] = True
        self.ordinary = np.flatnonzero(~self.special)  # what a token may be replaced by
        self.n_masked = int(config.mask_prob * context_length) + 1  # at most, in an example
        self.scored_fraction = self.n_masked / context_length
        self.pairs = config.next_sentence
        self.names = ("loss", "mlm_loss", "mlm_accuracy")
        if self.pairs:
            self.names += ("nsp_loss", "nsp_accuracy")
        else:
            self.unused_parameters = ("pooler.", "nsp.")

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SegmentPairs | SlidingWindows:
        file, length = data.existing_part(split), self.context_length
        if self.pairs:
            return SegmentPairs(file, self.separator, length - N_SPECIAL, split=split)
        # Of the n + 1 tokens of a sliding window of n the last is no target here, but text like the others.
        n_tokens = length - 2
        if evaluating:
            return SlidingWindows(file.tokens, max(1, min(n_tokens, len(file.tokens)) - 1), n_tokens, split=split)
        return SlidingWindows(file.tokens, n_tokens - 1, self.data.stride or n_tokens, split=split)

    def collate(self, examples: Chunks | np.ndarray, sample_ids: np.ndarray) -> Batch:
        """Tokens and segments (B, T), masked positions and their labels (B, M), and for pairs `nsp_labels` (B).

        With `attention_mask` (B, T) where there is padding.
        """
        length, batch_size = self.context_length, len(sample_ids)
        draws = uniforms(self.seed, sample_ids, N_DRAWS + 1 + 2 * length)
        tokens = np.full((batch_size, length), self.pad)
        segments = np.zeros((batch_size, length), dtype=np.int64)
        follows = np.zeros(batch_size, dtype=np.int64)
        sizes = np.zeros(batch_size, dtype=np.int64)
        texts = (
            examples.pairs(draws[:, :N_DRAWS])
            if isinstance(examples, Chunks)
            else ((text, None, True) for text in examples)
        )
        for i, (first, second, in_order) in enumerate(texts):
            n = len(first) + 2
            tokens[i, :n] = [self.cls, *first, self.sep]
            if second is not None:
                end = n + len(second) + 1
                tokens[i, n:end] = [*second, self.sep]
                segments[i, n:end] = 1
                n = end
            sizes[i], follows[i] = n, in_order
        attention_mask = np.arange(length) < sizes[:, None]
        masked_positions, labels = self._mask(tokens, attention_mask, draws[:, N_DRAWS:])
        batch = {"tokens": tokens, "segments": segments, "masked_positions": masked_positions, "labels": labels}
        if not attention_mask.all():
            batch["attention_mask"] = attention_mask
        if self.pairs:
            batch["nsp_labels"] = 1 - follows  # 0: the second segment follows, as in BERT
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _mask(self, tokens: np.ndarray, attention_mask: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask some of `tokens`, in place: at which positions (B, M), and which tokens were there."""
        length, config = tokens.shape[1], self.config
        up, which, what = draws[:, 0], draws[:, 1 : length + 1], draws[:, length + 1 :]
        text = attention_mask & ~self.special[tokens]
        n_text = text.sum(1)
        # Rounded up or down at random, so that `mask_prob` is met on average; one at least, where there is a token.
        n_masked = np.minimum(np.maximum((config.mask_prob * n_text + up).astype(np.int64), 1), n_text)
        order = np.argsort(np.where(text, which, 2.0), axis=1, kind="stable")
        positions = order[:, : self.n_masked]
        masked = np.arange(positions.shape[1]) < n_masked[:, None]
        old = np.take_along_axis(tokens, positions, 1)
        # Where a draw decides for a random token, what is left of it decides which.
        draw = np.take_along_axis(what, positions, 1)
        rest = np.clip((draw - config.mask_replace_prob) / max(config.random_replace_prob, 1e-12), 0, 1 - 1e-12)
        new = np.where(
            draw < config.mask_replace_prob + config.random_replace_prob,
            self.ordinary[(rest * len(self.ordinary)).astype(np.int64)],
            old,
        )
        new = np.where(draw < config.mask_replace_prob, self.mask, new)
        np.put_along_axis(tokens, positions, np.where(masked, new, old), 1)
        return np.where(masked, positions, 0), np.where(masked, old, IGNORE_INDEX)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        masked = {"masked_tokens": (batch["labels"] != IGNORE_INDEX).sum()}
        return masked | ({"pairs": len(batch["nsp_labels"])} if self.pairs else {})

    def loss(self, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
        hidden_states = self._hidden_states(model, batch)  # (B, T, D)
        masked, labels = self._masked(model, batch, hidden_states)
        terms = {
            "mlm_loss": LossTerm(linear_cross_entropy(masked, model.head, labels), "masked_tokens"),
            "mlm_accuracy": LossTerm(count_correct(masked, model.head, labels), "masked_tokens", weight=0.0),
        }
        if self.pairs:
            logits, nsp_labels = model.next_sentence(model.pooled(hidden_states)).float(), batch["nsp_labels"]  # (B, 2)
            n_correct = (logits.argmax(-1) == nsp_labels).sum()
            terms |= {
                "nsp_loss": LossTerm(F.cross_entropy(logits, nsp_labels, reduction="sum"), "pairs"),
                "nsp_accuracy": LossTerm(n_correct, "pairs", weight=0.0),
            }
        return terms

    def predictions(self, model: LanguageModel, batch: Batch) -> Predictions:
        """The tokens that were masked."""
        return self._masked(model, batch, self._hidden_states(model, batch))

    def _masked(self, model: LanguageModel, batch: Batch, hidden_states: Tensor) -> Predictions:
        positions = batch["masked_positions"][..., None].expand(-1, -1, hidden_states.shape[-1])
        return Predictions(
            model.mlm_transform(hidden_states.gather(1, positions)), batch["labels"]
        )  # (B, M, D), (B, M)

    def token_ranges(
        self, examples: Examples, indices: np.ndarray, sample_ids: np.ndarray
    ) -> list[list[tuple[int, int]]] | None:
        if not isinstance(examples, SegmentPairs):
            return super().token_ranges(examples, indices, sample_ids)
        draws = uniforms(self.seed, sample_ids, N_DRAWS)
        pairs = (examples.pair_ranges(int(i), draw) for i, draw in zip(indices, draws, strict=True))
        return [[first, second] for first, second, _ in pairs]

    def _hidden_states(self, model: LanguageModel, batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        return model.hidden_states(batch["tokens"], segments=batch["segments"], attention_mask=mask)

    def preview(self, context: PreviewContext) -> str:
        """A text with its masked tokens, each beside the model's prediction."""
        batch = context.to_device(self.collate(context.examples, np.array([-1])))
        hidden_states = self._hidden_states(context.model, batch)[0]
        positions = batch["masked_positions"][0]
        logits = context.model.head.logits(context.model.mlm_transform(hidden_states[positions]))
        found = zip(positions.tolist(), batch["labels"][0].tolist(), logits.argmax(-1).tolist(), strict=True)
        guesses = {position: (label, guess) for position, label, guess in found if label != IGNORE_INDEX}
        tokens = [token for token in batch["tokens"][0].tolist() if token != self.pad]
        return annotate(context.tokenizer, tokens, guesses)
