"""Next-token prediction (GPT, section 3.1, equation 1)."""

import numpy as np
import torch
from torch import Tensor

from gptlab.data.config import DataConfig, Packing
from gptlab.data.examples.packing import PackedDocuments
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.prepare import PreparedData
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.nn.loss import IGNORE_INDEX, linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, Predictions, PreviewContext


class CausalLM(Objective):
    """Predict every token of a sequence but the first from those before it.

    What a sequence consists of, and how far its tokens attend, is the data's matter: `data.packing`, `data.attention`
    and `data.boundary_targets`. A document ends with its end-of-text token.
    """

    def __init__(self, *, data: DataConfig, context_length: int, tokenizer: Tokenizer | None = None):
        self.data, self.context_length = data, context_length
        self.packing, self.confined = data.packed, data.confined
        self.plain = self.packing is Packing.stream and not self.confined and data.boundary_targets
        self.per_byte = self.packing is Packing.stream and data.boundary_targets
        separator = None if tokenizer is None else tokenizer.eot
        self.separator = -1 if separator is None else separator
        self.pad = (None if tokenizer is None else tokenizer.pad) or 0  # any token will do: padding is masked
        if separator is None and not self.plain:
            key = "data.attention=document" if self.confined else "data.boundary_targets=false"
            if self.packing is not Packing.stream:
                key = f"data.packing={self.packing.value}"
            raise UserError(
                f"{key} needs to know where documents end, and tokenizer={tokenizer.type if tokenizer else None} has "
                "no end-of-text token; use another, such as tokenizer=bpe or tokenizer=byte"
            )

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SlidingWindows | PackedDocuments:
        file, length = data.existing_part(split), self.context_length
        if self.packing is not Packing.stream:
            return PackedDocuments(file, self.separator, length, self.packing, split=split)
        if evaluating:
            return SlidingWindows.each_token_once(file.tokens, length, split=split)
        return SlidingWindows(file.tokens, length, self.data.stride or length, split=split)

    def collate(self, examples: np.ndarray | Tensor, sample_ids: np.ndarray | None = None) -> Batch:
        """Split sequences (B, T + 1) into tokens (B, T) and targets (B, T): views, not copies, where nothing is masked.

        With `document_ids` (B, T), from 0, where attention is confined, and `attention_mask` (B, T) where there is
        padding. Of parts of sequences, (B, parts, T + 1), all have a dimension more.
        """
        examples = torch.as_tensor(examples)
        tokens, targets = examples[..., :-1], examples[..., 1:]
        if self.plain:
            return {"tokens": tokens, "targets": targets}
        ends, real = tokens == self.separator, tokens >= 0
        hidden = targets < 0 if self.data.boundary_targets else (targets < 0) | ends
        batch = {"tokens": tokens.where(real, self.pad), "targets": targets.masked_fill(hidden, IGNORE_INDEX)}
        if self.confined:
            batch["document_ids"] = ends.cumsum(-1) - ends.long()  # the separator is the last token of its document
        if not real.all():
            batch["attention_mask"] = real
        return batch

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        targets = batch["targets"]
        return {"targets": targets.numel() if self.plain else (targets != IGNORE_INDEX).sum()}

    def loss(self, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
        hidden_states, targets = self.predictions(model, batch)
        return {"loss": LossTerm(linear_cross_entropy(hidden_states, model.head, targets))}

    def predictions(self, model: LanguageModel, batch: Batch) -> Predictions:
        """The next token at each position."""
        names = [name for name in ("tokens", "attention_mask", "document_ids") if name in batch]
        inputs = {name: batch[name].flatten(0, -2) for name in names}  # parts of sequences are sequences
        hidden_states = model.hidden_states(inputs.pop("tokens"), **inputs)
        targets = batch["targets"].flatten(1)
        return Predictions(hidden_states.reshape(*targets.shape, -1), targets)  # (B, T, D), (B, T)

    def preview(self, context: PreviewContext) -> str:
        """A text that continues the prompt, or the first token of an example."""
        prompt = context.prompt or [int(context.examples[0, 0])]
        return context.tokenizer.decode(prompt + context.write(prompt))
