"""A run as one typed object, and the checks that need more than one of its parts."""

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from hashlib import sha256
from json import dumps
from math import gcd
from pathlib import Path

from gptlab.data.config import BpeConfig, DataConfig, RowsConfig, StdlibConfig, TokenizerConfig
from gptlab.models.config import DecoderConfig, EncoderConfig, Heads, ModelConfig
from gptlab.objectives.config import (
    OBJECTIVES,
    CausalLMConfig,
    ClassificationConfig,
    MaskedLMConfig,
    ObjectiveConfig,
)
from gptlab.training.config import (
    DECAYS,
    TENSOR_PARALLEL,
    WARMUPS,
    CallbacksConfig,
    FinetuneConfig,
    Finetuning,
    Layout,
    LoggersConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    Sharding,
    SpikeAction,
    StrategyConfig,
    TrainerConfig,
)

BUDGETS = ("budget_tokens", "budget_steps", "tokens_per_parameter")

# Words of which one at most counts: the one on the command line replaces the preset's.
ALTERNATIVES = (
    BUDGETS,
    tuple(f"schedule.{name}" for name in WARMUPS),
    tuple(f"schedule.{name}" for name in DECAYS),
)

# What decides where and how a run is carried out and shown, but not what it learns.
PLACE = (
    "name",
    "run_dir",
    "resume",
    "strategy",
    "logger",
    "callbacks",
    "micro_batch_size",
    "eval_train",
    "data.n_workers",
    "data.n_processes",
    "data.cache_dir",
)


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything that a run depends on."""

    model: ModelConfig = field(default_factory=DecoderConfig)
    data: DataConfig = field(default_factory=StdlibConfig)
    tokenizer: TokenizerConfig = field(default_factory=BpeConfig)
    objective: ObjectiveConfig = field(default_factory=CausalLMConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    optimizer: OptimizerConfig = field(default_factory=MuonConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    logger: LoggersConfig = field(default_factory=LoggersConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)

    batch_tokens: int = 8192  # target tokens of one optimiser step, over all devices
    micro_batch_size: int | None = None  # windows per device and forward pass; null: the device's whole share
    budget_tokens: int | None = None  # exactly one of the three budgets
    budget_steps: int | None = None
    tokens_per_parameter: float | None = None
    eval_train: bool = False  # at each validation, also the training split, in eval mode
    seed: int = 1337
    name: str | None = None  # null: <model>-<data>-<8 hex of the config>
    preset: str = "custom"  # the model's or experiment's name, as the run folder shows it
    corpus: str = "custom"  # likewise the data's
    run_dir: str | None = None  # null: runs/<name>
    resume: str | None = "auto"  # auto: continue what the run folder holds; a path; null: refuse to overwrite

    @property
    def context_length(self) -> int:
        """Target tokens of one window."""
        return self.data.context_length or self.model.context_length

    @property
    def windows_per_step(self) -> int:
        return self.batch_tokens // self.context_length

    @property
    def n_class(self) -> int | None:
        """How many classes the model has a head for; None where it has none."""
        return len(self.data.classes) if isinstance(self.objective, ClassificationConfig) else None

    def learned_from(self) -> dict:
        """All that decides what the run learns, as plain values."""
        plain = to_plain(self)
        plain["trainer"] = {"precision": self.trainer.precision}
        for word in PLACE:
            *groups, last = word.split(".")
            node = plain
            for group in groups:
                node = node[group]
            del node[last]
        return plain

    def identity(self) -> str:
        """Eight hex digits of `learned_from`."""
        return sha256(dumps(self.learned_from(), sort_keys=True).encode()).hexdigest()[:8]

    def folder(self) -> str:
        """Where everything about this run is kept."""
        if self.run_dir is not None:
            return self.run_dir
        return f"runs/{self.name or f'{self.preset}-{self.corpus}-{self.identity()}'}"

    def check(self, devices: int | None = None) -> None:
        """Refuse what cannot work, before any work.

        `devices` is the number over all nodes; None where only the machine can tell it.
        """
        for part in (
            self.model,
            self.data,
            self.tokenizer,
            self.objective,
            self.finetune,
            self.optimizer,
            self.schedule,
            self.trainer,
            self.strategy,
            self.callbacks,
        ):
            part.check()
        self._check_objective()
        self._check_heads()
        self._check_examples()
        self._check_finetune()
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} is outside 0 to {2**32 - 1}")
        for name in ("run_dir", "name"):
            if getattr(self, name) == "":
                raise ValueError(f"{name}= is empty; give a name, or leave it out")
        if self.resume not in ("auto", None) and not Path(self.resume).exists():
            raise ValueError(
                f"resume={self.resume} does not exist; name a checkpoint such as runs/NAME/checkpoints/last.ckpt"
            )
        if self.eval_train and self.data.val_fraction == 0:
            raise ValueError("eval_train=true evaluates at each validation; set data.val_fraction above 0")
        self._check_spikes()
        if self.trainer.precision == "16-mixed" and self.strategy.name not in (Sharding.auto, Sharding.ddp):
            raise ValueError(
                f"trainer.precision=16-mixed scales losses, which strategy={self.strategy.name.value} cannot follow; "
                "use trainer.precision=bf16-mixed, or strategy=ddp"
            )
        self._check_budget()
        self._check_lengths()
        per_node = self.trainer.device_count()
        if devices is None and per_node is not None:
            devices = per_node * self.trainer.num_nodes
        self._check_spread(devices)

    def _check_spikes(self) -> None:
        action = self.callbacks.spike.action
        if action is SpikeAction.skip and self.trainer.precision == "16-mixed":
            raise ValueError(
                "callbacks.spike.action=skip and trainer.precision=16-mixed, whose loss scaling leaves out updates by "
                "itself; use trainer.precision=bf16-mixed, or callbacks.spike.action=rollback"
            )
        if action is SpikeAction.rollback and not self.trainer.enable_checkpointing:
            raise ValueError(
                "callbacks.spike.action=rollback needs checkpoints and trainer.enable_checkpointing=false turns them "
                "off; leave that out, or use callbacks.spike.action=skip"
            )

    def _check_objective(self) -> None:
        architecture = self.model.architecture
        if architecture in self.objective.architectures:
            return
        fitting = [name for name, kind in OBJECTIVES.items() if architecture in kind.architectures]
        raise ValueError(
            f"objective={self.objective.name} does not fit a model with architecture={architecture}; "
            f"use objective={' or '.join(fitting)}"
        )

    def _check_heads(self) -> None:
        """An encoder has the heads that its objective uses."""
        if not isinstance(self.model, EncoderConfig):
            return
        heads, objective = self.model.heads, self.objective
        if isinstance(objective, MaskedLMConfig):
            fitting = [Heads.pretraining] if objective.next_sentence else [Heads.pretraining, Heads.masked_lm]
            what = f"objective=masked_lm with objective.next_sentence={str(objective.next_sentence).lower()}"
        else:
            fitting, what = [Heads.none, Heads.pretraining], f"objective={objective.name}"
        if heads not in fitting:
            raise ValueError(
                f"{what} has no use for model.heads={heads.value}; "
                f"use model.heads={' or '.join(one.value for one in fitting)}"
            )
        if isinstance(objective, ClassificationConfig) and objective.lm_weight:
            raise ValueError(
                f"objective.lm_weight={objective.lm_weight} is the weight of predicting the next word, which an "
                "encoder does not; set objective.lm_weight=0"
            )

    def _check_examples(self) -> None:
        """Rows of tables are for objectives that read them, and the others read text."""
        objective, data = self.objective, self.data
        if not isinstance(data, RowsConfig):
            if objective.row_forms:
                raise ValueError(
                    f"objective={objective.name} learns from the rows of a table, and data={data.source} is text; "
                    "use data=rows data.path=FILE, or data=function_packages or function_summaries, which need no file"
                )
        elif data.form not in objective.row_forms:
            fitting = next(name for name, kind in OBJECTIVES.items() if data.form in kind.row_forms)
            raise ValueError(
                f"objective={objective.name} does not read rows with data.{data.form.value}; use objective={fitting}"
            )
        if isinstance(objective, MaskedLMConfig) and objective.next_sentence and data.stride is not None:
            raise ValueError(
                f"data.stride={data.stride} is of sliding windows, and pairs of segments are chunks of documents; "
                "leave it out, or set objective.next_sentence=false"
            )
        sample = self.callbacks.sample
        if sample is not None and sample.prompt is not None and not objective.continues:
            raise ValueError(
                f"callbacks.sample.prompt={sample.prompt} is for models that continue a text, and "
                f"objective={objective.name} shows its own examples; leave it out"
            )

    def _check_finetune(self) -> None:
        finetune, model = self.finetune, self.model
        if finetune.mode is Finetuning.full:
            return
        if model.init_from is None:
            raise ValueError(
                f"finetune={finetune.mode.value} trains a part of a pretrained model, and the rest of this one would "
                "stay random; set model.init_from to weights to start from, or use finetune=full"
            )
        if finetune.mode is Finetuning.last and finetune.n_block > model.last_blocks:
            raise ValueError(
                f"finetune.n_block={finetune.n_block} is more than the {model.last_blocks} blocks before the head; "
                "use that many or fewer, or finetune=full"
            )
        if finetune.mode is Finetuning.lora:
            self._check_adapters()

    def _check_adapters(self) -> None:
        known = self.model.linear_layers()
        for name in self.finetune.layers:
            if name not in known:
                experts = self.model.n_expert is not None and name.startswith("ffn.")
                what = (
                    "is of experts, whose layers take no adapter" if experts else "is no layer of this model's blocks"
                )
                raise ValueError(f"finetune.layers: {name} {what}; choose from {', '.join(known)}")
        if self.strategy.name in TENSOR_PARALLEL:
            raise ValueError(
                f"strategy={self.strategy.name.value} divides the matrices that finetune=lora adds to; "
                "use strategy=ddp, zero1, zero2, fsdp or hsdp"
            )

    def _check_budget(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(f"{name}={getattr(self, name)}" for name in given) or "none is set"
            raise ValueError(
                f"a run has exactly one budget: {said}; set one of {', '.join(BUDGETS)}, the others to null"
            )
        if getattr(self, given[0]) <= 0:
            raise ValueError(f"{given[0]}={getattr(self, given[0])} must be above 0")
        if self.budget_tokens is not None and self.budget_tokens < self.batch_tokens:
            raise ValueError(
                f"budget_tokens={self.budget_tokens} is less than one step of batch_tokens={self.batch_tokens}; "
                "raise the budget or lower batch_tokens"
            )

    def _check_lengths(self) -> None:
        if self.context_length > self.model.context_length:
            raise ValueError(
                f"data.context_length={self.data.context_length} is longer than "
                f"model.context_length={self.model.context_length}; lower the first or raise the second"
            )
        words, rows = self.tokenizer.known_vocab_size, self.model.vocab_size
        if words is not None and rows is not None:
            check_vocabulary(rows, words, self.tokenizer.kind)

    def _check_spread(self, devices: int | None) -> None:
        layout = self.strategy.layout(devices, self.trainer.num_nodes) if devices else Layout()
        tensor = layout.tensor
        if tensor > 1 and self.model.architecture == "encoder_decoder":
            raise ValueError(
                f"strategy={self.strategy.name.value} divides heads over {tensor} devices, and those of an "
                "encoder-decoder share biases of positions; use strategy=fsdp"
            )
        self._check_division(tensor)
        self._check_batch(layout.data)

    def _check_division(self, tensor: int) -> None:
        model = self.model
        divided = [
            ("attention", f"model.n_head={model.n_head}", model.n_head),
            ("attention", f"model.n_kv_head={model.kv_heads}", model.kv_heads),
        ]
        if model.n_expert is None:
            divided.append(("the feedforward", f"model.d_ff={model.ff_width}", model.ff_width))
        else:
            divided.append(("experts", f"model.n_expert={model.n_expert}", model.n_expert))
            if model.n_shared_expert:
                words = f"model.n_shared_expert={model.n_shared_expert} times model.d_ff={model.ff_width}"
                divided.append(("the shared experts", words, model.n_shared_expert * model.ff_width))
        common = gcd(*(size for _, _, size in divided))
        fits = " or ".join(str(n) for n in range(2, common + 1) if common % n == 0)
        for what, words, size in divided:
            if size % tensor:
                raise ValueError(
                    f"strategy={self.strategy.name.value} divides {what} over {tensor} devices, which "
                    f"{words} is no multiple of; "
                    + (f"use {fits} of them, or strategy=fsdp" if fits else "use strategy=fsdp")
                )

    def _check_batch(self, devices: int) -> None:
        length = self.context_length
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={self.micro_batch_size} must be at least 1, or null")
        unit = length * devices * (self.micro_batch_size or 1)
        if self.batch_tokens < 1 or self.batch_tokens % unit:
            below, above = self.batch_tokens // unit * unit, -(-max(self.batch_tokens, 1) // unit) * unit
            nearest = " or ".join(str(n) for n in (below, above) if n > 0)
            parts = [f"context_length={length}"]
            if self.micro_batch_size is not None:
                parts.append(f"micro_batch_size={self.micro_batch_size}")
            if devices > 1:
                parts.append(f"{devices} devices")
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not divisible by {unit} ({' x '.join(parts)}); "
                f"use batch_tokens={nearest}"
            )


def check_vocabulary(rows: int, words: int, kind: str) -> None:
    """Refuse a tokenizer with more words than the model has rows."""
    if words > rows:
        raise ValueError(
            f"tokenizer={kind} has {words:,} words and model.vocab_size={rows:,}; "
            "choose a smaller tokenizer, or set model.vocab_size=null to take the tokenizer's"
        )


def to_plain(value: object) -> object:
    """Dataclasses and enums as what YAML and JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain({f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
