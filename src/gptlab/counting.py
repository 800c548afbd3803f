"""Counts of what a model computes and keeps for its backward pass, on the meta device, where nothing is computed.

Knows modules, blocks and tensors, but no architecture.
"""

import importlib
import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry

# Kinds of what is kept; a precision says what an element of the first three takes.
ACTIVATION = "activation"
RESIDUAL = "residual"  # in the dtype of the residual stream, which norms read
BOTH = "both"  # read by a norm and by others: under autocast two copies
FLOAT32 = "float32"  # in any precision
RAW_BYTES = "bytes"  # masks and indices

COMPILER = "torch._dynamo"

# Storage, kind and size, by the storage's address; the storage is let go once no other can get its address.
Kept = dict[int, tuple[torch.UntypedStorage | None, str, int]]
_MODULE_STATE = vars(nn.Module()).keys() - {"training"}


class TooManyOperations(Exception):
    """Counting would take long."""


class BlockCount(NamedTuple):
    """What a block computes, forward and backward, and what it keeps."""

    flops: float
    products: int  # elements that its matrix products and attention return
    inside: Counter  # kept, without its arguments
    arguments: dict[int, str]  # the kinds of those that it keeps, by position
    kept: Counter  # inside and arguments
    working: tuple[int, int]  # elements beyond these at the most, in the forward and in the backward pass
    outputs: list[Any]
    structure: Any  # of the outputs


