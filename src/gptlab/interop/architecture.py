"""An external architecture as tables: its config keys and its tensor names, by ours."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from gptlab.errors import UserError
from gptlab.models.base import CLASS_HEAD
from gptlab.models.build import shape_model
from gptlab.models.config import Capability, ModelConfig
from gptlab.models.decoder.config import DecoderConfig, Position

# Keys that do not change what a model computes, beside the rates of dropout.
NO_MEANING = (
    *("type", "vocab_size", "context_length", "init_from", "init", "init_std", "init_factor"),
    *("capacity_factor", "router_aux_loss_coef", "router_z_loss_coef"),
)
KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "an object",
    list: "a list",
    type(None): "null",
}
DERIVED = {
    "n_kv_head": "kv_heads",
    "d_head": "head_width",
    "d_ff": "ff_width",
    "qkv_bias": "attention_biased",
    "n_decoder_layer": "decoder_layers",
    "scale_decoder_outputs": "scales_decoder_outputs",
}


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Where an external model keeps one of our tensors."""

    name: str
    transposed: bool = False  # (in, out), as in GPT-2's Conv1D
    part: int = 0  # which of `parts` that are concatenated in their last dimension
    parts: int = 1
    stacked: int | None = None  # ours is a stack of so many of theirs, whose names have its index in {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors of theirs that ours is made of."""
        return (self.name,) if self.stacked is None else tuple(self.name.format(i) for i in range(self.stacked))

    def take(self, theirs: Tensor) -> Tensor:
        """Our tensor, or a layer of our stack, as a copy out of theirs."""
        own = theirs.chunk(self.parts, -1)[self.part]
        return (own.t() if self.transposed else own).clone(memory_format=torch.contiguous_format)

    def shape(self, ours: torch.Size) -> list[int]:
        """The shape of their tensor, from that of ours."""
        ours = ours if self.stacked is None else ours[1:]
        *outer, last = reversed(ours) if self.transposed else ours
        return [*outer, last * self.parts]


