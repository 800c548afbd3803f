"""What a run is about to do, worked out and printed before it starts."""

from dataclasses import dataclass
from pathlib import Path

from gptlab import costs
from gptlab.config import RunConfig
from gptlab.data.prepare import PreparedData
from gptlab.distributed.config import Layout
from gptlab.distributed.devices import Devices
from gptlab.objectives.base import Objective


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers that follow from a config, a corpus and a machine."""

    n_steps: int
    step_tokens: int  # target tokens of one optimizer step, over all devices
    val_every: int | None  # steps between evaluations; None where there is no validation split
    vocab_size: int  # rows of the model
    tokenizer_vocab_size: int
    parameters: dict[str, int]
    flops_per_token: float
    peak_flops: float | None  # per second, of all devices; None where what is computed with them is not known
    memory: dict[str, int]  # bytes per device
    accumulation: int  # forward passes per device and step
    corpus: str
    n_rows: int | None  # of the training split, where it is a table
    train_tokens: int
    val_tokens: int
    devices: str
    layout: Layout

    def text(self, config: RunConfig, folder: Path, start: int) -> str:
        """The plan for a person."""
        total = self.n_steps * self.step_tokens
        n_parameters = self.parameters["total"]
        active = self.parameters["active"]
        seen = f", {active:,} of them seen by a token" if active < n_parameters else ""
        trained = self.parameters["trained"]
        seen += f", {trained:,} of them trained ({trained / n_parameters:.1%})" if trained < n_parameters else ""
        parts = [f"{k} {n:,}" for k, n in self.parameters.items() if n and k not in ("total", "active", "trained")]
        sizes = [f"{name} {_bytes(size)}" for name, size in self.memory.items() if name != "total"]
        windows = config.sequences_per_step // self.layout.data // self.accumulation
        data, tensor = self.layout.data, self.layout.tensor
        factors = [
            f"{windows} {'windows' if self.n_rows is None else 'rows'}",
            f"{config.context_length} tokens" + (" or fewer" if self.n_rows is not None else ""),
            _plural(data, "device") if tensor == 1 else f"{_plural(data, 'group')} of {tensor} devices",
            _plural(self.accumulation, "pass", "passes"),
        ]
        epochs, per_parameter = total / max(1, self.train_tokens), total / n_parameters
        if self.n_rows is not None:
            epochs = self.n_steps * config.sequences_per_step / self.n_rows
        rows = {
            "model": f"{config.model_tag}: {n_parameters:,} parameters{seen} ({', '.join(parts)})",
            "corpus": f"{self.corpus}; {self.train_tokens:,} training and {self.val_tokens:,} validation tokens",
            "tokenizer": f"{config.tokenizer.type}, vocabulary {self.tokenizer_vocab_size:,}",
            "budget": f"{self.n_steps:,} steps, {total:,} tokens: {epochs:.2f} epochs, {per_parameter:.1f} a parameter",
            "batch": f"{self.step_tokens:,} tokens a step = {' x '.join(factors)}",
            "compute": f"{_flops(self.flops_per_token)} per token, {_flops(self.flops_per_token * total)} in all",
            "memory": f"about {_bytes(self.memory['total'])} per device ({', '.join(sizes)})",
            "devices": self.devices,
            "run": f"{folder}" + (f", continued from step {start:,}" if start else ""),
        }
        return "\n".join(f"{name:<10} {text}" for name, text in rows.items())


def make_plan(config: RunConfig, data: PreparedData, devices: Devices, vocab_size: int, objective: Objective) -> Plan:
    """Work the plan out; ValueError where the budget is smaller than a step."""
    parameters = costs.parameter_counts(config.model, vocab_size, config.finetune, config.n_class)
    step_tokens = config.sequences_per_step * config.context_length
    if config.budget_steps is not None:
        n_steps = config.budget_steps
    else:
        tokens = config.budget_tokens or round(config.tokens_per_parameter * parameters["total"])
        n_steps = max(1, tokens // step_tokens)
    layout = config.strategy.layout(devices.world_size, config.trainer.num_nodes)
    share = config.sequences_per_step // layout.data
    micro = min(config.micro_batch_size or share, share)
    interval = config.trainer.val_check_interval
    val_every = max(1, round(n_steps * interval)) if isinstance(interval, float) else interval
    head = {"target_length": objective.target_length, "scored_fraction": objective.scored_fraction}
    length = config.context_length
    return Plan(
        n_steps=n_steps,
        step_tokens=step_tokens,
        val_every=val_every if data.val is not None else None,
        vocab_size=vocab_size,
        tokenizer_vocab_size=data.tokenizer.vocab_size,
        parameters=parameters,
        flops_per_token=costs.flops_per_token(config.model, vocab_size, length, finetune=config.finetune, **head)[
            "per_token_exact"
        ],
        # A batch of rows is as long as its longest one, so that no number of tokens says what it costs.
        peak_flops=None if devices.peak_flops is None or data.examples else devices.peak_flops * devices.world_size,
        memory=costs.memory_bytes(
            config.model,
            vocab_size,
            micro_batch_size=micro,
            context_length=length,
            optimizer=config.optimizer.type,
            precision=devices.precision,
            strategy=config.strategy,
            layout=layout,
            finetune=config.finetune,
            **head,
        ),
        accumulation=share // micro,
        corpus=data.description,
        n_rows=len(data.examples["train"]) if data.examples else None,
        train_tokens=data.train.n_tokens,
        val_tokens=data.val.n_tokens if data.val is not None else 0,
        devices=devices.describe(),
        layout=layout,
    )


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _flops(count: float) -> str:
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if count >= size:
            return f"{count / size:,.1f} {prefix}FLOP"
    return f"{count / 1e6:,.1f} MFLOP"
