"""What a run would cost, on devices that need not be here; nothing is trained and no data are read.

Parameters, FLOPs and activations are counted on the model on the meta device (`counting.py`, `costs.py`). Memory by
part, time, energy and cost are formulas, in `costs.memory_bytes` and here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from importlib.resources import files
from typing import Any

import torch
import yaml
from torch import nn

from gptlab import costs
from gptlab.config import RunConfig
from gptlab.costs import ForwardPass, TrainingPass
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.config import sentinel
from gptlab.distributed.allocator import FRAGMENTATION
from gptlab.distributed.config import MEMORY_BUDGET, Layout, Recompute, Sharding, StrategyConfig
from gptlab.distributed.float8 import check_capability, check_layers
from gptlab.distributed.hardware import Hardware, find
from gptlab.errors import UserError, first_line
from gptlab.forecast import count_steps
from gptlab.lab.chinchilla import TOKENS_PER_PARAMETER, optimal_tokens
from gptlab.lab.scaling import ParameterCount, count_of
from gptlab.lab.scaling_law import ScalingLaw
from gptlab.models.base import LanguageModel
from gptlab.models.build import shape_model
from gptlab.models.config import Capability
from gptlab.training.config import FLOAT8, eval_micro_batch_size
from gptlab.training.finetune import prepare_finetuning

PROCESS_BYTES = round(0.38 * 2**30)  # Python, torch and Lightning on a CPU (Linux, torch 2.13)
SPECIAL_TOKENS = ("<mask>", "<pad>", "<cls>", "<sep>")
N_SENTINELS = 400  # beyond any objective's
# Bytes of a weight and of a cached key or value in inference.
INFERENCE = {"fp32": (4, 4), "bf16": (2, 2), "fp16": (2, 2), "int8": (1, 2)}
# What needs the least communication first.
STRATEGIES = (Sharding.ddp, Sharding.zero1, Sharding.zero2, Sharding.fsdp)
# Of a device's memory that a plan may fill. On a CPU what lies free between tensors grows while a run goes on: small
# models took 1.05 to 1.15 times the plan in two steps, one 1.25 times (benchmarks/largest_batch.py).
NEAR, NEAR_ON_CPU = 0.95, 0.85


class Accounting(Enum):
    """How the memory of weights, gradients and optimizer state is counted."""

    gptlab = "gptlab"  # as gptlab keeps them: AdamW in float32 has 4 + 4 + 8 bytes a parameter
    zero_paper = "zero_paper"  # 2 + 2 + 12 bytes: float16 with a float32 copy (arXiv:1910.02054, section 3.1)


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of a plan and what they cost."""

    kind: Hardware
    count: int = 1
    num_nodes: int = 1
    mfu: float = 0.4  # fraction of the peak that training reaches; assumed unless measured
    tokens_per_second: float | None = None  # measured, of all devices together; then the MFU follows from it
    price_per_hour: float | None = None  # of one device


