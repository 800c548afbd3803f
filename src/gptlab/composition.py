"""Hydra: overrides and YAML in, a checked `RunConfig` out."""

import math
import re
import typing
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gptlab import plugins
from gptlab.config import ALTERNATIVES, RunConfig
from gptlab.data.config import DataConfig, Packing, RunDataConfig
from gptlab.data.mixture.config import MixtureConfig, source_config
from gptlab.errors import UserError, did_you_mean
from gptlab.fields import shown
from gptlab.overrides import (
    OF_MIXTURES,
    as_typed,
    epochs_in,
    explain,
    for_hydra,
    holds_text,
    key_of,
    refuse_of_hydra,
    refuse_unknown,
)
from gptlab.quoting import quote
from gptlab.registry import GROUPS, variants

CONF = "gptlab.conf"

_registered: dict[tuple[str, str], type] = {}  # the schemas that Hydra has


def compose(*overrides: str, config_dir: str | Path | None = None, plugins: Sequence[str] = ()) -> RunConfig:
    """The config of `gptlab train` with these overrides, checked.

    `config_dir` is a folder with presets of your own, `plugins` names modules that register components. UserError for
    an unknown key or preset and for a value that cannot work.
    """
    return resolve(*_compose(overrides, config_dir, plugins))


def compose_plain(*overrides: str, config_dir: str | Path | None = None, plugins: Sequence[str] = ()) -> DictConfig:
    """The same unchecked, as an OmegaConf tree: what `--help` prints."""
    config, _ = _compose(overrides, config_dir, plugins)
    return config


def compose_checked(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """The same tree, checked as for a run: what `--cfg job` prints."""
    config, typed = _compose(overrides, config_dir, ())
    resolve(config, typed)
    return config


def _compose(
    overrides: Sequence[str], config_dir: str | Path | None, modules: Sequence[str]
) -> tuple[DictConfig, list[str]]:
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"{override!r} is not an override; write each as text, as in compose('seed=1', 'name=x')")
    check_config_dir(config_dir, "config_dir")
    if isinstance(modules, str):
        modules = [modules]
    plugins.load([*plugins.named_in(overrides), *modules])
    refuse_of_hydra([override for override in overrides if key_of(override).startswith("hydra")], multirun=False)
    refuse_wrong(overrides, config_dir)
    register_schemas(config_dir)
    typed = [for_hydra(override) for override in overrides]
    added = _search_path(config_dir)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(CONF, version_base="1.3"):
            config = hydra.compose("config", overrides=[*typed, *added], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, AssertionError, UnicodeDecodeError) as error:
        raise UserError(explain(error, overrides)) from error
    settle(config, config.hydra.runtime.choices, config_dir)
    with open_dict(config):
        del config["hydra"]
    return config, typed


def refuse_wrong(overrides: Sequence[str], config_dir: str | Path | None) -> None:
    """Answer a key or preset that does not exist with what to type: a number of epochs with that of its tokens, where
    the text has been prepared before."""
    try:
        refuse_unknown(overrides, preset_names(config_dir))
    except UserError as error:
        asked = epochs_in(overrides)
        if asked is None:
            raise
        override, n_epochs = asked
        key = key_of(override)
        head, _, note = str(error).partition(", of a table ")
        head, _, note = head.partition("; did you mean budget_tokens?")
        known = _known_tokens([o for o in overrides if o != override], config_dir) if note and key in head else None
        if known is None:
            raise
        n_tokens, n_reads = known
        budget = f"budget_tokens={math.ceil(n_epochs * n_tokens * n_reads)}"
        has = f"{n_tokens:,}" + ("" if n_reads == 1 else f", each read {n_reads:.3g} times by windows that overlap")
        raise UserError(f"{head}; did you mean {budget}?{note}, which has {has}") from None


def _known_tokens(overrides: Sequence[str], config_dir: str | Path | None) -> tuple[int, float] | None:
    """The tokens of the training split, and how often an epoch reads each; None where they are not known."""
    from gptlab.data.prepare import known_tokens
    from gptlab.forecast import reads_per_epoch

    with suppress(UserError, OSError):  # which the user meets next, once this key is right
        config = compose(*overrides, config_dir=config_dir)
        data = config.data
        if isinstance(data, DataConfig) and data.packed is Packing.stream and data.max_sequences is None:
            n_tokens = known_tokens(data, config.tokenizer)
            return None if n_tokens is None else (n_tokens, reads_per_epoch(config))
    return None


def check_config_dir(config_dir: str | Path | None, name: str) -> None:
    """Refuse a folder of presets that is not there; `name` is what the user typed it for."""
    if config_dir is not None and not (str(config_dir) and Path(config_dir).expanduser().is_dir()):
        raise UserError(f"{name}={config_dir} is not a folder; name one that holds groups, such as model/")


def settle(config: DictConfig, choices: typing.Mapping[str, Any], config_dir: str | Path | None = None) -> None:
    """Name the run by the presets that were chosen, where nothing else names it, and record its plugins.

    UserError where a preset of `config_dir` does not say what it seems to.
    """
    if config_dir is not None:
        for group, chosen in choices.items():
            for name in chosen if isinstance(chosen, Sequence) and not isinstance(chosen, str) else [chosen]:
                _check_preset(Path(config_dir).expanduser(), group, str(name))
    if variants("data").get(config.data.get("type")) is MixtureConfig:
        _open_sources(config.data.sources, config_dir)
    if config.model_tag == "custom":
        config.model_tag = choices.get("experiment") or choices.get("model")
    if config.data_tag == "custom":
        config.data_tag = choices.get("data")
    for group in GROUPS:
        if OmegaConf.is_missing(config, group) or not config[group].get("type"):
            chooser = "recipe" if group in ("optimizer", "schedule") else group
            under = f"/schema/{group}/NAME@{group}" if chooser == group else f"/{group}: NAME"
            raise UserError(
                f"{chooser}={choices.get(chooser)}: the preset chooses no {group}; it has to begin with the line "
                f"# @package _global_ and to have {under} under defaults"
            )
    homes = [variants(group)[config[group].type].__module__ for group in GROUPS]
    config.plugins = plugins.to_record(homes)


