"""Attention masks: True where a query may attend."""

from torch import Tensor


def causal_band(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Let each query attend to its own position and the `window` - 1 before it: (..., T) and (..., S) -> (..., T, S).

    Locally banded attention (arXiv:1904.10509, section 4), which later models call a sliding window.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    return (distance >= 0) & (distance < window)
