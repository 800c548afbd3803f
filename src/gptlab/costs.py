"""What a run costs, before it starts: parameters, floating-point operations and memory.

All of it is counted on a model on the meta device (`models.build.shape_model`), which has shapes and no values, so that
a new architecture needs no formulas.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptlab.counting import (
    ACTIVATION,
    BOTH,
    FLOAT32,
    RAW_BYTES,
    RESIDUAL,
    Meter,
    TooManyOperations,
    backward,
    inactive_parameters,
    merge,
    sizes,
)
from gptlab.distributed.config import SHARDED, Layout, Recompute, Sharding, StrategyConfig
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability
from gptlab.nn.loss import (
    CHUNK_ELEMENTS_CPU,
    CHUNK_ELEMENTS_GPU,
    aligned,
    plain_positions,
    softmax_positions_cpu,
)
from gptlab.nn.tensor_parallel import Split
from gptlab.training.config import OptimizerConfig

# Bytes of a weight, of its copy that autocast keeps, of an activation, and of the residual stream.
PRECISIONS = {
    "32-true": (4, 0, 4, 4),
    "16-mixed": (4, 2, 2, 4),
    "bf16-mixed": (4, 2, 2, 4),
    "16-true": (2, 0, 2, 2),
    "bf16-true": (2, 0, 2, 2),
    # As bf16-mixed: what is kept for the backward pass is bfloat16, and float8 copies live while a layer computes.
    "fp8-mixed": (4, 2, 2, 4),
}
MAX_OPERATIONS = 4000  # about half a second; a transformer with a hundred blocks has a tenth of it
SHORT_LENGTHS = (8, 16, 24)
WITH_LM_HEAD = {Capability.causal, Capability.encoder_decoder, Capability.mlm_head}


def parameter_counts(model: LanguageModel) -> dict[str, int]:
    """Count parameters by part, and `total`, `active` and `trained` ones; a tied head counts as embedding.

    `active` leaves out the experts that a token is not routed to, `trained` the frozen parameters.
    """
    parts, trained = Counter(), 0
    for name, parameter in model.named_parameters():
        parts[model.part_of(name)] += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    total = parts.total()
    return {**parts, "total": total, "active": total - inactive_parameters(model), "trained": trained}


@dataclass(frozen=True, slots=True)
class TrainingPass:
    """What a forward and a backward pass over a micro-batch compute, and what is kept in between.

    FLOPs are those of matrix products, convolutions and attention, a multiply-add being two. Attention scores count in
    full, masked or not (PaLM, arXiv:2204.02311, appendix B), which is the convention for MFU, and so do the slots of
    experts with a capacity. Recomputation under activation checkpointing does not count. Frozen weights have no
    gradients, and below the first trained weight there is no backward pass.
    """

    flops_per_token: float
    parameters_per_token: float  # N of the 6 N estimate
    n_logits: float  # where the loss computes all of them at once
    vocab_size: int  # 0 where no head scores tokens
    kept: Counter  # for the backward pass, by kind
    kept_outside_blocks: Counter  # with the blocks' inputs
    kept_by_blocks: tuple[Counter, ...]  # of each kind of block, in one of them
    inside_blocks: tuple[Counter, ...]  # of each block, without its arguments
    products: int  # elements of the results of matrix products and attention in blocks that keep something
    working: int  # elements beyond what is kept, in the backward pass of a block
    fused: bool  # attention, norms and dropout as a GPU's kernels; otherwise as a CPU computes them

    @property
    def flops_per_token_6n(self) -> float:
        """6 N (arXiv:2001.08361, section 2.1, with the head): no attention scores, and as if all were trained.

        N leaves out lookup tables and experts that a token is not routed to, and weighs parameters by the fraction of
        tokens that meet them.
        """
        return 6 * self.parameters_per_token

    @property
    def recomputable(self) -> tuple[int, ...]:
        """The indices of the blocks that keep something; frozen ones below what is trained do not."""
        return tuple(i for i, inside in enumerate(self.inside_blocks) if inside.total())

    def activation_bytes(
        self, precision: str, recompute: Recompute = Recompute.none, blocks: Collection[int] | None = None
    ) -> int:
        """What is kept for the backward pass, logits left out, where `blocks` are recomputed, None being all of them.

        With `budget` these must be the first ones, whose backward pass begins when all others have let go of theirs.
        """
        if recompute is Recompute.none or (blocks is not None and not blocks):
            return _bytes(self.kept, precision)
        again = max((_bytes(block, precision) for block in self.kept_by_blocks), default=0)
        products = Counter({ACTIVATION: self.products}) if recompute is Recompute.selective else Counter()
        others = [] if blocks is None else [kept for i, kept in enumerate(self.inside_blocks) if i not in blocks]
        inside = sum(_bytes(kept, precision) for kept in others)
        return _bytes(self.kept_outside_blocks + products, precision) + max(inside, again)


def training_pass(
    model: LanguageModel,
    context_length: int,
    *,
    micro_batch_size: int = 1,
    target_length: int | None = None,
    scored_fraction: float = 1.0,
    fused: bool = True,
    confined: bool = False,
) -> TrainingPass:
    """Count a forward and a backward pass of `model`, which must be on the meta device.

    A sequence is `context_length` tokens, and of an encoder-decoder `target_length` tokens of the decoder besides
    (None: as many); FLOPs are per token of the context. Of the positions before the head `scored_fraction` are scored.
    `confined` is whether attention is confined to documents, which adds a mask (B, T, T) and takes no FLOPs away.
    With `fused`, attention, norms and dropout are a GPU's kernels: flash, memory-efficient or cuDNN attention, none of
    which keeps weights, with dropout and masks too. PyTorch falls back to its plain attention on a GPU for grouped
    queries with a mask or in float32, which keeps them and is not counted. Without `fused` they are a CPU's.
    Blocks that are alike are counted once. A model that loops over positions is counted on short sequences, and the
    quadratic polynomial through these is evaluated: exact unless costs depend on the length in another way. Raises
    RuntimeError or TypeError where the model does not run on the meta device, such as one that reads tensors' values.
    """
    options = {"micro_batch_size": micro_batch_size, "scored_fraction": scored_fraction, "fused": fused}
    options["confined"] = confined
    if target_length is not None or context_length <= SHORT_LENGTHS[-1]:
        return _count(model, context_length, target_length=target_length, **options)
    try:
        return _count(model, context_length, limit=MAX_OPERATIONS, **options)
    except TooManyOperations:
        return _extrapolate([_count(model, length, **options) for length in SHORT_LENGTHS], context_length)


def _extrapolate(passes: list[TrainingPass], length: int) -> TrainingPass:
    weights = [
        math.prod((length - other) / (own - other) for other in SHORT_LENGTHS if other != own) for own in SHORT_LENGTHS
    ]

    def total(values: Iterable[float]) -> float:
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    def counter(counters: Iterable[Counter]) -> Counter:
        counters = list(counters)
        return Counter({kind: total(found[kind] for found in counters) for kind in set().union(*counters)})

    by_blocks = zip(*(counted.kept_by_blocks for counted in passes), strict=True)
    lengths = list(zip(passes, SHORT_LENGTHS, strict=True))
    return TrainingPass(
        flops_per_token=total(counted.flops_per_token * n for counted, n in lengths) / length,
        parameters_per_token=total(counted.parameters_per_token * n for counted, n in lengths) / length,
        n_logits=total(counted.n_logits for counted in passes),
        vocab_size=passes[0].vocab_size,
        kept=counter(counted.kept for counted in passes),
        kept_outside_blocks=counter(counted.kept_outside_blocks for counted in passes),
        kept_by_blocks=tuple(map(counter, by_blocks)),
        inside_blocks=tuple(map(counter, zip(*(counted.inside_blocks for counted in passes), strict=True))),
        products=round(total(counted.products for counted in passes)),
        working=round(total(counted.working for counted in passes)),
        fused=passes[0].fused,
    )


def _count(
    model: LanguageModel,
    context_length: int,
    *,
    micro_batch_size: int,
    scored_fraction: float,
    fused: bool,
    confined: bool,
    target_length: int | None = None,
    limit: float = math.inf,
) -> TrainingPass:
    capabilities = model.config.capabilities
    tokens, source = _inputs(model, micro_batch_size, context_length, target_length)
    n_source = tokens.numel() if source is None else source.numel()
    beside = {} if source is None else {"source": source}
    if confined:
        beside["document_ids"] = tokens
    meter, transformed = Meter(model, model.blocks, fused=fused, limit=limit), Counter()
    n_logits, vocab_size = 0.0, 0
    with meter.running():
        hidden = model.hidden_states(tokens, **beside)  # (B, T, D)
        meter.keep(hidden)
        backward(hidden)
        hidden = hidden.detach().requires_grad_(hidden.requires_grad)
        backward(*_sequence_heads(model, capabilities, hidden))
        kept = meter.kept
        if capabilities & WITH_LM_HEAD:
            meter.scale, meter.kept = scored_fraction, {}
            if Capability.mlm_head in capabilities:
                hidden = model.mlm_transform(hidden)
                meter.keep(hidden)
                transformed = Counter({kind: scored_fraction * n for kind, n in sizes(meter.kept).items()})
            head, vocab_size = model.head, len(model.head.weight)
            n_logits = scored_fraction * tokens.numel() * vocab_size
            meter.parameter_tokens += scored_fraction * tokens.numel() * head.weight.numel()
            backward(head.logits(hidden))  # of logits nothing is kept: the loss computes them in chunks
    outside = sizes({**meter.inputs, **kept}) + transformed
    merge(kept, meter.arguments)
    return TrainingPass(
        flops_per_token=meter.flops / n_source,
        parameters_per_token=meter.parameter_tokens / n_source,
        n_logits=n_logits,
        vocab_size=vocab_size,
        kept=sizes(kept) + meter.inside + transformed,
        kept_outside_blocks=outside,
        kept_by_blocks=tuple(found.kept for found in meter.kinds.values()),
        inside_blocks=tuple(meter.inside_blocks),
        products=meter.products,
        working=max((found.working[1] for found in meter.kinds.values()), default=0),
        fused=fused,
    )


def _inputs(
    model: LanguageModel, batch_size: int, context_length: int, target_length: int | None
) -> tuple[Tensor, Tensor | None]:
    """The tokens (B, T), and of an encoder-decoder the source (B, S), on the meta device."""
    source = torch.zeros((batch_size, context_length), dtype=torch.int64, device="meta")
    if Capability.encoder_decoder in model.config.capabilities:
        return source.new_zeros((batch_size, target_length or context_length)), source
    if target_length is not None:
        raise ValueError(f"target_length={target_length} is for an encoder-decoder; leave it out")
    return source, None


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What a forward pass without gradients needs at once."""

    peak: int  # elements, without logits
    n_logits: float
    flops: float  # of the batch, with its logits


