"""Mixture-of-experts layer: a router, its experts, and the losses that keep the router balanced.

Everything that depends on more than one token is taken per sequence: capacity, the load-balancing loss and what is
logged. So a step's loss depends neither on the micro-batch size nor on the number of devices.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gptlab.models.decoder.config import RouterSoftmax
from gptlab.nn.block import Block
from gptlab.nn.feedforward import MLP
from gptlab.nn.loss import Auxiliary
from gptlab.nn.tensor_parallel import Split, TensorGroup

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

GROUPED_BYTES = 16  # the grouped product wants matrices whose strides are a multiple of this


class Routing(NamedTuple):
    """What a router decided about the tokens of B sequences, padding left out of all counts."""

    logits: Tensor  # (B, T, E), float32
    n_chosen: Tensor  # (B, E): how many of a sequence's choices fell on each expert
    n_dropped: Tensor  # (B): choices beyond the capacity of their expert
    mask: Tensor | None = None  # (B, T), True on real tokens; None: no padding


class ExpertShard(NamedTuple):
    """Which experts this rank holds, and the collectives of the ranks that see the same tokens and hold the others."""

    local_experts: range
    all_reduce_grad: Callable[[Tensor], Tensor]  # the identity, whose gradient is summed over the ranks
    all_reduce: Callable[[Tensor], Tensor]  # the sum over the ranks, whose gradient is the identity


class ExpertBlock(Block):
    """A pre-norm block whose feedforward is `MoE`; it returns the stream and how its tokens were routed."""

    def forward(self, x: Tensor, *, attention_mask: Tensor | None = None, **attention) -> tuple[Tensor, Routing]:
        x = x + self.branch(self.attn(self.norm1(x), **attention))
        mixed, routing = self.ffn(self.norm2(x), attention_mask)
        return x + self.branch(mixed), routing


class MoE(nn.Module):
    """A router that sends each token to `n_active` of E feedforwards (arXiv:1701.06538, section 2), and shared ones.

    Each expert is a `feedforward` of width `d_ff`. Shared experts read every token (arXiv:2401.06066, section 3.2);
    together they are one feedforward that many times as wide. With `capacity_factor`, in training, an expert answers at
    most that many times its equal share of each sequence's choices, and later tokens of the sequence are dropped
    (arXiv:2101.03961, equation 3, with a sequence as the batch).
    """

    def __init__(
        self,
        feedforward: Callable[..., MLP],
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
        self.shard = ExpertShard(range(n_expert), _same, _same)

    def splits(self) -> dict[str, Split]:
        """How its layers are sharded over a tensor-parallel group: by expert, and the shared ones by channel."""
        splits = {f"experts.{name}": Split.stack for name, _ in self.experts.named_children()}
        if self.shared is not None:
            splits |= {f"shared.{name}": split for name, split in self.shared.splits().items()}
            splits["shared.down"] = Split.row_partial  # summed together with the experts' answers
        return splits

    def use_shard(self, group: TensorGroup) -> None:
        """Compute with this rank's experts alone, once their parameters are sharded by expert.

        The router stays whole on every rank, so that all route alike, and what `shared` returns is a part of a sum.
        """
        n_local = self.n_expert // group.size
        local = range(group.rank * n_local, (group.rank + 1) * n_local)
        self.shard = ExpertShard(local, group.all_reduce_grad, group.all_reduce)
        for layer in self.experts.children():
            assert isinstance(layer, GroupedLinear)
            layer.sharded = True

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Mix channels: x (B, T, D) -> (B, T, D), and the routing of its tokens.

        attention_mask (B, T) is True on real tokens (None: all are). Padding takes no capacity and is not counted; what
        is returned for it is arbitrary.
        """
        tokens = x.flatten(0, 1)  # (N, D), N = B T
        # In float32 whatever the rest computes in: a choice is all or nothing (arXiv:2101.03961, section 2.4).
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.router.weight.float())  # (N, E)
        if self.softmax is RouterSoftmax.before:
            weights, topk_experts = logits.softmax(-1).topk(self.n_active)  # (N, k)
        else:
            highest, topk_experts = logits.topk(self.n_active)
            weights = highest.softmax(-1)
        tokens, weights = self.shard.all_reduce_grad(tokens), self.shard.all_reduce_grad(weights)
        choices = self._sort(topk_experts, x.shape[0], attention_mask)
        if self.capacity_factor is not None and self.training:
            answers, n_dropped = self._with_capacity(tokens, topk_experts, choices, attention_mask)
        else:
            answers = self._dropless(tokens, topk_experts, choices)
            n_dropped = choices.n_chosen.new_zeros(len(x))
        mixed = (answers.unflatten(0, topk_experts.shape) * weights[..., None].to(answers.dtype)).sum(1)  # (N, D)
        mixed = mixed.view(x.shape)
        if self.shared is not None:
            mixed = mixed + self.shared(x)
        routing = Routing(logits.view(*x.shape[:2], -1), choices.n_chosen, n_dropped, attention_mask)
        return self.shard.all_reduce(mixed), routing

    def inactive_parameters(self) -> int:
        """Parameters that an average token does not meet: those of experts that it is not routed to."""
        n_parameters = sum(parameter.numel() for parameter in self.experts.parameters())
        return n_parameters * (self.n_expert - self.n_active) // self.n_expert

    def _sort(self, topk_experts: Tensor, batch_size: int, mask: Tensor | None) -> "_Choices":
        """Order the choices by expert, then by sequence, then by position, padding last within each expert."""
        device = topk_experts.device
        sequence = torch.arange(batch_size, device=device).repeat_interleave(len(topk_experts) // batch_size)  # (N)
        n_groups = batch_size
        if mask is not None:
            sequence, n_groups = torch.where(mask.flatten(), sequence, batch_size), batch_size + 1
        groups, order = (topk_experts * n_groups + sequence[:, None]).flatten().sort(stable=True)
        known = torch.arange(self.n_expert * n_groups, device=device)
        ends = torch.searchsorted(groups, known, right=True, out_int32=True)  # without waiting for a GPU
        n_chosen = _counts(ends).view(self.n_expert, n_groups)
        return _Choices(order, groups, ends.view(self.n_expert, n_groups), n_chosen[:, :batch_size].T)

    def _dropless(self, tokens: Tensor, topk_experts: Tensor, choices: "_Choices") -> Tensor:
        """What the local experts answer to all M = N k choices: (M, D)."""
        order, ends = choices.order, choices.ends[:, -1].contiguous()
        elsewhere = len(self.shard.local_experts) < self.n_expert
        if elsewhere:
            order, ends = _choices_of(self.shard.local_experts, order, ends)  # pyright: ignore[reportCallIssue]
        place = _inverse(order, topk_experts.numel())  # (M), one behind the last where other ranks answer
        inputs = _Take.apply(tokens, order // self.n_active, place.view_as(topk_experts), elsewhere)
        answers = self.experts(inputs, ends)
        return _Take.apply(answers, place, order[:, None], elsewhere)

    def _with_capacity(
        self, tokens: Tensor, topk_experts: Tensor, choices: "_Choices", mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same where an expert answers at most its capacity of each sequence's choices, the others with zeros.

        In the order of tokens, not first choices first: whether a token is dropped may not depend on later ones.
        """
        (batch_size, _), local = choices.n_chosen.shape, self.shard.local_experts
        order, group, (_, n_groups) = choices.order, choices.groups, choices.ends.shape
        n_choices, n_tokens = len(order), len(tokens) // batch_size
        capacity = self._capacity(n_tokens)
        limits = torch.full((batch_size,), capacity, device=order.device)  # (B)
        if mask is not None:
            by_length = torch.tensor([self._capacity(n) for n in range(n_tokens + 1)])
            limits = by_length.to(order.device, non_blocking=True)[mask.sum(1)]
        n_dropped = (choices.n_chosen - limits[:, None]).clamp(min=0).sum(1)
        if n_groups > batch_size:
            limits = F.pad(limits, (0, 1))  # padding is never answered

        starts = F.pad(choices.ends.flatten(), (1, 0))
        rank = torch.arange(n_choices, device=order.device) - starts[group]  # within expert and sequence
        expert, sequence = group // n_groups, group % n_groups
        answered = (rank < limits[sequence]) & (expert >= local.start) & (expert < local.stop)
        # One place behind the last stands for none: choices without a slot, slots without a choice.
        n_slots = len(local) * batch_size * capacity
        slot = ((expert - local.start) * batch_size + sequence) * capacity + rank
        slot = torch.where(answered, slot, n_slots)  # (M), of choices by expert
        choice = torch.full((n_slots + 1,), n_choices, device=order.device)
        choice = choice.index_copy(0, slot, order)[:n_slots]  # (E B C), of the local E
        slot = slot[_inverse(order, n_choices)]  # (M), of choices by token
        inputs = _Take.apply(tokens, choice // self.n_active, slot.view_as(topk_experts), True)
        answers = self.experts(inputs.view(len(local), batch_size * capacity, -1)).flatten(0, 1)  # (E B C, D)
        return _Take.apply(answers, slot, choice[:, None], True), n_dropped

    def _capacity(self, n_tokens: int) -> int:
        """Choices of one sequence that an expert answers."""
        assert self.capacity_factor is not None
        return math.ceil(self.capacity_factor * (n_tokens * self.n_active) / self.n_expert)


class _Choices(NamedTuple):
    """M = N k choices ordered by group; a group is an expert's part of a sequence, the last of each expert padding."""

    order: Tensor  # (M), of the choices by token
    groups: Tensor  # (M), the group of each, ascending
    ends: Tensor  # (E, groups of each), where each ends
    n_chosen: Tensor  # (B, E)


class GroupedLinear(nn.Module):
    """A linear layer for each expert, as one stack: weight (E, out, in), bias (E, out).

    Where it is `sharded` they are DTensors, of which this rank uses its local experts.
    """

    def __init__(self, n_expert: int, in_features: int, out_features: int, *, bias: bool):
        super().__init__()
        self.in_features, self.sharded = in_features, False
        self.weight = nn.Parameter(torch.empty(n_expert, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(n_expert, out_features)) if bias else None

    def forward(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """Apply to each token its expert's weight: x (M, in), where expert e's end at ends[e], or x (E, C, in)."""
        weight, bias = self.weight, self.bias
        if self.sharded:
            weight = cast("DTensor", weight).to_local()
            bias = None if bias is None else cast("DTensor", bias).to_local()
        if x.is_meta and ends is not None:  # routing is a matter of values; one expert for all is as much work
            return F.linear(x, weight[0], None if bias is None else bias[0])
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if ends is None:
            return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        if runs_grouped(x, weight):
            return grouped(x, weight, bias, ends)
        return one_by_one(x, weight, bias, ends)  # pyright: ignore[reportCallIssue]


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
    # As a product too: the gradient of a look-up is summed in an order that threads decide.
    expert = torch.searchsorted(ends, torch.arange(len(x), device=x.device), right=True)
    return product + (expert[:, None] == torch.arange(len(bias), device=x.device)).to(bias.dtype) @ bias


@torch.compiler.disable  # sizes are known when it runs; its type in torch forgets the function's arguments
def one_by_one(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """A product for each expert. Split and unbind are undone at once by the backward pass, slices one by one."""
    biases = [None] * len(weight) if bias is None else bias.unbind()
    parts = x.split(_counts(ends).tolist())
    return torch.cat([F.linear(*part) for part in zip(parts, weight.unbind(), biases, strict=True)])


class _Take(torch.autograd.Function):
    """Vectors of x (n, D) by index (m), where `back` (n, r) are the places to which each one went.

    Its gradient is looked up as well, so that the order of additions is fixed; with `padded` an index one behind the
    last means a vector of zeros, in both directions.
    """

    @staticmethod
    def forward(ctx, x, index, back, padded):
        ctx.save_for_backward(back)
        ctx.padded = padded
        return _select(x, index, padded)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (back,) = ctx.saved_tensors
        taken = _select(gradient, back.flatten(), ctx.padded)
        return (taken if back.shape[1] == 1 else taken.unflatten(0, back.shape).sum(1)), None, None, None


def _select(x: Tensor, index: Tensor, padded: bool) -> Tensor:
    return (F.pad(x, (0, 0, 0, 1)) if padded else x).index_select(0, index)


def _same(x: Tensor) -> Tensor:
    return x


@torch.compiler.disable  # sizes are known when it runs
def _choices_of(local_experts: range, order: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Of choices ordered by expert, those of the local experts, and where each of these ends. It waits for a GPU."""
    local = local_experts
    start, stop = F.pad(ends, (1, 0))[[local.start, local.stop]].tolist()
    return order[start:stop], ends[local.start : local.stop] - start


def _inverse(order: Tensor, n: int) -> Tensor:
    """The position in `order` of each of n numbers; one behind the last for those that it lacks."""
    places = torch.arange(len(order), device=order.device)
    return order.new_full((n,), len(order)).index_copy(0, order, places)


def _counts(ends: Tensor) -> Tensor:
    return ends.diff(prepend=ends.new_zeros(1))


def auxiliary(routings: Sequence[Routing], *, balance_coef: float | None, z_coef: float | None) -> Auxiliary:
    """The load-balancing loss and the router's z-loss, their means over layers weighted by the arguments.

    Balance is taken per sequence (DeepSeek-V3, arXiv:2412.19437, equations 17 to 20; Switch, arXiv:2101.03961,
    equations 4 to 6, with a sequence as the batch): E sum_i f_i P_i, where f_i is expert i's fraction of the sequence's
    choices before any is dropped and P_i the mean of its probability. It is 1 where all have the same fraction. The
    z-loss is that of ST-MoE (arXiv:2202.08906, equation 5). `dropped_token_fraction` is the fraction of a sequence's
    choices that were beyond capacity, and `max_expert_load` the largest fraction of a sequence's choices in a layer
    that fell on one expert, over all layers.
    """
    logits = torch.stack([routing.logits for routing in routings])  # (L, B, T, E)
    n_chosen = torch.stack([routing.n_chosen for routing in routings]).float()  # (L, B, E)
    n_dropped = torch.stack([routing.n_dropped for routing in routings])  # (L, B)
    mask = routings[0].mask
    share = n_chosen / n_chosen.sum(-1, keepdim=True).clamp(min=1)
    probability = _mean_over_tokens(logits.softmax(-1), mask)  # (L, B, E)
    balance = logits.shape[-1] * (share * probability).sum(-1).mean(0)  # (B)
    z = _mean_over_tokens(logits.logsumexp(-1, keepdim=True).square(), mask)[..., 0].mean(0)  # (B)
    weighted = [term.sum() * weight for term, weight in ((balance, balance_coef), (z, z_coef)) if weight is not None]
    terms = {
        "balance_loss": balance.detach(),
        "z_loss": z.detach(),
        "dropped_token_fraction": n_dropped.sum(0) / n_chosen.sum((0, 2)).clamp(min=1),
        "max_expert_load": share.amax((0, 2)),
    }
    return Auxiliary(
        loss=sum(weighted, start=logits.new_zeros(())), terms={name: value.sum() for name, value in terms.items()}
    )


def _mean_over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Means over each sequence's real tokens: (L, B, T, n) -> (L, B, n); zero where a sequence has none."""
    if mask is None:
        return values.mean(2)
    real = mask[None, :, :, None]
    return (values * real).sum(2) / real.sum(2).clamp(min=1)
