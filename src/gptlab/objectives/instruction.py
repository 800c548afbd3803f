"""Responses to prompts: what is asked is read, what is answered is learned (arXiv:2203.02155, section 3.4)."""

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.data.examples.example_table import ExampleTable, TokenizedExample
from gptlab.data.prepare import PreparedData
from gptlab.data.sources.config import TableConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.nn.loss import IGNORE_INDEX, linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, PreviewContext, auxiliary, pad

ANSWER_TOKENS = 32  # that an encoder-decoder is let write


class Instruction(Objective):
    """A decoder goes on after the prompt; an encoder-decoder's encoder reads it, and its decoder begins anew."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        data: TableConfig,
        context_length: int,
        decoder_start_token_id: int | None,
    ):
        self.data, self.context_length = data, context_length
        self.decoder_start_token_id = decoder_start_token_id  # None: the model continues the prompt itself
        self.pad = tokenizer.pad or 0  # no position looks there
        self.end = [] if tokenizer.eot is None else [tokenizer.eot]

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> ExampleTable:
        # The last token is only a target.
        return data.examples[split].fit(self.context_length + 1, self.data.overlong)

    def collate(self, rows: list[TokenizedExample], numbers: np.ndarray) -> Batch:
        """Tokens and targets (B, T), those of prompts left out; and with an encoder what it reads (B, S)."""
        if self.decoder_start_token_id is not None:
            return self._apart(rows)
        tokens, _ = pad([row.tokens[:-1] for row in rows], self.pad)
        targets, _ = pad([np.where(row.scored, row.tokens, IGNORE_INDEX)[1:] for row in rows], IGNORE_INDEX)
        return {"tokens": tokens, "targets": targets}

    def _apart(self, rows: list[TokenizedExample]) -> Batch:
        divided = [_last_response(row.scored) for row in rows]
        prompts = [np.concatenate([row.tokens[:at], self.end]) for row, at in zip(rows, divided, strict=True)]
        source, lengths = pad(prompts, self.pad)
        targets, _ = pad([row.tokens[at:] for row, at in zip(rows, divided, strict=True)], IGNORE_INDEX)
        start = targets.new_full((len(rows), 1), self.decoder_start_token_id)
        read = targets[:, :-1].masked_fill(targets[:, :-1] == IGNORE_INDEX, self.pad)
        there = torch.arange(source.shape[1]) < lengths[:, None]
        return {"source": source, "source_mask": there, "tokens": torch.cat([start, read], 1), "targets": targets}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"targets": (batch["targets"] != IGNORE_INDEX).sum()}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        targets = batch["targets"]
        given = {name: batch[name] for name in ("source", "source_mask") if name in batch}
        loss = linear_cross_entropy(model.hidden_states(batch["tokens"], **given), model.head, targets)
        added = {} if given else auxiliary(model, self.counts(batch)["targets"])
        return {"loss": LossTerm(loss), **added}

    def preview(self, context: PreviewContext) -> str:
        """A prompt, the model's response and the one that it should give."""
        (row,) = context.examples
        prompt, expected = context.prompt, []
        if not prompt:
            at = _last_response(row.scored)
            prompt, expected = row.tokens[:at].tolist(), row.tokens[at:].tolist()
        told = self._answer(context, prompt) if self.decoder_start_token_id is not None else context.write(prompt)
        lines = [context.tokenizer.decode(prompt), f"[model] {self._text(context, told)}"]
        return "\n".join(lines + [f"[truth] {self._text(context, expected)}"] * bool(expected))

    def _text(self, context: PreviewContext, tokens: list[int]) -> str:
        n = tokens.index(self.end[0]) if self.end and self.end[0] in tokens else len(tokens)
        return context.tokenizer.decode(tokens[:n]).strip()

    def _answer(self, context: PreviewContext, prompt: list[int]) -> list[int]:
        # Through `hidden` alone, which is all that a sharded model can be asked.
        source = torch.tensor([prompt + self.end])
        tokens = [self.decoder_start_token_id]
        while len(tokens) <= ANSWER_TOKENS and tokens[1:][-1:] != self.end:
            batch = context.to_device({"tokens": torch.tensor([tokens]), "source": source})
            logits = context.model.head.logits(context.model.hidden_states(**batch)[:, -1])
            tokens.append(int(logits[0, : context.tokenizer.vocab_size].argmax()))
        return tokens[1:]


def _last_response(scored: np.ndarray) -> int:
    """Where the last run of scored tokens begins."""
    before = np.flatnonzero(~scored[: np.flatnonzero(scored)[-1]])
    return int(before[-1]) + 1 if len(before) else 0
