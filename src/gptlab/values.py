"""One coercion of values: text of a command line, or plain values of JSON and YAML, to the types of config fields."""

import types
import typing
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from gptlab import quoting
from gptlab.errors import UserError, did_you_mean
from gptlab.fields import shown
from gptlab.registry import GROUPS, config_class

C = TypeVar("C")

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def coerce(key: str, value: Any, hint: Any) -> Any:
    """`value` with the type that `hint` asks for; UserError names `key`, the value and what is allowed.

    `hint` is an Enum, bool, int, float, str, a list or tuple of these, or a union of them with None. Text is parsed:
    `null` is None where the type has it, and a list is written as [a,b] or is one value alone. Text that stands for
    text is never parsed. Plain values keep their type, but an int may stand for a float.
    """
    kinds = list(typing.get_args(hint)) if typing.get_origin(hint) in (types.UnionType, typing.Union) else [hint]
    if types.NoneType in kinds:
        kinds.remove(types.NoneType)
        if value is None or value == "null":
            return None
    sequences = [kind for kind in kinds if typing.get_origin(kind) in (list, tuple)]
    single = [kind for kind in kinds if kind not in sequences]
    if sequences and (isinstance(value, list | tuple) or not single or (isinstance(value, str) and value[:1] == "[")):
        return _sequence(key, value, sequences[0])
    for kind in single[:-1]:
        try:
            return _single(key, value, kind)
        except UserError:  # a later type of the union may hold it
            pass
    return _single(key, value, single[-1])


def _sequence(key: str, value: Any, kind: Any) -> Any:
    found = quoting.items(value) if isinstance(value, str) and value[:1] == "[" else value
    if found is None:
        raise UserError(f'{key}={value} is not a list of values; write {key}=[one,two], or {key}=["one, too",two]')
    if not isinstance(found, list | tuple):
        found = [found]
    return typing.get_origin(kind)(_single(key, item, typing.get_args(kind)[0]) for item in found)


def _single(key: str, value: Any, kind: type) -> Any:
    if issubclass(kind, Enum):
        allowed = [member.value for member in kind]
        plain = value.value if isinstance(value, kind) else value
        if plain not in allowed:
            raise UserError(f"{key}={shown(value)} is unknown{did_you_mean(str(value), map(str, allowed))}")
        return kind(plain)
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, str):
        if kind is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    hint = f"; write {key}={int(number)}" if kind is int and (number := _whole(value)) is not None else ""
    raise UserError(f"{key}={shown(value)} must be {NAMES.get(kind, kind.__name__)}{hint}")


def _whole(value: Any) -> float | None:
    """The number that a value such as 1e6 stands for, where it is whole."""
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        return None
    return number if number is not None and number.is_integer() else None


def from_plain(kind: type[C], plain: Mapping[str, Any], key: str = "", where: Path | str = "") -> C:
    """A config dataclass, unchecked, of plain values as JSON and YAML hold them; missing keys have their defaults.

    `key` is where it stands in the run's config; `where` names the file for messages. UserError for an unknown key or
    a value of another type.
    """
    hints = typing.get_type_hints(kind)
    start, prefix = f"{where}: " if where else "", f"{key}." if key else ""
    for name in plain:
        if name not in hints:
            raise UserError(
                f"{start}unknown config key {prefix}{name}, of another version of gptlab{did_you_mean(name, hints)}"
            )
    return kind(**{name: _typed(value, hints[name], f"{prefix}{name}", where) for name, value in plain.items()})


def _typed(value: Any, hint: Any, key: str, where: Path | str) -> Any:
    start = f"{where}: " if where else ""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    for kind in options:
        if kind is Any or typing.get_origin(kind) is dict or Any in typing.get_args(kind):  # checked by its config
            return value
        if is_dataclass(kind) and isinstance(kind, type):
            if not isinstance(value, Mapping):
                raise UserError(f"{start}{key}={shown(value)} must be a mapping of keys to values")
            found = config_class(key, value.get("type"), str(where)) if key in GROUPS else kind
            return from_plain(found, value, key, where)
    return coerce(f"{start}{key}", value, hint)
