"""Rotary frequencies for contexts that are longer than the one a model was trained with.

Each takes frequencies (K/2,), fastest first, and gives frequencies (K/2,). `factor` is the longer context by the
original one, whose length in tokens is `original_context`.
"""

import math

import torch
from torch import Tensor


def frequencies(width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Radians per token of each pair of channels, theta^(-2i/K): (K/2,) in float64 (arXiv:2104.09864)."""
    return theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)


def linear(own: Tensor, factor: float) -> Tensor:
    """Every pair turns `factor` times as slowly: position interpolation (arXiv:2306.15595)."""
    return own / factor


def yarn(own: Tensor, factor: float, original_context: int, theta: float, beta_fast: float, beta_slow: float) -> Tensor:
    """Pairs that turn `beta_fast` times or more in the original context are kept, those that turn `beta_slow` times or
    fewer are slowed by `factor`, and those between in proportion to their index (arXiv:2309.00071, section 3.2).

    As published, the two ends are rounded outwards to whole indices.
    """

    def index(n_turns: float) -> float:
        return len(own) * math.log(original_context / (2 * math.pi * n_turns)) / math.log(theta)

    first, last = max(math.floor(index(beta_fast)), 0), min(math.ceil(index(beta_slow)), 2 * len(own) - 1)
    slowed = (torch.arange(len(own), dtype=own.dtype, device=own.device) - first) / max(last - first, 0.001)
    slowed = slowed.clamp(0, 1)
    return own * (1 - slowed) + own / factor * slowed


def llama3(own: Tensor, factor: float, original_context: int, beta_fast: float, beta_slow: float) -> Tensor:
    """As `yarn`, but between the two ends in proportion to the number of turns: Llama 3.1, which calls them
    `high_freq_factor` and `low_freq_factor` (arXiv:2407.21783)."""
    n_turns = original_context * own / (2 * math.pi)
    kept = ((n_turns - beta_slow) / (beta_fast - beta_slow)).clamp(0, 1)
    return own * kept + own / factor * (1 - kept)
