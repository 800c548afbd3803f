"""Overrides as a person types them: how Hydra reads them, which keys exist, and what to type instead of a wrong one."""

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from hashlib import sha256
from typing import Any

from gptlab import plugins, quoting
from gptlab.config import RunConfig
from gptlab.data.curation.config import filter_class, filter_options
from gptlab.errors import UserError, did_you_mean, refuse_password
from gptlab.evaluation.config import EVALUATIONS, probe_options
from gptlab.registry import GROUPS, variants
from gptlab.training.config import OWNED, PRECISION_NAMES
from gptlab.values import coerce

OPTIONAL = ("experiment", "debug", "logger", "filters")  # groups of which nothing has to be chosen
SEVERAL = ("logger", "filters")  # groups of which several may be

# Keys of Hydra that do nothing here, and what does.
OF_HYDRA = {
    "hydra.run.dir": "name the run's folder with name=NAME or run_dir=DIR",
    "hydra.sweep.subdir": "a trial's folder is named by what differs; name the sweep's folder with name=NAME",
    "hydra.mode": "write -m for a sweep",
    "hydra.job.chdir": "a run stays in the working directory; name its folder with run_dir=DIR",
}
OF_SWEEPS = ("sweep", "launcher")  # as in hydra.sweep.dir, hydra.sweeper.max_batch_size and hydra/launcher

FUNCTION = re.compile(r"(choice|shuffle|sort|range|glob|interval|tag)\((.*)\)", re.DOTALL)  # of Hydra, in a sweep
OPTION = re.compile(r"(list|sweep|reverse|shuffle)=")  # of such a function
OF_MIXTURES = ("data.sources", "data.weights", "data.schedule", "data.max_epochs")  # with an entry for each source
SOURCES, *OF_SOURCES = (f"{key}." for key in OF_MIXTURES)  # how the keys of entries begin, before the source's name
FILTERS = "data.filters."  # likewise those of filters
OF_FILTER = re.compile(r"(?:data\.|data\.sources\.[^.]+\.)filters\.([^.]+)(?:\.(.*))?")  # its name, and an option
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
SOURCE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
MAX_TRIAL_BYTES = 200  # of a trial's folder name, less than a file system takes

