"""What a run may say about its training: fine-tuning, optimiser, schedule, trainer, strategy, loggers and callbacks."""

import re
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import Any


class Decay(Enum):
    """Which parameters weight decay pulls towards zero."""

    matrices = "matrices"  # those with two dimensions or more
    all = "all"


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """What every optimiser has."""

    algorithm: str = "adamw"
    lr: float = 1e-3
    clip_norm: float | None = 1.0  # null: gradients are left as they are
    weight_decay: float = 0.1
    decay: Decay = Decay.matrices
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    fused: bool | None = None  # null: where PyTorch has it for the device

    def check(self) -> None:
        for name in ("lr", "eps", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"optimizer.{name}={value} must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay} must be 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}={getattr(self, name)} is outside [0, 1)")


@dataclass(kw_only=True, slots=True)
class AdamWConfig(OptimizerConfig):
    """AdamW on every parameter (arXiv 1711.05101)."""

    algorithm: str = "adamw"


@dataclass(kw_only=True, slots=True)
class MuonConfig(OptimizerConfig):
    """Muon on the blocks' matrices, AdamW on the rest; updates of both have the size of AdamW's."""

    algorithm: str = "muon"
    lr: float = 3e-3
    adamw_lr: float | None = None  # null: lr
    momentum: float = 0.95
    newton_schulz_steps: int = 5

    def check(self) -> None:
        OptimizerConfig.check(self)
        if self.adamw_lr is not None and self.adamw_lr <= 0:
            raise ValueError(f"optimizer.adamw_lr={self.adamw_lr} must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum={self.momentum} is outside [0, 1)")
        if self.newton_schulz_steps < 1:
            raise ValueError(f"optimizer.newton_schulz_steps={self.newton_schulz_steps} must be at least 1")


OPTIMIZERS = {config().algorithm: config for config in (AdamWConfig, MuonConfig)}


