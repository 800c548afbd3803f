"""Config schema: a whole run, and the checks that need more than one of its parts."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from hashlib import sha256
from json import dumps
from math import gcd
from pathlib import Path
from typing import Any

from gptlab import plugins
from gptlab.data.config import Packing, RunDataConfig, TargetKind
from gptlab.data.sources.config import SHUFFLE_SHARDS, StdlibConfig, TableConfig
from gptlab.data.tokenizers.config import BPEConfig, TokenizerConfig
from gptlab.distributed.config import TENSOR_PARALLEL, Layout, Sharding, StrategyConfig
from gptlab.errors import UserError, refuse_password
from gptlab.fields import bounded, check_bounds, shown
from gptlab.files import is_address
from gptlab.models.config import Capability, ModelConfig
from gptlab.models.decoder.config import SCALING_KEYS, DecoderConfig
from gptlab.objectives.config import CausalLMConfig, ObjectiveConfig
from gptlab.steps import Steps
from gptlab.training.config import (
    DECAYS,
    FLOAT8,
    WARMUPS,
    AdamWConfig,
    CallbacksConfig,
    CosineConfig,
    FinetuneConfig,
    Finetuning,
    LoggersConfig,
    OptimizerConfig,
    ScheduleConfig,
    SpikeAction,
    TrainerConfig,
)
from gptlab.values import from_plain

MAX_NAME_BYTES = 255  # of a file or folder, on most file systems
BUDGETS = ("budget_tokens", "budget_steps", "tokens_per_parameter")

# Keys of which one at most counts: the one on the command line replaces the preset's.
ALTERNATIVES = (
    BUDGETS,
    tuple(f"schedule.{name}" for name in WARMUPS),
    tuple(f"schedule.{name}" for name in DECAYS),
)

ANY = "*"  # of every type
# Keys that came after there were runs, by group ("": of the run itself) and type: the value at which a run learns what
# it did without them, and what stood there then (None: nothing). So a run goes on under its name.
LATER: dict[tuple[str, str, str], tuple[Any, Any]] = {
    ("data", ANY, "filters"): ({}, None),
    **{("model", "decoder", key): (None, None) for key in SCALING_KEYS},
    ("model", ANY, "parametrization"): ("standard", None),
    **{("model", ANY, key): (None, None) for key in ("base_d_model", "base_n_layer", "base_d_head")},
    ("model", "decoder", "rope_type"): ("default", None),
    ("model", "decoder", "token_shift"): (False, None),
    ("tokenizer", "bpe", "pattern"): ("gpt2", None),
    ("data", "shards", "shuffle_shards"): (None, None),
    ("data", "shards", "cache_gib"): (16.0, None),
    ("data", "text", "text_column"): ("text", None),
    ("data", "text", "extensions"): ([], [".txt", ".md", ".py", ".gz"]),
    ("", ANY, "batch_warmup"): ([], None),
    ("", ANY, "length_warmup"): ([], None),
    ("data", ANY, "packing"): (None, None),
    ("data", ANY, "attention"): ("sequence", None),
    ("data", ANY, "boundary_targets"): (True, None),
}

# Where and how a run is carried out and shown, but not what is learned.
NOT_IN_RUN_ID = (
    "name",
    "run_dir",
    "resume",
    "plugins",
    "model_tag",
    "data_tag",
    "strategy",
    "logger",
    "callbacks",
    "micro_batch_size",
    "eval_train",
    "data.n_workers",
    "data.n_processes",
    "data.cache_dir",
    "data.max_epochs",  # of mixtures: a limit, which changes nothing
)


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything that a run depends on. `gptlab.compose()` gives the defaults of `gptlab train`, presets included."""

    model: ModelConfig = field(default_factory=DecoderConfig)
    data: RunDataConfig = field(default_factory=StdlibConfig)
    tokenizer: TokenizerConfig = field(default_factory=BPEConfig)
    objective: ObjectiveConfig = field(default_factory=CausalLMConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    logger: LoggersConfig = field(default_factory=LoggersConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)

    batch_tokens: int = 8192  # target tokens of one optimizer step, over all devices
    micro_batch_size: int | None = bounded(None, ge=1)  # sequences per device and forward pass; null: all of them
    batch_warmup: list[Any] = field(
        default_factory=list
    )  # [[tokens, batch_tokens], ...]: up to so many tokens of the run
    length_warmup: list[Any] = field(default_factory=list)  # [[tokens, length], ...], likewise: sequences in parts
    budget_tokens: int | None = bounded(None, gt=0)  # exactly one of the three budgets
    budget_steps: int | None = bounded(None, gt=0)
    tokens_per_parameter: float | None = bounded(None, gt=0)
    eval_train: bool = False  # at each validation, also the training split, in eval mode
    seed: int = bounded(1337, ge=0, le=2**32 - 1)
    name: str | None = None  # null: <model_tag>-<data_tag>-<run id>
    model_tag: str = "custom"  # the model's or experiment's preset, as the run folder shows it
    data_tag: str = "custom"  # likewise the data's
    run_dir: str | None = None  # null: runs/<name>
    resume: str | None = "auto"  # auto: continue what the run folder holds; a path; null: refuse to overwrite
    plugins: list[str] = field(default_factory=list)  # modules that registered components of this run

    @property
    def context_length(self) -> int:
        """Target tokens of one sequence."""
        return self.data.context_length or self.model.context_length

    @property
    def sequences_per_step(self) -> int:
        """Those of a step after the warmup of the batch."""
        return self.batch_tokens // self.context_length

    @property
    def steps(self) -> Steps:
        """The sizes of all steps."""
        return Steps.of(self.context_length, self.batch_tokens, self.batch_warmup, self.length_warmup)

    @property
    def n_class(self) -> int | None:
        """Classes that the model has a head for; None where it has none."""
        if TargetKind.label not in self.objective.target_kinds:
            return None
        data = self.data.first
        assert isinstance(data, TableConfig), "a config whose source has records extends TableConfig"
        return len(data.class_names)

    def identity_fields(self) -> dict:
        """All that decides what is learned, as plain values."""
        return as_before(_of_identity(to_plain(self)))

    def run_id(self) -> str:
        """Eight hex digits of `identity_fields`."""
        return sha256(dumps(self.identity_fields(), sort_keys=True).encode()).hexdigest()[:8]

    def folder(self) -> str:
        """Where everything about this run is kept."""
        if self.run_dir is not None:
            return str(Path(self.run_dir).expanduser())
        return f"runs/{self.name or f'{self.model_tag}-{self.data_tag}-{self.run_id()}'}"

    def check(self, devices: int | None = None) -> None:
        """Refuse what cannot work, before any work.

        `devices` is the number over all nodes; None where only the machine can tell it.
        """
        check_bounds(self)
        for key, value in _texts(to_plain(self)):
            refuse_password(key, value)
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
            self.logger,
            self.callbacks,
        ):
            part.check()
        self.objective.check_model(self.model)
        self.objective.check_data(self.data)
        self.optimizer.check_model(self.model)
        if self.data.packed is Packing.best_fit and Capability.causal not in self.model.capabilities:
            raise UserError(
                f"data.packing=best_fit puts several examples into a sequence, of which a model of model.type="
                f"{self.model.type} reads one at a time; use a decoder, or leave it out"
            )
        if self.data.by_document and Capability.document_ids not in self.model.capabilities:
            raise UserError(
                f"data.attention=document needs a model with document_ids, and one of model.type={self.model.type} "
                "lacks it; use a decoder, or data.attention=sequence"
            )
        self._check_sample()
        if self.finetune.type is not Finetuning.full:
            self._check_finetune()
        for name in ("run_dir", "name", "resume"):
            if getattr(self, name) == "":
                raise UserError(f"{name}= is empty; give a name, or leave it out")
        for part in Path(self.folder()).parts:
            if len(os.fsencode(part)) > MAX_NAME_BYTES:
                key = "name" if self.run_dir is None else "run_dir"
                raise UserError(f"{key}={part} is too long: a folder's name has at most {MAX_NAME_BYTES} bytes")
        if self.resume not in ("auto", None) and not Path(self.resume).expanduser().exists():
            if self.resume.lower() in ("true", "false"):
                instead = "auto, the default, to continue" if self.resume.lower() == "true" else "null to refuse"
                raise UserError(f"resume={self.resume} is read as a path; use resume={instead} what the folder holds")
            raise UserError(
                f"resume={self.resume} does not exist; name a checkpoint such as runs/NAME/checkpoints/last.ckpt"
            )
        if self.eval_train and not self.data.has_validation:
            raise UserError("eval_train=true evaluates at each validation; set data.val_fraction above 0")
        self._check_spikes()
        if self.trainer.precision == "16-mixed" and self.strategy.type not in (Sharding.auto, Sharding.ddp):
            raise UserError(
                f"trainer.precision=16-mixed scales losses, which strategy={self.strategy.type.value} does not "
                "support; use trainer.precision=bf16-mixed, or strategy=ddp"
            )
        if self.trainer.precision == FLOAT8:
            self._check_float8()
        self._check_lengths()
        self._check_warmups()
        self._check_budget()
        per_node = self.trainer.device_count()
        if devices is None and per_node is not None:
            devices = per_node * self.trainer.num_nodes
        layout = self.strategy.layout(devices, self.trainer.num_nodes) if devices else Layout()
        if layout.tensor > 1:
            self._check_tensor_parallel(layout.tensor)
        self._check_batch(layout.data)

    def _check_float8(self) -> None:
        if self.strategy.type in TENSOR_PARALLEL:
            raise UserError(
                f"trainer.precision={FLOAT8} scales whole channels of a matrix, which "
                f"strategy={self.strategy.type.value} shards; use trainer.precision=bf16-mixed, or strategy=fsdp"
            )
        if self.finetune.type is Finetuning.lora:
            raise UserError(
                f"trainer.precision={FLOAT8} does not reach layers with adapters, which finetune=lora makes; "
                "use trainer.precision=bf16-mixed, or finetune=full"
            )

    def _check_spikes(self) -> None:
        action = self.callbacks.spike.action
        if action is SpikeAction.skip and self.trainer.precision == "16-mixed":
            raise UserError(
                "callbacks.spike.action=skip and trainer.precision=16-mixed, whose loss scaling skips updates by "
                "itself; use trainer.precision=bf16-mixed, or callbacks.spike.action=rollback"
            )
        if action is SpikeAction.rollback and not self.trainer.enable_checkpointing:
            raise UserError(
                "callbacks.spike.action=rollback needs checkpoints and trainer.enable_checkpointing=false turns them "
                "off; leave that out, or use callbacks.spike.action=skip"
            )

    def _check_sample(self) -> None:
        sample = self.callbacks.sample
        if sample is not None and sample.prompt is not None and not self.objective.continues:
            raise UserError(
                f"callbacks.sample.prompt={sample.prompt} is for models that continue a text, and "
                f"objective={self.objective.type} shows its own examples; leave it out"
            )

    def _check_finetune(self) -> None:
        mode = self.finetune.type
        if self.model.init_from is None:
            raise UserError(
                f"finetune={mode.value} trains a part of a pretrained model, and the rest of this one would "
                "stay random; set model.init_from to weights to start from, or use finetune=full"
            )
        if mode is Finetuning.lora and self.strategy.type in (Sharding.tp, Sharding.fsdp_tp):
            raise UserError(
                f"strategy={self.strategy.type.value} shards the matrices that finetune=lora adds to; "
                "use strategy=ddp, zero1, zero2, fsdp or hsdp"
            )

    def _check_budget(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"{name}={getattr(self, name)}" for name in given) or "none is set"
            raise UserError(
                f"a run has exactly one budget: {found}; set one of {', '.join(BUDGETS)}, the others to null"
            )
        first = min([self.batch_tokens, *(tokens for _, tokens in self.batch_warmup[:1])])
        if self.budget_tokens is not None and self.budget_tokens < first:
            what = "batch_warmup" if self.batch_warmup else "batch_tokens"
            raise UserError(
                f"budget_tokens={self.budget_tokens} is less than one step of {what}={first}; "
                f"raise the budget or lower {what}"
            )

    def _check_lengths(self) -> None:
        if self.context_length > self.model.context_length:
            raise UserError(
                f"data.context_length={self.data.context_length} is longer than "
                f"model.context_length={self.model.context_length}; lower the first or raise the second"
            )
        known, own = self.tokenizer.known_vocab_size, self.model.vocab_size
        if known is not None and own is not None:
            check_vocabulary(own, known, self.tokenizer.type)

    def _check_warmups(self) -> None:
        for key, what, full in (
            ("batch_warmup", "tokens a step", self.batch_tokens),
            ("length_warmup", "tokens a sequence", self.context_length),
        ):
            points = getattr(self, key)
            if not all(_is_point(point) for point in points):
                raise UserError(
                    f"{key}={shown(points)} is no list of points; write {key}=[[100000,{max(1, full // 4)}],"
                    f"[200000,{max(1, full // 2)}]]: the first {what} up to 100,000 tokens of the run, then the second "
                    f"up to 200,000, then {full}"
                )
            if sorted({until for until, _ in points}) != [until for until, _ in points]:
                raise UserError(f"{key}={shown(points)}: the tokens of its points must increase")
            sizes = [size for _, size in points] + [full]
            if sorted(sizes) != sizes:
                last = "batch_tokens" if key == "batch_warmup" else "the context length"
                raise UserError(f"{key}={shown(points)}: its sizes must not fall, nor exceed {last}, {full}")
        for _, length in self.length_warmup:
            if self.context_length % length:
                fits = [n for n in range(1, self.context_length + 1) if self.context_length % n == 0]
                below, above = max(n for n in fits if n < length), min(n for n in fits if n > length)
                raise UserError(
                    f"length_warmup: a length of {length} does not divide the context length {self.context_length}; "
                    f"use {below} or {above}"
                )
        if self.length_warmup and not self.objective.shortens:
            raise UserError(
                f"length_warmup cuts sequences of text, and objective={self.objective.type} learns from other "
                "examples; leave it out"
            )
        if (self.batch_warmup or self.length_warmup) and self.callbacks.spike.action is SpikeAction.rollback:
            raise UserError(
                "callbacks.spike.action=rollback leaves out whole steps, whose sizes batch_warmup and length_warmup "
                "change; use callbacks.spike.action=skip"
            )

    def _check_tensor_parallel(self, tensor: int) -> None:
        strategy = self.strategy.type.value
        dims = self.model.tensor_parallel_dims()
        if dims is None:
            raise UserError(
                f"strategy={strategy} shards matrices over {tensor} devices, which a model of "
                f"model.type={self.model.type} does not support; use strategy=fsdp"
            )
        common = gcd(*dims.values())
        fits = " or ".join(str(n) for n in range(2, common + 1) if common % n == 0)
        for key, size in dims.items():
            if size % tensor:
                raise UserError(
                    f"strategy={strategy} shards the model over {tensor} devices, of which {key} is no multiple; "
                    + (f"use {fits} of them, or strategy=fsdp" if fits else "use strategy=fsdp")
                )

    def _check_batch(self, devices: int) -> None:
        for tokens in (self.batch_tokens, *(size for _, size in self.batch_warmup)):
            self._check_step(tokens, devices)

    def _check_step(self, tokens: int, devices: int) -> None:
        length = self.context_length
        unit = length * devices * (self.micro_batch_size or 1)
        if tokens < 1 or tokens % unit:
            below, above = tokens // unit * unit, -(-max(tokens, 1) // unit) * unit
            nearest = " or ".join(str(n) for n in (below, above) if n > 0)
            parts = [f"context_length={length}"]
            if self.micro_batch_size is not None:
                parts.append(f"micro_batch_size={self.micro_batch_size}")
            if devices > 1:
                parts.append(f"{devices} devices")
            if tokens != self.batch_tokens:
                raise UserError(
                    f"batch_warmup: a step of {tokens} tokens is not divisible by {unit} ({' x '.join(parts)}); "
                    f"use {nearest}"
                )
            raise UserError(
                f"batch_tokens={tokens} is not divisible by {unit} ({' x '.join(parts)}); use batch_tokens={nearest}"
            )