# Other code bases' names for our keys, where spelling alone would not find them; what comes after "; " is said as well.
EPOCHS = (
    "budget_tokens; a run is counted in tokens: {value} epochs are {value} times the tokens of the training split, of "
    "a table {value} times its examples x context_length, and the plan says how many epochs a budget is"
)
ACCUMULATION = "micro_batch_size; accumulation steps are batch_tokens / (context length x micro_batch_size x devices)"
STEP = "batch_tokens; it is the tokens of a step over all devices, and micro_batch_size the sequences at a time on each"
FOREIGN = {
    # shapes
    "n_embd": "model.d_model",
    "embed_dim": "model.d_model",
    "hidden_size": "model.d_model",
    "n_layers": "model.n_layer",
    "num_hidden_layers": "model.n_layer",
    "n_heads": "model.n_head",
    "num_attention_heads": "model.n_head",
    "num_key_value_heads": "model.n_kv_head",
    "n_query_groups": "model.n_kv_head",
    "intermediate_size": "model.d_ff",
    "block_size": "model.context_length",
    "max_seq_len": "model.context_length",
    "max_seq_length": "model.context_length",
    "max_position_embeddings": "model.context_length",
    "seq_len": "model.context_length",
    "seq_length": "model.context_length",
    "n_ctx": "model.context_length",
    "tie_word_embeddings": "model.tie_embeddings",
    "num_experts": "model.n_expert",
    "num_local_experts": "model.n_expert",
    "num_experts_per_tok": "model.n_expert_per_token",
    "model_name_or_path": "model.init_from",
    "checkpoint_dir": "model.init_from",
    "initial_checkpoint_dir": "model.init_from",
    "weights": "model.init_from",
    # data and objective
    "dataset": "data",
    "dataset_name": "data.dataset",
    "train_file": "data.path",
    "data_dir": "data.path",
    "num_workers": "data.n_workers",
    "dataloader_num_workers": "data.n_workers",
    "mlm_probability": "objective.mask_prob",
    # optimizer and schedule
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "optim": "optimizer",
    "parametrization": "model.parametrization",
    "mup": "model.parametrization",
    "mup_base_width": "model.base_d_model",
    "mup_width_multiplier": "model.base_d_model; the ratio follows from it and model.d_model",
    "grad_clip": "optimizer.grad_clip",
    "gradient_clip_val": "optimizer.grad_clip",
    "max_grad_norm": "optimizer.grad_clip",
    "max_norm": "optimizer.grad_clip",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.eps",
    "warmup_iters": "schedule.warmup_steps",
    "warmup_steps": "schedule.warmup_steps",
    "num_warmup_steps": "schedule.warmup_steps",
    "lr_warmup_steps": "schedule.warmup_steps",
    "warmup_ratio": "schedule.warmup_fraction",
    "lr_decay_iters": "schedule.decay_steps",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "decay_lr": "schedule; schedule=constant has no decay",
    "min_lr": "schedule.min_lr_ratio; it is a fraction of optimizer.lr",
    # batch and budget
    "batch_size": STEP,
    "global_batch_size": STEP,
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": ACCUMULATION,
    "accumulate_grad_batches": ACCUMULATION,
    "grad_accum_steps": ACCUMULATION,
    "max_steps": "budget_steps",
    "max_iters": "budget_steps",
    "num_steps": "budget_steps",
    "max_tokens": "budget_tokens",
    "epochs": EPOCHS,
    "budget_epochs": EPOCHS,
    "n_epochs": EPOCHS,
    "num_epochs": EPOCHS,
    "num_train_epochs": EPOCHS,
    "max_epochs": EPOCHS,
    # hardware
    "gpus": "trainer.devices",
    "n_gpus": "trainer.devices",
    "n_gpu": "trainer.devices",
    "devices": "trainer.devices",
    "device": "trainer.accelerator",
    "dtype": "trainer.precision",
    "precision": "trainer.precision",
    "mixed_precision": "trainer.precision",
    "fp16": "trainer.precision=16-mixed",
    "bf16": "trainer.precision=bf16-mixed",
    "amp": "trainer.precision=bf16-mixed",
    "fp8": "trainer.precision=fp8-mixed",
    "float8": "trainer.precision=fp8-mixed",
    "compile": "strategy.compile",
    "torch_compile": "strategy.compile",
    "fsdp": "strategy=fsdp",
    "ddp": "strategy=ddp",
    "deepspeed": "strategy=fsdp; it shards as ZeRO-3 does, and strategy=zero2 and zero1 as ZeRO-2 and ZeRO-1 do",
    "gradient_checkpointing": "strategy.activation_checkpointing=full",
    # evaluation, saving, logging
    "eval_interval": "trainer.val_check_interval",
    "eval_steps": "trainer.val_check_interval",
    "eval_iters": "trainer.limit_val_batches",
    "log_interval": "trainer.log_every_n_steps",
    "logging_steps": "trainer.log_every_n_steps",
    "save_steps": "callbacks.checkpoint.every_steps",
    "save_interval": "callbacks.checkpoint.every_steps",
    "save_total_limit": "callbacks.checkpoint.keep_last",
    "resume_from_checkpoint": "resume",
    "ckpt_path": "resume",
    "wandb": "logger=wandb",
    "use_wandb": "logger=wandb",
    "wandb_log": "logger=wandb",
    "report_to": "logger",
    "wandb_project": "logger.wandb.project",
    "wandb_run_name": "logger.wandb.name",
    "run_name": "name",
    "exp_name": "name",
    "experiment_name": "name",
    "out_dir": "run_dir",
    "output_dir": "run_dir",
    "random_seed": "seed",
    # fine-tuning
    "lora_r": "finetune.rank",
    "lora_rank": "finetune.rank",
    "lora_alpha": "finetune.alpha",
    "lora_dropout": "finetune.dropout",
    "target_modules": "finetune.target_modules",
    # samples
    "do_sample": "callbacks.sample.temperature; 0 is greedy decoding",
}


