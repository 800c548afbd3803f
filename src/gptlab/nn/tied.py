"""One matrix that is both the token embedding and the head: its two gradients, added in place."""

from typing import Any

import torch
from torch import Tensor, nn


class _Late(torch.autograd.Function):
    """The identity, for its place in the order of the backward pass."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, *gradients: Any) -> Any:
        return gradients[0]


class TiedWeight:
    """The weight of a token embedding as the head is to use it after the lookup of one forward pass.

    The lookup's gradient is sparse: some rows, where a dense one has as many zeros as the matrix has elements. Autograd
    adds it in place if it comes before the head's, so the head's passes through a node that was recorded before the
    lookup: of the nodes that are ready autograd runs the newest first. In another order the sum is the same, and a copy
    of the matrix is made for it.
    """

    def __init__(self):
        self._late: Tensor | None = None

    def look_up(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        """The embeddings of tokens (...), (..., D), whose gradient is sparse; `take` the weight afterwards."""
        self._late = _Late.apply(embedding.weight)
        embedding.sparse = True
        try:
            return embedding(tokens)
        finally:
            embedding.sparse = False

    def take(self, weight: Tensor) -> Tensor:
        """The weight of the newest lookup, once; `weight` itself where there was none, or it has been replaced."""
        late, self._late = self._late, None
        same = late is not None and late.dtype == weight.dtype and late.data_ptr() == weight.data_ptr()
        return late if same and late is not None else weight

    def drop(self) -> None:
        """Forget the newest lookup."""
        self._late = None

    def __deepcopy__(self, memo: dict) -> "TiedWeight":
        return TiedWeight()  # a tensor with a history cannot be copied

    def __reduce__(self) -> tuple:
        return TiedWeight, ()