class Meter(TorchDispatchMode):
    """Counts FLOPs, forward and backward, and the tensors kept for the backward pass, of a model on the meta device.

    A multiply-add is two FLOPs. Of `blocks` that are alike, by their modules and by what they read, one is run and the
    others are counted like it. With `fused` kernels, which a GPU has, attention, norms and dropout keep their inputs,
    attention its output too, and dropout a mask of one byte per element alone. Without, they are counted as a CPU
    computes them: dropout keeps its mask in the input's dtype, and where PyTorch has no kernel for attention on a CPU,
    as with dropout, the weights (B, H, T, S) are kept, also before dropout, with its mask. Raises TooManyOperations
    beyond `limit` operations.
    """

    def __init__(
        self, model: nn.Module, blocks: Iterable[nn.Module] = (), *, fused: bool = True, limit: float = math.inf
    ):
        super().__init__()
        self.fused = fused
        self.limit = limit
        self.model, self.blocks = model, list(blocks)
        self.scale = 1.0  # what follows counts so many times
        self.flops = 0.0
        self.parameter_tokens = 0.0  # active parameters, each times the tokens that meet it; no embeddings
        self.products = 0  # of blocks that keep something, likewise `inputs`
        self.inside: Counter = Counter()
        self.arguments: Kept = {}
        self.inputs: Kept = {}  # kept or not
        self.kinds: dict[Any, BlockCount] = {}
        self.inside_blocks: list[Counter] = [Counter() for _ in self.blocks]  # `inside`, of each of `blocks`
        self.kept: Kept = {}  # outside of blocks
        self.peak = 0  # elements that were there at once, kept or not
        self.live = 0
        self.kind = ACTIVATION  # of what is kept by operations that are not replaced
        self._live: dict[int, int] = {}
        self._weights = {_address(p) for p in model.parameters()}
        self._products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.limit -= 1
        if self.limit < 0:
            raise TooManyOperations
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._meet_storage(tensor.untyped_storage(), tensor.element_size())
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.multiplied(formula(*args, **(kwargs or {}), out_val=result), result)
        return result

    def _meet_storage(self, storage: torch.UntypedStorage, element_size: int) -> None:
        address = storage._cdata
        if address in self._live or address in self._weights:
            return
        self._live[address] = storage.nbytes() // element_size
        self.live += self._live[address]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, address)

    def _release(self, address: int) -> None:
        self.live -= self._live.pop(address, 0)

    def multiplied(self, flops: float, result: Any = None) -> None:
        """Count a product, and its result in a forward pass."""
        self.flops += self.scale * flops
        self._products += result.numel() if isinstance(result, Tensor) else 0

    def keep(self, tensor: Tensor, kind: str = ACTIVATION) -> None:
        """Count a tensor as kept for the backward pass, once for all that share its memory."""
        if _address(tensor) not in self._weights:
            _add(self.kept, tensor, kind)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what the model does in here."""
        blocks = self.blocks
        in_blocks = {module for block in blocks for module in block.modules()}
        hooks = [
            module.register_forward_hook(self._meet)
            for module in self.model.modules()
            if module not in in_blocks and _own_parameters(module) and not isinstance(module, nn.Embedding)
        ]
        earlier = [vars(block).get("forward") for block in blocks]
        for block in blocks:
            block.forward = _CountedForward(self, block)
        try:
            with saved_tensors_hooks(self._pack, lambda tensor: tensor), _FusedKernels(self), self:
                yield
        finally:
            for block, forward in zip(blocks, earlier, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward
            for hook in hooks:
                hook.remove()
            for parameter in self.model.parameters():
                parameter.grad = None

    def _pack(self, tensor: Tensor) -> Tensor:
        self.keep(tensor, self.kind)
        return tensor

    def _meet(self, module: nn.Module, _, output: Any) -> None:
        self.parameter_tokens += self.scale * _own_parameters(module) * _n_positions(output)

    def run_block(self, block: nn.Module, forward: Callable, description: Any, args: tuple, kwargs: dict) -> Any:
        """Count a block's call, and return tensors of the shapes that it returns."""
        leaves, structure = tree_flatten((args, kwargs))
        key = (description, str(structure), *map(_description, leaves))
        if key not in self.kinds:
            self.kinds[key] = self._count_block(block, forward, leaves, structure)
        found = self.kinds[key]
        self.flops += found.flops
        self.inside += found.inside
        self.inside_blocks[self.blocks.index(block)] += found.inside
        if found.kept:
            self.products += found.products
        self.peak = max(self.peak, self.live + found.working[0])
        self.parameter_tokens += (_n(block.parameters()) - inactive_parameters(block)) * _n_positions(leaves)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and found.kept:
                _add(self.inputs, leaf, RESIDUAL)
            if i in found.arguments:
                _add(self.arguments, leaf, found.arguments[i])
        return tree_unflatten(_stand_in(found.outputs, leaves), found.structure)

    def _count_block(self, block: nn.Module, forward: Callable, leaves: list[Any], structure: Any) -> BlockCount:
        outer = self.flops, self.kept, self.peak
        self.flops, self.kept, self._products = 0.0, {}, 0
        leaves = [_cut(leaf) for leaf in leaves]
        args, kwargs = tree_unflatten(leaves, structure)
        before = self.peak = self.live
        outputs, structure = tree_flatten(forward(*args, **kwargs))
        products, in_forward = self._products, self.peak - before
        places = {_address(leaf): i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        inside = sizes({at: kept for at, kept in self.kept.items() if at not in places})
        arguments = {places[at]: kind for at, (_, kind, _) in self.kept.items() if at in places}
        kept = sizes(self.kept)
        self.kept = {at: (None, kind, size) for at, (_, kind, size) in self.kept.items()}  # freed as backward goes
        self.peak = self.live
        made = [_cut(output) for output in outputs]
        backward(*outputs)
        # Gradients of parameters are counted elsewhere.
        gradients = _n(p for p in block.parameters() if p.grad is not None)
        in_backward = self.peak - before - sum(inside.values()) - gradients
        found = BlockCount(
            flops=self.flops,
            products=products,
            inside=inside,
            arguments=arguments,
            kept=kept,
            working=(max(0, in_forward), max(0, in_backward)),
            outputs=made,
            structure=structure,
        )
        self.flops, self.kept, self.peak = outer
        return found


class _CountedForward:
    """Takes the place of a block's `forward`."""

    def __init__(self, meter: Meter, block: nn.Module):
        self.meter, self.block, self.forward = meter, block, block.forward
        self.description = [
            (
                name,
                type(module),
                *((key, _description(value)) for key, value in vars(module).items() if key not in _MODULE_STATE),
                *((key, _description(value)) for key, value in module.named_parameters(recurse=False)),
                *((key, _description(value)) for key, value in module.named_buffers(recurse=False)),
            )
            for name, module in block.named_modules()
        ]

    def __call__(self, *args, **kwargs):
        return self.meter.run_block(self.block, self.forward, tuple(self.description), args, kwargs)


class _FusedKernels(TorchFunctionMode):
    """Replaces functions that the meta device has as many small operations."""

    def __init__(self, meter: Meter):
        super().__init__()
        self.meter = meter
        self.kernels: dict[Any, Callable] = {F.scaled_dot_product_attention: self._attention}
        if meter.fused:
            self.kernels |= {F.layer_norm: self._norm, F.rms_norm: self._norm, F.dropout: self._dropout}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kernel = self.kernels.get(func)
        return (func if kernel is None else kernel)(*args, **(kwargs or {}))

    def _attention(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ) -> Tensor:
        if not self.meter.fused:
            options = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
            options |= {"scale": scale, "enable_gqa": enable_gqa}
            if not _has_cpu_kernel(query, key, value, **options):
                self.meter.kind = FLOAT32  # which it computes in
                try:
                    return torch.ops.aten._scaled_dot_product_attention_math(query, key, value, **options)[0]
                finally:
                    self.meter.kind = ACTIVATION
        meter, n_scores = self.meter, query.shape[:-1].numel() * key.shape[-2]
        *batch, n_head, n_query, _ = query.shape
        result = query.new_empty((*batch, n_query, n_head, value.shape[-1])).transpose(-3, -2)  # as kernels lay it out
        read = [query, key, value, *([] if attn_mask is None else [attn_mask])]
        meter.multiplied(2 * n_scores * (query.shape[-1] + value.shape[-1]), result)

        def count_backward(for_query: bool, for_key: bool, for_value: bool, for_mask: bool = False) -> None:
            for_scores = for_query or for_key or for_mask
            widths = (for_query + for_key) * query.shape[-1] + (for_scores + for_value) * value.shape[-1]
            meter.multiplied(2 * n_scores * widths)

        (result,) = _stand_in([result.requires_grad_(_needs_grad(read))], read, count_backward)
        if result.requires_grad:
            self._keep(result, *read, result.detach())
        return result

    def _norm(self, input, normalized_shape, weight=None, bias=None, eps=None) -> Tensor:
        read = [input, *(parameter for parameter in (weight, bias) if parameter is not None)]
        (result,) = _stand_in([torch.empty_like(input, requires_grad=_needs_grad(read))], read)
        if result.requires_grad:
            self._keep(result, input, kind=RESIDUAL)
        return result

    def _dropout(self, input, p=0.5, training=True, inplace=False) -> Tensor:
        if not training or p == 0:
            return input
        (result,) = _stand_in([torch.empty_like(input, requires_grad=_needs_grad([input]))], [input])
        if result.requires_grad:
            self._keep(result, torch.empty_like(input, dtype=torch.bool))
        return result

    def _keep(self, result: Tensor, *tensors: Tensor, kind: str = ACTIVATION) -> None:
        """Keep what `result` was made of until its backward pass."""
        for tensor in tensors:
            self.meter.keep(tensor, kind)
        result.grad_fn.kept = tensors  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def _has_cpu_kernel(query: Any, key: Any, value: Any, **options: Any) -> bool:
    """Whether PyTorch has a kernel for this attention on a CPU, or computes it with all weights in memory."""
    query, key, value, mask = (  # one row each, repeated: the choice is by shapes, strides and options
        x if x is None else x.new_empty(x.shape[-1], device="cpu").expand(x.shape).requires_grad_(x.requires_grad)
        for x in (query, key, value, options.pop("attn_mask"))
    )
    choice = torch._fused_sdp_choice(query, key, value, mask, **options)
    return choice != SDPBackend.MATH.value


class _StandIn(torch.autograd.Function):
    """Outputs and gradients of the right shapes, and a call in the backward pass."""

    @staticmethod
    def forward(ctx, outputs, in_backward, *inputs):
        ctx.shapes, ctx.in_backward = [(x.shape, x.dtype) for x in inputs], in_backward
        made = tuple(torch.empty_like(output) for output in outputs)
        ctx.mark_non_differentiable(*(x for x, output in zip(made, outputs, strict=True) if not output.requires_grad))
        return made

    @staticmethod
    def backward(ctx, *_):
        needed, ctx.kept = ctx.needs_input_grad[2:], None
        if ctx.in_backward is not None:
            ctx.in_backward(*needed)
        gradients = (torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in ctx.shapes)
        return None, None, *(x if need else None for x, need in zip(gradients, needed, strict=True))


def _stand_in(outputs: list[Any], inputs: list[Any], in_backward: Callable | None = None) -> list[Any]:
    """New tensors like `outputs` that come from `inputs`; whatever is no tensor is returned as it is."""
    templates = [output for output in outputs if isinstance(output, Tensor)]
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if _any_requires_grad(templates) and not _any_requires_grad(tensors):  # what is trained is inside
        tensors.append(torch.empty((), device="meta", requires_grad=True))
    made = iter(_StandIn.apply(templates, in_backward, *tensors))
    return [next(made) if isinstance(output, Tensor) else output for output in outputs]


class _NoCompiler(ModuleType):
    """Stands for torch's compiler, until something wants more of it than to be left alone."""

    def __init__(self):
        super().__init__(COMPILER)
        self.marked = []

    def disable(self, function: Callable, *args: Any, **kwargs: Any) -> Callable:
        self.marked.append(function)
        return function

    def __getattr__(self, name: str) -> Any:
        self.give_way()
        return getattr(importlib.import_module(COMPILER), name)

    def give_way(self) -> None:
        """Leave the place to the compiler, and no mark on a function."""
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER], torch._dynamo
        for function in self.marked:
            vars(function).pop("__dynamo_disable", None)
        self.marked.clear()


