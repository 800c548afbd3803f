"""What a run is about to do: its plan, worked out and printed before it starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptlab import costs
from gptlab.config import RunConfig
from gptlab.distributed.config import SHARDED, Layout, Recompute
from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.steps import Steps
from gptlab.training.config import eval_batch_size, eval_micro_batch_size
from gptlab.units import bytes_text, flops_text, plural, significant, table

if TYPE_CHECKING:
    from gptlab.data.examples.packing import Packed
    from gptlab.data.mixture.prepare import PreparedMixture
    from gptlab.data.prepare import PreparedData
    from gptlab.distributed.devices import Devices
    from gptlab.objectives.base import Objective

# A plan of memory is an estimate: it is refused where it exceeds what is free by more than this factor.
MEMORY_ERROR = 1.25
MAX_VALIDATIONS = 10  # of a run by default, beside the one before the first step
MAX_VALIDATION_SHARE = 0.05  # of the compute of a run
SHORT_VALIDATION_FLOPS = 1e12
NEAR = 0.85  # of what is free, from where there is a warning
STATE = ("weights", "gradients", "optimizer")  # known exactly
NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory", "MPS backend out of memory")


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """What a run reads of one source of a mixture."""

    name: str
    share: float  # of the sequences of the run
    epochs: float
    train_tokens: int
    val_tokens: int
    corpus: str

    def row(self) -> tuple[str, str, str]:
        return (
            "",
            f"{self.train_tokens:,} tokens",
            f"{self.name}: {self.share:.4g} of the run, {self.epochs:,.2f} epochs; {self.val_tokens:,} for validation; "
            f"{self.corpus}",
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers that follow from a config, a corpus and a machine."""

    n_steps: int
    steps: Steps  # the sizes of all
    val_every: int | None  # steps between evaluations; None where there is no validation split
    vocab_size: int  # of the model
    tokenizer_vocab_size: int
    parameters: dict[str, int]  # by part, as `costs.parameter_counts` returns them
    flops_per_token: float
    peak_flops: float | None  # FLOP/s of all devices; None where MFU is not known
    memory: dict[str, int]  # bytes per device, by part
    uncounted: str  # why FLOPs are an estimate and activations are missing; empty where the model could be counted
    accumulation: int  # forward and backward passes per device and step
    recomputed: tuple[int, ...] | None  # blocks whose activations are checkpointed; None: as the strategy says
    n_recomputable: int  # blocks that keep activations; frozen ones below what is trained do not
    corpus: str
    n_examples: int | None  # of the training split, where it is a table
    train_tokens: int
    val_tokens: int
    devices: str
    layout: Layout
    reads_per_epoch: float = 1.0  # of each token, by sliding windows that overlap
    sources: tuple["PlannedSource", ...] = ()  # of a mixture
    confined: bool = False  # attention to documents
    packed: Mapping[str, "Packed"] = field(default_factory=dict)  # what packing made of each corpus's training split

    def text(self, config: RunConfig, folder: Path, start: int) -> str:
        """The plan for a person: a line for each of its parts, with its quantity, unit and details in columns."""
        run = f"{folder}" + (f", continued from step {start:,}" if start else "")
        rows = [
            ("model", f"{self.parameters['total']:,} parameters", f"{config.model_tag}: {self._parameters()}"),
            ("data", f"{self.train_tokens:,} tokens", f"{self.val_tokens:,} for validation; {self._corpus()}"),
            *(source.row() for source in self.sources),
            *self._packing(),
            ("tokenizer", f"{self.tokenizer_vocab_size:,} entries", config.tokenizer.type),
            ("budget", f"{self.total_tokens:,} tokens", self._budget(config.sequences_per_step)),
            ("batch", f"{self.step_tokens:,} tokens", self._batch(config.sequences_per_step, config.context_length)),
            ("compute", flops_text(self.flops_per_token * self.total_tokens), self._compute()),
            ("memory", bytes_text(self.memory["total"]), self._memory()),
            ("run", "", f"{run}; {self.devices}"),
        ]
        return table(rows)

    @property
    def step_tokens(self) -> int:
        """Target tokens of one optimizer step, over all devices, after the warmup of the batch."""
        return self.steps.phases[-1].n_sequences * self.steps.context_length

    @property
    def total_tokens(self) -> int:
        return self.steps.tokens_before(self.n_steps)

    def _parameters(self) -> str:
        n, active, trained = (self.parameters[name] for name in ("total", "active", "trained"))
        parts = [f"{k} {n:,}" for k, n in self.parameters.items() if n and k not in ("total", "active", "trained")]
        text = ", ".join(parts)
        if active < n:
            text += f"; {active:,} active"
        if trained < n:
            text += f"; {trained:,} trained ({trained / n:.1%})"
        return text

    def _packing(self) -> list[tuple[str, str, str]]:
        what = "document" if self.n_examples is None else "record"
        return [
            ("packing", plural(found.n_sequences, "sequence"), (f"{name}: " if name else "") + found.text(what))
            for name, found in self.packed.items()
        ]

    def _corpus(self) -> str:
        return f"a mixture of {plural(len(self.sources), 'source')}" if self.sources else self.corpus

    def epoch_tokens(self, sequences_per_step: int) -> float | None:
        """The tokens of an epoch as a run counts them: of a table with the padding of its examples, and where windows
        overlap each as often as it is read; None of a mixture, whose sources have an epoch each."""
        if self.sources:
            return None
        if self.packed:
            return self.packed[""].n_sequences * self.step_tokens / sequences_per_step
        if self.n_examples is None:
            return max(1, self.train_tokens * self.reads_per_epoch)
        return self.n_examples * self.step_tokens / sequences_per_step

    def _budget(self, sequences_per_step: int) -> str:
        epoch = self.epoch_tokens(sequences_per_step)
        epochs = "" if epoch is None else f"{self.total_tokens / epoch:,.2f} epochs, "
        per_parameter = self.total_tokens / self.parameters["total"]
        return f"{plural(self.n_steps, 'step')}, {epochs}{significant(per_parameter)} tokens per parameter"

    def _batch(self, sequences_per_step: int, context_length: int) -> str:
        data, tensor, table = self.layout.data, self.layout.tensor, self.n_examples is not None
        factors = [
            plural(sequences_per_step // data // self.accumulation, "example" if table else "sequence"),
            f"{context_length:,} tokens" + (" or fewer" if table else ""),
            plural(data, "device") if tensor == 1 else f"{plural(data, 'group')} of {tensor} devices",
            plural(self.accumulation, "gradient accumulation step"),
        ]
        text = f"per step: {' x '.join(factors)}"
        phases = [phase for phase in self.steps.phases if phase.first_step < self.n_steps]
        if len(phases) > 1 or phases[-1] != self.steps.phases[-1]:
            sizes = (f"{p.n_sequences * self.steps.context_length:,} tokens from step {p.first_step:,}" for p in phases)
            text += f"; {', '.join(sizes)}"
        if self.steps.lengths:
            parts = (f"{length:,} tokens before {until:,}" for until, length in self.steps.lengths)
            text += f"; in parts of {', '.join(parts)}"
        return text

    def _compute(self) -> str:
        text = f"{flops_text(self.flops_per_token)} per token"
        if self.confined:
            text += ", attention counted over whole sequences, as for MFU: masked scores too"
        if self.steps.lengths:
            text += ", at the full length"
        return text if not self.uncounted else f"about {text} (6 N: {self.uncounted})"

    def _memory(self) -> str:
        parts = (f"{name} {bytes_text(size)}" for name, size in self.memory.items() if size and name != "total")
        text = f"per device, about: {', '.join(parts)}"
        if self.recomputed is not None:
            text += f"; {len(self.recomputed)} of {plural(self.n_recomputable, 'block')} recomputed"
        return text if not self.uncounted else f"{text}; activations unknown and left out"


def check_memory(plan: Plan, config: RunConfig, free_bytes: int | None) -> str:
    """Compare a plan with the memory that a device has free; returns a warning where it is close, else nothing.

    Raises UserError where it cannot fit: the weights, gradients and optimizer state alone exceed what is free, or the
    whole estimate exceeds it by more than its error. A budget that the config gives it has to keep to in any case.
    """
    total = plan.memory["total"] - plan.memory["process"]  # which has it already
    budget = config.strategy.memory_budget_gib
    if budget is not None and total > budget * 2**30:
        enough = math.ceil(100 * total / 2**30) / 100
        raise UserError(
            f"strategy.memory_budget_gib={budget:g} is less than the run needs with its blocks recomputed; "
            f"{_remedies(plan, config)}, or raise it: strategy.memory_budget_gib={enough:g}"
        )
    if free_bytes is None or not config.strategy.check_memory:
        return ""
    state = sum(plan.memory[name] for name in STATE)
    planned = f"about {bytes_text(total)} per device, and {bytes_text(free_bytes)} per device is free"
    if state > free_bytes or total > MEMORY_ERROR * free_bytes:
        cause = f"; weights, gradients and optimizer state alone take {bytes_text(state)}" if state > free_bytes else ""
        raise UserError(
            f"the run needs {planned}{cause}; {_remedies(plan, config, state_alone=state > free_bytes)}, "
            "or try it all the same with strategy.check_memory=false"
        )
    if total > NEAR * free_bytes:
        return f"the run needs {planned}; if it runs out of memory, {_remedies(plan, config)}"
    return ""


def explain_allocation(error: BaseException, plan: Plan, config: RunConfig) -> str | None:
    """What to do about an allocation that failed in a run; None where `error` is no such thing."""
    text = str(error)
    is_of_memory = isinstance(error, MemoryError) or "OutOfMemoryError" in {
        kind.__name__ for kind in type(error).__mro__
    }
    if not is_of_memory and not (isinstance(error, RuntimeError) and any(part in text for part in NO_MEMORY)):
        return None
    sizes = ", ".join(f"{name} {bytes_text(size)}" for name, size in plan.memory.items() if size and name != "total")
    return (
        f"out of memory; the plan is about {bytes_text(plan.memory['total'])} per device ({sizes}); "
        f"{_remedies(plan, config, failed=True)}"
    )


def _remedies(plan: Plan, config: RunConfig, *, state_alone: bool = False, failed: bool = False) -> str:
    """What makes a run smaller, the cheapest first; `failed` where the plan turned out too small."""
    layout, share = plan.layout, config.sequences_per_step // plan.layout.data
    found = []
    micro_batch_size = share // plan.accumulation
    if micro_batch_size > 1 and not state_alone:
        smaller = next(n for n in range(micro_batch_size // 2, 0, -1) if share % n == 0)
        found.append(f"micro_batch_size={smaller}")
    if not state_alone:
        found += _more_recomputation(plan, config, failed=failed)
    if config.strategy.type not in SHARDED:
        devices = "" if layout.data > 1 else " on several GPUs"
        found.append(f"strategy=fsdp{devices}")
    found += ["a smaller model=..."]
    return f"use {', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else f"use {found[0]}"


def _more_recomputation(plan: Plan, config: RunConfig, *, failed: bool) -> list[str]:
    """What recomputes more activations, where that makes the run smaller."""
    how, given = config.strategy.activation_checkpointing, config.strategy.memory_budget_gib
    if how in (Recompute.none, Recompute.selective):
        return [f"strategy.activation_checkpointing={'full' if failed else 'budget'}"]
    if plan.recomputed is None or len(plan.recomputed) >= plan.n_recomputable - 1:  # the last would save nothing
        return []
    if failed:
        return ["strategy.activation_checkpointing=full"]
    total = plan.memory["total"] - plan.memory["process"]
    return ["a lower strategy.memory_budget_gib"] if given is not None and total <= given * 2**30 else []


def count_steps(config: RunConfig, n_parameters: int) -> int:
    """The optimizer steps of a run, from its budget of steps, of tokens or of tokens per parameter."""
    if config.budget_steps is not None:
        return config.budget_steps
    tokens = config.budget_tokens or round((config.tokens_per_parameter or 0) * n_parameters)
    return max(1, config.steps.within(tokens))


def count_validations(validation_flops: float, run_flops: float) -> int:
    """How often a run validates by default: so often that it takes up to 5% of its compute, one to ten times.

    A validation of less than a TFLOP, seconds on a CPU, counts as none. The one before the first step is one more.
    """
    if validation_flops < SHORT_VALIDATION_FLOPS:
        return MAX_VALIDATIONS
    affordable = int(MAX_VALIDATION_SHARE * run_flops / validation_flops) - 1
    return min(max(affordable, 1), MAX_VALIDATIONS)


def _validation_tokens(config: RunConfig, data: "PreparedData | PreparedMixture") -> float:
    """How many tokens a validation reads."""
    limit = config.trainer.limit_val_batches
    batch_tokens = eval_batch_size(config.context_length, config.micro_batch_size) * config.context_length
    total = 0.0
    for split in ("val", "train") if config.eval_train else ("val",):
        n_tokens = data.n_tokens(split)
        if limit is not None:
            n_tokens = n_tokens * limit if isinstance(limit, float) else min(n_tokens, limit * batch_tokens)
        total += n_tokens
    return total


def make_plan(
    config: RunConfig,
    data: "PreparedData | PreparedMixture",
    devices: "Devices",
    vocab_size: int,
    objective: "Objective",
    model: LanguageModel,
    *,
    budget_bytes: float | None = None,
) -> Plan:
    """Work out the plan of a run; `model` is the one that will be trained, on the meta device.

    With activation checkpointing by budget training takes at most `budget_bytes` of a device, if that can be.
    """
    corpora = data.corpora.values()
    has_records = any(corpus.examples for corpus in corpora)
    parameters = costs.parameter_counts(model)
    n_steps = count_steps(config, parameters["total"])
    layout = config.strategy.layout(devices.world_size, config.trainer.num_nodes)
    share = config.sequences_per_step // layout.data
    micro_batch_size = min(config.micro_batch_size or share, share)
    counted, evaluated, uncounted = None, None, ""
    passes = {
        "target_length": objective.target_length,
        "scored_fraction": objective.scored_fraction,
        "fused": devices.accelerator != "cpu",
        "confined": config.data.confined,
    }
    try:
        counted = costs.training_pass(model, config.context_length, micro_batch_size=micro_batch_size, **passes)
        if data.n_tokens("val"):
            alone_on_cpu = devices.accelerator == "cpu" and devices.world_size == 1
            batch_size = eval_micro_batch_size(
                config.context_length, config.micro_batch_size, alone_on_cpu=alone_on_cpu
            )
            evaluated = costs.forward_pass(model, config.context_length, batch_size=batch_size, **passes)
    except (RuntimeError, TypeError) as error:  # a model of a plugin may read values
        uncounted = f"the model does not run on the meta device, {str(error).splitlines()[0]}"
    flops_per_token = counted.flops_per_token if counted else costs.estimated_flops_per_token(model)
    validation_flops = _validation_tokens(config, data) * flops_per_token / 3  # a forward pass is a third of a step
    run_flops = config.steps.tokens_before(n_steps) * flops_per_token
    interval = config.trainer.val_check_interval
    if interval is None:  # never more often than that
        interval = -(-n_steps // count_validations(validation_flops, run_flops))
    val_every = max(1, round(n_steps * interval)) if isinstance(interval, float) else interval

    def memory_of(recomputed: Sequence[int] | None) -> dict[str, int]:
        return costs.memory_bytes(
            model,
            counted,
            optimizer=config.optimizer,
            precision=devices.precision,
            strategy=config.strategy,
            layout=layout,
            accumulates=micro_batch_size < share,
            evaluated=evaluated,
            process=devices.process_bytes,
            fragmentation=devices.fragmentation,
            recomputed=recomputed,
        )

    recomputed = None
    if config.strategy.activation_checkpointing is not Recompute.budget:
        memory = memory_of(None)
    elif counted is not None and budget_bytes is not None:
        recomputed, memory = costs.recompute_within(budget_bytes, counted.recomputable, memory_of)
    else:
        why = f"a plan of the memory, and {uncounted}" if uncounted else "to know what the device has free"
        raise UserError(
            f"strategy.activation_checkpointing=budget needs {why}; use strategy.activation_checkpointing=full"
            + ("" if uncounted else ", or say it with strategy.memory_budget_gib=N")
        )
    return Plan(
        n_steps=n_steps,
        steps=config.steps,
        val_every=val_every if data.n_tokens("val") else None,
        vocab_size=vocab_size,
        tokenizer_vocab_size=data.tokenizer.vocab_size,
        parameters=parameters,
        flops_per_token=flops_per_token,
        # A batch of a table's examples is as long as the longest, so no number of tokens says what it costs, and
        # attention over shorter parts costs less.
        peak_flops=None
        if devices.peak_flops is None or has_records or config.length_warmup
        else devices.peak_flops * devices.world_size,
        memory=memory,
        uncounted=uncounted,
        accumulation=share // micro_batch_size,
        recomputed=recomputed,
        n_recomputable=len(counted.recomputable) if counted else len(model.blocks),
        corpus=data.description,
        n_examples=sum(len(corpus.examples["train"]) for corpus in corpora) if has_records else None,
        train_tokens=data.n_tokens("train"),
        val_tokens=data.n_tokens("val"),
        devices=devices.describe(),
        layout=layout,
        reads_per_epoch=reads_per_epoch(config),
        confined=config.data.confined,
    )


def reads_per_epoch(config: RunConfig) -> float:
    """How often an epoch of sliding windows reads a token: 2 where they overlap by half."""
    return config.context_length / (config.data.first.stride or config.context_length)


def with_packing(plan: Plan, packed: "Mapping[str, Packed]") -> Plan:
    """The plan with what packing made of each corpus's training split; empty where nothing is packed."""
    return replace(plan, packed=dict(packed))


def with_sources(
    plan: Plan, data: "PreparedData | PreparedMixture", shares: Mapping[str, float], epochs: Mapping[str, float]
) -> Plan:
    """The plan with what the run reads of each source of a mixture; `shares` is empty for one corpus."""
    sources = (
        PlannedSource(
            name=name,
            share=share,
            epochs=epochs[name],
            train_tokens=data.corpora[name].n_tokens("train"),
            val_tokens=data.corpora[name].n_tokens("val"),
            corpus=data.corpora[name].description,
        )
        for name, share in shares.items()
    )
    return replace(plan, sources=tuple(sources))
