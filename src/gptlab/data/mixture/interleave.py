"""From which source sample i of a mixture is: a pure function of i and the weights, in exact integer arithmetic.

The samples are split in two again and again: all of them between two groups of sources, those of a group between two
smaller groups. Of the first m samples of a group a part takes its quota, rounded: the m-th sample is its own where the
rounded quota grows with it. So the counts of any prefix, and with them the source and the position of any sample,
follow without those before it.

The root is split within 1/2 of its quota. What a group has too many or too few is passed on, times the share of a part
in the group, and 1/2 is added: with two sources every prefix is within 1/2 of n times the weight, with three and four
within 1, however the weights change. With more sources `Interleave.bound` is the bound of these weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np

_MOST_TRIED = 5  # sources of which every tree is tried; 105 there are of five


@dataclass(frozen=True, slots=True)
class _Node:
    """A group of sources; a source alone has no parts."""

    sources: tuple[int, ...]
    parts: tuple["_Node", "_Node"] | None = None


@dataclass(frozen=True)
class Interleave:
    """The order of the sources of a mixture.

    `points` are (tokens, the weight of each source), the first at 0 and the tokens increasing: between two of them the
    weights change linearly, after the last they stay. The weights of a point sum to 1. A sample has `sample_tokens`.
    """

    points: tuple[tuple[int, tuple[Fraction, ...]], ...]
    sample_tokens: int = 1
    _root: _Node | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.points and self.points[0][0] == 0
        assert all(sum(weights) == 1 and min(weights) >= 0 for _, weights in self.points)
        changing = any(weights != self.points[0][1] for _, weights in self.points)
        object.__setattr__(self, "points", self.points if changing else self.points[:1])
        taken = [k for k in range(self.n_sources) if any(weights[k] for _, weights in self.points)]
        object.__setattr__(self, "_root", self._best_tree(taken))

    @property
    def n_sources(self) -> int:
        return len(self.points[0][1])

    @cached_property
    def bound(self) -> Fraction:
        """No prefix of n samples has a source further than this from n times its weight."""
        assert self._root is not None
        return self._bound_of(self._root, Fraction(0))

    def counts(self, n: int) -> list[int]:
        """How many of the first `n` samples are of each source."""
        found = [0] * self.n_sources
        waiting = [(self._root, n)]
        while waiting:
            node, m = waiting.pop()
            assert node is not None
            if node.parts is None:
                found[node.sources[0]] = m
                continue
            first = int(self._split(node, np.array([m], dtype=object))[0])
            waiting += [(node.parts[0], first), (node.parts[1], m - first)]
        return found

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each sample and how many of that source come before it: int64, in the shape of `samples`."""
        flat = np.asarray(samples, dtype=np.int64).ravel()
        sources, positions = np.empty(flat.size, dtype=np.int64), np.empty(flat.size, dtype=np.int64)
        waiting = [(self._root, np.arange(flat.size), flat)]
        while waiting:
            node, where, m = waiting.pop()
            assert node is not None
            if node.parts is None:
                sources[where], positions[where] = node.sources[0], m
                continue
            both = self._split(node, np.concatenate([m, m + 1]))
            before, after = both[: m.size], both[m.size :]
            is_first = after > before
            for part, mask, index in ((0, is_first, before), (1, ~is_first, m - before)):
                if mask.any():
                    waiting.append((node.parts[part], where[mask], index[mask]))
        return sources.reshape(samples.shape), positions.reshape(samples.shape)

    def weights(self, n: int) -> list[float]:
        """The mean weight of each source over the first `n` samples, from 1 on."""
        return [self._quota((k,), np.array([n], dtype=object))[0] / (self._unit * n) for k in range(self.n_sources)]

    def quotas(self, n: int) -> list[Fraction]:
        """What each source's count is a rounding of: the integral of its weight over the first `n` samples."""
        return [Fraction(self._quota((k,), np.array([n], dtype=object))[0], self._unit) for k in range(self.n_sources)]

    @cached_property
    def _denominator(self) -> int:
        return lcm(*(weight.denominator for _, weights in self.points for weight in weights))

    @cached_property
    def _lengths(self) -> list[int]:
        return [after - before for (before, _), (after, _) in zip(self.points, self.points[1:], strict=False)]

    @cached_property
    def _unit(self) -> int:
        """Quotas are integers over this."""
        return self._denominator * (1 if not self._lengths else 2 * lcm(*self._lengths) * self.sample_tokens)

    def _at_points(self, sources: tuple[int, ...]) -> list[int]:
        return [int(sum(weights[k] for k in sources) * self._denominator) for _, weights in self.points]

    def _quota(self, sources: tuple[int, ...], n: np.ndarray) -> np.ndarray:
        """The integral of the sources' weights over the first `n` samples, in units; exact, in the type of `n`."""
        weights = self._at_points(sources)
        if not self._lengths:
            return n * weights[0]
        common = lcm(*self._lengths)
        tokens = n * self.sample_tokens
        quota = tokens * 0
        for i, (start, _) in enumerate(self.points):
            after, within = tokens > start, tokens - start
            if i < len(self._lengths):
                within = np.minimum(within, self._lengths[i])
                slope = (weights[i + 1] - weights[i]) * (common // self._lengths[i])
            else:
                slope = 0
            quota = quota + np.where(after, within * (2 * common * weights[i]) + within * within * slope, 0)
        return quota

    def _split(self, node: _Node, m: np.ndarray) -> np.ndarray:
        """How many of the first `m` samples of a group are of its first part: int64."""
        assert node.parts is not None
        first = node.parts[0].sources
        if not self._lengths:
            part, whole = self._at_points(first)[0], self._at_points(node.sources)[0]
            m = self._exact(m, max(part, whole))
            return ((2 * part * m + whole) // (2 * whole)).astype(np.int64)
        m = m.astype(object)
        if node is self._root:
            return ((2 * self._quota(first, m) + self._unit) // (2 * self._unit)).astype(np.int64)
        # The quota of the part where the group's quota is m: between two samples by linear interpolation.
        n = self._sample_with_quota(node.sources, m)
        before, after = (self._quota(node.sources, at) for at in (n, n + 1))
        start, grown = self._quota(first, n), self._quota(first, n + 1) - self._quota(first, n)
        step = np.where(after > before, after - before, 1)
        excess = np.where(after > before, m * self._unit - before, 0)  # the group gets no more: its quota has ended
        whole = 2 * self._unit * step
        return ((2 * (start * step + grown * excess) + self._unit * step) // whole).astype(np.int64)

    @staticmethod
    def _exact(m: np.ndarray, factor: int) -> np.ndarray:
        """Python's integers where those of 64 bits may overflow."""
        fits = not m.size or int(m.max()) * factor < 1 << 61
        return m.astype(np.int64 if fits else object)

    def _sample_with_quota(self, sources: tuple[int, ...], m: np.ndarray) -> np.ndarray:
        """The last n whose quota is at most `m`; where the quota ends below m, an n after the last point."""
        weights, end = self._at_points(sources), self.points[-1][0] // self.sample_tokens + 1
        low = m * 0
        more = m * self._denominator // weights[-1] + 1 if weights[-1] else m * 0
        high = end + more  # beyond, where there is a beyond
        low, high = self._bracket(sources, m, low, high)
        while (high - low > 1).any():
            middle = (low + high) // 2
            reached = self._quota(sources, middle) <= m * self._unit
            low, high = np.where(reached, middle, low), np.where(reached, high, middle)
        return low

    def _bracket(
        self, sources: tuple[int, ...], m: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Closer limits, found in floating point and kept where exact arithmetic confirms them."""
        tokens = np.array([start for start, _ in self.points], dtype=np.float64) / self.sample_tokens
        weights = np.array(self._at_points(sources), dtype=np.float64) / self._denominator
        before = np.concatenate([[0.0], np.cumsum(np.diff(tokens) * (weights[1:] + weights[:-1]) / 2)])
        segment = np.searchsorted(before, m.astype(np.float64), side="right") - 1
        rest = m.astype(np.float64) - before[segment]
        slope = np.append(np.diff(weights) / np.diff(tokens), 0.0)[segment]
        root = np.sqrt(np.maximum(weights[segment] ** 2 + 2 * slope * rest, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            guess = tokens[segment] + np.where(rest > 0, 2 * rest / (weights[segment] + root), 0.0)
        near = np.nan_to_num(guess, nan=0.0, posinf=0.0, neginf=0.0).astype(np.int64).astype(object)
        for limit, is_low in ((near - 2, True), (near + 3, False)):
            limit = np.clip(limit, low, high)
            reached = self._quota(sources, limit) <= m * self._unit
            low, high = (np.where(reached, limit, low), high) if is_low else (low, np.where(reached, high, limit))
        return low, high

    def _best_tree(self, sources: list[int]) -> _Node:
        """The tree with the lowest bound: of all trees of few sources, of two that keep the heavy on top of many."""
        leaves = [_Node((k,)) for k in sources]
        trees = _trees(leaves) if len(leaves) <= _MOST_TRIED else [self._huffman(leaves), self._halved(leaves)]
        return min(trees, key=lambda tree: self._bound_of(tree, Fraction(0)))

    def _weight(self, node: _Node) -> int:
        return sum(self._at_points(node.sources))

    def _huffman(self, nodes: list[_Node]) -> _Node:
        while len(nodes) > 1:
            a, b, *others = sorted(nodes, key=lambda node: (self._weight(node), node.sources))
            nodes = [*others, _joined(a, b)]
        return nodes[0]

    def _halved(self, leaves: list[_Node]) -> _Node:
        if len(leaves) == 1:
            return leaves[0]
        halves: tuple[list[_Node], list[_Node]] = ([], [])
        for leaf in sorted(leaves, key=lambda leaf: (-self._weight(leaf), leaf.sources)):
            min(halves, key=lambda half: sum(map(self._weight, half))).append(leaf)
        return _joined(*map(self._halved, halves))

    def _bound_of(self, node: _Node, error: Fraction) -> Fraction:
        if node.parts is None:
            return error
        whole = self._at_points(node.sources)
        bounds = []
        for part in node.parts:
            own = self._at_points(part.sources)
            # Of two linear functions the ratio is largest at one of the ends.
            share = max(Fraction(a, b) for a, b in zip(own, whole, strict=True) if b)
            bounds.append(self._bound_of(part, Fraction(1, 2) + share * error))
        return max(bounds)


def _joined(a: _Node, b: _Node) -> _Node:
    first, second = sorted((a, b), key=lambda node: node.sources)
    return _Node(tuple(sorted(a.sources + b.sources)), (first, second))


def _trees(leaves: Sequence[_Node]) -> list[_Node]:
    """Every binary tree with these leaves."""
    if len(leaves) == 1:
        return [leaves[0]]
    found: list[Any] = []
    first, *others = leaves
    for mask in range(1 << len(others)):  # who is in the part of the first leaf
        with_first = [first, *(leaf for i, leaf in enumerate(others) if mask >> i & 1)]
        without = [leaf for i, leaf in enumerate(others) if not mask >> i & 1]
        if without:
            found += [_joined(a, b) for a in _trees(with_first) for b in _trees(without)]
    return found
