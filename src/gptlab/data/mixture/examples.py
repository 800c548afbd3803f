"""The examples of a mixture: those of its sources, one source after the other, and which of them is sample i."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptlab.data.examples.pairs import Chunks
from gptlab.data.mixture.interleave import Interleave
from gptlab.data.order import ExampleOrder, ShardOrder
from gptlab.errors import UserError
from gptlab.steps import Steps


class MixedExamples:
    """The examples of several sources as those of one: example `offsets[k] + j` is the j-th of source k."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)  # None for a source of which no example is taken
        self.offsets = np.cumsum([0, *(0 if part is None else len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def sources_of(self, indices: np.ndarray) -> np.ndarray:
        """The number of each example's source."""
        return np.searchsorted(self.offsets, indices, side="right") - 1

    def gather(self, indices: np.ndarray) -> Any:
        """The examples of `indices` (B,), in their order, as their sources give them."""
        indices = np.asarray(indices)
        sources = self.sources_of(indices)
        found = {int(k): self.parts[k].gather(indices[sources == k] - self.offsets[k]) for k in np.unique(sources)}
        kinds = list(found.values())
        if len(kinds) == 1:
            return kinds[0]
        where = np.concatenate([np.flatnonzero(sources == k) for k in found])
        order = np.argsort(where)
        if isinstance(kinds[0], np.ndarray):
            return np.concatenate(kinds)[order]
        if isinstance(kinds[0], Chunks):
            return Chunks.joined(kinds, order)
        every = [example for examples in kinds for example in examples]
        return [every[at] for at in order]

    def tail(self) -> None:
        """None: sources are evaluated one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOrder:
    """Which example is sample i of a mixture: a pure function of the seed and i.

    A source is read in the order that a run on it alone has: its n-th sample is that run's sample n.
    """

    names: tuple[str, ...]
    interleave: Interleave
    orders: tuple[ExampleOrder | ShardOrder, ...]  # of each source; of one that is not read, of no example
    offsets: tuple[int, ...]  # where the examples of each begin among those of all

    @property
    def sizes(self) -> tuple[int, ...]:
        """The examples of each source that are read."""
        return tuple(order.n_examples for order in self.orders)

    def indices(self, samples: np.ndarray) -> np.ndarray:
        """The examples of samples, int64 in their shape."""
        sources, positions = self.interleave.locate(samples)
        found = np.empty_like(positions)
        for k in np.unique(sources):
            of_source = sources == k
            found[of_source] = self.offsets[k] + self.orders[k].indices(positions[of_source])
        return found

    def locate(self, samples: np.ndarray) -> list[dict[str, Any]]:
        """For each sample its source, the number of its example there, and the epoch of the source from 0."""
        sources, positions = self.interleave.locate(samples)
        indices = self.indices(samples)
        return [
            {"name": self.names[k], "example": int(index - self.offsets[k]), "epoch": int(position // self.sizes[k])}
            for k, position, index in zip(sources.tolist(), positions, indices, strict=True)
        ]

    def epochs(self, n_samples: int) -> dict[str, float]:
        """How often the first samples read each source, and 0 for one that is evaluated only."""
        counts = self.interleave.counts(n_samples)
        return {
            name: count / size if size else 0.0
            for name, count, size in zip(self.names, counts, self.sizes, strict=True)
        }

    def check_epochs(self, max_epochs: Mapping[str, float | None], *, n_steps: int, steps: Steps) -> None:
        """Refuse a run that asks for more epochs of a source than it may."""
        counts = dict(zip(self.names, self.interleave.counts(steps.sequences_before(n_steps)), strict=True))
        sizes = dict(zip(self.names, self.sizes, strict=True))
        limits = {name: int(limit * sizes[name]) for name, limit in max_epochs.items() if limit is not None}
        over = {name: counts[name] - limit for name, limit in limits.items() if counts[name] > limit}
        if not over:
            return
        last, beyond = 0, n_steps  # the last number of steps within the limits, and one beyond
        while beyond - last > 1:
            middle = (last + beyond) // 2
            found = dict(zip(self.names, self.interleave.counts(steps.sequences_before(middle)), strict=True))
            fits = all(found[name] <= limit for name, limit in limits.items())
            last, beyond = (middle, beyond) if fits else (last, middle)
        what = "; ".join(
            f"data.max_epochs.{name}={max_epochs[name]:g} and the weights ask for {counts[name] / sizes[name]:.4g} "
            f"epochs of {name}: {missing * steps.context_length:,} tokens are missing"
            for name, missing in over.items()
        )
        instead = f", or a budget of budget_steps={last}" if last else ""
        raise UserError(f"{what}; use more text, a lower weight{instead}, or allow more epochs")
