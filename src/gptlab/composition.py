"""Hydra: overrides and YAML in, a checked `RunConfig` out."""

import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gptlab import plugins
from gptlab.config import ALTERNATIVES, RunConfig
from gptlab.errors import UserError, did_you_mean
from gptlab.registry import GROUPS, variants
from gptlab.training.config import OWNED

CONF = "gptlab.conf"
OPTIONAL = ("experiment", "debug")  # groups of which nothing has to be chosen

# Other code bases' names for ours, where spelling alone would not find them.
FOREIGN = {
    "n_embd": "model.d_model",
    "embed_dim": "model.d_model",
    "hidden_size": "model.d_model",
    "n_layers": "model.n_layer",
    "num_hidden_layers": "model.n_layer",
    "n_heads": "model.n_head",
    "num_attention_heads": "model.n_head",
    "num_key_value_heads": "model.n_kv_head",
    "intermediate_size": "model.d_ff",
    "block_size": "model.context_length",
    "max_seq_len": "model.context_length",
    "max_position_embeddings": "model.context_length",
    "seq_len": "model.context_length",
    "n_ctx": "model.context_length",
    "tie_word_embeddings": "model.tie_embeddings",
    "num_experts": "model.n_expert",
    "num_local_experts": "model.n_expert",
    "num_experts_per_tok": "model.n_expert_per_token",
    "mlm_probability": "objective.mask_prob",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "grad_clip": "optimizer.grad_clip",
    "gradient_clip_val": "optimizer.grad_clip",
    "max_grad_norm": "optimizer.grad_clip",
    "batch_size": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "max_steps": "budget_steps",
    "max_iters": "budget_steps",
    "max_tokens": "budget_tokens",
    "epochs": "budget_tokens",
    "num_train_epochs": "budget_tokens",
    "max_epochs": "budget_tokens",
    "gpus": "trainer.devices",
    "devices": "trainer.devices",
    "eval_interval": "trainer.val_check_interval",
    "warmup_iters": "schedule.warmup_steps",
    "lr_scheduler_type": "schedule",
    "min_lr": "schedule.min_lr_ratio",
    "dtype": "trainer.precision",
    "lora_r": "finetune.rank",
    "lora_rank": "finetune.rank",
    "lora_alpha": "finetune.alpha",
    "lora_dropout": "finetune.dropout",
    "target_modules": "finetune.target_modules",
    "out_dir": "run_dir",
    "output_dir": "run_dir",
}

_registered: dict[tuple[str, str], type] = {}  # the schemas that Hydra has

# Keys that hold text of any kind, which Hydra's grammar would take apart.
TEXT_KEYS = ("resume", "run_dir", "data.path", "data.prompt", "data.response", "callbacks.sample.prompt")


def compose(*overrides: str, config_dir: str | Path | None = None, plugins: Sequence[str] = ()) -> RunConfig:
    """The config of `gptlab train` with these overrides, checked.

    `config_dir` is a folder with presets of your own, `plugins` names modules that register components. UserError for
    an unknown key or preset and for a value that cannot work.
    """
    return resolve(*_compose(overrides, config_dir, plugins))


def compose_plain(*overrides: str, config_dir: str | Path | None = None, plugins: Sequence[str] = ()) -> DictConfig:
    """The same unchecked, as an OmegaConf tree: what `--help` and `--cfg job` print."""
    config, _ = _compose(overrides, config_dir, plugins)
    return config


