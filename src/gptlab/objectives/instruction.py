"""Instruction tuning: responses to prompts are learned, prompts are only read (arXiv:2203.02155, section 3.4)."""

import numpy as np
import torch
from torch import Tensor

from gptlab.data.config import Packing
from gptlab.data.examples.example_table import ExampleTable, TokenizedExample
from gptlab.data.examples.packing import PackedExamples
from gptlab.data.prepare import PreparedData
from gptlab.data.sources.config import TableConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.models.base import LanguageModel
from gptlab.nn.loss import IGNORE_INDEX, linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, Predictions, PreviewContext, pad

PREVIEW_TOKENS = 32  # of a response that is decoded here


class Instruction(Objective):
    """Predict a response from its prompt: as its continuation, or as the target of a source."""

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
        self.pad = tokenizer.pad or 0  # any token will do: padding is masked
        self.end = [] if tokenizer.eot is None else [tokenizer.eot]

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> ExampleTable | PackedExamples:
        # The last token is only a target.
        n_tokens = self.context_length + 1
        table = data.examples[split].fit(n_tokens, self.data.overlong)
        return PackedExamples(table, n_tokens) if self.data.packed is Packing.best_fit else table

    def collate(self, examples: list[TokenizedExample] | list[list[TokenizedExample]], sample_ids: np.ndarray) -> Batch:
        """Tokens, targets without those of prompts, and attention mask (B, T); with a source also `source` (B, S).

        Of several examples in a sequence, which `document_ids` (B, T) tell apart where none sees another.
        """
        several = [[one] if isinstance(one, TokenizedExample) else one for one in examples]
        examples = [joined(examples) for examples in several]
        if self.decoder_start_token_id is not None:
            return self._source_and_target(examples, self.decoder_start_token_id)
        tokens, attention_mask = pad([example.tokens[:-1] for example in examples], self.pad)
        scored = [np.where(example.scored, example.tokens, IGNORE_INDEX)[1:] for example in examples]
        targets, _ = pad(scored, IGNORE_INDEX)
        batch = {"tokens": tokens, "targets": targets, "attention_mask": attention_mask}
        if self.data.confined:
            ids = [np.repeat(np.arange(len(e)), [len(one.tokens) for one in e])[:-1] for e in several]
            batch["document_ids"], _ = pad(ids, self.context_length)
        return batch

    def _source_and_target(self, examples: list[TokenizedExample], start_token: int) -> Batch:
        starts = [_last_response(example.scored) for example in examples]
        prompts = [np.concatenate([e.tokens[:start], self.end]) for e, start in zip(examples, starts, strict=True)]
        source, source_mask = pad(prompts, self.pad)
        responses = [example.tokens[start:] for example, start in zip(examples, starts, strict=True)]
        targets, attention_mask = pad(responses, IGNORE_INDEX)
        first = targets.new_full((len(targets), 1), start_token)
        tokens = torch.cat([first, targets[:, :-1].masked_fill(~attention_mask[:, :-1], self.pad)], 1)
        return {
            "source": source,
            "source_mask": source_mask,
            "tokens": tokens,
            "targets": targets,
            "attention_mask": attention_mask,
        }

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"targets": (batch["targets"] != IGNORE_INDEX).sum()}

    def loss(self, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
        hidden_states, targets = self.predictions(model, batch)
        return {"loss": LossTerm(linear_cross_entropy(hidden_states, model.head, targets))}

    def predictions(self, model: LanguageModel, batch: Batch) -> Predictions:
        """The next token of each response."""
        inputs = {name: batch.get(name) for name in ("attention_mask", "source", "source_mask", "document_ids")}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        return Predictions(model.hidden_states(batch["tokens"], **inputs), batch["targets"])  # (B, T, D), (B, T)

    def preview(self, context: PreviewContext) -> str:
        """A prompt, the model's response and the true one."""
        (example,) = context.examples
        if not isinstance(example, TokenizedExample):  # the first of its sequence
            example = example[0]
        prompt, truth = context.prompt, []
        if not prompt:
            start = _last_response(example.scored)
            prompt, truth = example.tokens[:start].tolist(), example.tokens[start:].tolist()
        if self.decoder_start_token_id is None:
            response = context.write(prompt)
        else:
            response = self._decode(context, prompt, self.decoder_start_token_id)
        lines = [context.tokenizer.decode(prompt), f"[model] {self._text(context, response)}"]
        return "\n".join(lines + [f"[truth] {self._text(context, truth)}"] * bool(truth))

    def _text(self, context: PreviewContext, tokens: list[int]) -> str:
        n = tokens.index(self.end[0]) if self.end and self.end[0] in tokens else len(tokens)
        return context.tokenizer.decode(tokens[:n]).strip()

    def _decode(self, context: PreviewContext, prompt: list[int], start_token: int) -> list[int]:
        # By `hidden_states` alone, which is all that can be called on a sharded model.
        source = torch.tensor([prompt + self.end])
        tokens = [start_token]
        while len(tokens) <= PREVIEW_TOKENS and tokens[1:][-1:] != self.end:
            batch = context.to_device({"tokens": torch.tensor([tokens]), "source": source})
            logits = context.model.head.logits(context.model.hidden_states(**batch)[:, -1])
            tokens.append(int(logits[0, : context.tokenizer.vocab_size].argmax()))
        return tokens[1:]


def joined(examples: list[TokenizedExample]) -> TokenizedExample:
    """Examples one after the other as one, in which no example predicts the first token of the next."""
    if len(examples) == 1:
        return examples[0]
    scored = np.concatenate([example.scored for example in examples])
    scored[np.cumsum([len(example.tokens) for example in examples[:-1]])] = False
    return TokenizedExample(np.concatenate([example.tokens for example in examples]), scored, examples[0].label)


def _last_response(scored: np.ndarray) -> int:
    """Where the last run of scored tokens begins."""
    before = np.flatnonzero(~scored[: np.flatnonzero(scored)[-1]])
    return int(before[-1]) + 1 if len(before) else 0
