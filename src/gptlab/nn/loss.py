"""Losses: cross-entropy through the output head without all logits in memory, and what models add to objectives."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptlab.nn.linear import threaded_linear

IGNORE_INDEX = -100

# Logits per chunk. On a CPU a chunk should be small next to the weights. A GPU wants matrix products long enough
# to hide the pass over the weight's gradient that ends each chunk.
CHUNK_ELEMENTS_CPU = 2**24 - 2**16  # a float32 chunk stays below 64 MiB, which a CPU reuses (distributed.allocator)
CHUNK_ELEMENTS_GPU = 2**27
# Up to so many logits there is nothing to save: autograd keeps three float32 numbers for each of them.
PLAIN_ELEMENTS_GPU = 2**24
# Of a chunk a CPU takes so many through the softmax at a time, which then stay in its cache and need no second chunk;
# or more, so that each thread has some positions.
SOFTMAX_ELEMENTS_CPU = 2**20
POSITIONS_PER_THREAD = 8
SMALL_PROBABILITY = 2.0**-100  # from it float32 has all of its digits
# The logits of each position begin at a multiple of so many elements, whatever the vocabulary: a product into unaligned
# ones takes a quarter longer on a CPU (benchmarks/results), and tensor cores want them aligned too.
LOGIT_ALIGNMENT = 64


@dataclass(slots=True)
class LMHead:
    """An output head as values: `logits = softcap(scale * hidden @ weight.T + bias)`; weight (V, D), bias (V)."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None  # logits stay within (-softcap, softcap); Gemma 2, arXiv:2408.00118, section 2

    def to(self, dtype: torch.dtype) -> "LMHead":
        """The same head, computing in `dtype`."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every vocabulary entry: hidden (..., D) -> (..., V)."""
        if self.scale != 1.0:
            hidden = hidden * self.scale
        logits = threaded_linear(hidden, self.weight, self.bias)  # (..., V)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def linear_cross_entropy(
    hidden: Tensor,
    head: LMHead,
    targets: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    chunk_size: int | None = None,
) -> Tensor:
    """Sum of -log p(target) over the targets that are not `ignore_index`, in nats: a float32 scalar.

    hidden (..., D), targets (...) of int64; `chunk_size` positions are scored at a time (None: by the vocabulary).
    Logits are in hidden's dtype (under autocast in autocast's), softmax and sums in float32. Where
    positions are many gradients are computed along with the loss, and a second backward through it is refused.
    """
    vocab_size, width = head.weight.shape
    if hidden.shape[-1] != width or hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and targets {tuple(targets.shape)}; "
            f"use hidden (*targets.shape, {width})"
        )
    hidden, targets = hidden.reshape(-1, width), targets.reshape(-1)  # (N, D), (N)
    device = hidden.device.type
    if device == "cpu":  # on a GPU reading the values would wait for it
        _check_targets(targets, vocab_size, ignore_index)
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    if chunk_size is not None:
        n_plain = chunk_size
    else:
        chunk_size = max(1, (CHUNK_ELEMENTS_CPU if device == "cpu" else CHUNK_ELEMENTS_GPU) // aligned(vocab_size))
        n_plain = plain_positions(vocab_size, on_cpu=device == "cpu")
    with torch.autocast(device, enabled=False):
        if len(targets) <= n_plain:
            logits = head.to(hidden.dtype).logits(hidden).float()
            return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
        return _LinearCrossEntropy.apply(
            hidden,
            head.weight,
            head.bias,
            head.scale,
            head.softcap,
            targets,
            targets == ignore_index,
            chunk_size,
            torch.is_grad_enabled(),
        )


@dataclass(slots=True)
class Auxiliary:
    """What a model in training adds to any objective: sums over the sequences of its newest forward pass."""

    loss: Tensor  # to be differentiated
    terms: dict[str, Tensor]  # losses and measurements to log, detached


@torch.no_grad()
def target_nats(hidden: Tensor, head: LMHead, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """-log p of each target in nats, NaN at `ignore_index`: hidden (..., D), targets (...) -> float32 (...)."""
    flat = hidden.reshape(-1, hidden.shape[-1])  # (N, D)
    labels = targets.reshape(-1)  # (N)
    device = hidden.device.type
    chunk_size = max(1, (CHUNK_ELEMENTS_CPU if device == "cpu" else CHUNK_ELEMENTS_GPU) // len(head.weight))
    found = []
    with torch.autocast(device, enabled=False):
        for part, label in zip(flat.split(chunk_size), labels.split(chunk_size), strict=True):
            logits = head.to(part.dtype).logits(part).float()
            found.append(F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none"))
    return torch.cat(found).masked_fill_(labels == ignore_index, math.nan).view(targets.shape)


@torch.no_grad()
def count_correct(hidden: Tensor, head: LMHead, targets: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """How many targets have the highest logit: hidden (..., D), targets (...) -> a scalar."""
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)  # (N, D), (N)
    device = hidden.device.type
    chunk_size = max(1, (CHUNK_ELEMENTS_CPU if device == "cpu" else CHUNK_ELEMENTS_GPU) // len(head.weight))
    with torch.autocast(device, enabled=False):
        best = [head.to(part.dtype).logits(part).argmax(-1) for part in hidden.split(chunk_size)]
    return ((torch.cat(best) == targets) & (targets != ignore_index)).sum()


def _check_targets(targets: Tensor, vocab_size: int, ignore_index: int) -> None:
    outside = ((targets < 0) | (targets >= vocab_size)) & (targets != ignore_index)
    if outside.any():
        raise ValueError(
            f"target {targets[outside][0].item()} is outside the vocabulary of {vocab_size} entries; "
            f"use 0 to {vocab_size - 1}, or {ignore_index} for a position without a target"
        )


def aligned(vocab_size: int) -> int:
    """From where the logits of one position begin to where those of the next do, in elements."""
    return -(-vocab_size // LOGIT_ALIGNMENT) * LOGIT_ALIGNMENT


def softmax_positions_cpu(vocab_size: int) -> int:
    """How many positions of a chunk go through the softmax together on a CPU."""
    return max(POSITIONS_PER_THREAD * torch.get_num_threads(), SOFTMAX_ELEMENTS_CPU // vocab_size)


def plain_positions(vocab_size: int, *, on_cpu: bool) -> int:
    """Up to how many positions the loss leaves to autograd."""
    return softmax_positions_cpu(vocab_size) if on_cpu else PLAIN_ELEMENTS_GPU // vocab_size


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """Add a @ b to `total`, in its dtype; the first product is written over what it holds."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=0 if first else 1)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


def _score(logits: Tensor, target: Tensor, log_p_target: Tensor, softcap: float | None, *, needed: bool) -> Tensor:
    """Set log p of the targets (N, 1), and return the gradient of the logits (N, V) in float32 where it is needed."""
    capped = logits
    if softcap is not None:
        saturation = torch.tanh_(logits.float() / softcap)
        capped = saturation * softcap
    log_p = torch.log_softmax(capped, -1, dtype=torch.float32)
    torch.gather(log_p, 1, target, out=log_p_target)
    if not needed:
        return logits
    d_logits = log_p.exp_().scatter_(1, target, log_p_target.exp().sub_(1))
    if softcap is not None:
        d_logits *= saturation.square_().neg_().add_(1)
    return d_logits


def _score_in_place(
    logits: Tensor, states: Tensor, target: Tensor, log_p_target: Tensor, matrix: Tensor, shift: Tensor | None
) -> Tensor:
    """What `_score` does, in fewer passes over the logits, `states @ matrix.T + shift`, which the gradient replaces."""
    torch.softmax(logits, -1, out=logits)
    p_target = logits.gather(1, target)
    torch.log(p_target, out=log_p_target)
    is_small = p_target[:, 0] < SMALL_PROBABILITY
    if is_small.any():  # log p by how far the logit lies below that of the likeliest entry
        at, p_best, best = target[is_small, 0], *logits[is_small].max(-1)
        below = (states[is_small] * (matrix[at] - matrix[best])).sum(-1)
        if shift is not None:
            below += shift[at] - shift[best]
        log_p_target[is_small, 0] = below + p_best.log()
    return logits.scatter_(1, target, p_target.sub_(1))


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients of a sum of log-probabilities are ready when the loss is; backward only scales them."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, scale, softcap, targets, ignored, chunk_size, grad_enabled):
        for_hidden, for_weight, for_bias = (grad_enabled and needed for needed in ctx.needs_input_grad[:3])
        # Zeros at ignored positions add nothing to the weight's gradient: cheaper than masking (N, V).
        inputs = (hidden * scale).masked_fill_(ignored[:, None], 0)
        targets = targets.masked_fill(ignored, 0)
        matrix, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        d_weight = torch.empty_like(weight, dtype=torch.float32) if for_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if for_bias and bias is not None else None
        log_p_targets = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        counted = (~ignored).float()

        n_chunks = -(-len(targets) // chunk_size)
        size = -(-len(targets) // n_chunks)  # all chunks alike: no short one at the end
        n_at_once = softmax_positions_cpu(len(weight)) if hidden.device.type == "cpu" else size

        chunk_logits = hidden.new_empty(size, aligned(len(weight)))  # used by every chunk
        in_place = softcap is None and hidden.dtype == torch.float32 and hidden.device.type == "cpu"
        needed = d_hidden is not None or d_weight is not None or d_bias is not None

        # Functions, so that nothing of a part or a chunk is alive while the next is computed.
        def score(logits: Tensor, states: Tensor, target: Tensor, log_p_target: Tensor, counts: Tensor) -> None:
            if in_place:
                d_logits = _score_in_place(logits, states, target, log_p_target, matrix, shift)
            else:
                d_logits = _score(logits, target, log_p_target, softcap, needed=needed)
            if d_bias is not None:
                d_bias.add_(d_logits.T.mv(counts))
            if d_logits is not logits:
                logits.copy_(d_logits)

        def take(chunk: slice) -> None:
            logits = chunk_logits[: len(inputs[chunk]), : len(weight)]  # (N, V)
            if shift is None:
                torch.mm(inputs[chunk], matrix.T, out=logits)
            else:
                torch.addmm(shift, inputs[chunk], matrix.T, out=logits)
            parts = (logits, inputs[chunk], targets[chunk, None], log_p_targets[chunk, None], counted[chunk])
            for part in zip(*(whole.split(n_at_once) for whole in parts), strict=True):
                score(*part)
            if d_hidden is not None:
                torch.mm(logits, matrix, out=d_hidden[chunk])
            if d_weight is not None:
                _add_product(d_weight, logits.T, inputs[chunk], first=chunk.start == 0)

        for start in range(0, len(targets), size):
            take(slice(start, start + size))

        if d_hidden is not None:
            d_hidden.mul_(scale).masked_fill_(ignored[:, None], 0)
        # Not saved as autograd does, which would keep a second reference: whoever adds to a gradient then copies it. So
        # saved-tensor hooks do not see them.
        ctx.gradients = d_hidden, d_weight, d_bias
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return -log_p_targets.masked_fill_(ignored, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        if ctx.gradients is None:
            raise RuntimeError("a second backward through the same loss; compute the loss again")
        (d_hidden, d_weight, d_bias), ctx.gradients = ctx.gradients, None
        for gradient in (d_hidden, d_weight, d_bias):
            if gradient is not None:
                gradient.mul_(upstream)  # in place: a copy would be as large as the weight
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight_dtype),
            None if d_bias is None else d_bias.to(bias_dtype),
            *(None,) * 6,
        )
