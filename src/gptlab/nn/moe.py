"""A feedforward of E experts, of which each token sees a few, and what training asks of its router."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gptlab.models.decoder.config import RouterSoftmax
from gptlab.nn.block import Block

GROUPED_BYTES = 16  # of which the rows of a grouped product have to be a multiple


class Routing(NamedTuple):
    """What a router decided about N tokens."""

    logits: Tensor  # (N, E), float32
    n_chosen: Tensor  # (E), how many times each expert was
    n_dropped: Tensor  # (), choices for which an expert had no room


class ExpertShard(NamedTuple):
    """Which experts are held here, and how ranks that see the same tokens and hold other experts work together."""

    held: range
    enter: Callable[[Tensor], Tensor]  # the identity, whose gradient is the sum of the ranks' gradients
    leave: Callable[[Tensor], Tensor]  # the sum of what the ranks have, whose gradient is the identity


class ExpertBlock(Block):
    """A pre-norm block whose feedforward is `MoE`; it returns the stream and how its tokens were routed."""

    def forward(self, x: Tensor, **attention) -> tuple[Tensor, Routing]:
        x = x + self.drop(self.attn(self.norm1(x), **attention))
        mixed, routing = self.ffn(self.norm2(x))
        return x + self.drop(mixed), routing


class MoE(nn.Module):
    """A router that sends each token to `n_active` of E feedforwards (arXiv:1701.06538, section 2), and shared ones.

    Each expert is a `feedforward` of width `d_ff`. Shared experts are seen by every token (arXiv:2401.06066, section
    3.2); together they are one feedforward so many times as wide. With `capacity_factor` an expert has room in training
    for that many times its equal share of the choices, and drops those of later tokens (arXiv:2101.03961, equation 3).

    With another `division` the parameters of `experts` are those of the experts held here, and what `shared` returns is
    a part of a sum over ranks. Routing is the same on all.
    """

    def __init__(
        self,
        feedforward: Callable[..., nn.Module],
        d_model: int,
        d_ff: int,
        *,
        bias: bool,
        n_expert: int,
        n_active: int,
        n_shared: int = 0,
        softmax: RouterSoftmax = RouterSoftmax.after,
        capacity_factor: float | None = None,
    ):
        super().__init__()
        self.n_expert, self.n_active, self.softmax = n_expert, n_active, softmax
        self.capacity_factor = capacity_factor
        self.router = nn.Linear(d_model, n_expert, bias=False)
        self.experts = feedforward(d_model, d_ff, bias=bias, linear=partial(GroupedLinear, n_expert))
        self.shared = feedforward(d_model, n_shared * d_ff, bias=bias) if n_shared else None
        self.division = ExpertShard(range(n_expert), _same, _same)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Mix channels: x (B, T, D) -> (B, T, D), and the routing of the B T tokens."""
        tokens = x.flatten(0, -2)  # (N, D)
        # In float32 whatever the rest computes in: a choice is all or nothing (arXiv:2101.03961, section 2.4).
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.router.weight.float())  # (N, E)
        if self.softmax is RouterSoftmax.before:
            weights, chosen = logits.softmax(-1).topk(self.n_active)  # (N, k)
        else:
            highest, chosen = logits.topk(self.n_active)
            weights = highest.softmax(-1)
        tokens, weights = self.division.enter(tokens), self.division.enter(weights)
        if self.capacity_factor is not None and self.training:
            capacity = math.ceil(self.capacity_factor * chosen.numel() / self.n_expert)
            answers, n_chosen, n_dropped = self._with_room(tokens, chosen, capacity)
        else:
            answers, n_chosen = self._dropless(tokens, chosen)
            n_dropped = n_chosen.new_zeros(())
        mixed = (answers.unflatten(0, chosen.shape) * weights[..., None].to(answers.dtype)).sum(1)  # (N, D)
        mixed = mixed.view(x.shape)
        if self.shared is not None:
            mixed = mixed + self.shared(x)
        return self.division.leave(mixed), Routing(logits, n_chosen, n_dropped)

    def inactive_parameters(self) -> int:
        """Parameters that an average token does not meet: those of experts that it is not routed to."""
        n_parameters = sum(parameter.numel() for parameter in self.experts.parameters())
        return n_parameters * (self.n_expert - self.n_active) // self.n_expert

    def _dropless(self, tokens: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """What the experts held here answer to all M = N k choices, (M, D), and how many each of all experts got."""
        order, ends = self._by_expert(chosen)
        n_chosen, elsewhere = _counts(ends), len(self.division.held) < self.n_expert
        if elsewhere:
            order, ends = _choices_of(self.division.held, order, ends)
        place = _inverse(order, chosen.numel())  # (M), one behind the last where others answer
        rows = _Take.apply(tokens, order // self.n_active, place.view_as(chosen), elsewhere)
        answers = self.experts(rows, ends)
        return _Take.apply(answers, place, order[:, None], elsewhere), n_chosen

    def _with_room(self, tokens: Tensor, chosen: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same where an expert takes the first C of its choices and the others are answered with zeros.

        In the order of tokens, not first choices first: whether a token is dropped may not depend on later ones.
        """
        order, ends = self._by_expert(chosen)
        held = self.division.held
        n_chosen, n_choices, n_slots = _counts(ends), chosen.numel(), len(held) * capacity
        expert = chosen.flatten()[order]
        rank = torch.arange(n_choices, device=order.device) - (ends - n_chosen)[expert]
        answered = (rank < capacity) & (expert >= held.start) & (expert < held.stop)
        # One place behind the last stands for none: choices without a slot, slots without a choice.
        slot = torch.where(answered, (expert - held.start) * capacity + rank, n_slots)  # (M), of choices by expert
        choice = torch.full((n_slots + 1,), n_choices, device=order.device)
        choice = choice.index_copy(0, slot, order)[:n_slots]  # (E C), of the E held here
        slot = slot[_inverse(order, n_choices)]  # (M), of choices by token
        rows = _Take.apply(tokens, choice // self.n_active, slot.view_as(chosen), True)
        answers = self.experts(rows.view(len(held), capacity, -1)).flatten(0, 1)  # (E C, D)
        return _Take.apply(answers, slot, choice[:, None], True), n_chosen, (n_chosen - capacity).clamp(min=0).sum()

    def _by_expert(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The choices ordered by expert, then by token, and where each expert's end."""
        experts, order = chosen.flatten().sort(stable=True)
        known = torch.arange(self.n_expert, device=chosen.device)
        return order, torch.searchsorted(experts, known, right=True, out_int32=True)  # without waiting for a GPU


class GroupedLinear(nn.Module):
    """A linear layer for each expert, as one stack: weight (E, out, in), bias (E, out).

    Where it is `divided` they are DTensors, of which those of the experts held here are used.
    """

    def __init__(self, n_expert: int, in_features: int, out_features: int, *, bias: bool):
        super().__init__()
        self.in_features, self.divided = in_features, False
        self.weight = nn.Parameter(torch.empty(n_expert, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(n_expert, out_features)) if bias else None

    def forward(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """Each expert's rows by its own weight: x (M, in), of expert e up to row ends[e], or x (E, C, in)."""
        weight, bias = self.weight, self.bias
        if self.divided:
            weight, bias = weight.to_local(), None if bias is None else bias.to_local()
        if x.is_meta and ends is not None:  # who gets which row is a value, and one expert with all is as much work
            return F.linear(x, weight[0], None if bias is None else bias[0])
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if ends is None:
            return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        if runs_grouped(x, weight):
            return grouped(x, weight, bias, ends)
        return one_by_one(x, weight, bias, ends)


def runs_grouped(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product takes these, and there is something to group."""
    n_expert, *sizes = weight.shape
    if n_expert == 1 or any(size * weight.element_size() % GROUPED_BYTES for size in sizes):
        return False
    if x.device.type == "cuda":
        return x.dtype is torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0)
    if torch.compiler.is_compiling() and x.dtype is not torch.bfloat16:
        return False  # it runs, and torch 2.13 refuses to trace it
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """All experts as one product."""
    product = F.grouped_mm(x, weight.mT, offs=ends)
    if bias is None:
        return product
    # As a product too: the gradient of a look-up adds rows up in an order that threads decide.
    expert = torch.searchsorted(ends, torch.arange(len(x), device=x.device), right=True)
    return product + (expert[:, None] == torch.arange(len(bias), device=x.device)).to(bias.dtype) @ bias


@torch.compiler.disable  # sizes are known when it runs
def one_by_one(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """A product for each expert. Split and unbind are undone at once by the backward pass, slices one by one."""
    biases = [None] * len(weight) if bias is None else bias.unbind()
    parts = x.split(_counts(ends).tolist())
    return torch.cat([F.linear(*part) for part in zip(parts, weight.unbind(), biases, strict=True)])


class _Take(torch.autograd.Function):
    """Rows of x (n, D) by index (m), where `back` (n, r) are the places at which each was taken.

    Its gradient is looked up as well, so that the order of additions is fixed; with `padded` an index one behind the
    last means a row of zeros, either way.
    """

    @staticmethod
    def forward(ctx, x, index, back, padded):
        ctx.save_for_backward(back)
        ctx.padded = padded
        return _rows(x, index, padded)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (back,) = ctx.saved_tensors
        rows = _rows(gradient, back.flatten(), ctx.padded)
        return (rows if back.shape[1] == 1 else rows.unflatten(0, back.shape).sum(1)), None, None, None


def _rows(x: Tensor, index: Tensor, padded: bool) -> Tensor:
    return (F.pad(x, (0, 0, 0, 1)) if padded else x).index_select(0, index)


def _same(x: Tensor) -> Tensor:
    return x


@torch.compiler.disable  # sizes are known when it runs
def _choices_of(held: range, order: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Of choices ordered by expert those of some experts, and where each of these ends. It waits for a GPU."""
    start, stop = F.pad(ends, (1, 0))[[held.start, held.stop]].tolist()
    return order[start:stop], ends[held.start : held.stop] - start


def _inverse(order: Tensor, n: int) -> Tensor:
    """Where in `order` each of n stands; one behind the last where it does not."""
    places = torch.arange(len(order), device=order.device)
    return order.new_full((n,), len(order)).index_copy(0, order, places)


def _counts(ends: Tensor) -> Tensor:
    return ends.diff(prepend=ends.new_zeros(1))


@dataclass(slots=True)
class Auxiliary:
    """What a model in training adds to its objective: means per token, of which `loss` is to be differentiated."""

    loss: Tensor
    terms: dict[str, Tensor]  # what to log, detached


def auxiliary(routings: Sequence[Routing], *, balance_coef: float | None, z_coef: float | None) -> Auxiliary:
    """The load-balancing loss (Switch, arXiv:2101.03961, equations 4 to 6) and the router's z-loss (ST-MoE,
    arXiv:2202.08906, equation 5) of all layers, their means over layers weighted by the arguments.

    An expert's share is that of all choices, before any is dropped, so that the first is 1 where all have the same.
    """
    logits = torch.stack([routing.logits for routing in routings])  # (L, N, E)
    n_chosen = torch.stack([routing.n_chosen for routing in routings]).float()  # (L, E)
    share = n_chosen / n_chosen.sum(-1, keepdim=True)
    balance = logits.shape[-1] * (share * logits.softmax(-1).mean(1)).sum(-1).mean()
    z = logits.logsumexp(-1).square().mean()
    weighted = [term * weight for term, weight in ((balance, balance_coef), (z, z_coef)) if weight is not None]
    terms = {
        "balance_loss": balance.detach(),
        "z_loss": z.detach(),
        "dropped_token_fraction": torch.stack([routing.n_dropped for routing in routings]).sum() / n_chosen.sum(),
        "max_expert_load": share.max(),
    }
    return Auxiliary(loss=sum(weighted, start=logits.new_zeros(())), terms=terms)