def key_of(override: str) -> str:
    """The key that an override sets or, with a ~, leaves out."""
    return override.partition("=")[0].lstrip("+~")


def for_hydra(override: str, *, multirun: bool = False) -> str:
    """An override as Hydra's grammar wants it, where that differs from what a person types.

    A key of type text gets what was typed, whatever it looks like; in a list or a mapping of texts every one does. With
    `multirun` commas and Hydra's functions stand between the values of a sweep.
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if (name.startswith(tuple(OF_SOURCES)) or name in OF_MIXTURES) and not key.startswith("~"):
        return f"++{name}={value}"
    if name.startswith(SOURCES) and name.count(".") == 2 and not key.startswith("~"):
        return f"++{name}.preset={value}"
    if key.startswith("callbacks.extra."):  # names of other people's callbacks are new keys
        return f"++{override}"
    if name == "plugins":  # one name needs no brackets
        return f"{key}=[{','.join(plugins.named_in([override]))}]"
    hint = _text_hint(name)
    if hint is None or not equals or key.startswith("~"):
        return f"++{override}" if key.startswith((EVALUATIONS, SOURCES, FILTERS)) else override
    values = _swept(value) if multirun else [value]
    found = [_function_for_hydra(name, one, hint) if multirun else _value_for_hydra(name, one, hint) for one in values]
    new = _is_entry(name) or name.startswith((EVALUATIONS, SOURCES, FILTERS))
    return f"{'++' if new else key[: -len(name)]}{name}={','.join(found)}"


def as_typed(override: str) -> str:
    """The reverse of `for_hydra`, for an override that is shown."""
    key, _, value = override.lstrip("+").partition("=")
    if key.startswith(SOURCES) and key.endswith(".preset") and key.count(".") == 3:
        return f"{key.removesuffix('.preset')}={value}"
    hint = _text_hint(key)
    if hint is None or not value:
        return override.lstrip("+") if key.startswith(OF_MIXTURES) else override
    texts = quoting.items(value) if _is_list(hint) else None
    typed = quoting.unquote(value) if texts is None else quoting.listed(texts)
    return f"{key}={typed}" if _value_for_hydra(key, typed, hint) == _value_for_hydra(key, value, hint) else override


def swept_keys(overrides: Iterable[str]) -> set[str]:
    """The keys to which overrides of a sweep give several values, in a list or by one of Hydra's functions."""
    pairs = [(key_of(override), override.partition("=")[2]) for override in overrides]
    return {key for key, value in pairs if len(_swept(value)) > 1 or FUNCTION.fullmatch(value)}


def trial_name(overrides: Iterable[str]) -> str:
    """The name of the folder of a trial with these overrides, which differ from those of other trials.

    Every file system takes it: other characters are replaced, and a long name is shortened. Then it ends in a hash.
    """
    # Hydra puts a backslash before a colon and such, and keeps quotes.
    typed = [
        as_typed(o)
        if holds_text(key_of(o)) or key_of(o).startswith(SOURCES)
        else re.sub(r"\\(?=\W)|'", "", o.lstrip("+"))
        for o in overrides
    ]
    name = ",".join(typed)
    short = re.sub(r'[<>:"/\\|?*$\x00-\x1f\x7f]', "_", name).encode()[:MAX_TRIAL_BYTES].decode(errors="ignore")
    return name if short == name else f"{short[: MAX_TRIAL_BYTES // 2]}-{sha256(name.encode()).hexdigest()[:8]}"


def holds_text(key: str) -> bool:
    """Whether the key's value is text, or texts in a list or a mapping, with all presets."""
    return _text_hint(key) is not None


