"""Heads that an objective may ask for beside a model's own."""

from torch import Tensor, nn


class ClassHead(nn.Linear):
    """Scores of classes from a text's description: (B, D) -> (B, C)."""

    def __init__(self, d_model: int, n_class: int, *, dropout: float):
        super().__init__(d_model, n_class)
        self.drop = nn.Dropout(dropout)

    def forward(self, description: Tensor) -> Tensor:
        return super().forward(self.drop(description))