def _is_point(point: Any) -> bool:
    """Whether it is a pair of whole numbers above 0."""
    return (
        isinstance(point, list | tuple)
        and len(point) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in point)
    )


def check_vocabulary(vocab_size: int, tokenizer_size: int, tokenizer: str) -> None:
    """Refuse a tokenizer with more tokens than the model's vocabulary."""
    if tokenizer_size > vocab_size:
        raise UserError(
            f"tokenizer={tokenizer} has a vocabulary of {tokenizer_size:,} and model.vocab_size={vocab_size:,}; "
            "choose a smaller tokenizer, or set model.vocab_size=null to use the tokenizer's"
        )


def _without_place(shards: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    shards.pop("cache_gib", None)
    address = shards.get("path")
    if not isinstance(address, str) or not is_address(address):
        return
    if tokenizer.get("path") == f"{address}/tokenizer.json":
        tokenizer["path"] = None
    shards["path"] = None
    if shards.get("shuffle_shards") is None and shards.get("shuffle", True):
        shards["shuffle_shards"] = SHUFFLE_SHARDS


def as_before(plain: dict[str, Any]) -> dict[str, Any]:
    """The config as it was written before there were the keys of `LATER`, where none of them has an effect.

    It does not say from where token shards are fetched: their content is compared by itself.
    """
    for node in _nodes(plain, "data"):
        if node.get("type") == "shards":
            _without_place(node, plain.get("tokenizer") or {})
    for (group, kind, key), (unused, before) in LATER.items():
        for node in _nodes(plain, group):
            if kind in (ANY, node.get("type")) and key in node and node[key] == unused:
                if before is None:
                    del node[key]
                else:
                    node[key] = before
    return plain


def with_later(plain: dict[str, Any]) -> dict[str, Any]:
    """The config with each key of `LATER` that applies to it; one that is missing is unused."""
    for (group, kind, key), (unused, before) in LATER.items():
        for node in _nodes(plain, group):
            if kind in (ANY, node.get("type")):
                node.setdefault(key, unused if before is None else before)
    return plain


def _nodes(plain: dict[str, Any], group: str) -> Iterator[dict[str, Any]]:
    """The configs of a group ("": the run's own keys): one, and of a mixture those of its sources too."""
    node = plain.get(group) if group else plain
    if isinstance(node, dict):
        yield node
        sources = node.get("sources")
        yield from (source for source in (sources or {}).values() if isinstance(source, dict))


def to_plain(value: Any) -> Any:
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


def _texts(plain: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a plain config, with their keys."""
    if isinstance(plain, str):
        yield path, plain
    elif isinstance(plain, dict):
        for key, value in plain.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(plain, list):
        for value in plain:
            yield from _texts(value, path)


def run_differences(now: Mapping[str, Any], then: Mapping[str, Any], keys: Sequence[str] | None = None) -> str:
    """Where two runs would learn something else, by their plain configs: below `keys` (None: those of `now`), as text.

    Empty where they would not. Either may be as it was before there were the keys of `LATER`.
    """
    now, then = (with_later(as_before(_of_identity(copy.deepcopy(dict(plain))))) for plain in (now, then))
    return differences(now, then, tuple(now) if keys is None else keys)


def _of_identity(plain: dict[str, Any]) -> dict[str, Any]:
    """A plain config without what decides only where and how a run is carried out and shown."""
    plain["trainer"] = {"precision": plain.get("trainer", {}).get("precision")}
    for key in NOT_IN_RUN_ID:
        *groups, last = key.split(".")
        node = plain
        for group in groups:
            node = node.get(group, {})
        node.pop(last, None)
    return plain


def differences(now: Any, then: Any, keys: Sequence[str]) -> str:
    """Where two plain configs differ below `keys`, as text; empty where they do not. A missing key is None."""

    def leaves(a: Any, b: Any, path: str) -> Iterator[str]:
        nodes = [node if isinstance(node, dict) else {} for node in (a, b)]
        if any(nodes):
            for key in nodes[0] | nodes[1]:
                yield from leaves(nodes[0].get(key), nodes[1].get(key), f"{path}.{key}")
        elif a != b:
            yield f"{path} was {b} and is {a}"

    def at(tree: Any, dotted: str) -> Any:
        for key in dotted.split("."):
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree

    found = [text for key in keys for text in leaves(at(now, key), at(then, key), key)]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def config_from_plain(plain: Mapping[str, Any], where: Path | str = "") -> RunConfig:
    """The config that `to_plain` made plain, unchecked; keys that are missing have their defaults.

    `where` names the file for messages. UserError for an unknown key, for a value of another type, and where a plugin
    of the run was not named in this process.
    """
    plugins.require(plain.get("plugins") or (), where)
    return from_plain(RunConfig, plain, where=where)