class Finetuning(Enum):
    """Which parameters are trained."""

    full = "full"  # all
    last = "last"  # the last blocks and what comes after them
    lora = "lora"  # matrices of low rank that are added to the blocks' own (arXiv:2106.09685)


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """Which parameters of a pretrained model are trained; the others stay as they are."""

    mode: Finetuning = Finetuning.full
    n_block: int | None = None  # last: how many blocks; of an encoder-decoder its decoder's
    rank: int = 8  # lora, likewise below
    alpha: float = 16.0  # the addition is multiplied by alpha / rank
    dropout: float = 0.0  # of what the adapters read
    layers: list[str] = field(default_factory=lambda: ["attn.q", "attn.v"])  # of every block that has them

    def check(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is MISSING else f.default_factory()
            owner = Finetuning.last if f.name == "n_block" else Finetuning.lora
            if f.name != "mode" and self.mode is not owner and value != default:
                shown = f"[{','.join(value)}]" if isinstance(value, list) else value
                raise ValueError(f"finetune.{f.name}={shown} needs finetune={owner.value}")
        if self.mode is Finetuning.last and (self.n_block is None or self.n_block < 1):
            shown = "null" if self.n_block is None else self.n_block
            raise ValueError(f"finetune.n_block={shown} must be at least 1: how many of the last blocks are trained")
        if self.rank < 1:
            raise ValueError(f"finetune.rank={self.rank} must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"finetune.alpha={self.alpha} must be above 0")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            what = "names one twice" if self.layers else "names none"
            raise ValueError(
                f"finetune.layers=[{','.join(self.layers)}] {what}; use one or more, such as [attn.q,attn.v]"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"finetune.dropout={self.dropout} is outside [0, 1)")


WARMUPS = ("warmup_steps", "warmup_tokens", "warmup_fraction")
DECAYS = ("decay_steps", "decay_tokens")


class Shape(Enum):
    """The learning rate after warmup."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"
    wsd = "wsd"  # warmup, stable, decay (arXiv 2404.06395)


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Warmup, then a shape, as a factor on every group's learning rate."""

    shape: Shape = Shape.cosine
    warmup_steps: int | None = None
    warmup_tokens: int | None = None  # instead of warmup_steps
    warmup_fraction: float | None = None  # of the run, instead of either
    decay_steps: int | None = None  # the step at which the floor is reached; null: the whole budget
    decay_tokens: int | None = None  # instead of decay_steps
    decay_fraction: float = 0.2  # wsd: the last part of the run, in which the rate falls linearly
    min_ratio: float = 0.1  # the floor, as a part of the peak

    def check(self) -> None:
        for names in (WARMUPS, DECAYS):
            given = [f"schedule.{name}" for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} say the same thing twice; set one and the others to null")
        for name in ("warmup_steps", "warmup_tokens", "decay_steps", "decay_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"schedule.{name}={value} must be 0 or more")
        for name in ("min_ratio", "decay_fraction", "warmup_fraction"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"schedule.{name}={getattr(self, name)} is outside [0, 1]")


# Trainer options that gptlab decides, and the word that decides them.
OWNED = {
    "strategy": "strategy=ddp (a group of its own)",
    "logger": "logger=wandb (a group of its own)",
    "callbacks": "callbacks.extra.NAME._target_=...",
    "max_steps": "budget_steps=...",
    "min_steps": "budget_steps=...",
    "max_epochs": "budget_steps=... or budget_tokens=... (a run is counted in steps or tokens)",
    "min_epochs": "budget_steps=... or budget_tokens=... (a run is counted in steps or tokens)",
    "limit_train_batches": "budget_steps=...",
    "accumulate_grad_batches": "batch_tokens=... and micro_batch_size=... (accumulation follows from them)",
    "gradient_clip_val": "optimizer.clip_norm=...",
    "gradient_clip_algorithm": "optimizer.clip_norm=... (always by the global norm)",
    "default_root_dir": "run_dir=...",
    "fast_dev_run": "debug=smoke",
    "overfit_batches": "debug=overfit",
    "check_val_every_n_epoch": "trainer.val_check_interval=...",
    "reload_dataloaders_every_n_epochs": "data.* (the order of samples is a function of the seed)",
    "use_distributed_sampler": "data.* (the order of samples is a function of the seed)",
    "limit_predict_batches": "nothing (training predicts no batches)",
    "sync_batchnorm": "nothing (no model here has batch normalisation)",
    "num_sanity_val_steps": "debug=smoke (which tries every part)",
    "plugins": "strategy=..., trainer.precision=... (plugins are built by gptlab)",
    "barebones": "callbacks.*, logger=... and trainer.enable_progress_bar=false",
}


PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PROFILERS = ("simple", "advanced", "pytorch")


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Lightning's Trainer arguments under their own names, less those that gptlab decides (`OWNED`)."""

    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: str | None = None  # null: 32-true on a CPU, bf16-mixed on a GPU that has it
    val_check_interval: Any = 0.1  # optimiser steps, or a part of the run
    limit_val_batches: Any = None  # a part of the split is logged as val_part/..., never as val/...
    limit_test_batches: Any = None
    log_every_n_steps: int = 10  # how often loggers get a row; metrics.csv has every step
    enable_checkpointing: bool = True
    enable_progress_bar: bool = True
    enable_model_summary: bool = True  # the table printed before training
    max_time: Any = None
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    enable_autolog_hparams: bool = False
    model_registry: str | None = None

    def check(self) -> None:
        interval = self.val_check_interval
        if isinstance(interval, bool) or not isinstance(interval, int | float) or interval <= 0:
            raise ValueError(
                f"trainer.val_check_interval={interval} must be a number of steps such as 100, "
                "or a part of the run such as 0.1"
            )
        if isinstance(interval, float) and interval > 1:
            raise ValueError(
                f"trainer.val_check_interval={interval} is a part of the run and must be at most 1.0; "
                f"for steps write {round(interval)}"
            )
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision={self.precision} is unknown; use one of {', '.join(PRECISIONS)}")
        if self.accelerator not in ACCELERATORS:
            raise ValueError(f"trainer.accelerator={self.accelerator} is unknown; use one of {', '.join(ACCELERATORS)}")
        if self.profiler is not None and self.profiler not in PROFILERS:
            raise ValueError(f"trainer.profiler={self.profiler} is unknown; use {', '.join(PROFILERS)} or null")
        for name in ("limit_val_batches", "limit_test_batches"):
            limit = getattr(self, name)
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 0):
                raise ValueError(f"trainer.{name}={limit} must be a number of batches, a part such as 0.1, or null")
        if self.max_time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(self.max_time)):
            raise ValueError(f"trainer.max_time={self.max_time} must have the form DD:HH:MM:SS, such as 00:01:30:00")
        if self.log_every_n_steps < 1:
            raise ValueError(f"trainer.log_every_n_steps={self.log_every_n_steps} must be at least 1")
        if self.num_nodes < 1:
            raise ValueError(f"trainer.num_nodes={self.num_nodes} must be at least 1")
        if self.device_count() is not None and self.device_count() < 1:
            raise ValueError(f"trainer.devices={self.devices} names no device; use a count such as 1, or auto")

    def device_count(self) -> int | None:
        """Devices per node where the words alone tell it, None where the machine has to be asked."""
        match self.devices:
            case bool():
                raise ValueError(f"trainer.devices={self.devices} must be a count, a list of indices, or auto")
            case int() if self.devices == -1:
                return None
            case int():
                return self.devices
            case str() if self.devices.isdecimal():
                return int(self.devices)
            case str() if self.devices in ("auto", "-1"):
                return 1 if self.accelerator == "cpu" else None
            case list():
                return len(self.devices)
        raise ValueError(f"trainer.devices={self.devices} must be a count, a list of indices, or auto")


class Sharding(Enum):
    """How a model is spread over devices."""

    auto = "auto"  # one device: nothing to spread; several: ddp
    ddp = "ddp"  # each device holds everything
    zero1 = "zero1"  # ddp with the optimiser's state divided (arXiv:1910.02054)
    zero2 = "zero2"  # weights, gradients and state divided; weights stay whole from forward to backward
    fsdp = "fsdp"  # ZeRO-3: a block's weights are whole only while it computes
    hsdp = "hsdp"  # fsdp within groups of devices that hold the same
    tp = "tp"  # each matrix is divided, and every device sees every window (arXiv:1909.08053)
    fsdp_tp = "fsdp_tp"  # tp within groups, fsdp over them


class Recompute(Enum):
    """What the backward pass computes again instead of keeping it (arXiv:1604.06174)."""

    none = "none"
    full = "full"  # each block from its input
    selective = "selective"  # all but the products of matrices and attention


SHARDED = (Sharding.zero2, Sharding.fsdp, Sharding.hsdp, Sharding.fsdp_tp)
TENSOR_PARALLEL = (Sharding.tp, Sharding.fsdp_tp)


@dataclass(frozen=True, slots=True)
class Layout:
    """How ranks are arranged: `replicas` x `shards` x `tensor`, the last varying fastest.

    Ranks that differ in `tensor` alone see the same windows; all others see windows of their own.
    """

    replicas: int = 1
    shards: int = 1
    tensor: int = 1

    @property
    def data(self) -> int:
        """Parts into which a step's windows are dealt."""
        return self.replicas * self.shards

    def data_rank(self, rank: int) -> int:
        return rank // self.tensor


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """One word for how the work is spread, and its options."""

    name: Sharding = Sharding.auto
    tensor_parallel: int | None = None  # devices that share each matrix; null: all of them (tp), two (fsdp_tp)
    replicas: int | None = None  # hsdp: groups that hold the same; null: one a node, on one node two
    activation_checkpointing: Recompute = Recompute.none
    cpu_offload: bool = False  # what is divided waits in the host's memory
    compile: bool = False  # torch.compile block by block
    timeout_seconds: int = 1800  # of a collective, after which a hung rank ends the run

    def layout(self, world_size: int, num_nodes: int = 1) -> Layout:
        """Arrange `world_size` devices; ValueError where the words do not fit them."""
        match self.name:
            case Sharding.auto | Sharding.ddp | Sharding.zero1:
                return Layout(replicas=world_size)
            case Sharding.zero2 | Sharding.fsdp:
                return Layout(shards=world_size)
            case Sharding.hsdp:
                replicas = self.replicas or (num_nodes if num_nodes > 1 else 2)
                self._divide("replicas", replicas, world_size)
                if replicas == world_size:
                    raise ValueError(
                        f"strategy=hsdp with strategy.replicas={replicas} leaves each of {world_size} devices a group "
                        "of its own; use strategy=fsdp, strategy=ddp, or more devices"
                    )
                return Layout(replicas=replicas, shards=world_size // replicas)
            case Sharding.tp:
                if world_size < 2:
                    raise ValueError("strategy=tp divides matrices over devices and there is one; use strategy=auto")
                if self.tensor_parallel not in (None, world_size):
                    raise ValueError(
                        f"strategy.tensor_parallel={self.tensor_parallel} and there are {world_size} devices, which "
                        "strategy=tp takes all; leave it out, or use strategy=fsdp_tp"
                    )
                return Layout(tensor=world_size)
            case Sharding.fsdp_tp:
                tensor = self.tensor_parallel or 2
                self._divide("tensor_parallel", tensor, world_size)
                if tensor == world_size:
                    raise ValueError(
                        f"strategy=fsdp_tp with strategy.tensor_parallel={tensor} takes all of {world_size} devices "
                        "and leaves nothing to shard over; use strategy=tp, or more devices"
                    )
                return Layout(shards=world_size // tensor, tensor=tensor)

    def _divide(self, option: str, size: int, world_size: int) -> None:
        if size < 2 or world_size % size:
            sizes = [str(n) for n in range(2, world_size + 1) if world_size % n == 0]
            raise ValueError(
                f"strategy={self.name.value} with strategy.{option}={size} does not divide {world_size} "
                + (f"devices; use {' or '.join(sizes)}" if sizes else "device; it needs two or more")
            )

    def check(self) -> None:
        if self.timeout_seconds < 1:
            raise ValueError(f"strategy.timeout_seconds={self.timeout_seconds} must be at least 1")
        for option, owners in (("tensor_parallel", TENSOR_PARALLEL), ("replicas", (Sharding.hsdp,))):
            if getattr(self, option) is not None and self.name not in owners:
                names = " or ".join(owner.value for owner in owners)
                raise ValueError(f"strategy.{option} belongs to strategy={names}, and strategy is {self.name.value}")
        if self.cpu_offload and self.name not in SHARDED:
            names = ", ".join(name.value for name in SHARDED)
            raise ValueError(
                f"strategy.cpu_offload=true needs a strategy that divides the weights: {names}; "
                f"strategy is {self.name.value}"
            )


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    """Weights & Biases; null fields are filled from the run."""

    project: str = "gptlab"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    offline: bool | None = None  # null: offline when there is no key


@dataclass(kw_only=True, slots=True)
class TensorboardConfig:
    """TensorBoard event files in the run folder."""

    flush_seconds: int = 30


@dataclass(kw_only=True, slots=True)
class LoggersConfig:
    """Loggers beside metrics.csv, which every run writes."""

    wandb: WandbConfig | None = None
    tensorboard: TensorboardConfig | None = None


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When the run is saved; `last` and `best` always follow the newest and the best."""

    every_steps: int | None = None  # null: after each validation
    every_minutes: float | None = None  # beside that, as the clock goes
    keep_last: int = 1
    best: bool = True
    async_save: bool = False  # steps go on while a copy of the state is written


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    """Text that the model writes at each validation."""

    prompt: str | None = None  # null: what the objective shows of its first example
    n_tokens: int = 200
    temperature: float = 0.8


class SpikeAction(Enum):
    """What is done about a loss spike."""

    stop = "stop"  # the run ends; what is saved is from before
    skip = "skip"  # the step's update is left out
    rollback = "rollback"  # the run goes back to a checkpoint and leaves out the samples since


@dataclass(kw_only=True, slots=True)
class SpikeConfig:
    """Which losses are spikes, and what is done about them."""

    action: SpikeAction | None = None  # null: only a loss that is not finite ends the run
    threshold: float = 6.0  # standard deviations above the mean of the last steps without a spike
    window_steps: int = 100  # of which mean and deviation are taken
    warmup_steps: int = 100  # steps before any is judged
    max_skips: int = 10  # in a row
    rollback_steps: int = 1  # between the checkpoint and the spike, at least
    max_rollbacks: int = 3  # in a row: to the same checkpoint or an earlier one

    def check(self) -> None:
        for f in fields(self):
            value, owner = getattr(self, f.name), SPIKE_OWNERS.get(f.name)
            if f.name == "action" or value == f.default:
                continue
            if self.action is None or owner not in (None, self.action):
                needs = owner.value if owner is not None else " or ".join(action.value for action in SpikeAction)
                raise ValueError(f"callbacks.spike.{f.name}={value} needs callbacks.spike.action={needs}")
        if self.threshold <= 0:
            raise ValueError(f"callbacks.spike.threshold={self.threshold} must be above 0")
        for name, least in (("window_steps", 2), ("warmup_steps", 2), ("rollback_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"callbacks.spike.{name}={getattr(self, name)} must be at least {least}")
        for name in ("max_skips", "max_rollbacks"):
            if getattr(self, name) < 1:
                raise ValueError(f"callbacks.spike.{name}={getattr(self, name)} must be at least 1")


SPIKE_OWNERS = {
    "max_skips": SpikeAction.skip,
    "rollback_steps": SpikeAction.rollback,
    "max_rollbacks": SpikeAction.rollback,
}


@dataclass(kw_only=True, slots=True)
class CallbacksConfig:
    """What happens around the steps; null turns a part off."""

    checkpoint: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    sample: SampleConfig | None = field(default_factory=SampleConfig)
    plot: bool = True
    extra: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: a Lightning callback, ...}

    def check(self) -> None:
        if self.checkpoint is not None:
            for name in ("every_steps", "keep_last"):
                value = getattr(self.checkpoint, name)
                if value is not None and value < 1:
                    raise ValueError(f"callbacks.checkpoint.{name}={value} must be at least 1")
            minutes = self.checkpoint.every_minutes
            if minutes is not None and minutes <= 0:
                raise ValueError(f"callbacks.checkpoint.every_minutes={minutes} must be above 0")
        self.spike.check()
        if self.spike.action is SpikeAction.rollback:
            self._check_rollback()
        if self.sample is not None and self.sample.temperature < 0:
            raise ValueError(f"callbacks.sample.temperature={self.sample.temperature} must be 0 (greedy) or more")
        if self.sample is not None and self.sample.n_tokens < 1:
            raise ValueError(f"callbacks.sample.n_tokens={self.sample.n_tokens} must be at least 1")

    def _check_rollback(self) -> None:
        if self.checkpoint is None:
            raise ValueError(
                "callbacks.spike.action=rollback needs checkpoints and callbacks.checkpoint=null turns them off; "
                "leave that out, or use callbacks.spike.action=skip"
            )
        every, back = self.checkpoint.every_steps, self.spike.rollback_steps
        if every is not None and (self.checkpoint.keep_last - 1) * every < back - 1:
            raise ValueError(
                f"callbacks.spike.rollback_steps={back} reaches behind the oldest of "
                f"callbacks.checkpoint.keep_last={self.checkpoint.keep_last} checkpoints, {every} steps apart; "
                f"use callbacks.checkpoint.keep_last={-(-(back - 1) // every) + 1}"
            )


def is_whole(limit: Any) -> bool:
    """Whether a `limit_..._batches` leaves nothing out: 1.0 is all batches, 1 is one."""
    return limit is None or (isinstance(limit, float) and limit == 1.0)


def trainer_words() -> list[str]:
    return [f.name for f in fields(TrainerConfig)]