def _swept(value: str) -> list[str]:
    found = quoting.split(value)
    return found if len(found) > 1 else [value]


def _function_for_hydra(key: str, value: str, hint: Any) -> str:
    """A value of a sweep, where a function of Hydra may stand; its own options stay as they are."""
    if (call := FUNCTION.fullmatch(value)) is None:
        return _value_for_hydra(key, value, hint)
    name, inner = call.groups()
    if name not in ("choice", "shuffle", "sort"):  # the others take numbers or names of presets
        return value
    parts = quoting.split(inner)
    return f"{name}({','.join(p if OPTION.match(p) else _function_for_hydra(key, p, hint) for p in parts)})"


def _value_for_hydra(key: str, value: str, hint: Any) -> str:
    if value == "null" and (types.NoneType in typing.get_args(hint) or hint is not str):
        return value
    if _is_list(hint) and (value[:1] == "[" or str not in _kinds(hint)):
        if value[:1] != "[" and (not value or len(quoting.split(value)) > 1):
            return value  # several values without brackets, which Hydra refuses
        return f"[{','.join(map(_text_for_hydra, coerce(key, value, list[str])))}]"
    if dict[str, str] in _kinds(hint) and (found := quoting.entries(value)) is not None:
        return f"{{{','.join(f'{name}: {_text_for_hydra(text)}' for name, text in found.items())}}}"
    if str not in _kinds(hint):
        return value
    text = quoting.unquote(value)
    if text == "???":
        raise UserError(f"{key}=??? is Hydra's sign of a value that is still missing, which no text can be")
    return quoting.quote(text) if text == "null" else _text_for_hydra(text)


def _text_for_hydra(text: str) -> str:
    return text if quoting.is_plain(text) else quoting.quote(text)


def _text_hint(key: str) -> Any:
    """The type of a key that holds text, or texts, with all presets; None for any other key."""
    hints = [hint for name, hint in key_types() if name == key] or ([str] if _is_entry(key) else [])
    if key.startswith(EVALUATIONS):  # whose names are the user's
        hints = [
            hint
            for option, hint in probe_options().items()
            if option == key.removeprefix(EVALUATIONS).partition(".")[2]
        ]
    if found := OF_FILTER.fullmatch(key):
        hints = filter_options().get(found[2] or "", [])
    elif key.startswith(SOURCES):
        option = key.removeprefix(SOURCES).partition(".")[2]
        hints = [hint for known, hint in _source_options() if known == option] + [str] * option.startswith("chat.")
    found = {tuple(_kinds(hint)): hint for hint in hints}
    textual = all(kind in (str, list[str], tuple[str, ...], dict[str, str]) for kinds in found for kind in kinds)
    return next(iter(found.values())) if len(found) == 1 and textual else None


def _source_options() -> list[tuple[str, Any]]:
    """The keys of the config of some source, with their types."""
    return [found for variant in variants("data").values() for found in _keys_of(variant, "")]


def _refuse_of_mixture(key: str, value: str, presets: Sequence[str]) -> None:
    """Answer an entry of a mixture that cannot be one."""
    if key in OF_MIXTURES:
        if quoting.entries(value) is None and value[:1] != "{":
            raise UserError(f"{key}={value} has to say of which source; write {key}.NAME={value}")
        return
    owner = next(owner for owner in OF_MIXTURES if key.startswith(f"{owner}."))
    name, dot, option = key.removeprefix(f"{owner}.").partition(".")
    if not SOURCE_NAME.fullmatch(name):
        raise UserError(
            f"{key}: the name of a source is part of its metrics; use letters, digits, _ and -, and begin with no digit"
        )
    if owner != OF_MIXTURES[0]:
        if dot:
            raise UserError(f"unknown config key {key}; write {owner}.NAME, with a name without dots")
        return
    known = {option for variant in variants("data").values() if "build" in dir(variant) for option in _options(variant)}
    if not option:
        return _refuse_preset(key, value, presets)
    if option == "type":
        raise UserError(f"{key} follows from the preset; choose one with {SOURCES}{name}={value}")
    if beside := [owner for owner in OF_MIXTURES[1:] if owner.rpartition(".")[2].rstrip("s") == option.rstrip("s")]:
        raise UserError(f"unknown config key {key}; it stands beside the sources: write {beside[0]}.{name}={value}")
    if option not in (*known, "preset") and not option.startswith("chat."):
        raise UserError(
            f"unknown config key {key}: {option} is no key of a source{did_you_mean(option, sorted(known))}; a source "
            f"is named in {SOURCES}NAME=PRESET, without dots"
        )