def joined(locations: list[TensorLocation], ours: list[Tensor]) -> list[Tensor]:
    """Their tensor from ours, which are its parts in order; of a stack, each layer."""
    if locations[0].stacked is not None:
        return list(ours[0].unbind())
    parts = [value.t() if location.transposed else value for location, value in zip(locations, ours, strict=True)]
    return [(torch.cat(parts, -1) if len(parts) > 1 else parts[0]).contiguous()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """An external architecture as tables.

    `keys` maps our config keys to theirs (several must agree). `always` are keys of ours that it lacks, with the value
    that they always have there. `defaults` are the values of keys that a config.json leaves out. `demands` are the
    values that a key must have for our config to express the model; the first is what we write. `read` and `write` do
    what tables cannot. `seen` gives keys that only the tensors determine, from their names and a function that reads
    one. `copies` are names under which old files hold tensors of ours a second time, `older` the suffixes of names in
    old files, by their suffixes now. `class_head` is the layer that is a class head like ours (None: it has none),
    `classifier` the class that has it, and `without_heads` the config of what that class has beside it.
    """

    model_type: str
    class_name: str
    config: type[ModelConfig] = DecoderConfig
    keys: Mapping[str, str | tuple[str, ...]]
    always: Mapping[str, Any]
    defaults: Mapping[str, Any]
    demands: Mapping[str, tuple[Any, ...]]
    prefix: str  # of every tensor but the head's; absent where a model was saved without its head
    locations: Callable[[Any], dict[str, TensorLocation]]
    buffers: tuple[str, ...] = ()  # suffixes of names that hold no weights
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = field(default=lambda theirs: {})
    write: Callable[[Any], dict[str, Any]] = field(default=lambda config: {})
    seen: Callable[[Mapping[str, Any], Collection[str], Callable[[str], Tensor]], dict[str, Any]] = field(
        default=lambda theirs, names, read: {}
    )
    copies: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": "tok_emb.weight"})
    class_head: str | None = None
    classifier: str = ""
    without_heads: Callable[[Any], Any] = field(default=lambda config: config)
    older: Mapping[str, str] = field(default_factory=dict)

    def read_config(self, theirs: Mapping[str, Any]) -> tuple[ModelConfig, int]:
        """Our config of a config.json's content, and the size of its vocabulary.

        UserError where our config cannot express it, naming their key.
        """
        theirs = {**self.defaults, **theirs}
        for key, allowed in self.demands.items():
            if theirs.get(key, allowed[0]) not in allowed:
                raise UserError(
                    f"{key}={shown(theirs[key])} is not supported; only {key}={' or '.join(map(shown, allowed))} is"
                )
        config = self._understood(theirs)
        config.check()
        vocab_size = typed("vocab_size", self._of(theirs, "vocab_size"), int)
        if vocab_size < 1:
            raise UserError(f"vocab_size={vocab_size} is below 1")
        return config, vocab_size

    def task_of(self, config: ModelConfig) -> str:
        """What a model without a class head does, as model cards call it."""
        found = config.capabilities
        if Capability.encoder_decoder in found:
            return "text2text-generation"
        if Capability.causal in found:
            return "text-generation"
        return "fill-mask" if Capability.mlm_head in found else "feature-extraction"

    def holds(self, config: ModelConfig) -> bool:
        """Whether the model is of the kind that this is about; a plugin's may inherit from it and compute another."""
        return type(config) is self.config

    def refusals(self, config: ModelConfig) -> dict[str, str]:
        """The keys of a model, with their values, that this architecture cannot hold, and the values that it can."""
        wrong = {name for name, value in self.always.items() if meaning(config, name) != value}
        back = self._understood({**self.defaults, **self.write_config(config, 1)})
        names = meanings(self.config)
        wrong |= {name for name in names if meaning(back, name) != meaning(config, name)}
        if "d_head" not in self.keys and meaning(config, "n_head") * meaning(config, "d_head") != config.d_model:
            wrong.add("d_head")
        return {
            f"model.{name}={shown(meaning(config, name))}": f"model.{name}={shown(getattr(back, name))}"
            for name in names
            if name in wrong
        }

    def write_config(self, config: ModelConfig, vocab_size: int) -> dict[str, Any]:
        """The content of config.json for a model that `refusals` finds nothing against."""
        theirs = {"architectures": [self.class_name], "model_type": self.model_type, "vocab_size": vocab_size}
        for option, keys in self.keys.items():
            theirs |= dict.fromkeys((keys,) if isinstance(keys, str) else keys, meaning(config, option))
        return theirs | {key: allowed[0] for key, allowed in self.demands.items()} | self.write(config)

    def _understood(self, theirs: Mapping[str, Any]) -> ModelConfig:
        ours, kinds = dict(self.always), _kinds(self.config)
        for option, keys in self.keys.items():
            keys = (keys,) if isinstance(keys, str) else keys
            values = {key: typed(key, self._of(theirs, key), *kinds[option]) for key in keys}
            ours[option], *others = values.values()
            if any(value != ours[option] for value in others):
                given = " with ".join(f"{key}={shown(value)}" for key, value in values.items())
                raise UserError(f"{given} is not supported; model.{option} has one value for all of them")
        return self.config(**ours | self.read(theirs))

    def _of(self, theirs: Mapping[str, Any], key: str) -> Any:
        if key not in theirs:
            raise UserError(f"{key} is missing, which a {self.model_type} model needs")
        return theirs[key]


def meanings(kind: type[ModelConfig]) -> list[str]:
    """The config keys of an architecture that determine what its models compute."""
    return [name for name in kind.__dataclass_fields__ if name not in NO_MEANING and not name.startswith("dropout")]


@cache
def _kinds(kind: type[ModelConfig]) -> dict[str, tuple[type, ...]]:
    """The types of JSON values that may stand for each of our config keys."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(kind).items()}


def meaning(config: Any, option: str) -> Any:
    """The value that a config key has in effect: null may stand for another value, and another value for null."""
    if _is_of_rotation(option):  # null where a scaling has no such key, or there is no rotation
        return getattr(config.rotation, option) if _rotates(config) else None
    if option == "attention_scale" and config.attention_scale == config.head_width**-0.5:
        return None
    if option.startswith("dropout"):
        if option == "dropout":
            return config.dropout
        return config.dropout_at(option.removeprefix("dropout_"))
    return getattr(config, DERIVED.get(option, option))


def differences(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """The overrides that would make our model compute what theirs does."""
    if type(theirs) is not type(ours):
        return [f"a model with model.type={theirs.type}"]
    return [
        f"model.{name}={shown(meaning(theirs, name))}"
        for name in meanings(type(theirs))
        if meaning(theirs, name) != meaning(ours, name) and not (_is_of_rotation(name) and not _rotates(theirs))
    ]


def _is_of_rotation(option: str) -> bool:
    return option.startswith("rope_")


def _rotates(config: Any) -> bool:
    return config.position is Position.rotary


def shapes(config: ModelConfig, vocab_size: int, n_class: int | None = None) -> dict[str, torch.Size]:
    """The shape of each of our tensors, by name; those of a class head with `n_class`."""
    return {name: value.shape for name, value in shape_model(config, vocab_size, n_class).state_dict().items()}


def class_head_locations(architecture: Architecture) -> dict[str, TensorLocation]:
    """Where an architecture that has a class head keeps it."""
    return {f"{CLASS_HEAD}{kind}": TensorLocation(f"{architecture.class_head}.{kind}") for kind in ("weight", "bias")}


def in_blocks(
    n_blocks: int, theirs: str, locations: Mapping[str, TensorLocation], ours: str = "blocks.{}."
) -> Iterator[tuple[str, TensorLocation]]:
    """The locations in every block, from those in one; `theirs` and `ours` are prefixes with its index in {}."""
    for i in range(n_blocks):
        for name, location in locations.items():
            yield ours.format(i) + name, replace(location, name=theirs.format(i) + location.name)


def typed(key: str, value: Any, *kinds: type) -> Any:
    """The value of a key of an external file; UserError where it has none of these types."""
    if value is None and bool in kinds and type(None) not in kinds:
        return False  # as transformers reads it
    if type(value) in kinds or (float in kinds and type(value) is int):
        return value
    allowed = " or ".join(KIND_NAMES[kind] for kind in kinds)
    raise UserError(f"{key}={shown(value)} must be {allowed}")


def shown(value: Any) -> str:
    """A value as a person types it."""
    return json.dumps(value.value if isinstance(value, Enum) else value).strip('"')
