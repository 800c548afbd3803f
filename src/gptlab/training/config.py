"""Config schema: training. Fine-tuning, optimizers, schedules, trainer, loggers and callbacks."""

import math
import re
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from gptlab.errors import UserError
from gptlab.evaluation.config import probe_config
from gptlab.fields import bounded, check_bounds, shown
from gptlab.models.config import Kind, ModelConfig, Parametrization, Role
from gptlab.registry import register

if TYPE_CHECKING:
    from gptlab.steps import Steps
    from gptlab.training.schedule import Schedule


class Decay(Enum):
    """Which parameters weight decay pulls towards zero."""

    matrices = "matrices"  # those with two dimensions or more
    all = "all"


class Multipliers(NamedTuple):
    """By what a parameter's learning rate, weight decay and epsilon are multiplied."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """What every optimizer has; each registers a subclass with `build`."""

    type: str = ""
    lr: float = bounded(1e-3, gt=0, lt=math.inf)
    grad_clip: float | None = bounded(1.0, gt=0)  # by the global norm; null: gradients are left as they are
    weight_decay: float = bounded(0.1, ge=0)
    decay: Decay = Decay.matrices
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.95, ge=0, lt=1)
    eps: float = bounded(1e-8, gt=0)
    fused: bool | None = None  # null: where PyTorch has it for the device

    def build(self, parameters, *, device):
        """The optimizer of these (name, parameter) pairs."""
        raise NotImplementedError(f"{type(self).__name__} has no build method")

    def settings(self, *, hidden: bool, matrix: bool) -> dict[str, Any]:
        """A parameter group's settings: `hidden` matrices are those of blocks. The schedule is a factor on `lr`."""
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay if matrix or self.decay is Decay.all else 0.0,
            "betas": (self.beta1, self.beta2),
            "eps": self.eps,
        }

    def state_per_parameter(self, *, hidden: bool, matrix: bool) -> int:
        """Values that the optimizer keeps for each parameter of such a group, as a memory forecast needs it."""
        return 2  # AdamW's two moments

    def multipliers(self, role: Role, model: ModelConfig, *, hidden: bool, matrix: bool) -> Multipliers:
        """Those of a parameter in `model.parametrization`, of a group as `settings` has it."""
        raise NotImplementedError(f"{type(self).__name__} promises no {model.parametrization}")

    @property
    def parametrizations(self) -> frozenset[Parametrization]:
        """Those that `multipliers` has the rules for."""
        return frozenset({Parametrization.standard})

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a parametrization whose learning rates are not known for this optimizer."""
        if model.parametrization not in self.parametrizations:
            raise UserError(
                f"model.parametrization={model.parametrization.value} has no rule for the learning rates of "
                f"optimizer={self.type}; use optimizer=adamw or muon, or model.parametrization=standard"
            )

    def check(self) -> None:
        """Refuse values that cannot work."""
        check_bounds(self, "optimizer.")


def adamw_multipliers(role: Role, model: ModelConfig) -> Multipliers:
    """Of AdamW, whose updates have the size of the rate whatever that of the gradient.

    A hidden matrix sums over its inputs, all of which its update moves the same way, so its rate is by their number
    (arXiv:2203.03466, table 8; outputs without a multiplier: table 3). A weight decay is relative to the rate, and the
    product stays. Epsilon follows the gradient, which is by the width and, in residual branches, by the depth
    (arXiv:2505.01618, table 1).
    """
    width, depth = model.width_ratio, model.depth_ratio if role.residual else 1.0
    sums = role.kind in (Kind.hidden, Kind.output)
    eps = 1.0 if role.kind is Kind.output else 1 / width
    return Multipliers(1 / width if sums else 1.0, width if sums else 1.0, eps / depth)


@register("optimizer", "adamw")
class AdamWConfig(OptimizerConfig):
    """AdamW on every parameter (arXiv:1711.05101)."""

    def build(self, parameters, *, device):
        from gptlab.training.optimizers import adamw

        return adamw(parameters, self, device=device)

    def multipliers(self, role: Role, model: ModelConfig, *, hidden: bool, matrix: bool) -> Multipliers:
        return adamw_multipliers(role, model)

    @property
    def parametrizations(self) -> frozenset[Parametrization]:
        return frozenset(Parametrization)


@register("optimizer", "muon")
class MuonConfig(OptimizerConfig):
    """Muon on the blocks' matrices, AdamW on the rest; updates of both have the size of AdamW's."""

    lr: float = bounded(3e-3, gt=0, lt=math.inf)
    adamw_lr: float | None = bounded(None, gt=0, lt=math.inf)  # null: lr
    momentum: float = bounded(0.95, ge=0, lt=1)
    newton_schulz_steps: int = bounded(5, ge=1)

    def build(self, parameters, *, device):
        from gptlab.training.muon import muon

        return muon(parameters, self, device=device)

    def settings(self, *, hidden: bool, matrix: bool) -> dict[str, Any]:
        found = super().settings(hidden=hidden, matrix=matrix)
        if hidden and matrix:
            return found | {"muon": True, "momentum": self.momentum}
        return found | {"muon": False, "lr": self.lr if self.adamw_lr is None else self.adamw_lr}

    def state_per_parameter(self, *, hidden: bool, matrix: bool) -> int:
        return 1 if hidden and matrix else 2  # Muon keeps a momentum

    def multipliers(self, role: Role, model: ModelConfig, *, hidden: bool, matrix: bool) -> Multipliers:
        """An update should have a spectral norm by sqrt(outputs / inputs) (arXiv:2310.17813, condition 1).

        That of an orthogonal one, scaled as in arXiv:2502.16982, grows with sqrt(max(outputs, inputs)).
        """
        if not (hidden and matrix):
            return adamw_multipliers(role, model)
        lr = {Kind.hidden: model.width_ratio**-0.5, Kind.output: 1 / model.width_ratio}.get(role.kind, 1.0)
        return Multipliers(lr, 1 / lr)

    @property
    def parametrizations(self) -> frozenset[Parametrization]:
        return frozenset(Parametrization)


class Finetuning(Enum):
    """Which parameters are trained."""

    full = "full"  # all
    last_layers = "last_layers"  # the last blocks and what comes after them
    lora = "lora"  # low-rank matrices beside the blocks' own, which are frozen (arXiv:2106.09685)


@dataclass(kw_only=True, slots=True)
class FinetuneConfig:
    """Which parameters of a pretrained model are trained; the others are frozen."""

    type: Finetuning = Finetuning.full
    n_layer: int | None = None  # last_layers: how many blocks; of an encoder-decoder the decoder's
    rank: int = bounded(8, ge=1)  # lora, likewise below
    alpha: float = bounded(16.0, gt=0)  # the low-rank product is multiplied by alpha / rank
    dropout: float = bounded(0.0, ge=0, lt=1)  # of the adapters' input
    target_modules: list[str] = field(default_factory=lambda: ["attn.q", "attn.v"])  # of every block that has them

    def check(self) -> None:
        """Refuse values that cannot work."""
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is MISSING else f.default_factory()
            owner = Finetuning.last_layers if f.name == "n_layer" else Finetuning.lora
            if f.name != "type" and self.type is not owner and value != default:
                raise UserError(f"finetune.{f.name}={shown(value)} needs finetune={owner.value}")
        if self.type is Finetuning.last_layers and (self.n_layer is None or self.n_layer < 1):
            raise UserError(
                f"finetune.n_layer={shown(self.n_layer)} must be at least 1: how many of the last blocks are trained"
            )
        check_bounds(self, "finetune.")
        names = self.target_modules
        if not names or len(set(names)) < len(names):
            what = "names one twice" if names else "names none"
            raise UserError(f"finetune.target_modules={shown(names)} {what}; use one or more, such as [attn.q,attn.v]")


WARMUPS = ("warmup_steps", "warmup_tokens", "warmup_fraction")
DECAYS = ("decay_steps", "decay_tokens")


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Warmup, then a decay, as a factor on the peak learning rate; each shape registers a subclass."""

    type: str = ""
    warmup_steps: int | None = bounded(None, ge=0)
    warmup_tokens: int | None = bounded(None, ge=0)  # instead of warmup_steps
    warmup_fraction: float | None = bounded(None, ge=0, le=1)  # of the run, instead of either
    decay_steps: int | None = bounded(None, ge=0)  # the step at which the floor is reached; null: the whole budget
    decay_tokens: int | None = bounded(None, ge=0)  # instead of decay_steps
    decay_fraction: float = bounded(0.2, ge=0, le=1)  # wsd: the last part of the run, in which the rate falls
    min_lr_ratio: float = bounded(0.1, ge=0, le=1)  # the floor, as a fraction of the peak

    def remaining(self, progress: float) -> float:
        """How much of the distance from the floor to the peak is left, `progress` in [0, 1) through the decay."""
        raise NotImplementedError(f"{type(self).__name__} has no remaining method")

    def decay_start(self, warmup: int, end: int) -> int:
        """The step at which the decay begins, between the end of the warmup and its own end."""
        return warmup

    def build(self, *, n_steps: int, batch_tokens: int, steps: "Steps | None" = None) -> "Schedule":
        """The schedule of a run of `n_steps`, each of `batch_tokens`, or as `steps` have them."""
        from gptlab.training.schedule import build_schedule

        return build_schedule(self, n_steps=n_steps, batch_tokens=batch_tokens, steps=steps)

    def check(self) -> None:
        """Refuse values that cannot work."""
        for names in (WARMUPS, DECAYS):
            given = [f"schedule.{name}" for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise UserError(f"{' and '.join(given)} set the same length; set one and the others to null")
        check_bounds(self, "schedule.")


@register("schedule", "cosine")
class CosineConfig(ScheduleConfig):
    """Half a cosine from the peak to the floor (arXiv:1608.03983)."""

    def remaining(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


@register("schedule", "linear")
class LinearConfig(ScheduleConfig):
    """A straight line from the peak to the floor."""

    def remaining(self, progress: float) -> float:
        return 1 - progress


@register("schedule", "constant")
class ConstantConfig(ScheduleConfig):
    """The peak after the warmup, to the end of the run."""

    def remaining(self, progress: float) -> float:
        return 1.0

    def decay_start(self, warmup: int, end: int) -> int:
        return end


@register("schedule", "wsd")
class WSDConfig(ScheduleConfig):
    """Warmup, stable, decay (arXiv:2404.06395): constant, then a straight line over the last part of the run."""

    def remaining(self, progress: float) -> float:
        return 1 - progress

    def decay_start(self, warmup: int, end: int) -> int:
        return max(warmup, end - round(end * self.decay_fraction))


# Trainer options that gptlab decides, and the keys that decide them.
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
    "gradient_clip_val": "optimizer.grad_clip=...",
    "gradient_clip_algorithm": "optimizer.grad_clip=... (always by the global norm)",
    "default_root_dir": "run_dir=...",
    "fast_dev_run": "debug=smoke",
    "overfit_batches": "debug=overfit",
    "check_val_every_n_epoch": "trainer.val_check_interval=...",
    "reload_dataloaders_every_n_epochs": "data.* (the order of samples is a function of the seed)",
    "use_distributed_sampler": "data.* (the order of samples is a function of the seed)",
    "limit_predict_batches": "nothing (training predicts no batches)",
    "sync_batchnorm": "nothing (no model here has batch normalization)",
    "num_sanity_val_steps": "debug=smoke (which tries every part)",
    "plugins": "strategy=..., trainer.precision=... (plugins are built by gptlab)",
    "barebones": "callbacks.*, logger=... and trainer.enable_progress_bar=false",
}


FLOAT8 = "fp8-mixed"  # bf16-mixed whose blocks' linear layers multiply in float8; Lightning has no name for it
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", FLOAT8)
PRECISION_NAMES = {  # as others call them
    **dict.fromkeys(("16", "fp16", "float16", "half"), "16-mixed"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16-mixed"),
    **dict.fromkeys(("fp8", "float8", "transformer-engine"), FLOAT8),
    **dict.fromkeys(("32", "fp32", "float32", "tf32", "no"), "32-true"),
}
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PROFILERS = ("simple", "advanced", "pytorch")


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Lightning's Trainer arguments under their own names, less those that gptlab decides (`OWNED`)."""

    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = bounded(1, ge=1)
    precision: str | None = None  # null: 32-true on a CPU, bf16-mixed on a GPU that has it
    # Optimizer steps, or a part of the run; null: ten times, and less often where that takes over 5% of the compute.
    val_check_interval: Any = None
    limit_val_batches: Any = None  # a part of the split is logged as val_part/..., never as val/...
    limit_test_batches: Any = None
    log_every_n_steps: int = bounded(10, ge=1)  # how often loggers get a row; metrics.csv has every step
    enable_checkpointing: bool = True
    enable_progress_bar: bool = True
    enable_model_summary: bool = True  # the table printed before training
    max_time: str | None = None
    deterministic: Any = None
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    enable_autolog_hparams: bool = False
    model_registry: str | None = None

    def check(self) -> None:
        interval = self.val_check_interval
        number = isinstance(interval, int | float) and not isinstance(interval, bool) and interval > 0
        if interval is not None and not number:
            raise UserError(
                f"trainer.val_check_interval={interval} must be a number of steps such as 100, "
                "a part of the run such as 0.1, or null"
            )
        if isinstance(interval, float) and interval > 1:
            raise UserError(
                f"trainer.val_check_interval={interval} is a part of the run and must be at most 1.0; "
                f"for steps write {round(interval)}"
            )
        if self.precision is not None and self.precision not in PRECISIONS:
            meant = PRECISION_NAMES.get(self.precision.lower())
            instead = f"did you mean {meant}? Known: " if meant else "use one of "
            raise UserError(f"trainer.precision={self.precision} is unknown; {instead}{', '.join(PRECISIONS)}")
        if self.accelerator not in ACCELERATORS:
            raise UserError(f"trainer.accelerator={self.accelerator} is unknown; use one of {', '.join(ACCELERATORS)}")
        if self.profiler is not None and self.profiler not in PROFILERS:
            raise UserError(f"trainer.profiler={self.profiler} is unknown; use {', '.join(PROFILERS)} or null")
        for name in ("limit_val_batches", "limit_test_batches"):
            limit = getattr(self, name)
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 0):
                raise UserError(f"trainer.{name}={limit} must be a number of batches, a part such as 0.1, or null")
        if self.max_time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", self.max_time):
            raise UserError(f"trainer.max_time={self.max_time} must have the form DD:HH:MM:SS, such as 00:01:30:00")
        check_bounds(self, "trainer.")
        n_devices = self.device_count()
        if n_devices is not None and n_devices < 1:
            raise UserError(f"trainer.devices={self.devices} names no device; use a count such as 1, or auto")

    def device_count(self) -> int | None:
        """Devices per node where the config determines it; None where the machine does."""
        match self.devices:
            case bool():
                raise UserError(f"trainer.devices={self.devices} must be a count, a list of indices, or auto")
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
        raise UserError(f"trainer.devices={self.devices} must be a count, a list of indices, or auto")


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    """Weights & Biases; null fields are filled from the run."""

    project: str = "gptlab"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    offline: bool | None = None  # null: as WANDB_MODE says, or else offline when there is no key

    def check(self) -> None:
        """Refuse what W&B would refuse when the run begins."""
        if not self.project or len(self.project) > 128 or set(self.project) & set("/\\#?%:"):
            raise UserError(
                f"logger.wandb.project={self.project} is no name of a W&B project; use up to 128 characters without "
                "/ \\ # ? % :"
            )
        for key in ("group", "name"):
            if len(getattr(self, key) or "") > 128:
                raise UserError(f"logger.wandb.{key}={getattr(self, key)} is too long; use up to 128 characters")
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise UserError(f"logger.wandb.tags={shown(self.tags)}: a tag has 1 to 64 characters")


@dataclass(kw_only=True, slots=True)
class TensorboardConfig:
    """TensorBoard event files in the run folder."""

    flush_seconds: int = 30


@dataclass(kw_only=True, slots=True)
class MlflowConfig:
    """MLflow; null fields are filled from the run."""

    tracking_uri: str | None = None  # null: MLFLOW_TRACKING_URI, or else the file mlflow.db beside the run folder
    experiment: str | None = None  # null: the sweep, or model and data


@dataclass(kw_only=True, slots=True)
class TrackioConfig:
    """Trackio."""

    project: str = "gptlab"


@dataclass(kw_only=True, slots=True)
class LoggersConfig:
    """Loggers beside metrics.csv, which every run writes."""

    wandb: WandbConfig | None = None
    tensorboard: TensorboardConfig | None = None
    mlflow: MlflowConfig | None = None
    trackio: TrackioConfig | None = None

    def check(self) -> None:
        if self.wandb is not None:
            self.wandb.check()


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When the run is saved; `last` and `best` follow the newest and the best of what is saved."""

    # null: after a validation, unless saving would take over 5% of the time; saves of less than a second always happen.
    every_steps: int | None = bounded(None, ge=1)
    every_minutes: float | None = bounded(None, gt=0)  # beside that, as the clock goes
    keep_last: int = bounded(1, ge=1)
    best: bool = True
    async_save: bool = False  # steps go on while a copy of the state is written


@dataclass(kw_only=True, slots=True)
class ChainConfig:
    """The hash chain by which `gptlab verify` finds out whether a run's record was changed."""

    # Between two checksums of the weights; null: only at the start, validations, saves and the end, which have one too.
    every_steps: int | None = bounded(100, ge=1)


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    """Text that the model writes at each validation."""

    prompt: str | None = None  # null: what the objective shows of its first example
    max_new_tokens: int = bounded(200, ge=1)
    temperature: float = bounded(0.8, ge=0)  # 0: greedy


class SpikeAction(Enum):
    """What is done about a loss spike."""

    stop = "stop"  # the run ends; what is saved is from before
    skip = "skip"  # the step's update is left out
    rollback = "rollback"  # the run goes back to a checkpoint and leaves out the samples since


@dataclass(kw_only=True, slots=True)
class SpikeConfig:
    """Which losses are spikes, and what is done about them."""

    action: SpikeAction | None = None  # null: only a loss that is not finite ends the run
    threshold: float = bounded(6.0, gt=0)  # standard deviations above the mean of the last steps without a spike
    window_steps: int = bounded(100, ge=2)  # of which mean and deviation are taken
    warmup_steps: int = bounded(100, ge=2)  # steps before any is judged
    max_skips: int = bounded(10, ge=1)  # in a row
    rollback_steps: int = bounded(1, ge=1)  # between the checkpoint and the spike, at least
    max_rollbacks: int = bounded(3, ge=1)  # in a row: to the same checkpoint or an earlier one

    def check(self) -> None:
        for f in fields(self):
            value, owner = getattr(self, f.name), SPIKE_OWNERS.get(f.name)
            if f.name == "action" or value == f.default:
                continue
            if self.action is None or owner not in (None, self.action):
                needs = owner.value if owner is not None else " or ".join(action.value for action in SpikeAction)
                raise UserError(f"callbacks.spike.{f.name}={value} needs callbacks.spike.action={needs}")
        check_bounds(self, "callbacks.spike.")


SPIKE_OWNERS = {
    "max_skips": SpikeAction.skip,
    "rollback_steps": SpikeAction.rollback,
    "max_rollbacks": SpikeAction.rollback,
}


@dataclass(kw_only=True, slots=True)
class InspectConfig:
    """Sizes of activations, gradients and weights by layer, in layers.csv."""

    every_steps: int | None = bounded(None, ge=1)  # beside the first and the last; null: never


@dataclass(kw_only=True, slots=True)
class CallbacksConfig:
    """What happens around the steps; null turns a part off."""

    checkpoint: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    sample: SampleConfig | None = field(default_factory=SampleConfig)
    chain: ChainConfig | None = field(default_factory=ChainConfig)
    # name -> {every_steps: ..., options of gptlab evaluate}: what else is measured; without every_steps with validation
    evaluate: dict[str, Any] = field(default_factory=dict)
    inspect: InspectConfig | None = field(default_factory=InspectConfig)
    plot: bool = True
    forecast: bool = True  # forecast.json: time, memory and the final loss, and what came out
    extra: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: a Lightning callback, ...}

    def check(self) -> None:
        if self.checkpoint is not None:
            check_bounds(self.checkpoint, "callbacks.checkpoint.")
        self.spike.check()
        if self.spike.action is SpikeAction.rollback:
            self._check_rollback()
        if self.sample is not None:
            check_bounds(self.sample, "callbacks.sample.")
        if self.inspect is not None:
            check_bounds(self.inspect, "callbacks.inspect.")
        if self.chain is not None:
            check_bounds(self.chain, "callbacks.chain.")
        for name, options in self.evaluate.items():
            probe_config(name, options)

    def _check_rollback(self) -> None:
        if self.checkpoint is None:
            raise UserError(
                "callbacks.spike.action=rollback needs checkpoints and callbacks.checkpoint=null turns them off; "
                "leave that out, or use callbacks.spike.action=skip"
            )
        every, back = self.checkpoint.every_steps, self.spike.rollback_steps
        if every is not None and (self.checkpoint.keep_last - 1) * every < back - 1:
            raise UserError(
                f"callbacks.spike.rollback_steps={back} reaches behind the oldest of "
                f"callbacks.checkpoint.keep_last={self.checkpoint.keep_last} checkpoints, {every} steps apart; "
                f"use callbacks.checkpoint.keep_last={-(-(back - 1) // every) + 1}"
            )


EVAL_TOKENS = 16_384  # of a batch of an evaluation
EVAL_TOKENS_CPU = 4_096  # of one forward pass without gradients on a CPU, which is as fast with few


def eval_batch_size(context_length: int, micro_batch_size: int | None) -> int:
    """How many sequences a batch of an evaluation has."""
    return max(micro_batch_size or 1, EVAL_TOKENS // context_length, 1)


def eval_micro_batch_size(context_length: int, micro_batch_size: int | None, *, alone_on_cpu: bool) -> int:
    """How many of these an evaluation scores at once.

    Ranks score whole batches, so that all of them run the model equally often.
    """
    if not alone_on_cpu:
        return eval_batch_size(context_length, micro_batch_size)
    return max(micro_batch_size or 1, EVAL_TOKENS_CPU // context_length, 1)


def is_whole(limit: Any) -> bool:
    """Whether a `limit_..._batches` leaves nothing out: 1.0 is all batches, 1 is one."""
    return limit is None or (isinstance(limit, float) and limit == 1.0)
