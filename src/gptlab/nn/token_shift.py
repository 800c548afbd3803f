"""Token shift: each position also reads the embedding of the token before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.nn.cache import LayerCache


class TokenShift(nn.Module):
    """Adds the embedding of the token before, times a learned factor for each channel (RWKV, arXiv:2305.13048, 3.1.1).

    The factors are 0 at the start of training. They are added to the token's own embedding, once, before the first
    block, where RWKV interpolates between the two in every block. The first token of a document gets nothing.
    """

    def __init__(self, width: int):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, positions: Tensor, *, cache: LayerCache | None = None) -> Tensor:
        """Of embeddings (B, T, D) at positions (T,) or (B, T): (B, T, D). A `cache` holds those that were read before.

        `positions` are within a document, so that one of 0 begins it.
        """
        if cache is None:
            before = F.pad(x[:, :-1], (0, 0, 1, 0))
            if positions.ndim == 1:  # one document, whose first token is the first of the sequence
                return x + self.factor * before
        else:
            held, _ = cache.extend(x[:, :, None], x.new_empty(*x.shape[:2], 1, 0))  # (B, 1, S, D)
            places = (positions - 1).clamp(min=0).expand(x.shape[:2])[..., None].expand_as(x)
            before = held[:, 0].gather(1, places)
        return x + self.factor * (before * (positions > 0)[..., None])
