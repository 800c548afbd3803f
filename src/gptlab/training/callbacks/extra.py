"""Other people's Lightning callbacks, which a config names by `_target_`."""

import importlib
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback

from gptlab.errors import UserError


def build_extra(extra: Mapping[str, Any]) -> list[Callback]:
    """The callbacks of `callbacks.extra`, each `{_target_: module.Class, ...arguments}`; UserError where one is not
    there or does not take its arguments."""
    found = []
    for name, options in extra.items():
        key = f"callbacks.extra.{name}"
        if not isinstance(options, Mapping) or not options.get("_target_"):
            raise UserError(f"{key} has no class; set {key}._target_=module.Class")
        arguments = {argument: value for argument, value in options.items() if argument != "_target_"}
        kind = _locate(str(options["_target_"]), key)
        try:
            callback = kind(**arguments)
        except TypeError as error:
            raise UserError(f"{key}: {options['_target_']} does not take these arguments: {error}") from error
        if not isinstance(callback, Callback):
            raise UserError(f"{key}._target_={options['_target_']} is no Lightning callback")
        found.append(callback)
    return found


def _locate(target: str, key: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            f"{key}._target_={target} does not exist; write it as in an import, module and class, such as "
            "lightning.pytorch.callbacks.Timer"
        ) from None
