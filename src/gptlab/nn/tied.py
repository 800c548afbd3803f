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

    The lookup's gradient is sparse: that of the tokens that were looked up, where a dense one has as many zeros as the
    matrix has elements. Autograd adds it in place to the gradient of a loss in several chunks if it comes before that:
    so the head's passes through a node that was recorded before the lookup, and of the nodes that are ready autograd
    runs the newest first. In another order the sum is the same, and a copy of the matrix is made for it.
    """

    def __init__(self):
        self._parameter: Tensor | None = None  # of the newest lookup
        self._late: Tensor | None = None
        self._version = 0
        self._with_hook: Tensor | None = None

    @staticmethod
    def helps(weight: Tensor) -> bool:
        """Whether the lookup's gradient may be sparse.

        Not for a tensor that takes the place of a parameter, as in torch.func, nor in half precision, in which adding
        one token after the other loses what a sum of them keeps. A GPU does not mind the zeros.
        """
        precise = weight.dtype in (torch.float32, torch.float64)
        grows = torch.is_grad_enabled() and weight.requires_grad and not torch.compiler.is_compiling()
        return type(weight) is nn.Parameter and weight.is_cpu and precise and grows

    def look_up(self, embedding: nn.Embedding, tokens: Tensor) -> Tensor:
        """The embeddings of tokens (...), (..., D), whose gradient is sparse; `take` the weight afterwards."""
        parameter = embedding.weight
        if self._with_hook is not parameter:  # for a loss without the head
            parameter.register_post_accumulate_grad_hook(_make_dense)
            self._with_hook = parameter
        self._parameter, self._late, self._version = parameter, _Late.apply(parameter), parameter._version
        embedding.sparse = True
        try:
            return embedding(tokens)
        finally:
            embedding.sparse = False

    def take(self, parameter: Tensor) -> Tensor:
        """The weight of the newest lookup, once; the parameter itself where it has changed since, or none was."""
        late, same = self._late, self._parameter is parameter and self._version == parameter._version
        self.drop()
        return late if late is not None and same and torch.is_grad_enabled() else parameter

    def drop(self) -> None:
        """Forget the newest lookup."""
        self._parameter = self._late = None

    def __deepcopy__(self, memo: dict) -> "TiedWeight":
        return TiedWeight()  # a tensor with a history cannot be copied

    def __reduce__(self) -> tuple:
        return TiedWeight, ()


def _make_dense(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()