@contextmanager
def without_compiler() -> Iterator[None]:
    """Count without an import of torch's compiler, which takes longer than most counts.

    Kernels of the meta device that are written in Python import it to tell it to leave them alone (torch 2.13). What
    imports it for another reason gets it. For a process with one thread.
    """
    if COMPILER in sys.modules:
        yield
        return
    compiler = sys.modules[COMPILER] = torch._dynamo = _NoCompiler()
    try:
        yield
    finally:
        compiler.give_way()


def backward(*outputs: Any) -> None:
    """Run the backward pass from those outputs that have one."""
    roots = [output for output in outputs if isinstance(output, Tensor) and output.requires_grad]
    if roots:
        torch.autograd.backward(roots, [torch.empty_like(root) for root in roots])


def sizes(kept: Kept) -> Counter:
    """The sum of what is kept, by kind."""
    total = Counter()
    for _, kind, size in kept.values():
        total[kind] += size
    return total


def inactive_parameters(module: nn.Module) -> int:
    """Parameters that an average token does not meet: a module such as `nn.moe.MoE` says how many it has."""
    counts = (getattr(part, "inactive_parameters", None) for part in module.modules())
    return sum(count() for count in counts if count is not None)


def _add(kept: Kept, tensor: Tensor, kind: str) -> None:
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if tensor.is_floating_point():
        size //= tensor.element_size()
    else:
        kind = RAW_BYTES
    merge(kept, {storage._cdata: (storage, kind, size)})


def merge(kept: Kept, more: Kept) -> None:
    """Add to what is kept."""
    for at, (storage, kind, size) in more.items():
        earlier = kept.get(at)
        kept[at] = (storage, kind if earlier is None or earlier[1] == kind else BOTH, size)


def _cut(value: Any) -> Any:
    """A tensor without its history."""
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _any_requires_grad(tensors: Iterable[Tensor]) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


def _needs_grad(tensors: Iterable[Tensor]) -> bool:
    return torch.is_grad_enabled() and _any_requires_grad(tensors)


def _description(value: Any) -> Any:
    """What of an argument or attribute decides what is computed."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.requires_grad
    if isinstance(value, list | tuple):
        return type(value), *map(_description, value)
    if isinstance(value, dict):
        return type(value), *((key, _description(item)) for key, item in value.items())
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _n_positions(values: Any) -> int:
    """Positions of the first tensor (..., D)."""
    return next((x.shape[:-1].numel() for x in tree_flatten(values)[0] if isinstance(x, Tensor)), 0)


def _own_parameters(module: nn.Module) -> int:
    return _n(module.parameters(recurse=False))


def _n(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
