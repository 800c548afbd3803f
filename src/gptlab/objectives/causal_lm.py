"""Next-token prediction (GPT, section 3.1, equation 1)."""

import numpy as np
import torch
from torch import Tensor, nn

from gptlab.nn.loss import linear_cross_entropy
from gptlab.objectives.config import CausalLMConfig
from gptlab.objectives.terms import LossTerms, with_auxiliary


class CausalLM:
    """Every token of a window but the first is a target."""

    examples = "windows"

    def __init__(self, config: CausalLMConfig):
        self.config = config

    def collate(self, windows: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Split windows (B, T + 1) into tokens (B, T) and targets (B, T): views, not copies."""
        windows = torch.as_tensor(windows)
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def n_targets(self, batch: dict[str, Tensor]) -> int:
        """How many tokens `loss` will score."""
        return batch["targets"].numel()

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossTerms:
        targets = batch["targets"]
        total = linear_cross_entropy(model.hidden(batch["tokens"]), model.output, targets)
        terms = LossTerms(total=total, terms={"loss": total.detach()}, n_targets=self.n_targets(batch))
        return with_auxiliary(terms, model)