def _compose(
    overrides: Sequence[str], config_dir: str | Path | None, modules: Sequence[str]
) -> tuple[DictConfig, list[str]]:
    if config_dir is not None and not Path(config_dir).expanduser().is_dir():
        raise UserError(f"config_dir={config_dir} is no folder; name one that holds groups, such as model/")
    if isinstance(modules, str):
        modules = [modules]
    plugins.load([*plugins.named_in(overrides), *modules])
    refuse_unknown(overrides, config_dir)
    register_schemas(config_dir)
    typed = [for_hydra(override) for override in overrides]
    added = [] if config_dir is None else [f"hydra.searchpath=['file://{Path(config_dir).expanduser().absolute()}']"]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(CONF, version_base="1.3"):
            config = hydra.compose("config", overrides=[*typed, *added], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error
    settle(config, config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config, typed


def settle(config: DictConfig, choices: typing.Mapping[str, Any]) -> None:
    """Name the run by the presets that were chosen, where nothing else names it, and record its plugins."""
    if config.model_tag == "custom":
        config.model_tag = choices.get("experiment") or choices.get("model")
    if config.data_tag == "custom":
        config.data_tag = choices.get("data")
    for group in GROUPS:
        if not config[group].get("type"):
            advice = (
                "its recipe has to begin with defaults: [/optimizer: adamw, /schedule: cosine, _self_]"
                if group in ("optimizer", "schedule")
                else f"it has to name a schema, as /schema/{group}/NAME@{group} under defaults, and to begin with the "
                "line # @package _global_"
            )
            raise UserError(f"{group}={choices.get(group)}: the preset chooses no {group}; {advice}")
    homes = [variants(group)[config[group].type].__module__ for group in GROUPS]
    config.plugins = plugins.to_record(homes)


def preset_names(config_dir: str | Path | None = None) -> dict[str, list[str]]:
    """Each group of presets and the names in it, those of a user's own folder included."""
    found: dict[str, set[str]] = {}
    roots = [files(CONF), *([] if config_dir is None else [Path(config_dir).expanduser()])]
    for root in roots:
        for folder in root.iterdir() if root.is_dir() else ():
            names = (
                {file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml")} if folder.is_dir() else ()
            )
            if names:
                found.setdefault(folder.name, set()).update(names)
    return {group: sorted(names) for group, names in sorted(found.items())}


def register_schemas(config_dir: str | Path | None = None) -> None:
    """Give Hydra the types of the config, and models without a recipe of their own the default one."""
    store = ConfigStore.instance()
    schemas = {(f"schema/{group}", name): variant for group in GROUPS for name, variant in variants(group).items()}
    for (group, name), variant in schemas.items():
        if _registered.get((group, name)) is not variant:  # storing one takes milliseconds
            store.store(name, group=group, node=variant)
    if not _registered:
        store.store("run", group="schema", package="_global_", node=_root())
    _registered.update(schemas)
    presets = preset_names(config_dir)
    for name in set(presets["model"]) - set(presets["recipe"]):
        store.store(name, group="recipe", package="_global_", node={"defaults": ["default"]})


def _root() -> RunConfig:
    missing: dict[str, Any] = {group: "???" for group in GROUPS}
    return RunConfig(**missing)


def for_hydra(override: str) -> str:
    """An override as Hydra's grammar wants it, where that differs from what a person types."""
    if override.startswith("callbacks.extra."):  # names of other people's callbacks are new keys
        return f"++{override}"
    key, _, value = override.partition("=")
    if key == "plugins":  # one name needs no brackets
        return f"plugins=[{','.join(plugins.named_in([override]))}]"
    role = key.startswith("data.chat.")  # may be a new key, too
    free = (key in TEXT_KEYS or role) and value[:1] not in ("'", '"', "[")
    if free and re.search(r"[^\w./,*~-]|[^\x00-\x7f]", value):
        quoted = value.replace("'", "\\'")
        override = f"{key}='{quoted}'"
    return f"++{override}" if role else override


def resolve(config: DictConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """The composed config as a checked `RunConfig`; of alternatives the one among `overrides` counts."""
    given = {override.split("=")[0].lstrip("+") for override in overrides}
    for names in ALTERNATIVES:
        chosen = given & set(names)
        if len(chosen) == 1 and OmegaConf.select(config, *chosen) is not None:
            for name in set(names) - chosen:
                OmegaConf.update(config, name, None)
    try:
        found = OmegaConf.to_object(config)
    except AttributeError as error:  # a key added with `+` that the dataclass has no slot for
        raise UserError(f"{error}; keys cannot be added with +") from error
    except OmegaConfBaseException as error:
        raise UserError(explain(error, overrides)) from error
    assert isinstance(found, RunConfig)
    found.check()
    return found


def refuse_unknown(overrides: Iterable[str], config_dir: str | Path | None = None) -> None:
    """Answer a key or preset that does not exist with the nearest one that does."""
    overrides = list(overrides)
    presets, known = preset_names(config_dir), set(known_keys())
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~").split("@")[0]
        if key.startswith("hydra"):
            continue
        if not equals and not override.startswith("~"):
            raise UserError(f"{override} is not an override; write {override}=VALUE")
        if key in presets:
            for name in value.strip("[]").split(","):
                allowed = [*presets[key], "null"] if key in OPTIONAL else presets[key]
                if name and name not in allowed and not name.startswith(("glob(", "choice(")):
                    raise UserError(f"{key}={name} is not a preset{did_you_mean(name, presets[key])}")
        elif key.startswith("trainer.") and key.removeprefix("trainer.") in OWNED:
            raise UserError(f"{key} is decided by gptlab; use {OWNED[key.removeprefix('trainer.')]}")
        elif key.startswith("logger.") and key.count(".") == 2 and not _has_logger(key.split(".")[1], overrides):
            raise UserError(f"{key} belongs to a logger that is off; add logger={key.split('.')[1]}")
        elif key.endswith(".type") and key.removesuffix(".type") in presets:
            group = key.removesuffix(".type")
            raise UserError(f"{key} follows from the preset; choose one with {group}={value}")
        elif key not in known and not key.startswith(("callbacks.extra.", "data.chat.", "trainer.plugins.")):
            ours = FOREIGN.get(key.split(".")[-1])
            hint = f"; did you mean {ours}?" if ours else did_you_mean(key, sorted(known | set(presets)))
            raise UserError(f"unknown config key {key}{hint}")


def _has_logger(name: str, overrides: Sequence[str]) -> bool:
    # An experiment may turn a logger on as well: then Hydra itself answers.
    return any(o.split("=", 1)[0] in ("logger", "experiment") and (name in o or o.startswith("exp")) for o in overrides)


def known_keys() -> Iterator[str]:
    """Every dotted key that some choice of presets has."""
    yield from _keys_of(RunConfig, "")
    for group in GROUPS:
        for variant in variants(group).values():
            yield from _keys_of(variant, f"{group}.")


def _keys_of(kind: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        yield f"{prefix}{f.name}"
        for inner in (hints[f.name], *typing.get_args(hints[f.name])):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _keys_of(inner, f"{prefix}{f.name}.")


def explain(error: BaseException, overrides: Iterable[str]) -> str:
    """A library's message about the config, and what to type instead."""
    values = dict(o.lstrip("+~").split("=", 1) for o in overrides if "=" in o)
    links = [error]
    while (cause := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(cause)
    for link in links:
        key, reason = getattr(link, "full_key", None), str(link).split("\n")[0]
        if key in values:
            return _explain_value(key, values[key], reason)
    return " ".join(str(error).split())


def _explain_value(key: str, value: str, reason: str) -> str:
    group = key.split(".")[0]
    if " not in " in reason and group in GROUPS:
        owners = [name for name, variant in variants(group).items() if key in set(_keys_of(variant, f"{group}."))]
        return f"{key} does not belong to the chosen {group}; it is a key of {group}.type={' or '.join(owners)}"
    if "Integer" in reason and _is_whole_float(value):
        return f"{key}={value} must be a whole number; write {key}={int(float(value))}"
    if "expected one of [" in reason:
        allowed = reason.split("[")[1].rstrip("]").split(", ")
        return f"{key}={value} is none of {', '.join(allowed)}{did_you_mean(value, allowed)}"
    return f"{key}={value}: {reason}"


def _is_whole_float(value: str) -> bool:
    try:
        return float(value).is_integer()
    except ValueError:
        return False
