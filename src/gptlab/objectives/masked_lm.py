"""Masked words and next sentences (BERT, arXiv:1810.04805, section 3.1 and appendix A.1)."""

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.data.config import DataConfig
from gptlab.data.examples.pairs import N_DRAWS, Chunks, SegmentPairs
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.order import uniforms
from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.nn.loss import IGNORE_INDEX, count_correct, linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, PreviewContext, marked
from gptlab.objectives.config import MaskedLMConfig

N_SPECIAL = 3  # words of a pair that are no text: one before it and one after each part


class MaskedLM(Objective):
    """A share of the words is hidden, and predicted from both sides; of half the pairs the second part follows."""

    perplexity_of = "mlm_loss"

    def __init__(
        self, config: MaskedLMConfig, tokenizer: Tokenizer, *, data: DataConfig, context_length: int, seed: int
    ):
        self.config, self.data, self.context_length, self.seed = config, data, context_length, seed
        roles = {"<mask>": tokenizer.mask, "<cls>": tokenizer.cls, "<sep>": tokenizer.sep, "<pad>": tokenizer.pad}
        missing = [word for word, number in roles.items() if number is None]
        if missing:
            raise UserError(
                f"objective=masked_lm needs words that stand for no text, and tokenizer={tokenizer.type} has no "
                f"{', '.join(missing)}; use tokenizer=wordpiece, or add tokenizer.special_tokens=[{','.join(missing)}]"
            )
        length, least = context_length, (N_SPECIAL if config.next_sentence else 2) + 2
        if length < least:
            raise UserError(f"objective=masked_lm has no room in context_length={length}; use {least} or more")
        self.mask, self.cls, self.sep, self.pad = roles.values()
        self.separator = tokenizer.eot
        self.special = np.zeros(tokenizer.vocab_size, dtype=bool)
        self.special[list(tokenizer.specials)] = True
        self.words = np.flatnonzero(~self.special)  # what a word may be replaced by
        self.n_hidden = int(config.mask_prob * context_length) + 1  # at most, in an example
        self.scored_fraction = self.n_hidden / context_length
        self.pairs = config.next_sentence
        self.names = ("loss", "mlm_loss", "mlm_accuracy")
        if self.pairs:
            self.names += ("nsp_loss", "nsp_accuracy")
        else:
            self.unused_parameters = ("pooler.", "nsp.")

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SegmentPairs | SlidingWindows:
        file, length = data.part(split), self.context_length
        if self.pairs:
            return SegmentPairs(file, self.separator, length - N_SPECIAL, split=split)
        # A window has one token more than its `context_length`, which here is text like the others.
        n_tokens = length - 2
        if evaluating:
            return SlidingWindows(file.tokens, max(1, min(n_tokens, len(file.tokens)) - 1), n_tokens, split=split)
        return SlidingWindows(file.tokens, n_tokens - 1, self.data.stride or n_tokens, split=split)

    def collate(self, examples: Chunks | np.ndarray, numbers: np.ndarray) -> Batch:
        """Tokens, segments and mask (B, T), places of the hidden words and the words (B, M), whether B follows (B)."""
        length, batch_size = self.context_length, len(numbers)
        draws = uniforms(self.seed, numbers, N_DRAWS + 1 + 2 * length)
        tokens = np.full((batch_size, length), self.pad)
        segments = np.zeros((batch_size, length), dtype=np.int64)
        follows = np.zeros(batch_size, dtype=np.int64)
        sizes = np.zeros(batch_size, dtype=np.int64)
        texts = examples.pairs(draws[:, :N_DRAWS]) if self.pairs else ((row, None, True) for row in examples)
        for i, (first, second, in_order) in enumerate(texts):
            n = len(first) + 2
            tokens[i, :n] = [self.cls, *first, self.sep]
            if second is not None:
                end = n + len(second) + 1
                tokens[i, n:end] = [*second, self.sep]
                segments[i, n:end] = 1
                n = end
            sizes[i], follows[i] = n, in_order
        there = np.arange(length) < sizes[:, None]
        places, words = self._hide(tokens, there, draws[:, N_DRAWS:])
        batch = {"tokens": tokens, "segments": segments, "places": places, "words": words}
        if not there.all():
            batch["mask"] = there
        if self.pairs:
            batch["differs"] = 1 - follows  # 0: the second part follows, as the head has it
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _hide(self, tokens: np.ndarray, there: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hide words of `tokens`, in place: which places (B, M) they are at, and which words they were."""
        length, config = tokens.shape[1], self.config
        up, which, what = draws[:, 0], draws[:, 1 : length + 1], draws[:, length + 1 :]
        text = there & ~self.special[tokens]
        n_text = text.sum(1)
        # Rounded up or down at random, so that the share is met on average; one at least, where there is a word.
        n_hidden = np.minimum(np.maximum((config.mask_prob * n_text + up).astype(np.int64), 1), n_text)
        order = np.argsort(np.where(text, which, 2.0), axis=1, kind="stable")
        places = order[:, : self.n_hidden]
        hidden = np.arange(places.shape[1]) < n_hidden[:, None]
        old = np.take_along_axis(tokens, places, 1)
        # Where a draw says that any word stands there, what is left of it says which.
        draw = np.take_along_axis(what, places, 1)
        rest = np.clip((draw - config.mask_replace_prob) / max(config.random_replace_prob, 1e-12), 0, 1 - 1e-12)
        new = np.where(
            draw < config.mask_replace_prob + config.random_replace_prob,
            self.words[(rest * len(self.words)).astype(np.int64)],
            old,
        )
        new = np.where(draw < config.mask_replace_prob, self.mask, new)
        np.put_along_axis(tokens, places, np.where(hidden, new, old), 1)
        return np.where(hidden, places, 0), np.where(hidden, old, IGNORE_INDEX)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        words = {"words": (batch["words"] != IGNORE_INDEX).sum()}
        return words | ({"pairs": len(batch["differs"])} if self.pairs else {})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        hidden = model.hidden_states(batch["tokens"], segments=batch["segments"], mask=batch.get("mask"))  # (B, T, D)
        places = batch["places"][..., None].expand(-1, -1, hidden.shape[-1])
        chosen = model.transformed(hidden.gather(1, places))  # (B, M, D)
        terms = {
            "mlm_loss": LossTerm(linear_cross_entropy(chosen, model.head, batch["words"]), "words"),
            "mlm_accuracy": LossTerm(count_correct(chosen, model.head, batch["words"]), "words", weight=0.0),
        }
        if self.pairs:
            scores, truth = model.next_sentence(model.pooled(hidden)).float(), batch["differs"]  # (B, 2)
            right = (scores.argmax(-1) == truth).sum()
            terms |= {
                "nsp_loss": LossTerm(nn.functional.cross_entropy(scores, truth, reduction="sum"), "pairs"),
                "nsp_accuracy": LossTerm(right, "pairs", weight=0.0),
            }
        return terms

    def preview(self, context: PreviewContext) -> str:
        """A text with its hidden words, each beside the model's guess."""
        batch = context.to_device(self.collate(context.examples, np.array([-1])))
        hidden = context.model.hidden_states(batch["tokens"], segments=batch["segments"], mask=batch.get("mask"))
        guesses = context.model.head.logits(context.model.transformed(hidden[0, batch["places"][0]])).argmax(-1)
        rows = zip(batch["places"][0].tolist(), batch["words"][0].tolist(), guesses.tolist(), strict=True)
        told = {place: (word, guess) for place, word, guess in rows if word != IGNORE_INDEX}
        return marked(context.tokenizer, [number for number in batch["tokens"][0].tolist() if number != self.pad], told)
