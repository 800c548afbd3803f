"""Modules that register components of their own: named by the user, never by a file from elsewhere.

A plugin is named on the command line (`plugins=[MODULE]`), in the environment variable GPTLAB_PLUGINS, by an installed
package's entry point of the group `gptlab.plugins`, or as an argument from Python. A run folder records its plugins;
reading it imports none of them.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from gptlab.errors import UserError

VARIABLE = "GPTLAB_PLUGINS"
ENTRY_POINTS = "gptlab.plugins"

_loaded: list[str] = []
_named: set[str] = set()  # of these, those that the user named for this process


def named_in(overrides: Iterable[str]) -> list[str]:
    """The modules that an override `plugins=[a,b]` or `plugins=a` names."""
    found: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") == "plugins":
            names = [name.strip("'\" ") for name in value.strip("[]").split(",")]
            found += [name for name in names if name not in ("", "null")]
    return found


def load(names: Sequence[str] = ()) -> None:
    """Import installed plugins, those of GPTLAB_PLUGINS and those named; each once."""
    named = [*filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))), *names]
    _named.update(named)
    for name in [*_installed(), *named]:
        if name not in _loaded:
            _import(name)
            _loaded.append(name)


def to_record(modules: Iterable[str]) -> list[str]:
    """The plugins that a run depends on whose components come from `modules`: those, and all that were named."""
    homes = [f"{module}." for module in modules]
    return [name for name in _loaded if name in _named or any(home.startswith(f"{name}.") for home in homes)]


def require(names: Iterable[str], where: Path | str) -> None:
    """Refuse a file that was made with plugins which nobody named in this process."""
    load()
    missing = [name for name in names if name not in _loaded]
    if missing:
        given = f"[{','.join(missing)}]"
        raise UserError(
            f"{where} needs the plugins {', '.join(missing)}, and gptlab imports no module because a file names it; "
            f"if you trust them, add plugins={given}, or set {VARIABLE}={','.join(missing)}"
        )


@cache
def _installed() -> tuple[str, ...]:
    return tuple(entry.module for entry in entry_points(group=ENTRY_POINTS))


def _import(name: str) -> None:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # a console script does not look in the working directory, and a plugin often lies there
    try:
        if not name.strip(".") or name.startswith("."):
            raise ModuleNotFoundError(name=name)
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"plugins={name} imports {error.name}, which is not installed here; install it, or leave the plugin out"
            ) from error
        raise UserError(
            f"plugins={name}: there is no module of that name in {here} or among the installed packages; write the "
            "name as in an import, without .py"
        ) from None
    except Exception as error:
        error.add_note(f"while importing plugins={name}")
        raise
