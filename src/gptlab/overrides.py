"""Overrides as a person types them: how Hydra reads them, which keys exist, and what to type instead of a wrong one."""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from gptlab import plugins
from gptlab.config import RunConfig
from gptlab.errors import UserError, did_you_mean
from gptlab.registry import GROUPS, variants
from gptlab.training.config import OWNED
from gptlab.values import coerce

OPTIONAL = ("experiment", "debug", "logger")  # groups of which nothing has to be chosen
SEVERAL = ("logger",)  # groups of which several may be

# Keys that hold text of any kind, which Hydra's grammar would take apart.
TEXT_KEYS = ("name", "resume", "run_dir", "data.path", "data.prompt", "data.response", "callbacks.sample.prompt")

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


def for_hydra(override: str) -> str:
    """An override as Hydra's grammar wants it, where that differs from what a person types."""
    if override.startswith("callbacks.extra."):  # names of other people's callbacks are new keys
        return f"++{override}"
    key, _, value = override.partition("=")
    if key == "plugins":  # one name needs no brackets
        return f"plugins=[{','.join(plugins.named_in([override]))}]"
    role = key.startswith("data.chat.")  # may be a new key, too
    free = (key in TEXT_KEYS or role) and value[:1] not in ("'", '"', "[")
    if free and re.search(r"[^\w./,*-]|[^\x00-\x7f]", value):
        # Within quotes a backslash means itself, except before a quote.
        quoted = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), value)
        override = f"{key}='{quoted}'"
    return f"++{override}" if role else override


