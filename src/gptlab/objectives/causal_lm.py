"""Next-token prediction (GPT, section 3.1, equation 1)."""

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.data.prepare import PreparedData
from gptlab.data.windows import SlidingWindows
from gptlab.nn.loss import linear_cross_entropy
from gptlab.objectives.objective import Batch, Objective, Shown, Term, auxiliary


class CausalLM(Objective):
    """Every token of a window but the first is a target."""

    per_byte = True

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> SlidingWindows:
        tokens, length = data.part(split).tokens, self.config.context_length
        if evaluating:
            return SlidingWindows.each_token_once(tokens, length)
        return SlidingWindows(tokens, length, self.config.data.stride or length)

    def collate(self, windows: np.ndarray | Tensor, numbers: np.ndarray | None = None) -> Batch:
        """Split windows (B, T + 1) into tokens (B, T) and targets (B, T): views, not copies."""
        windows = torch.as_tensor(windows)
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"targets": batch["targets"].numel()}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        targets = batch["targets"]
        loss = linear_cross_entropy(model.hidden(batch["tokens"]), model.output, targets)
        return {"loss": Term(loss), **auxiliary(model, targets.numel())}

    def show(self, shown: Shown) -> str:
        """A text, from the prompt or a text's first token on."""
        prompt = shown.prompt or [int(shown.examples[0, 0])]
        return shown.tokenizer.decode(prompt + shown.write(prompt))
