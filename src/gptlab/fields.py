"""Bounds of config values as metadata of their fields, and the one check that reads them."""

import math
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from gptlab.errors import UserError

BOUNDS = "bounds"


@dataclass(frozen=True, slots=True)
class Bounds:
    """A range of numbers; None leaves a side open."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    hint: str = ""  # what to use instead

    def hold(self, value: float) -> bool:
        # Written so that nan is outside of every range.
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        low, high = (self.ge if self.gt is None else self.gt), (self.le if self.lt is None else self.lt)
        if high == math.inf:
            text = f"must be {'above' if self.ge is None else 'at least'} {low} and finite"
        elif low is not None and high is not None:
            text = f"is outside {'[' if self.gt is None else '('}{low}, {high}{']' if self.lt is None else ')'}"
        elif low is not None:
            text = f"must be at least {low}" if self.gt is None else f"must be above {low}"
        else:
            text = f"must be at most {high}" if self.lt is None else f"must be below {high}"
        return f"{text}; {self.hint}" if self.hint else text


def bounded(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    hint: str = "",
) -> Any:
    """A field whose value must lie in a range; None is always allowed where the type allows it."""
    return field(default=default, metadata={BOUNDS: Bounds(ge, gt, le, lt, hint)})


def check_bounds(config: Any, prefix: str = "") -> None:
    """Refuse a value outside its field's bounds, and an infinite number in a field that has any.

    `prefix` is how the config's keys begin, as "model.".
    """
    for f in fields(config):
        bounds, value = f.metadata.get(BOUNDS), getattr(config, f.name)
        if bounds is not None and value is not None and not bounds.hold(value):
            raise UserError(f"{prefix}{f.name}={shown(value)} {bounds}")
        if bounds is not None and isinstance(value, float) and math.isinf(value):
            raise UserError(f"{prefix}{f.name}={shown(value)} must be finite{bounds.hint and f'; {bounds.hint}'}")


def shown(value: Any) -> str:
    """A value as a person types it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case list() | tuple():
            return f"[{','.join(map(shown, value))}]"
    return str(value)