def forward_pass(
    model: LanguageModel,
    context_length: int,
    *,
    batch_size: int,
    target_length: int | None = None,
    scored_fraction: float = 1.0,
    fused: bool = True,
    confined: bool = False,
) -> ForwardPass:
    """Count an evaluation of a batch, as `training_pass` does; a model that loops over positions as on few of them."""
    was_training = model.training
    model.eval()
    try:
        for length in (context_length, SHORT_LENGTHS[-1]):
            tokens, source = _inputs(model, batch_size, length, target_length)
            meter = Meter(model, model.blocks, fused=fused, limit=MAX_OPERATIONS)
            beside = {} if source is None else {"source": source}
            if confined:
                beside["document_ids"] = tokens
            try:
                with torch.no_grad(), meter.running():
                    hidden = model.hidden_states(tokens, **beside)
                    meter.scale = scored_fraction
                    if Capability.mlm_head in model.config.capabilities:
                        hidden = model.mlm_transform(hidden)
            except TooManyOperations:
                continue
            n_logits = 0.0
            if model.config.capabilities & WITH_LM_HEAD:
                n_logits = scored_fraction * tokens.numel() * len(model.head.weight)
            times = context_length / length
            flops = meter.flops + 2 * n_logits * hidden.shape[-1]
            return ForwardPass(peak=round(meter.peak * times), n_logits=n_logits * times, flops=flops * times)
    finally:
        model.train(was_training)
    raise RuntimeError("its forward pass has too many operations")