def _open_sources(sources: DictConfig, config_dir: str | Path | None) -> None:
    """Give each source of a mixture, which names a preset and values beside it, its whole config."""
    presets = preset_names(config_dir)["data"]
    for name, given in typing.cast(dict, OmegaConf.to_container(sources, resolve=True)).items():
        key = f"data.sources.{name}"
        if not isinstance(given, dict) or ("type" in given and "preset" not in given):
            continue  # no source, as its check says, or a whole config, as --cfg job prints it
        preset = given.pop("preset", None)
        if preset is None:
            raise UserError(f"{key} names no preset; choose one, as {key}=text does, and in a YAML preset: text")
        if preset not in presets:
            raise UserError(f"{key}={preset} is not a preset{did_you_mean(str(preset), presets)}")
        # A preset of one's own may be edited in a session; those of gptlab stay.
        found = _data_preset(preset) if config_dir is None else _data_of(preset, config_dir)
        base = OmegaConf.to_object(found)
        assert isinstance(base, RunDataConfig)
        sources[str(name)] = OmegaConf.structured(source_config(str(name), base, given))


@cache
def _data_preset(preset: str) -> DictConfig:
    return _data_of(preset, None)


def _data_of(preset: str, config_dir: str | Path | None) -> DictConfig:
    """The data config that a preset composes, also while Hydra itself runs the command."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module(CONF, version_base="1.3"):
            return hydra.compose("config", overrides=[f"data={preset}", *_search_path(config_dir)]).data
    finally:
        if running is not None:
            GlobalHydra.instance().initialize(running)


def _search_path(config_dir: str | Path | None) -> list[str]:
    if config_dir is None:
        return []
    return [f"hydra.searchpath=[{quote(f'file://{Path(config_dir).expanduser().absolute()}')}]"]


def _check_preset(folder: Path, group: str, name: str) -> None:
    """Refuse numbers where a text is meant, which YAML makes of 1.10 or on, and ??? for a value."""
    group, _, package = group.partition("@")
    file = folder / group / f"{name}.yaml"
    if not file.is_file():  # one of gptlab
        return
    source = file.read_text(encoding="utf-8")
    header = re.search(r"^#\s*@package\s+(\S+)", source, re.MULTILINE)
    package = package or (header[1] if header else "_group_")
    start = package.replace("_group_", group.replace("/", ".")).replace("_name_", name)
    read, written = OmegaConf.to_container(OmegaConf.create(source)), yaml.load(source, yaml.BaseLoader)
    _check_values(read, written, "" if start == "_global_" else start, f"{group}/{name}.yaml", folder)


def _check_values(read: Any, written: Any, key: str, where: str, folder: Path) -> None:
    """`read` is what YAML makes of it, `written` the text in the file."""
    if isinstance(read, dict) and isinstance(written, dict):
        for name, value in read.items():
            text = written.get(str(name))  # None for what a merge key brings in
            if name != "defaults" or key:
                _check_values(value, text, f"{key}.{name}" if key else str(name), where, folder)
            for relative in value if name == "defaults" and not key and isinstance(value, list) else ():
                if isinstance(relative, str) and relative != "_self_":  # another preset of the same folder, or /group/x
                    home, _, preset = relative.rpartition("/")
                    _check_preset(folder, home.strip("/") or where.rpartition("/")[0], preset)
    elif isinstance(read, list) and isinstance(written, list):
        for value, text in zip(read, written, strict=True):
            _check_values(value, text, key, where, folder)
    elif read == "???":
        raise UserError(f"{where}: {key}: ??? is no value; give one, or leave the key out to keep the default")
    elif isinstance(read, bool | int | float) and holds_text(key):
        kind = "truth value" if isinstance(read, bool) else "number"
        raise UserError(
            f"{where}: {key} is text, and YAML reads {written} as the {kind} {shown(read)}; quote it: "
            f'{key.rpartition(".")[2]}: "{written}"'
        )


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
    for name in presets["recipe"]:  # of another folder's model, stored by an earlier call
        store.repo.get("recipe", {}).pop(f"{name}.yaml", None)
    for name in set(presets["model"]) - set(presets["recipe"]):
        store.store(name, group="recipe", package="_global_", node={"defaults": ["default"]})


def _root() -> RunConfig:
    missing: dict[str, Any] = {group: "???" for group in GROUPS}
    return RunConfig(**missing)


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
    except AttributeError as error:  # a key that the dataclass has no slot for, added with `+` or below data.chat
        (name,) = re.findall(r"attribute '(\w+)'", str(error)) or [str(error)]
        added = next((key for key in sorted(given) if name in key.split(".")), name)
        if f"data.{name}" in OF_MIXTURES:
            raise UserError(
                f"{as_typed(added).rstrip('=')} is a key of a mixture; add data=mixture, or leave it out"
            ) from error
        raise UserError(f"{added} is not a key of the chosen presets; see --cfg job for those that are") from error
    except OmegaConfBaseException as error:
        raise UserError(explain(error, overrides)) from error
    assert isinstance(found, RunConfig)
    found.check()
    return found