def _options(variant: type) -> set[str]:
    return {name for name, _ in _keys_of(variant, "")} - {"type"}


def _is_entry(key: str) -> bool:
    """Whether the key is one of a mapping of texts, which may be a new one."""
    return any(dict[str, str] in _kinds(hint) for name, hint in key_types() if name == key.rpartition(".")[0])


def _kinds(hint: Any) -> list[Any]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return [kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not types.NoneType]


def refuse_unknown(overrides: Sequence[str], presets: Mapping[str, Sequence[str]]) -> None:
    """Answer a key or preset that does not exist with the nearest one that does; `presets` are each group's names."""
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~").split("@")[0]
        refuse_password(key, value)  # before Hydra writes what was typed
        if key.startswith("hydra"):
            continue
        if override.startswith("-"):
            raise UserError(f"{override} is not an override KEY=VALUE; options belong to the command gptlab train")
        if not key:
            raise UserError(f"{override} has no key; write KEY=VALUE")
        if override.startswith("~") and key in OPTIONAL and not equals:
            continue
        if override.startswith("~") and key not in OPTIONAL:
            refuse_unknown_key(key, presets)
            instead = f"choose one with {key}=NAME" if key in presets else f"use {key}=null where it may be left out"
            raise UserError(f"{override}: a run needs {key}; {instead}")
        if not equals:
            raise UserError(f"{override} is not an override; write {override}=VALUE")
        if key in presets:
            _refuse_preset(key, value, presets[key])
        elif key.startswith("trainer.") and key.removeprefix("trainer.") in OWNED:
            option = key.removeprefix("trainer.")
            instead = _nearest(key, (), value) if option in FOREIGN else f"; use {OWNED[option]}"
            raise UserError(f"{key} is decided by gptlab{instead}")
        elif key.startswith("logger.") and key.count(".") == 2 and not _has_logger(key.split(".")[1], overrides):
            raise UserError(f"{key} belongs to a logger that is off; add logger={key.split('.')[1]}")
        elif key.endswith(".type") and key.removesuffix(".type") in presets:
            group = key.removesuffix(".type")
            raise UserError(f"{key} follows from the preset; choose one with {group}={value}")
        elif found := OF_FILTER.fullmatch(key):
            _refuse_filter(key, found[1], found[2], overrides)
        elif key in OF_MIXTURES or key.startswith((SOURCES, *OF_SOURCES)):
            _refuse_of_mixture(key, value, presets["data"])
        elif not key.startswith(("callbacks.extra.", EVALUATIONS, "data.chat.")):
            refuse_unknown_key(key, presets, value)
            for part in _above(key):
                if f"{part}=null" in overrides:
                    raise UserError(f"{key} has no effect with {part}=null; leave one of them out")


def _refuse_filter(key: str, name: str, option: str | None, overrides: Sequence[str]) -> None:
    """Answer an option of a filter that it does not have, and a filter that does not exist."""
    if option in (None, "type"):
        return  # checked with the config
    where = key.removesuffix(f".{option}")
    named = {override.partition("=")[2] for override in overrides if key_of(override) == f"{where}.type"}
    if named or name in variants("filter"):
        for one in named or {name}:
            known = [f.name for f in fields(filter_class(one, where)) if f.name != "type"]
            if option not in known:
                raise UserError(f"unknown config key {key}{did_you_mean(option, known)}")
    elif option not in filter_options():  # of a filter that a preset names
        raise UserError(f"unknown config key {key}{did_you_mean(option, sorted(filter_options()))}")


