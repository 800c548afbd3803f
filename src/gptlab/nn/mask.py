"""Masks as values: True where a query may look."""

from torch import Tensor


def causal_band(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Let each query see its own position and the `window` - 1 before: positions (..., T) and (..., S) -> (..., T, S).

    Locally banded attention (arXiv:1904.10509, section 4), which later models call a sliding window.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    return (distance >= 0) & (distance < window)
