"""Next-token prediction (GPT, section 3.1, equation 1)."""

import numpy as np
import torch
from torch import Tensor

from gptlab.data.config import DataConfig
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.prepare import PreparedData
from gptlab.models.base import LanguageModel
from gptlab.nn.loss import linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, Predictions, PreviewContext


class CausalLM(Objective):
    """Predict every token of a sequence but the first from those before it."""

    per_byte = True

    def __init__(self, *, data: DataConfig, context_length: int):
        self.data, self.context_length = data, context_length

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SlidingWindows:
        tokens, length = data.existing_part(split).tokens, self.context_length
        if evaluating:
            return SlidingWindows.each_token_once(tokens, length, split=split)
        return SlidingWindows(tokens, length, self.data.stride or length, split=split)

    def collate(self, examples: np.ndarray | Tensor, sample_ids: np.ndarray | None = None) -> Batch:
        """Split sequences (B, T + 1) into tokens (B, T) and targets (B, T): views, not copies."""
        examples = torch.as_tensor(examples)
        return {"tokens": examples[:, :-1], "targets": examples[:, 1:]}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"targets": batch["targets"].numel()}

    def loss(self, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
        hidden_states, targets = self.predictions(model, batch)
        return {"loss": LossTerm(linear_cross_entropy(hidden_states, model.head, targets))}

    def predictions(self, model: LanguageModel, batch: Batch) -> Predictions:
        """The next token at each position."""
        return Predictions(model.hidden_states(batch["tokens"]), batch["targets"])  # (B, T, D), (B, T)

    def preview(self, context: PreviewContext) -> str:
        """A text that continues the prompt, or the first token of an example."""
        prompt = context.prompt or [int(context.examples[0, 0])]
        return context.tokenizer.decode(prompt + context.write(prompt))
