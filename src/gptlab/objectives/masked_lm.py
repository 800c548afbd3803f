"""Masked words and next sentences (BERT, arXiv:1810.04805, section 3.1 and appendix A.1)."""

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.config import RunConfig
from gptlab.data.order import uniforms
from gptlab.data.pairs import N_DRAWS, Chunks, SegmentPairs
from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizer import Tokenizer
from gptlab.data.windows import SlidingWindows
from gptlab.nn.loss import IGNORE_INDEX, count_correct, linear_cross_entropy
from gptlab.objectives.objective import Batch, Objective, Shown, Term, marked

MARKS = 3  # words of a pair that are no text: one before it and one after each part


class MaskedLM(Objective):
    """A share of the words is hidden, and predicted from both sides; of half the pairs the second part follows."""

    perplexity_of = "word_loss"

    def __init__(self, config: RunConfig, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        roles = {"<mask>": tokenizer.mask, "<cls>": tokenizer.cls, "<sep>": tokenizer.sep, "<pad>": tokenizer.pad}
        missing = [word for word, number in roles.items() if number is None]
        if missing:
            raise ValueError(
                f"objective=masked_lm needs words that stand for no text, and tokenizer={config.tokenizer.kind} has no "
                f"{', '.join(missing)}; use tokenizer=wordpiece, or add tokenizer.special_words=[{','.join(missing)}]"
            )
        length, least = config.context_length, (MARKS if config.objective.next_sentence else 2) + 2
        if length < least:
            raise ValueError(f"objective=masked_lm has no room in context_length={length}; use {least} or more")
        self.mask, self.cls, self.sep, self.pad = roles.values()
        self.separator = tokenizer.eot
        self.special = np.zeros(tokenizer.vocab_size, dtype=bool)
        self.special[list(tokenizer.specials)] = True
        self.words = np.flatnonzero(~self.special)  # what a word may be replaced by
        self.n_hidden = int(config.objective.share * config.context_length) + 1  # at most, in an example
        self.head_share = self.n_hidden / config.context_length
        self.pairs = config.objective.next_sentence
        self.names = ("loss", "word_loss", "word_accuracy")
        if self.pairs:
            self.names += ("sentence_loss", "sentence_accuracy")
        else:
            self.idle = ("pooler.", "nsp.")

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SegmentPairs | SlidingWindows:
        file, length = data.part(split), self.config.context_length
        if self.pairs:
            return SegmentPairs(file, self.separator, length - MARKS, split=split)
        # A window has one token more than its `context_length`, which here is text like the others.
        n_tokens = length - 2
        if evaluating:
            return SlidingWindows(file.tokens, max(1, min(n_tokens, len(file.tokens)) - 1), n_tokens, split=split)
        return SlidingWindows(file.tokens, n_tokens - 1, self.config.data.stride or n_tokens, split=split)

    def collate(self, examples: Chunks | np.ndarray, numbers: np.ndarray) -> Batch:
        """Tokens, segments and mask (B, T), places of the hidden words and the words (B, M), whether B follows (B)."""
        length, batch_size = self.config.context_length, len(numbers)
        draws = uniforms(self.config.seed, numbers, N_DRAWS + 1 + 2 * length)
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
        length, config = tokens.shape[1], self.config.objective
        up, which, what = draws[:, 0], draws[:, 1 : length + 1], draws[:, length + 1 :]
        text = there & ~self.special[tokens]
        n_text = text.sum(1)
        # Rounded up or down at random, so that the share is met on average; one at least, where there is a word.
        n_hidden = np.minimum(np.maximum((config.share * n_text + up).astype(np.int64), 1), n_text)
        order = np.argsort(np.where(text, which, 2.0), axis=1, kind="stable")
        places = order[:, : self.n_hidden]
        hidden = np.arange(places.shape[1]) < n_hidden[:, None]
        old = np.take_along_axis(tokens, places, 1)
        # Where a draw says that any word stands there, what is left of it says which.
        draw = np.take_along_axis(what, places, 1)
        rest = np.clip((draw - config.masked) / max(config.random, 1e-12), 0, 1 - 1e-12)
        new = np.where(draw < config.masked + config.random, self.words[(rest * len(self.words)).astype(np.int64)], old)
        new = np.where(draw < config.masked, self.mask, new)
        np.put_along_axis(tokens, places, np.where(hidden, new, old), 1)
        return np.where(hidden, places, 0), np.where(hidden, old, IGNORE_INDEX)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        words = {"words": (batch["words"] != IGNORE_INDEX).sum()}
        return words | ({"pairs": len(batch["differs"])} if self.pairs else {})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        hidden = model.hidden(batch["tokens"], segments=batch["segments"], mask=batch.get("mask"))  # (B, T, D)
        places = batch["places"][..., None].expand(-1, -1, hidden.shape[-1])
        chosen = model.transformed(hidden.gather(1, places))  # (B, M, D)
        terms = {
            "word_loss": Term(linear_cross_entropy(chosen, model.output, batch["words"]), "words"),
            "word_accuracy": Term(count_correct(chosen, model.output, batch["words"]), "words", weight=0.0),
        }
        if self.pairs:
            scores, truth = model.next_sentence(model.pooled(hidden)).float(), batch["differs"]  # (B, 2)
            right = (scores.argmax(-1) == truth).sum()
            terms |= {
                "sentence_loss": Term(nn.functional.cross_entropy(scores, truth, reduction="sum"), "pairs"),
                "sentence_accuracy": Term(right, "pairs", weight=0.0),
            }
        return terms

    def show(self, shown: Shown) -> str:
        """A text with its hidden words, each beside the model's guess."""
        batch = shown.to_device(self.collate(shown.examples, np.array([-1])))
        hidden = shown.model.hidden(batch["tokens"], segments=batch["segments"], mask=batch.get("mask"))
        guesses = shown.model.output.logits(shown.model.transformed(hidden[0, batch["places"][0]])).argmax(-1)
        rows = zip(batch["places"][0].tolist(), batch["words"][0].tolist(), guesses.tolist(), strict=True)
        told = {place: (word, guess) for place, word, guess in rows if word != IGNORE_INDEX}
        return marked(shown.tokenizer, [number for number in batch["tokens"][0].tolist() if number != self.pad], told)