def epochs_in(overrides: Iterable[str]) -> tuple[str, float] | None:
    """The override that asks for a number of epochs, and the number; None where none does."""
    for override in overrides:
        key, value = key_of(override), override.partition("=")[2]
        if FOREIGN.get(key.split(".")[-1]) is EPOCHS and NUMBER.fullmatch(value):
            return override, float(value)
    return None


def refuse_of_hydra(overrides: Iterable[str], *, multirun: bool) -> None:
    """Answer a key of Hydra itself that has no effect on a run, or on one that is no sweep."""
    for key in map(key_of, overrides):
        if key in OF_HYDRA:
            raise UserError(f"{key} has no effect in gptlab; {OF_HYDRA[key]}")
        if not multirun and key.startswith(tuple(f"hydra{dot}{part}" for dot in "./" for part in OF_SWEEPS)):
            raise UserError(f"{key} is for the runs of a sweep; add -m, or leave it out")


def refuse_unknown_key(key: str, presets: Iterable[str] = (), value: str = "") -> None:
    """Answer a key that no config has with the nearest one; `value` is what was typed for it."""
    known = dict(key_types())
    if key not in known:
        raise UserError(f"unknown config key {key}{_nearest(key, [*known, *presets], value)}")


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


def _nearest(key: str, known: Iterable[str], value: str = "") -> str:
    theirs = FOREIGN.get(key) or FOREIGN.get(key.split(".")[-1])
    if theirs is None:
        return did_you_mean(key, sorted(known))
    said = value if NUMBER.fullmatch(value) else "N"
    ours, _, note = theirs.format(value=said).partition("; ")
    if ours == "trainer.precision" and value.lower() in PRECISION_NAMES:
        ours = f"{ours}={PRECISION_NAMES[value.lower()]}"
    return f"; did you mean {ours}?" + (f" {note[0].upper()}{note[1:]}" if note else "")


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
    values = dict(as_typed(o).lstrip("+~").split("=", 1) for o in overrides if "=" in o)
    links = [error]
    while (cause := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(cause)
    text = " ".join(str(error).split())
    if isinstance(error, AssertionError):  # of OmegaConf, about a key below null
        return "a key is set whose group is null; leave it out, or choose what it belongs to, such as logger=wandb"
    interpolated = [key for key, value in values.items() if "${" in value]
    if interpolated and any(re.match("GrammarParseError|.*Interpolation", type(link).__name__) for link in links):
        key, *_ = interpolated
        reason = next(str(link).split("\n")[0] for link in reversed(links) if str(link) not in ("", "None"))
        return f"{key}={values[key]}: {reason}; ${{KEY}} stands for another key's value, and \\${{ for the characters"
    for link in links:
        key, reason = getattr(link, "full_key", None), str(link).split("\n")[0]
        if key in values:
            return _explain_value(key, values[key], reason)
        if key and (preset := re.match(r"In '([^']+)': ", text)):
            wrong = re.search(r"[Vv]alue '(.*?)'", reason)
            value = None if wrong is None else wrong[1].replace("None", "null")
            return f"{preset[1]}.yaml: {_explain_value(key, value, reason)}"
    if absent := re.match(r"Interpolation key '([^']+)' not found full_key: (\S+)", text):
        return f"{absent[2]} is made of {absent[1]}, which is not there; give it a value, as {absent[2]}=VALUE"
    if several := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.", text):
        key, _, value = as_typed("=".join(several.groups())).partition("=")
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
    if " not in " in reason and key == FILTERS.rstrip("."):
        example = f"{SOURCES}NAME.filters.length.min_words=50"
        return f"filters are for one corpus; give them to the sources of a mixture, as {example}"
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
    return any(typing.get_origin(kind) in (list, tuple) for kind in _kinds(hint))
