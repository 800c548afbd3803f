"""The words `key=value` of a command, read by their types."""

import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

import yaml

from gptlab.errors import UserError, did_you_mean


def read(words: list[str], hints: Mapping[str, Any], of: str) -> dict[str, Any]:
    """The values that `words` give.

    `hints` has the type of each word that there is, and `of` says in errors whose words they are. A `list` is a word
    that may be said several times; a `tuple` is written in brackets, as [0,1,5], or is one value alone. null is None
    where the type has it. ValueError for a word that there is not, with the nearest that there is, and for a value of
    another type.
    """
    said: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if key not in hints:
            raise UserError(f"{key} is not a word of {of}{did_you_mean(key, hints)}")
        if not sign:
            raise UserError(f"{key} needs a value; write {key}=...")
        if typing.get_origin(hints[key]) is list:
            (kind,) = typing.get_args(hints[key])
            said.setdefault(key, []).append(_one(key, value, kind))
        elif key in said:
            raise UserError(f"{key}= is said twice; say it once")
        else:
            said[key] = _value(key, value, hints[key])
    return said


def _value(key: str, value: str, hint: Any) -> Any:
    kinds = list(typing.get_args(hint)) if isinstance(hint, types.UnionType) else [hint]
    if types.NoneType in kinds:
        kinds.remove(types.NoneType)
        if value == "null":
            return None
    plain = [kind for kind in kinds if typing.get_origin(kind) is not tuple]
    if len(plain) < len(kinds):
        (several,) = (typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is tuple)
        if value.startswith("["):
            return tuple(_one(key, item, several) for item in _items(key, value))
        if not plain:
            return (_one(key, value, several),)
    (kind,) = plain
    return _one(key, value, kind)


def _items(key: str, value: str) -> list[str]:
    try:
        items = yaml.load(value, yaml.BaseLoader)  # makes text of every value, and nothing but text, lists and mappings
    except yaml.YAMLError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UserError(f'{key}={value} is not a list of values; write {key}=[one,two], or {key}=["one, too",two]')
    return items


def _one(key: str, value: str, kind: type) -> Any:
    if issubclass(kind, Enum):
        allowed = [member.value for member in kind]
        if value not in allowed:
            raise UserError(f"{key}={value} is unknown{did_you_mean(value, allowed)}")
        return kind(value)
    if kind is bool:
        if value not in ("true", "false"):
            raise UserError(f"{key}={value} must be true or false")
        return value == "true"
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{key}={value} must be a {'whole number' if kind is int else 'number'}") from None
