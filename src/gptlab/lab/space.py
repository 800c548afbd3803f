"""The space that a sweep searches: a YAML of config keys, with a range or the choices of each."""

import math
import random
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlab import quoting
from gptlab.errors import UserError, did_you_mean
from gptlab.fields import shown
from gptlab.overrides import key_of, key_types, refuse_unknown
from gptlab.values import coerce

FORM = "{low: 1e-4, high: 1e-2, log: true}, {low: 2, high: 8, step: 2} or [one, two]"
KNOWN = ("low", "high", "log", "step", "n", "choices")
FOREIGN = {"min": "low", "max": "high", "values": "choices", "q": "step", "num": "n"}  # of W&B, and numpy
OF_SWEEP = {
    "name": "name=NAME is the sweep's",
    "run_dir": "each trial has a folder in the sweep's",
    "resume": "a trial continues what its folder holds",
    "plugins": "give plugins=[MODULE] for all trials",
}
TRIES = 12  # of other dimensions, before a value is said not to work in any

Value = None | bool | int | float | str


@dataclass(frozen=True, slots=True)
class Dimension:
    """The values of one config key: those of a range, or choices."""

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False  # a range of whole numbers

    @property
    def is_range(self) -> bool:
        return not self.choices

    def override(self, value: Value) -> str:
        """The override that gives the key this value."""
        return f"{self.key}={shown(value)}"

    def listed(self) -> Sequence[Value] | None:
        """All values, of whole numbers as a range; None where they cannot be listed."""
        if self.choices:
            return self.choices
        if self.whole and not self.log:
            return range(int(self.low), int(self.high) + 1, int(self.step or 1))
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step) + 1
        return tuple(float(f"{self.low + i * self.step:.12g}") for i in range(count))

    def ends(self) -> tuple[Value, ...]:
        """The values to be tried first: the ends of a range, or every choice."""
        return self.choices or ((int(self.low), int(self.high)) if self.whole else (self.low, self.high))

    def draw(self, source: random.Random) -> Value:
        """Any of the values."""
        listed = self.listed()
        if listed is not None:
            return source.choice(listed)
        value = (
            self.low * (self.high / self.low) ** source.random() if self.log else source.uniform(self.low, self.high)
        )
        return round(value) if self.whole else value

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log}


def read_space(space: str | Path | Mapping[str, Any], presets: Mapping[str, Sequence[str]]) -> list[Dimension]:
    """The dimensions of a space's file, or of a mapping of the same form.

    UserError for a key that no config has, for a preset that does not exist and for what is no range.
    """
    where = "space" if isinstance(space, Mapping) else str(space)
    found = space if isinstance(space, Mapping) else load_texts(Path(space), "space", "a search space")
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{where} has to be a mapping of config keys, each with its values: optimizer.lr: {FORM}")
    return [_dimension(str(key), value, presets, where) for key, value in found.items()]


def load_texts(path: Path, option: str, what: str) -> Any:
    """The content of a YAML file with every value as text; UserError names the `option` that gave it, and `what` it is.

    A key that a mapping has twice is refused, which YAML would take the last of.
    """

    class Texts(yaml.BaseLoader):  # numbers are read by the types of the keys: YAML takes 1e-4 for a text
        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [child.value for child, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"{path} has {name} twice; leave one out")
            return super().construct_mapping(node, deep=deep)

    def mapping(loader: Any, node: Any) -> dict:
        return loader.construct_mapping(node, deep=True)

    Texts.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(path.expanduser().read_text(encoding="utf-8-sig"), Texts)
    except OSError as error:
        raise UserError(f"{option}={path} cannot be read: {error.strerror}; name a YAML file of {what}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{option}={path} is not UTF-8 text: the byte at {error.start:,}; convert the file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{option}={path} is no YAML: {' '.join(str(error).split())}") from None


def _dimension(key: str, value: Any, presets: Mapping[str, Sequence[str]], where: str) -> Dimension:
    start = f"{where}: {key}"
    if key in OF_SWEEP or key.startswith("hydra"):
        raise UserError(f"{start} cannot differ between trials: {OF_SWEEP.get(key, 'it is a key of Hydra')}")
    if isinstance(value, Mapping) and "choices" not in value:
        _refuse_unknown(f"{key}=x", presets if key not in presets else {}, where)
        if key in presets:
            raise UserError(f"{start} is a group of presets; list some of them: [{', '.join(presets[key][:2])}]")
        return _range(key, value, start)
    if isinstance(value, Mapping):
        if others := [name for name in value if name != "choices"]:
            raise UserError(f"{start} has choices and {others[0]}; leave one of them out")
        value = value["choices"]
    if not isinstance(value, list | tuple):
        raise UserError(f"{start}: {value} is one value; give it as an override {key}={value}, or write {FORM}")
    texts = [_text(item, start) for item in value]
    if not texts:
        raise UserError(f"{start} has no values; write {FORM}")
    for text in texts:
        _refuse_unknown(f"{key}={text}", presets, where)
    hint = None if key in presets else _hint(key)
    choices = tuple(_typed(key, text, hint, where) for text in texts)
    for choice in choices:
        if [*map(repr, choices)].count(repr(choice)) > 1:
            raise UserError(f"{start} has {shown(choice)} twice; leave one out")
    return Dimension(key, choices)


