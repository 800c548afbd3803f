"""Position encodings: sinusoidal, rotary, and relative biases."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gptlab.nn.rope_scaling import frequencies

SINUSOIDAL_BASE = 10_000.0

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, 1, K), or (B, T, 1, K) where sequences differ


class Sinusoidal(nn.Module):
    """Sines and cosines of position times frequency 10000^(-2i/D), in turn (arXiv:1706.03762, section 3.5).

    Channel 2i is the sine and channel 2i + 1 the cosine of one angle. There is nothing to learn.
    """

    def __init__(self, n_positions: int, width: int):
        super().__init__()
        self.register_buffer("table", torch.empty(n_positions, width), persistent=False)
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Compute the table, in float32, where the buffer is."""
        n_positions, width = self.table.shape
        device = self.table.device
        own = frequencies(width + width % 2, SINUSOIDAL_BASE, device)
        angles = torch.arange(n_positions, dtype=torch.float64, device=device)[:, None] * own
        self.table = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width].float().contiguous()  # (T, D)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)  # as of `Rotary`
        self.fill()
        return self

    def forward(self, positions: Tensor) -> Tensor:
        """The encodings of these positions: (...) -> (..., D)."""
        return self.table[positions]


class Rotary(nn.Module):
    """Angles of position times frequency theta^(-2i/K), for i < K/2 (RoFormer, arXiv:2104.09864, equation 15).

    Channel i turns with channel i + K/2, as in Llama. `scaled` changes the frequencies (K/2,) for long contexts, and
    cosines and sines are multiplied by `amplitude`.
    """

    def __init__(
        self,
        width: int,
        n_positions: int,
        *,
        theta: float,
        scaled: Callable[[Tensor], Tensor] | None = None,
        amplitude: float = 1.0,
    ):
        super().__init__()
        self.theta, self.scaled, self.amplitude = theta, scaled, amplitude
        self.register_buffer("cos", torch.empty(n_positions, 1, width), persistent=False)
        self.register_buffer("sin", torch.empty(n_positions, 1, width), persistent=False)
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Compute both tables, in float32, where the buffers are."""
        n_positions, _, width = self.cos.shape
        device = self.cos.device
        own = frequencies(width, self.theta, device)
        if self.scaled is not None:
            own = self.scaled(own)
        angles = torch.arange(n_positions, dtype=torch.float64, device=device)[:, None, None] * own
        cos, sin = angles.cos() * self.amplitude, angles.sin() * self.amplitude
        self.cos = torch.cat((cos, cos), -1).float()  # (T, 1, K)
        self.sin = torch.cat((-sin, sin), -1).float()  # (T, 1, K)

    def _apply(self, fn, recurse=True):
        # A move from the meta device brings no values and a cast to bfloat16 spoils them: compute them again.
        super()._apply(fn, recurse)
        self.fill()
        return self

    def forward(self, positions: Tensor) -> Rotation:
        """The rotation of these positions, (T,) or (B, T)."""
        return self.cos[positions], self.sin[positions]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each head's pairs of channels by their position's angles: x (B, T, H, K)."""
    cos, sin = rotation
    swapped = x.roll(x.shape[-1] // 2, -1)  # each channel's partner, whose sign is in sin
    return (x * cos + swapped * sin).to(x.dtype)


class RelativeBias(nn.Module):
    """A learned bias of each head's scores by the distance from query to key (T5, arXiv:1910.10683, section 2.1).

    Half of the buckets are for single distances and half for ranges that grow up to `max_distance`, beyond which all
    distances share one. If `bidirectional`, each direction has half of all buckets; else later keys share the nearest.
    """

    def __init__(self, n_bucket: int, n_head: int, *, max_distance: int, bidirectional: bool):
        super().__init__()
        self.n_bucket, self.max_distance, self.bidirectional = n_bucket, max_distance, bidirectional
        self.table = nn.Embedding(n_bucket, n_head)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The bias of query positions (..., T) for key positions (..., S): (..., H, T, S)."""
        return self.table(self._buckets(keys[..., None, :] - queries[..., :, None])).movedim(-1, -3)

    def _buckets(self, distance: Tensor) -> Tensor:
        n_bucket, first = self.n_bucket, 0
        if self.bidirectional:
            n_bucket //= 2
            first = (distance > 0) * n_bucket
            distance = distance.abs()
        else:
            distance = -distance.clamp(max=0)
        n_single = n_bucket // 2
        # In float32 and in this order, as the published weights were trained.
        growth = torch.log(distance.float() / n_single) / math.log(self.max_distance / n_single)
        ranged = n_single + (growth * (n_bucket - n_single)).long().clamp(max=n_bucket - n_single - 1)
        return first + torch.where(distance < n_single, distance, ranged)
