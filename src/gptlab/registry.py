"""One registration for every kind of component.

A config class registers itself under a group and a name. Hydra's schemas, a run's config.yaml and a checkpoint find it
by these two. Its `build` imports what it configures, so that reading a config needs the standard library alone.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import CellType
from typing import Any, TypeVar, dataclass_transform

import gptlab
from gptlab.errors import UserError, did_you_mean

GROUPS = ("model", "data", "tokenizer", "objective", "optimizer", "schedule")  # a run has one of each
KINDS = (*GROUPS, "filter")  # what can be registered; of filters a corpus has any number

_classes: dict[str, dict[str, type]] = {kind: {} for kind in KINDS}

T = TypeVar("T", bound=type)


@dataclass_transform(kw_only_default=True)
def register(group: str, name: str) -> Callable[[T], T]:
    """Make a class the config of `group=name`: a keyword-only dataclass with slots, whose `type` is the name.

    A name belongs to one class; the same class may be registered again, as when its module is reloaded.
    """

    def add(cls: T) -> T:
        cls.__annotations__ = {**inspect.get_annotations(cls), "type": str}
        cls.type = name
        config = dataclass(kw_only=True, slots=True)(cls)
        _repair_super(cls, config)
        known = _classes.get(group)
        if known is None:
            raise UserError(f"@register({group!r}, {name!r}): there is no such group; use one of {', '.join(KINDS)}")
        other = known.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"@register({group!r}, {name!r}) in {cls.__module__}: the name belongs to {other.__qualname__} of "
                f"{other.__module__}; choose another"
            )
        known[name] = config
        return config

    return add


def _repair_super(original: type, config: type) -> None:
    # A dataclass with slots is a new class, and `super()` in its methods still means the original one.
    for value in vars(config).values():
        function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        for cell in getattr(function, "__closure__", None) or ():
            if _content(cell) is original:
                cell.cell_contents = config


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


@cache
def _load_builtin() -> None:
    for module in pkgutil.walk_packages(gptlab.__path__, "gptlab."):
        if module.name.endswith(".config"):
            importlib.import_module(module.name)


def variants(group: str) -> dict[str, type]:
    """The config classes of a group by name, those of plugins included."""
    _load_builtin()
    return _classes[group]


def config_class(group: str, name: Any, where: str = "") -> type:
    """The config class of `group=name`; UserError where there is none. `where` names the file that asks for it."""
    found = variants(group).get(name)
    if found is None:
        prefix = f"{where}: " if where else ""
        raise UserError(
            f"{prefix}{group}.type={name} is unknown{did_you_mean(str(name), variants(group))}; "
            "if it comes from a plugin, name its module with plugins=[MODULE]"
        )
    return found