class Planner:
    """The costs of one config on one set of devices."""

    def __init__(self, config: RunConfig, devices: Devices, accounting: Accounting = Accounting.gptlab):
        self.config, self.devices, self.accounting = config, devices, accounting
        self.precision = config.trainer.precision or devices.kind.precision
        self.vocab_size = vocab_size(config)
        self.model = shape_model(config.model, self.vocab_size, config.n_class)
        prepare_finetuning(self.model, config.finetune)
        if self.precision == FLOAT8:
            check_layers(self.model)
            if devices.kind.capability is not None:
                check_capability(f"device={devices.kind.name}", devices.kind.capability)
        specials = [*SPECIAL_TOKENS, *map(sentinel, range(N_SENTINELS))]
        objective = config.objective.build(
            tokenizer=ByteTokenizer(specials),  # its special tokens and lengths are all that is asked for
            model=config.model,
            data=config.data.first,
            context_length=config.context_length,
            seed=config.seed,
        )
        self.about = {
            "target_length": objective.target_length,
            "scored_fraction": objective.scored_fraction,
            "fused": not devices.kind.is_cpu,
            "confined": config.data.confined,
        }
        self.parameters = costs.parameter_counts(self.model)
        self.step_tokens = config.sequences_per_step * config.context_length
        self._passes: dict[int, TrainingPass] = {}
        self._evaluated: dict[int, ForwardPass] = {}  # by sequences

    @property
    def total_tokens(self) -> int:
        """Target tokens of the whole run."""
        return self.config.steps.tokens_before(count_steps(self.config, self.parameters["total"]))

    def training_pass(self, micro_batch_size: int = 1) -> TrainingPass:
        """A forward and a backward pass of a device over its micro-batch."""
        if micro_batch_size not in self._passes:
            try:
                self._passes[micro_batch_size] = costs.training_pass(
                    self.model, self.config.context_length, micro_batch_size=micro_batch_size, **self.about
                )
            except (RuntimeError, TypeError) as error:  # a model of a plugin may read values
                raise UserError(
                    f"model.type={self.config.model.type} does not run on the meta device, so that nothing can be "
                    f"counted: {first_line(error)}; gptlab train with debug=smoke measures it"
                ) from error
        return self._passes[micro_batch_size]

    def forward_pass(self) -> ForwardPass:
        """A forward pass over one sequence, as in inference."""
        return costs.forward_pass(self.model, self.config.context_length, batch_size=1, **self.about)

    @property
    def usable_fraction(self) -> float:
        """Of a device's memory, what a run may fill by this plan."""
        return NEAR_ON_CPU if self.devices.kind.is_cpu else NEAR

    @property
    def usable_bytes(self) -> int | None:
        """That in bytes; None where the memory is not known."""
        limit = self.devices.kind.memory_bytes
        return None if limit is None else round(self.usable_fraction * limit)

    @property
    def limit_bytes(self) -> int | None:
        """What a plan may come to, by the device's memory and the config's own budget; None where neither is known."""
        budget = self.config.strategy.memory_budget_gib
        given = [] if budget is None else [round(budget * 2**30) + self.process_bytes]
        return min([*given, *([] if self.usable_bytes is None else [self.usable_bytes])], default=None)

    def share(self, layout: Layout) -> int:
        """Sequences of a step that a device sees."""
        return max(1, self.config.sequences_per_step // layout.data)

    def micro_batch_size(self, layout: Layout) -> int:
        share = self.share(layout)
        return min(self.config.micro_batch_size or share, share)

    def memory(
        self,
        *,
        strategy: StrategyConfig | None = None,
        precision: str | None = None,
        micro_batch_size: int | None = None,
    ) -> dict[str, int]:
        """Peak bytes of a device while it trains, by part."""
        strategy = strategy or self.config.strategy
        if self.accounting is Accounting.zero_paper:
            return zero_paper_bytes(self.parameters["trained"], strategy.type, self.devices.count)
        return self._memory(strategy, precision, micro_batch_size)[1]

    def recomputed(self) -> int | None:
        """How many blocks are recomputed to keep to a budget of memory; None where there is none."""
        if self.accounting is Accounting.zero_paper:
            return None
        blocks, _ = self._memory(self.config.strategy)
        return None if blocks is None else len(blocks)

    def _memory(
        self, strategy: StrategyConfig, precision: str | None = None, micro_batch_size: int | None = None
    ) -> tuple[tuple[int, ...] | None, dict[str, int]]:
        """The blocks that are recomputed to keep to a budget, and peak bytes by part."""
        layout = strategy.layout(self.devices.count, self.devices.num_nodes)
        evaluated = None
        if self.config.data.has_validation:
            batch_size = eval_micro_batch_size(
                self.config.context_length,
                micro_batch_size or self.config.micro_batch_size,
                alone_on_cpu=self.devices.kind.is_cpu and self.devices.count == 1,
            )
            if batch_size not in self._evaluated:
                self._evaluated[batch_size] = costs.forward_pass(
                    self.model, self.config.context_length, batch_size=batch_size, **self.about
                )
            evaluated = self._evaluated[batch_size]
        is_cpu = self.devices.kind.is_cpu
        counted = self.training_pass(micro_batch_size or self.micro_batch_size(layout))

        def memory(recomputed: Sequence[int] | None) -> dict[str, int]:
            return costs.memory_bytes(
                self.model,
                counted,
                optimizer=self.config.optimizer,
                precision=precision or self.precision,
                strategy=strategy,
                layout=layout,
                accumulates=(micro_batch_size or self.micro_batch_size(layout)) < self.share(layout),
                evaluated=evaluated,
                process=self.process_bytes,
                fragmentation=FRAGMENTATION if is_cpu else 0.0,
                recomputed=recomputed,
            )

        if strategy.activation_checkpointing is not Recompute.budget:
            return None, memory(None)
        return costs.recompute_within(self._budget_bytes(strategy), counted.recomputable, memory)

    def _budget_bytes(self, strategy: StrategyConfig) -> float:
        """What training may take beside the program itself: the given budget, else as much as a run takes."""
        if strategy.memory_budget_gib is not None:
            return strategy.memory_budget_gib * 2**30
        limit = self.devices.kind.memory_bytes
        if limit is None:
            raise UserError(
                f"strategy.activation_checkpointing=budget needs the memory of device={self.devices.kind.name}; "
                "add memory_gb=N, or strategy.memory_budget_gib=N"
            )
        return MEMORY_BUDGET * (limit - self.process_bytes)

    @property
    def process_bytes(self) -> int:
        """What the program itself takes on a CPU."""
        return PROCESS_BYTES if self.devices.kind.is_cpu else 0

    def largest_micro_batch(self, limit: int, **options: Any) -> int | None:
        """The largest micro-batch that divides a device's sequences and fits `limit` bytes; None where none does."""
        strategy = options.get("strategy") or self.config.strategy
        share = self.share(strategy.layout(self.devices.count, self.devices.num_nodes))
        sizes = [n for n in range(1, share + 1) if share % n == 0]

        def fits(place: int) -> bool:
            return self.memory(micro_batch_size=sizes[place], **options)["total"] <= limit

        if not fits(0):  # the usual answer for a large model
            return None
        if fits(-1):  # a step in one piece has one gradient of the head, one in several pieces two
            return sizes[-1]
        low, high = 1, len(sizes) - 1
        while low < high:  # memory grows with the size
            middle = (low + high) // 2
            if fits(middle):
                low = middle + 1
            else:
                high = middle
        return sizes[low - 1]

    def inference(self) -> dict[str, Any]:
        """Bytes of weights and of the key-value cache by number format, and forward FLOPs per token."""
        n_cached = cache_elements(self.model, self.config.context_length)
        length = self.config.context_length
        return {
            "context_length": length,
            "flops_per_token": self.forward_pass().flops / length,
            "weights": {name: self.parameters["total"] * weight for name, (weight, _) in INFERENCE.items()},
            "cache_per_token": None
            if n_cached is None
            else {name: n_cached // length * element for name, (_, element) in INFERENCE.items()},
        }

    def time(self) -> dict[str, float | str | None]:
        """Seconds, device-hours, energy and cost of the whole run."""
        devices = self.devices
        flops = self.training_pass().flops_per_token * self.total_tokens
        peak = devices.kind.peak_flops(self.precision)
        seconds = mfu = None
        source = "assumed"
        if devices.tokens_per_second is not None:
            source = "measured"
            seconds = self.total_tokens / devices.tokens_per_second
            mfu = None if peak is None else flops / (seconds * peak * devices.count)
        elif peak is not None:
            mfu = devices.mfu
            seconds = flops / (mfu * peak * devices.count)
        hours = None if seconds is None else seconds / 3600 * devices.count
        watts, price = devices.kind.watts, devices.price_per_hour
        return {
            "peak_flops": peak,
            "mfu": mfu,
            "mfu_is": source,
            "seconds": seconds,
            "device_hours": hours,
            "kwh": None if hours is None or watts is None else hours * watts / 1000,
            "cost": None if hours is None or price is None else hours * price,
        }

    def summary(self) -> dict[str, Any]:
        """All that is known before a run, as plain values: bytes, FLOPs, seconds, dollars."""
        config, devices, accounting = self.config, self.devices, self.accounting
        counted = self.training_pass()
        arranged = config.strategy.layout(devices.count, devices.num_nodes)
        limit = self.limit_bytes
        total = counted.flops_per_token * self.total_tokens
        return {
            "model": config.model_tag,
            "vocab_size": self.vocab_size,
            "parameters": self.parameters,
            "compute": {
                "flops_per_token": counted.flops_per_token,
                "flops_per_token_6n": counted.flops_per_token_6n,
                "tokens": self.total_tokens,
                "flops": total,
                "flops_6n": counted.flops_per_token_6n * self.total_tokens,
            },
            "memory": self.memory(),
            "memory_budget_gib": config.strategy.memory_budget_gib,
            "recomputed_blocks": self.recomputed(),
            "recomputable_blocks": len(counted.recomputable),
            "accounting": accounting.value,
            "layout": asdict(arranged),
            "strategy": config.strategy.type.value,
            "precision": self.precision,
            "micro_batch_size": self.micro_batch_size(arranged),
            "largest_micro_batch": None
            if limit is None or accounting is Accounting.zero_paper
            else self.largest_micro_batch(limit),
            "fits": None if limit is None else self.memory()["total"] <= limit,
            "device": {
                "name": devices.kind.name,
                "count": devices.count,
                "memory": devices.kind.memory_bytes,
                "watts": devices.kind.watts,
            },
            "time": self.time(),
            "inference": self.inference(),
            "chinchilla": optimal_tokens(self.parameters["total"]),
        }

    def by_law(self, law: ScalingLaw) -> dict[str, Any]:
        """What a scaling law says of the run: its loss, and the best size for the same FLOPs; values with intervals.

        `one_run` is the interval of a single run, which scatters about the law. A model of another size is taken to
        cost what this one does per parameter and token, or where the law knows FLOPs per token, to grow as there.
        """
        n = count_of(self.parameters, ParameterCount(law.counted))
        counted, tokens = self.training_pass(), self.total_tokens
        power = law.flops_per_token[1]
        cost = counted.flops_per_token / n**power, power
        best = law.optimum(counted.flops_per_token * tokens, cost)
        runs = law.observations
        return {
            "parameters": n,
            "counted": law.counted,
            "tokens": tokens,
            "loss": law.predict(n, tokens).plain(),
            "one_run": law.predict(n, tokens, one_run=True).plain(),
            "beyond": {"parameters": n / runs.parameters.max(), "tokens": tokens / runs.tokens.max()},
            "below": {"parameters": runs.parameters.min() / n, "tokens": runs.tokens.min() / tokens},
            "optimum": {name: getattr(best, name).plain() for name in ("parameters", "tokens", "loss")}
            | {"flops": best.flops, "flops_per_token": {"factor": cost[0], "exponent": cost[1]}},
        }


def plan(
    config: RunConfig,
    device: str = "cpu",
    *,
    accounting: Accounting = Accounting.gptlab,
    law: ScalingLaw | None = None,
    **options: Any,
) -> dict[str, Any]:
    """All that is known before a run on devices of one kind, as plain values: bytes, FLOPs, seconds, dollars.

    There are `trainer.devices` x `trainer.num_nodes` of them; `options` are those of `Devices`, as price_per_hour=2.
    With a `law`, "scaling_law" is the loss that it expects of the run, and the best size for the same FLOPs.
    Raises UserError for a device that is not in the table, a strategy that does not fit the devices, and where the
    vocabulary depends on a text.
    """
    count = (config.trainer.device_count() or 1) * config.trainer.num_nodes
    devices = Devices(find(device), count, config.trainer.num_nodes, **options)
    planner = Planner(config, devices, accounting)
    return planner.summary() | ({} if law is None else {"scaling_law": planner.by_law(law)})


def compare_precisions(planner: Planner) -> dict[str, dict[str, int]]:
    """Memory of training in each precision."""
    _refuse_paper(planner, "compare=precision")
    return {precision: planner.memory(precision=precision) for precision in costs.PRECISIONS}


def compare_strategies(planner: Planner) -> dict[str, dict[str, int]]:
    """Memory of training by the stages of ZeRO (arXiv:1910.02054), on the plan's devices."""
    if planner.devices.count == 1:
        raise UserError("compare=strategy compares how devices share a model; set trainer.devices=8 or another number")
    return {
        kind.value: planner.memory(strategy=replace(_plain(planner.config.strategy), type=kind)) for kind in STRATEGIES
    }


@dataclass(frozen=True, slots=True)
class Proposal:
    """One way to lay a run out over the devices."""

    strategy: StrategyConfig
    layout: Layout
    memory: dict[str, int] | None  # at the largest micro-batch that fits, else at one sequence
    micro_batch_size: int | None  # None: not even one sequence fits
    reason: str  # why it is not possible; empty where it is

    @property
    def overrides(self) -> list[str]:
        """What to type for it."""
        found = [f"strategy={self.strategy.type.value}"]
        if self.strategy.tensor_parallel is not None:
            found.append(f"strategy.tensor_parallel={self.strategy.tensor_parallel}")
        if self.strategy.activation_checkpointing is not Recompute.none:
            found.append(f"strategy.activation_checkpointing={self.strategy.activation_checkpointing.value}")
        return [*found, f"micro_batch_size={self.micro_batch_size or 1}"]


def proposals(planner: Planner) -> list[Proposal]:
    """The layouts that were tried, the one with the least communication and recomputation first.

    The last one fits, unless none does. Tensor parallelism comes last: it communicates in every block.
    """
    _refuse_paper(planner, "strategy=?")
    limit, usable = planner.devices.kind.memory_bytes, planner.limit_bytes
    if limit is None or usable is None:
        raise UserError(f"strategy=? needs the memory of device={planner.devices.kind.name}; add memory_gb=N")
    found = []
    for strategy in _candidates(planner):
        try:
            layout = strategy.layout(planner.devices.count, planner.devices.num_nodes)
            replace(planner.config, strategy=strategy).check(planner.devices.count)
        except UserError as error:
            found.append(Proposal(strategy, Layout(), None, None, str(error).partition(";")[0]))
            continue
        size = planner.largest_micro_batch(usable, strategy=strategy)
        memory = planner.memory(strategy=strategy, micro_batch_size=size or 1)
        share = f"{memory['total'] / limit:.0%} of the device's memory, and {usable / limit:.0%} may be filled"
        reason = "" if size else f"one sequence needs {share}"
        found.append(Proposal(strategy, layout, memory, size, reason))
        if size:
            break
    return found


def _candidates(planner: Planner) -> Iterator[StrategyConfig]:
    """Strategies, the cheapest first."""
    plain, count = _plain(planner.config.strategy), planner.devices.count
    kinds = [Sharding.auto] if count == 1 else list(STRATEGIES)
    given = plain.activation_checkpointing
    for recompute in (given,) if given is not Recompute.none else (given, Recompute.selective, Recompute.full):
        for kind in kinds:
            yield replace(plain, type=kind, activation_checkpointing=recompute)
    plain = replace(plain, activation_checkpointing=given if given is Recompute.budget else Recompute.full)
    tensor = 2
    while tensor < count and tensor <= 8:  # within a machine
        yield replace(plain, type=Sharding.fsdp_tp, tensor_parallel=tensor)
        tensor *= 2
    if 1 < count <= 8:
        yield replace(plain, type=Sharding.tp)


def _refuse_paper(planner: Planner, option: str) -> None:
    if planner.accounting is Accounting.zero_paper:
        raise UserError(f"{option} needs activations, which accounting=zero_paper leaves out; leave it out")


def _plain(strategy: StrategyConfig) -> StrategyConfig:
    return replace(strategy, tensor_parallel=None, replicas=None, cpu_offload=False)


def zero_paper_bytes(n_parameters: int, kind: Sharding, n_devices: int) -> dict[str, int]:
    """Model states of mixed-precision Adam on each device by the stages of ZeRO (arXiv:1910.02054, figure 1).

    Weights and gradients have 2 bytes a parameter, the optimizer 12: float32 weights, momentum and variance. Here
    `zero2` is the paper's stage 2, which shards gradients and optimizer state; gptlab's `zero2` shards the weights too.
    """
    if kind not in (Sharding.auto, *STRATEGIES):
        raise UserError(
            f"accounting=zero_paper knows ddp, zero1, zero2 and fsdp, and strategy is {kind.value}; "
            "use accounting=gptlab"
        )
    stage = {Sharding.zero1: 1, Sharding.zero2: 2, Sharding.fsdp: 3}.get(kind, 0)
    bytes_each = {"weights": (2, 3), "gradients": (2, 2), "optimizer": (12, 1)}
    parts = {
        name: -(-size * n_parameters // (n_devices if stage >= least else 1))
        for name, (size, least) in bytes_each.items()
    }
    return parts | {"total": sum(parts.values())}


def cache_elements(model: LanguageModel, n_positions: int) -> int | None:
    """Keys and values of one sequence in all layers; None for a model without a cache.

    Of blocks with parameters of the same names and shapes one is run.
    """
    cache = model.new_cache(1, n_positions)
    if cache is None or Capability.encoder_decoder in model.config.capabilities:
        return None
    counts, found = Counter(map(_shapes, model.blocks)), 0

    def held() -> int:
        return sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values) if x is not None)

    outputs: dict[tuple, Any] = {}

    def run(block: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        nonlocal found
        kind = _shapes(block)
        if kind not in outputs:
            before = held()
            found = found or before  # what is held beside the blocks: embeddings of a token shift
            outputs[kind] = forward(*args, **kwargs)
            found += counts[kind] * (held() - before)
        return outputs[kind]

    was_training = model.training
    model.eval()
    try:
        for block in model.blocks:
            block.forward = partial(run, block, block.forward)
        with torch.no_grad():
            model.hidden_states(torch.zeros((1, 1), dtype=torch.int64, device="meta"), cache=cache)
    finally:
        for block in model.blocks:
            del block.forward
        model.train(was_training)
    return found


def _shapes(block: nn.Module) -> tuple:
    return type(block), *((name, parameter.shape) for name, parameter in block.named_parameters())


def vocab_size(config: RunConfig) -> int:
    """The model's vocabulary, without reading a text; UserError where only a text can tell."""
    found = config.model.vocab_size or config.tokenizer.known_vocab_size
    if found is None:
        raise UserError(
            f"the vocabulary of tokenizer={config.tokenizer.type} depends on files that a plan does not read; "
            "add model.vocab_size=N"
        )
    return found


def known_models() -> list[dict[str, Any]]:
    """Published models: parameters, tokens, and the tokens that Chinchilla's rule asks for."""
    text = files("gptlab.lab").joinpath("known_models.yaml").read_text(encoding="utf-8")
    return [
        {
            "name": name,
            "parameters": float(about["parameters"]),
            "active": float(about.get("active", about["parameters"])),
            "tokens": float(about["tokens"]),
            "chinchilla_tokens": TOKENS_PER_PARAMETER * float(about["parameters"]),
            "flops": 6 * float(about.get("active", about["parameters"])) * float(about["tokens"]),
            "source": about["source"],
        }
        for name, about in yaml.safe_load(text).items()
    ]