def as_typed(override: str) -> str:
    """The reverse of `for_hydra`, for an override that is shown."""
    key, _, value = override.lstrip("+").partition("=")
    if (key in TEXT_KEYS or key.startswith("data.chat.")) and len(value) > 1 and value[0] == value[-1] == "'":
        value = re.sub(r"(\\+)('|$)", lambda found: len(found[1]) // 2 * "\\" + found[2], value[1:-1])
    return f"{key}={value}" if value else override


def refuse_unknown(overrides: Sequence[str], presets: Mapping[str, Sequence[str]]) -> None:
    """Answer a key or preset that does not exist with the nearest one that does; `presets` are each group's names."""
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~").split("@")[0]
        if key.startswith("hydra"):
            continue
        if override.startswith("-"):
            raise UserError(f"{override} is not an override KEY=VALUE; options belong to the command gptlab train")
        if not key:
            raise UserError(f"{override} has no key; write KEY=VALUE")
        if override.startswith("~") and key in OPTIONAL and not equals:
            continue
        if override.startswith("~") and key not in OPTIONAL:
            instead = f"choose one with {key}=NAME" if key in presets else f"use {key}=null where it may be left out"
            raise UserError(f"{override}: a run needs {key}; {instead}")
        if not equals:
            raise UserError(f"{override} is not an override; write {override}=VALUE")
        if key in presets:
            _refuse_preset(key, value, presets[key])
        elif key.startswith("trainer.") and key.removeprefix("trainer.") in OWNED:
            raise UserError(f"{key} is decided by gptlab; use {OWNED[key.removeprefix('trainer.')]}")
        elif key.startswith("logger.") and key.count(".") == 2 and not _has_logger(key.split(".")[1], overrides):
            raise UserError(f"{key} belongs to a logger that is off; add logger={key.split('.')[1]}")
        elif key.endswith(".type") and key.removesuffix(".type") in presets:
            group = key.removesuffix(".type")
            raise UserError(f"{key} follows from the preset; choose one with {group}={value}")
        elif not key.startswith(("callbacks.extra.", "data.chat.")):
            refuse_unknown_key(key, presets)
            for part in _above(key):
                if f"{part}=null" in overrides:
                    raise UserError(f"{key} has no effect with {part}=null; leave one of them out")


def refuse_unknown_key(key: str, presets: Iterable[str] = ()) -> None:
    """Answer a key that no config has with the nearest one."""
    known = dict(key_types())
    if key not in known:
        raise UserError(f"unknown config key {key}{_nearest(key, [*known, *presets])}")


def _above(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _refuse_preset(group: str, value: str, names: Sequence[str]) -> None:
    if value[:1] == "[" and group not in SEVERAL:
        swept = value.strip("[]").replace(" ", "")
        raise UserError(f"{group}={value}: a run has one {group}; to run each in turn write -m {group}={swept}")
    if value.startswith("glob(") or (value == "[]" and group in SEVERAL):
        return
    if value == "null" and group in OPTIONAL:
        raise UserError(f"{group}=null: no {group} is the default; leave it out")
    chosen = re.sub(r"^(choice|shuffle|sort)\(|[()\[\]\s'\"]", "", value)  # Hydra's functions of a sweep
    for name in chosen.split(","):
        if name not in names:
            raise UserError(f"{group}={name} is not a preset{did_you_mean(name, names)}")


def _nearest(key: str, known: Iterable[str]) -> str:
    ours = FOREIGN.get(key.split(".")[-1])
    return f"; did you mean {ours}?" if ours else did_you_mean(key, sorted(known))


def _has_logger(name: str, overrides: Sequence[str]) -> bool:
    # An experiment may turn a logger on as well: then Hydra itself answers.
    return any(o.split("=", 1)[0] in ("logger", "experiment") and (name in o or o.startswith("exp")) for o in overrides)


def key_types() -> Iterator[tuple[str, Any]]:
    """Every dotted key that some choice of presets has, with its type."""
    yield from _keys_of(RunConfig, "")
    for group in GROUPS:
        for variant in variants(group).values():
            yield from _keys_of(variant, f"{group}.")


@cache
def _keys_of(kind: type, prefix: str) -> tuple[tuple[str, Any], ...]:
    found: list[tuple[str, Any]] = []
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        found.append((f"{prefix}{f.name}", hints[f.name]))
        for inner in (hints[f.name], *typing.get_args(hints[f.name])):
            if isinstance(inner, type) and is_dataclass(inner):
                found += _keys_of(inner, f"{prefix}{f.name}.")
    return tuple(found)


def explain(error: BaseException, overrides: Iterable[str]) -> str:
    """A library's message about the config, and what to type instead."""
    values = dict(o.lstrip("+~").split("=", 1) for o in overrides if "=" in o)
    links = [error]
    while (cause := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(cause)
    text = " ".join(str(error).split())
    if isinstance(error, AssertionError):  # of OmegaConf, about a key below null
        return "a key is set whose group is null; leave it out, or choose what it belongs to, such as logger=wandb"
    for link in links:
        key, reason = getattr(link, "full_key", None), str(link).split("\n")[0]
        if key in values:
            return _explain_value(key, values[key], reason)
        if key and (preset := re.match(r"In '([^']+)': ", text)):
            wrong = re.search(r"[Vv]alue '(.*?)'", reason)
            value = None if wrong is None else wrong[1].replace("None", "null")
            return f"{preset[1]}.yaml: {_explain_value(key, value, reason)}"
    if several := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.", text):
        key, value = several.groups()
        listed = f"; for a list write {key}=[{value}]" if _is_list(dict(key_types()).get(key)) or key in SEVERAL else ""
        return f"{key}={value} is several values; to run each in turn write -m {key}={value}{listed}"
    unread = [(key, value) for key, value in values.items() if value and value in text]
    if unread and "See https://hydra.cc" in text:
        ((key, value), *_) = unread
        return f"{key}={value} cannot be read; quote the value: {key}='\"{value}\"'"
    if missing := re.match(r"In '[^']+': Could not (?:load|find) '((?!schema/)[^']*)'", text):
        return f"{missing[1]} is not a preset, and a preset that was chosen names it under defaults"
    if missing := re.match(r"In '([^']+)': Could not (?:load|find) 'schema/(\w+)/([^']*)'", text):
        preset, group, name = missing.groups()
        return (
            f"{preset}.yaml: no {group} is registered as {name}{did_you_mean(name, variants(group))}; "
            "if it comes from a plugin, add plugins=[MODULE]"
        )
    return text


def _explain_value(key: str, value: str | None, reason: str) -> str:
    group = key.split(".")[0]
    types = dict(key_types())
    if " not in " in reason and key in ("experiment", "debug", "recipe"):
        return f"{key}/{value}.yaml has to begin with the line # @package _global_ and to hold config keys"
    if " not in " in reason and key not in types:
        return f"unknown config key {key}{_nearest(key, types)}"
    if " not in " in reason and group in GROUPS:
        owners = [name for name, variant in variants(group).items() if key in dict(_keys_of(variant, f"{group}."))]
        return f"{key} does not belong to the chosen {group}; it is a key of {group}.type={' or '.join(owners)}"
    wrong = re.search(r"[Vv]alue '(.*?)'", reason)
    if value is not None and "," in value and wrong:  # of a sweep
        value = wrong[1]
    if value is not None and key in types:
        try:
            coerce(key, value, types[key])
        except UserError as refused:
            return str(refused)
        except TypeError:  # a type that has no values on a command line
            pass
    return f"{key}={value}: {reason}" if value is not None else f"{key}: {reason}"


def _is_list(hint: Any) -> bool:
    return any(typing.get_origin(kind) in (list, tuple) for kind in (hint, *typing.get_args(hint)))