def _sequence_heads(model: LanguageModel, capabilities: frozenset[Capability], hidden: Tensor) -> list[Tensor]:
    """The results of heads that read a sequence as a whole."""
    state = model.pooled(hidden) if Capability.pooler in capabilities else hidden[:, -1]  # (B, D)
    results = [state]
    if Capability.nsp_head in capabilities:
        results.append(model.next_sentence(state))
    if model.class_head is not None:
        results.append(model.class_head(state))
    return results


def estimated_flops_per_token(model: LanguageModel) -> float:
    """6 N, for a model that `training_pass` cannot count: N are active parameters, without lookup tables."""
    n = sum(parameter.numel() for parameter in model.parameters()) - inactive_parameters(model)
    head = model.head.weight if model.config.capabilities & WITH_LM_HEAD else None
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return 6.0 * (n - sum(table.numel() for table in tables if table is not head))


def memory_bytes(
    model: LanguageModel,
    counted: TrainingPass | None,
    *,
    optimizer: OptimizerConfig,
    precision: str,
    strategy: StrategyConfig,
    layout: Layout,
    accumulates: bool = False,
    evaluated: ForwardPass | None = None,
    process: int = 0,
    fragmentation: float = 0.0,
    recomputed: Collection[int] | None = None,
) -> dict[str, int]:
    """Peak memory of training, in bytes per device, by part and in `total`.

    `counted` is a pass over a device's micro-batch; without it `activations`, `logits` and `temporary`, what the
    backward pass of a block needs beyond them, are left out. With `accumulates` a step has several micro-batches, and
    the gradient of the head is there a second time before it is added to the first. `evaluation` is what a forward
    pass over a batch of a validation split, `evaluated`, needs beyond all that. On a CPU `process` is what the program
    itself takes, and `fragmentation` what lies free between tensors that come and go, as a fraction of these.
    `recomputed` are the blocks whose activations are checkpointed, None where it is all of them.
    """
    weight, copy, activation, residual = PRECISIONS[precision]
    tensor, blocks = layout.tensor, list(model.blocks)
    hidden = {p for block in blocks for name, p in block.named_parameters() if is_matrix(name, p)}
    divided = _tensor_parallel(model) if tensor > 1 else set()

    def held(parameter: nn.Parameter) -> int:
        """Elements on a device, before `shards` divide them."""
        return parameter.numel() // (tensor if parameter in divided else 1)

    n_parameters = n_trained = n_state = 0
    for name, p in model.named_parameters():
        n_parameters += held(p)
        if p.requires_grad:
            n_trained += held(p)
            n_state += held(p) * optimizer.state_per_parameter(hidden=p in hidden, matrix=is_matrix(name, p))
    n_gathered = 0
    if strategy.type is Sharding.zero2:
        n_gathered = n_parameters
    elif strategy.type in SHARDED:  # what the head and the embeddings need, and two blocks: the next is fetched ahead
        in_blocks = sorted(sum(map(held, block.parameters())) for block in blocks)
        n_gathered = n_parameters - sum(in_blocks) + sum(in_blocks[-2:])
    n_optimizer_shards = layout.replicas if strategy.type is Sharding.zero1 else layout.shards
    parts = {
        "weights": -(-n_parameters // layout.shards) * (weight + copy),
        "gradients": -(-n_trained // layout.shards) * weight,
        "optimizer": -(-n_state // n_optimizer_shards) * weight,
        "gathered": n_gathered * (copy or weight) if layout.shards > 1 else 0,
    }
    if strategy.cpu_offload:
        parts |= dict.fromkeys(("weights", "gradients", "optimizer"), 0)  # in the host's memory
    if counted is not None:
        parts["activations"] = counted.activation_bytes(precision, strategy.activation_checkpointing, recomputed)
        element = activation if counted.fused else residual  # a CPU's plain kernels also keep what autocast widens
        parts["logits"] = _logit_bytes(counted.n_logits, counted, activation)
        # Logits are gone before the blocks' backward pass begins.
        parts["temporary"] = max(0, counted.working * element - parts["logits"])
        if accumulates:
            parts["temporary"] += _second_gradient(model, counted, layout) * weight
        if evaluated is not None:
            logits = _logit_bytes(evaluated.n_logits, counted, activation)
            in_training = parts["gradients"] + parts["activations"] + parts["logits"] + parts["temporary"]
            parts["evaluation"] = max(0, evaluated.peak * element + logits - in_training)
        passing = sum(parts.get(name, 0) for name in ("activations", "logits", "temporary", "evaluation"))
        parts["fragmentation"] = round(fragmentation * passing)
    parts["process"] = process
    return parts | {"total": sum(parts.values())}


def recompute_within(
    budget_bytes: float, blocks: Sequence[int], memory: Callable[[Sequence[int]], dict[str, int]]
) -> tuple[tuple[int, ...], dict[str, int]]:
    """The fewest of the first `blocks` to recompute for training to take at most `budget_bytes`, and its memory then.

    `memory` is what `memory_bytes` says where these blocks are recomputed. On a CPU the program itself is not part of
    the budget. Where nothing keeps to it, the fewest blocks with which it takes the least.
    """
    least = memory(blocks)
    limit = max(budget_bytes, least["total"] - least["process"])

    def fits(n: int) -> bool:
        found = memory(blocks[:n])
        return found["total"] - found["process"] <= limit

    n = bisect_left(range(len(blocks)), True, key=fits)
    return tuple(blocks[:n]), memory(blocks[:n])


def _logit_bytes(n_logits: float, counted: TrainingPass, activation: int) -> int:
    """What `nn.loss.linear_cross_entropy` needs at once, in bytes.

    Of few positions that is what autograd does: their log-probabilities, the gradient of these and that of the logits,
    in float32. Of more it is a chunk of logits and its softmax in float32, on a CPU that of some positions at a time.
    """
    if not counted.vocab_size:
        return 0
    if n_logits <= plain_positions(counted.vocab_size, on_cpu=not counted.fused) * counted.vocab_size:
        return round(n_logits) * 12
    chunk = max(CHUNK_ELEMENTS_GPU if counted.fused else CHUNK_ELEMENTS_CPU, aligned(counted.vocab_size))
    held = in_softmax = min(n_logits * aligned(counted.vocab_size) / counted.vocab_size, chunk)
    if not counted.fused:  # in float32 it takes the place of the logits, but for a softcap's, which is left out
        in_softmax = 0 if activation == 4 else min(held, softmax_positions_cpu(counted.vocab_size) * counted.vocab_size)
    return round(held) * activation + round(in_softmax) * 4


def _second_gradient(model: LanguageModel, counted: TrainingPass, layout: Layout) -> int:
    """Elements of the head's gradient of a micro-batch, before it is added to that of the micro-batches before.

    Of a head that shares its weight with the embedding it waits for the embedding's, which is the last to be known.
    Sharded gradients are added to their shards at once.
    """
    if not counted.vocab_size or layout.shards > 1 or not model.head.weight.requires_grad:
        return 0
    return model.head.weight.numel()


def _tensor_parallel(model: LanguageModel) -> set[nn.Parameter]:
    """The parameters that tensor parallelism divides: not the biases that follow a sum over the devices."""
    found = set()
    for block in model.blocks:
        for name, split in model.tensor_parallel_plan(block).splits.items():
            whole = ("bias",) if split in (Split.row, Split.row_partial) else ()
            found |= {p for own, p in block.get_submodule(name).named_parameters() if own not in whole}
    return found


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix or a stack of matrices; biases of experts are stacks of vectors."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def _bytes(kept: Counter, precision: str) -> int:
    _, _, activation, residual = PRECISIONS[precision]
    both = activation if activation == residual else activation + residual
    sizes = {ACTIVATION: activation, RESIDUAL: residual, BOTH: both, FLOAT32: 4, RAW_BYTES: 1}
    return round(sum(sizes[kind] * n for kind, n in kept.items()))