def _refuse_unknown(override: str, presets: Mapping[str, Sequence[str]], where: str) -> None:
    try:
        refuse_unknown([override], presets)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _text(item: Any, start: str) -> str:
    if isinstance(item, Mapping) or item == "":
        raise UserError(f"{start}: {item or 'an empty text'} is no value; write each as after {start.split()[-1]}=")
    return quoting.listed([_text(one, start) for one in item]) if isinstance(item, list) else shown(item)


def _hint(key: str) -> Any:
    if key.startswith(("data.weights.", "data.max_epochs.")):  # of the sources of a mixture
        return float
    if key.startswith("data.sources."):  # a key of a source has the type that it has alone
        key = f"data.{key.split('.', 3)[3]}" if key.count(".") > 2 else key
    hints = [hint for name, hint in key_types() if name == key]
    return hints[0] if hints else str  # below callbacks.extra there are other people's


def _typed(key: str, text: str, hint: Any, where: str) -> Value:
    """The value as a study holds it: a number, a truth value, None, or the text."""
    if hint is None:
        return text
    try:
        value = coerce(key, text, hint)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except TypeError:  # a type that has no values on a command line
        return text
    return value if isinstance(value, bool | int | float) or value is None else text


def _range(key: str, value: Mapping[str, Any], start: str) -> Dimension:
    for name in value:
        if name not in KNOWN:
            hint = f"; did you mean {FOREIGN[name]}?" if name in FOREIGN else did_you_mean(str(name), KNOWN)
            raise UserError(f"{start}: unknown {name}{hint}")
    hint = _hint(key)
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kind = float if float in kinds else int if int in kinds else None
    if kind is None:
        raise UserError(f"{start} holds no number, and so has no range; list its values: [one, two]")
    if missing := [name for name in ("low", "high") if name not in value]:
        raise UserError(f"{start} has no {missing[0]}; write {FORM}")
    number = {name: _number(name, value[name], kind, start) for name in ("low", "high", "step") if name in value}
    low, high, step = number["low"], number["high"], number.get("step")
    log = _coerced("log", value.get("log", "false"), bool, start)
    if not low < high:
        raise UserError(f"{start}: low={shown(low)} has to be below high={shown(high)}")
    if log and low <= 0:
        raise UserError(f"{start}: log needs a range above 0, and low={shown(low)}")
    if step is not None and (log or step <= 0):
        problem = "has no effect with log" if log else "has to be above 0"
        raise UserError(f"{start}: step={shown(step)} {problem}; leave one of them out")
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-8:
        end = float(f"{low + (high - low) // step * step:.12g}")
        raise UserError(f"{start}: high={shown(high)} is not low + a multiple of step; use high={shown(kind(end))}")
    if "n" not in value:
        return Dimension(key, (), low, high, step, log, kind is int)
    n = _number("n", value["n"], int, start)
    if n < 2 or step is not None:
        raise UserError(f"{start}: n={n} " + ("needs no step" if step is not None else "has to be at least 2"))
    return Dimension(key, tuple(dict.fromkeys(_spaced(low, high, n, log, kind))))


def _coerced(name: str, value: Any, kind: type, start: str) -> Any:
    try:
        return coerce(name, shown(value), kind)
    except UserError as error:
        raise UserError(f"{start}: {error}") from None


def _number(name: str, value: Any, kind: type, start: str) -> Any:
    found = _coerced(name, value, kind, start)
    if not math.isfinite(found):
        raise UserError(f"{start}: {name}={shown(value)} has to be finite")
    return found


def _spaced(low: float, high: float, n: int, log: bool, kind: type) -> list[Value]:
    parts = [i / (n - 1) for i in range(n)]
    between = [low * (high / low) ** part if log else low + part * (high - low) for part in parts[1:-1]]
    return [low, *(round(value) if kind is int else float(f"{value:.4g}") for value in between), high]


def check_space(dimensions: Sequence[Dimension], compose: Callable[[Sequence[str]], Any], where: str) -> None:
    """Refuse a value that no trial can have; `compose` makes a config of overrides, or raises UserError.

    A value that works beside some values of the other dimensions is left to the trials.
    """
    source = random.Random(0)
    for dimension in dimensions:
        for value in dimension.ends():
            try:
                compose([dimension.override(value)])
            except UserError as error:
                rest = [d for d in dimensions if d is not dimension]
                drawn = [[d.override(d.draw(source)) for d in rest] for _ in range(TRIES if rest else 0)]
                if not any(_works(compose, [dimension.override(value), *others]) for others in drawn):
                    raise UserError(f"{where}: {error}") from None


def _works(compose: Callable[[Sequence[str]], Any], overrides: Sequence[str]) -> bool:
    try:
        compose(overrides)
    except UserError:
        return False
    return True


def refuse_both(dimensions: Sequence[Dimension], overrides: Sequence[str]) -> None:
    """Refuse a key that an override sets and the space as well."""
    for dimension in dimensions:
        for override in overrides:
            if key_of(override) == dimension.key:
                raise UserError(f"{override} and the space's {dimension.key}: leave one of them out")
