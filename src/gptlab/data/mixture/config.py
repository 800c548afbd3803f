"""Config schema: several corpora, mixed by weight."""

import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

from gptlab.data.config import DataConfig, RunDataConfig, Split, TargetKind
from gptlab.errors import UserError, did_you_mean
from gptlab.fields import bounded, shown
from gptlab.registry import config_class, register
from gptlab.values import from_plain

# Keys that no source has.
OF_THE_MIXTURE = (
    *("context_length", "packing", "attention", "boundary_targets"),
    *("shuffle", "n_workers", "n_processes", "cache_dir"),
)
FOR_ALL_SOURCES = ("split", "val_fraction", "test_fraction", "stride")  # keys that replace each source's own
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
MOST_OFF = Fraction(1, 10**6)  # from a sum of 1, as of thirds
Points = tuple[tuple[int, tuple[Fraction, ...]], ...]  # tokens, and the weight of each source


@register("data", "mixture")
class MixtureConfig(RunDataConfig):
    """Corpora mixed by weight: the share of each in the sequences, and so in the tokens, that a run reads.

    The config of a source is any other data config. Null in `split`, `val_fraction`, `test_fraction` and `stride` is
    each source's own value.
    """

    stride: int | None = bounded(None, ge=1)
    split: Split | None = None
    val_fraction: float | None = bounded(None, ge=0, lt=1)
    test_fraction: float | None = bounded(None, ge=0, lt=1)
    sources: dict[str, Any] = field(default_factory=dict)  # name -> a data config; typed data.sources.NAME=PRESET
    weights: dict[str, float | None] = field(default_factory=dict)  # null, or left out, of one: what the others leave
    schedule: dict[str, Any] = field(default_factory=dict)  # name -> [[tokens, weight], ...], linear in between
    max_epochs: dict[str, float | None] = field(default_factory=dict)  # name -> the most that a run may ask for

    def __post_init__(self) -> None:
        for name, value in self.sources.items():
            if isinstance(value, Mapping) and "type" in value and "preset" not in value:
                kind = config_class("data", value["type"], f"data.sources.{name}")
                self.sources[name] = from_plain(kind, value, f"data.sources.{name}")

    @property
    def names(self) -> list[str]:
        """The sources in the order in which they are numbered, which is that of their names."""
        return sorted(self.sources)

    @property
    def corpora(self) -> dict[str, DataConfig]:
        """The config of each source, with what the mixture says for all of them."""
        shared = {name: getattr(self, name) for name in OF_THE_MIXTURE}
        shared |= {name: value for name in FOR_ALL_SOURCES if (value := getattr(self, name)) is not None}
        return {name: replace(self.sources[name], **shared) for name in self.names}

    @property
    def target_kind(self) -> TargetKind | None:
        return self.first.target_kind

    @property
    def has_validation(self) -> bool:
        return any(corpus.has_validation for corpus in self.corpora.values())

    def check(self) -> None:
        self._check_sources()
        super().check()
        for key in ("weights", "schedule", "max_epochs"):
            for name in getattr(self, key):
                if name not in self.sources:
                    raise UserError(
                        f"data.{key}.{name}: the mixture has no source {name}{did_you_mean(name, self.sources)}; "
                        f"add data.sources.{name}=PRESET, or leave it out"
                    )
        for name, value in self.max_epochs.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"data.max_epochs.{name}={shown(value)} must be above 0 and finite")
        self.points()

    def _check_sources(self) -> None:
        if not self.sources:
            raise UserError(
                "data=mixture mixes several corpora; name each as data.sources.NAME=PRESET, such as "
                "data.sources.code=stdlib data.sources.prose=text data.sources.prose.path=FILE, with "
                "data.weights.code=0.5"
            )
        for name, source in self.sources.items():
            key = f"data.sources.{name}"
            if not NAME.fullmatch(name):
                raise UserError(
                    f"{key}: the name of a source is part of its metrics; use letters, digits, _ and -, and begin with "
                    "no digit"
                )
            if isinstance(source, MixtureConfig):
                raise UserError(f"{key}=mixture: a source is one corpus; name the sources of that mixture here")
            if not isinstance(source, DataConfig):
                raise UserError(
                    f"{key}={shown(source)} is no source; choose a preset, as {key}=text does, and in a YAML {name}: "
                    "{preset: text}"
                )
            for f in fields(DataConfig):
                if f.name in OF_THE_MIXTURE and getattr(source, f.name) != f.default:
                    raise UserError(f"{key}.{f.name} is one for the whole mixture: set data.{f.name}")
        for name, corpus in self.corpora.items():
            with_name(name, corpus.check)
        kinds = {name: corpus.target_kind for name, corpus in self.corpora.items()}
        if len(set(kinds.values())) > 1:
            found = ", ".join(f"{name} {'text' if kind is None else f'a {kind.value}'}" for name, kind in kinds.items())
            raise UserError(f"the sources of a mixture have one kind of target, and these differ: {found}")
        classes = {name: getattr(corpus, "class_names", None) for name, corpus in self.corpora.items()}
        if any(found != classes[self.names[0]] for found in classes.values()):
            found = ", ".join(f"data.sources.{name}.class_names={shown(found)}" for name, found in classes.items())
            raise UserError(f"the sources of a mixture have one list of classes, and these differ: {found}")

    def points(self) -> Points:
        """The weights of the sources, in the order of `names`, wherever a schedule has a point, the first at 0 tokens.

        UserError where they are no weights, or do not sum to 1.
        """
        curves = {name: _curve(f"data.schedule.{name}", points) for name, points in self.schedule.items()}
        for name, weight in self.weights.items():
            if weight is None:
                continue
            if name in curves:
                raise UserError(
                    f"data.weights.{name}={shown(weight)} and data.schedule.{name} both give the weight of {name}; "
                    f"leave one out (data.weights.{name}=null)"
                )
            curves[name] = [(0, _weight(f"data.weights.{name}", weight))]
        others = [name for name in self.names if name not in curves]
        if len(others) > 1:
            raise UserError(
                f"{' and '.join(others)} have no weight, and one source can be left without, for what the others "
                f"leave; set data.weights.{others[0]}=N"
            )
        found = []
        for tokens in sorted({0, *(tokens for curve in curves.values() for tokens, _ in curve)}):
            weights = {name: _at(curve, tokens) for name, curve in curves.items()}
            found.append((tokens, self._sum_to_one(tokens, weights, others)))
        return tuple(found)

    def _sum_to_one(self, tokens: int, weights: Mapping[str, Fraction], others: Sequence[str]) -> tuple[Fraction, ...]:
        total = sum(weights.values(), Fraction(0))
        where = f" at {tokens:,} tokens" if self.schedule else ""
        listed = ", ".join(f"{name} {_decimal(weight)}" for name, weight in weights.items())
        if others and total > 1 + MOST_OFF:
            raise UserError(
                f"the weights{where} sum to {_decimal(total)} ({listed}) and leave nothing for {others[0]}; lower them"
            )
        if not others and abs(total - 1) > MOST_OFF:
            last = list(weights)[-1]
            rest = 1 - total + weights[last]
            instead = f", such as data.weights.{last}={_decimal(rest)}," if rest >= 0 and not self.schedule else ""
            raise UserError(
                f"the weights{where} sum to {_decimal(total)} ({listed}) and not to 1; change one{instead} or give one "
                f"source none (data.weights.{last}=null): it gets what the others leave"
            )
        found = {**weights, **{name: max(Fraction(0), 1 - total) for name in others}}
        return tuple(found[name] / sum(found.values()) for name in self.names)


