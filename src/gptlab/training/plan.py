"""What a run is about to do, worked out and printed before it starts."""

from dataclasses import dataclass
from pathlib import Path

from gptlab import costs
from gptlab.config import RunConfig
from gptlab.data.prepare import PreparedData
from gptlab.training.devices import Devices


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers that follow from a config, a corpus and a machine."""

    n_steps: int
    step_tokens: int  # target tokens of one optimiser step, over all devices
    val_every: int | None  # steps between evaluations; None where there is no validation split
    vocab_size: int
    parameters: dict[str, int]
    flops_per_token: float
    memory: dict[str, int]  # bytes per device
    accumulation: int  # forward passes per device and step
    corpus: str
    train_tokens: int
    val_tokens: int
    devices: str
    world_size: int

    def text(self, config: RunConfig, folder: Path, start: int) -> str:
        """The plan for a person."""
        total = self.n_steps * self.step_tokens
        parts = ", ".join(
            f"{name} {count:,}" for name, count in self.parameters.items() if name not in ("total", "active") and count
        )
        micro = config.windows_per_step // self.world_size // self.accumulation
        batch = f"{self.step_tokens:,} tokens a step = {micro} windows x {config.context_length} tokens"
        batch += f" x {self.world_size} device{'s' * (self.world_size > 1)} x {self.accumulation} pass{'es' * (self.accumulation > 1)}"
        memory = ", ".join(f"{name} {_gib(size)}" for name, size in self.memory.items() if name != "total")
        epochs = total / max(1, self.train_tokens)
        rows = [
            ("model", f"{config.preset}: {self.parameters['total']:,} parameters ({parts})"),
            ("corpus", f"{self.corpus}; {self.train_tokens:,} training and {self.val_tokens:,} validation tokens"),
            ("tokenizer", f"{config.tokenizer.kind}, {self.vocab_size:,} words"),
            (
                "budget",
                f"{self.n_steps:,} steps, {total:,} tokens ({epochs:.2f} epochs), {total / self.parameters['total']:.1f} per parameter",
            ),
            ("batch", batch),
            (
                "compute",
                f"{self.flops_per_token / 1e6:,.1f} MFLOP per token, {self.flops_per_token * total / 1e12:,.1f} TFLOP in all",
            ),
            ("memory", f"about {_gib(self.memory['total'])} per device ({memory})"),
            ("devices", self.devices),
            ("run", f"{folder}" + (f", continued from step {start:,}" if start else "")),
        ]
        return "\n".join(f"{name:<10} {text}" for name, text in rows)


def make_plan(config: RunConfig, data: PreparedData, devices: Devices, vocab_size: int) -> Plan:
    """Work the plan out; ValueError where the budget is smaller than a step."""
    parameters = costs.parameter_counts(config.model, vocab_size)
    step_tokens = config.windows_per_step * config.context_length
    if config.budget_steps is not None:
        n_steps = config.budget_steps
    else:
        tokens = config.budget_tokens or round(config.tokens_per_parameter * parameters["total"])
        n_steps = max(1, tokens // step_tokens)
    share = config.windows_per_step // devices.world_size
    micro = min(config.micro_batch_size or share, share)
    interval = config.trainer.val_check_interval
    val_every = max(1, round(n_steps * interval)) if isinstance(interval, float) else interval
    return Plan(
        n_steps=n_steps,
        step_tokens=step_tokens,
        val_every=val_every if data.val is not None else None,
        vocab_size=vocab_size,
        parameters=parameters,
        flops_per_token=costs.flops_per_token(config.model, vocab_size, config.context_length)["per_token_exact"],
        memory=costs.memory_bytes(
            config.model,
            vocab_size,
            micro_batch_size=micro,
            context_length=config.context_length,
            optimizer=config.optimizer.algorithm,
            precision=devices.precision,
            n_shards=devices.world_size if config.strategy.name.value == "fsdp" else 1,
        ),
        accumulation=share // micro,
        corpus=data.description,
        train_tokens=data.train.n_tokens,
        val_tokens=data.val.n_tokens if data.val is not None else 0,
        devices=devices.describe(),
        world_size=devices.world_size,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