def _weight(key: str, value: float) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{key}={shown(value)} is outside [0, 1]; it is the source's share of the tokens")
    return Fraction(str(value))


def _curve(key: str, points: Any) -> list[tuple[int, Fraction]]:
    if not isinstance(points, list | tuple) or not points or not all(_is_pair(point) for point in points):
        raise UserError(
            f"{key}={shown(points)} is no list of points; write {key}=[[0,0.1],[1000000,0.5]]: 0.1 at the beginning, "
            "then growing to 0.5 after a million tokens"
        )
    curve = []
    for tokens, weight in points:
        if not float(tokens).is_integer() or tokens < 0:
            raise UserError(f"{key}: a point at {shown(tokens)} tokens; use a whole number, 0 or more")
        curve.append((int(tokens), _weight(f"{key} at {int(tokens):,} tokens", weight)))
    for (before, _), (after, _) in pairwise(curve):
        if after <= before:
            raise UserError(f"{key}: a point at {after:,} tokens follows one at {before:,}; their tokens must increase")
    return curve


def _is_pair(point: Any) -> bool:
    return (
        isinstance(point, list | tuple)
        and len(point) == 2
        and all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in point)
    )


def _at(curve: Sequence[tuple[int, Fraction]], tokens: int) -> Fraction:
    """A curve at a number of tokens: linear between its points, and as at the first and last one outside of them."""
    if tokens <= curve[0][0]:
        return curve[0][1]
    for (start, a), (end, b) in pairwise(curve):
        if tokens <= end:
            return a + (b - a) * Fraction(tokens - start, end - start)
    return curve[-1][1]


def _decimal(value: Fraction) -> str:
    return f"{float(value):.6g}"


def source_config(name: str, base: RunDataConfig, given: Mapping[str, Any]) -> RunDataConfig:
    """The config of a source: that of its preset with other values; UserError for an unknown key or another type."""
    hints = typing.get_type_hints(type(base))
    key = f"data.sources.{name}"
    for option in given:
        if option not in hints or option == "type":
            known = [f.name for f in fields(base) if f.name != "type"]
            raise UserError(f"unknown config key {key}.{option} of data.type={base.type}{did_you_mean(option, known)}")
    plain = {f.name: getattr(base, f.name) for f in fields(base)}
    for option, value in given.items():
        if isinstance(value, Mapping) and isinstance(plain[option], Mapping):
            value = _merged(plain[option], value)
        plain[option] = value
    return from_plain(type(base), plain, key)


def _merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with another's values, of mappings within it too."""
    found = {**before, **given}
    for name in before.keys() & given.keys():
        if isinstance(before[name], Mapping) and isinstance(given[name], Mapping):
            found[name] = _merged(before[name], given[name])
    return found


def with_name(name: str, call: Any, *arguments: Any, **options: Any) -> Any:
    """What a call about a source returns; its UserError names the source's keys."""
    try:
        return call(*arguments, **options)
    except UserError as error:
        raise UserError(of_source(name, str(error))) from None


def of_source(name: str, text: str) -> str:
    """An error about `data.KEY` as one about the keys of a source, which it names."""
    keys = "|".join(OF_THE_MIXTURE)
    text = re.sub(rf"\bdata\.(?!(?:{keys})\b|sources\.)(?=\w)", f"data.sources.{name}.", text)
    text = re.sub(r"\bdata=(?=\w)", f"data.sources.{name}=", text)
    return text if text.startswith(f"data.sources.{name}") else f"data.sources.{name}: {text}"
