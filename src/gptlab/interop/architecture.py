"""What a foreign architecture is, in this project's words: which options it has and what its tensors are called."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from gptlab.errors import UserError
from gptlab.models.build import shape_model
from gptlab.models.config import ModelConfig
from gptlab.models.decoder.config import DecoderConfig, Position

# The options that do not say what a model computes, beside the rates of dropout.
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
class Place:
    """Where a foreign model keeps one of our tensors."""

    name: str
    transposed: bool = False  # (in, out), as in GPT-2's Conv1D
    part: int = 0  # which of `parts` that lie side by side in their last dimension
    parts: int = 1
    stacked: int | None = None  # ours is a stack of so many of theirs, whose names have its number in the place of {}

    @property
    def names(self) -> tuple[str, ...]:
        """Those of all of their tensors that ours is made of."""
        return (self.name,) if self.stacked is None else tuple(self.name.format(i) for i in range(self.stacked))

    def take(self, theirs: Tensor) -> Tensor:
        """Our tensor, or a layer of our stack, out of theirs, with memory of its own."""
        own = theirs.chunk(self.parts, -1)[self.part]
        return (own.t() if self.transposed else own).clone(memory_format=torch.contiguous_format)

    def shape(self, ours: torch.Size) -> list[int]:
        """The shape of their tensor, from that of ours."""
        ours = ours if self.stacked is None else ours[1:]
        *outer, last = reversed(ours) if self.transposed else ours
        return [*outer, last * self.parts]


def joined(places: list[Place], ours: list[Tensor]) -> list[Tensor]:
    """Their tensor out of ours, which are its parts in order; of a stack each layer."""
    if places[0].stacked is not None:
        return list(ours[0].unbind())
    parts = [value.t() if place.transposed else value for place, value in zip(places, ours, strict=True)]
    return [(torch.cat(parts, -1) if len(parts) > 1 else parts[0]).contiguous()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """A foreign architecture as tables.

    `words` maps our options to theirs (all of several have to agree). `always` are options of ours that it does not
    have, as what they always are there. `defaults` is what a config.json means that leaves a word out. `demands` are
    the values that a word must have for our options to express the model; the first is what we write. `read` and
    `write` do what tables cannot. `seen` gives words that only the tensors tell, of their
    names and what reads one. `copies` are names under
    which old files hold tensors of ours a second time, `older` how names end there, by how they end now.
    """

    model_type: str
    class_name: str
    config: type[ModelConfig] = DecoderConfig
    task: str = "text-generation"  # as model cards call it
    words: Mapping[str, str | tuple[str, ...]]
    always: Mapping[str, Any]
    defaults: Mapping[str, Any]
    demands: Mapping[str, tuple[Any, ...]]
    prefix: str  # of every tensor but the head's; a model that was saved without its head lacks it
    places: Callable[[ModelConfig], dict[str, Place]]
    buffers: tuple[str, ...] = ()  # how names end that hold no weights
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = field(default=lambda theirs: {})
    write: Callable[[ModelConfig], dict[str, Any]] = field(default=lambda config: {})
    seen: Callable[[Mapping[str, Any], Collection[str], Callable[[str], Tensor]], dict[str, Any]] = field(
        default=lambda theirs, names, read: {}
    )
    copies: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": "tok_emb.weight"})
    older: Mapping[str, str] = field(default_factory=dict)

    def read_config(self, theirs: Mapping[str, Any]) -> tuple[ModelConfig, int]:
        """Our config of a config.json's content, and the rows of its vocabulary.

        ValueError where our options cannot express it, naming theirs.
        """
        theirs = {**self.defaults, **theirs}
        for word, allowed in self.demands.items():
            if theirs.get(word, allowed[0]) not in allowed:
                raise UserError(
                    f"{word}={shown(theirs[word])} is what no option of gptlab expresses; "
                    f"only {word}={' or '.join(map(shown, allowed))} is"
                )
        config = self._understood(theirs)
        config.check()
        vocab_size = typed("vocab_size", self._of(theirs, "vocab_size"), int)
        if vocab_size < 1:
            raise UserError(f"vocab_size={vocab_size} is below 1")
        return config, vocab_size

    def refusals(self, config: ModelConfig) -> dict[str, str]:
        """The options of a model that this architecture cannot hold, as words, and the words that it can hold."""
        wrong = {name for name, value in self.always.items() if meaning(config, name) != value}
        back = self._understood({**self.defaults, **self.write_config(config, 1)})
        names = meanings(self.config)
        wrong |= {name for name in names if meaning(back, name) != meaning(config, name)}
        if "d_head" not in self.words and config.n_head * config.head_width != config.d_model:
            wrong.add("d_head")
        return {
            f"model.{name}={shown(meaning(config, name))}": f"model.{name}={shown(getattr(back, name))}"
            for name in names
            if name in wrong
        }

    def write_config(self, config: ModelConfig, vocab_size: int) -> dict[str, Any]:
        """The content of config.json for a model that `refusals` finds nothing against."""
        theirs = {"architectures": [self.class_name], "model_type": self.model_type, "vocab_size": vocab_size}
        for option, words in self.words.items():
            theirs |= dict.fromkeys((words,) if isinstance(words, str) else words, meaning(config, option))
        return theirs | {word: allowed[0] for word, allowed in self.demands.items()} | self.write(config)

    def _understood(self, theirs: Mapping[str, Any]) -> ModelConfig:
        ours, kinds = dict(self.always), _kinds(self.config)
        for option, words in self.words.items():
            words = (words,) if isinstance(words, str) else words
            values = {word: typed(word, self._of(theirs, word), *kinds[option]) for word in words}
            ours[option], *others = values.values()
            if any(value != ours[option] for value in others):
                said = " with ".join(f"{word}={shown(value)}" for word, value in values.items())
                raise UserError(f"{said} is what no option of gptlab expresses; model.{option} is one for all of them")
        return self.config(**ours | self.read(theirs))

    def _of(self, theirs: Mapping[str, Any], word: str) -> Any:
        if word not in theirs:
            raise UserError(f"{word} is not said, which a {self.model_type} model needs")
        return theirs[word]


def meanings(kind: type[ModelConfig]) -> list[str]:
    """The options of an architecture that say what its models compute."""
    return [name for name in kind.__dataclass_fields__ if name not in NO_MEANING and not name.startswith("dropout")]


@cache
def _kinds(kind: type[ModelConfig]) -> dict[str, tuple[type, ...]]:
    """What a JSON value has to be that stands for one of our options."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(kind).items()}


def meaning(config: ModelConfig, option: str) -> Any:
    """What an option comes to: null may stand for another value, and another value for null."""
    if option == "rope_theta" and config.position is not Position.rotary:
        return None
    if option == "attention_scale" and config.attention_scale == config.head_width**-0.5:
        return None
    if option.startswith("dropout"):
        if option == "dropout":
            return config.dropout
        return config.dropout_at(option.removeprefix("dropout_"))
    return getattr(config, DERIVED.get(option, option))


def differences(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """The words that would make our model compute what theirs does."""
    if type(theirs) is not type(ours):
        return [f"a model with model.type={theirs.type}"]
    return [
        f"model.{name}={shown(meaning(theirs, name))}"
        for name in meanings(type(theirs))
        if meaning(theirs, name) != meaning(ours, name)
    ]


def shapes(config: ModelConfig, vocab_size: int) -> dict[str, torch.Size]:
    """The shape of each of our tensors, by name."""
    return {name: value.shape for name, value in shape_model(config, vocab_size).state_dict().items()}


def in_blocks(
    n_blocks: int, theirs: str, places: Mapping[str, Place], ours: str = "blocks.{}."
) -> Iterator[tuple[str, Place]]:
    """The places of every block, from those of one; `theirs` and `ours`, with the block's number in {}, go before."""
    for i in range(n_blocks):
        for name, place in places.items():
            yield ours.format(i) + name, replace(place, name=theirs.format(i) + place.name)


def typed(word: str, value: Any, *kinds: type) -> Any:
    """The value of a word of a foreign file; ValueError where it is of none of these kinds."""
    if value is None and bool in kinds and type(None) not in kinds:
        return False  # as transformers takes it
    if type(value) in kinds or (float in kinds and type(value) is int):
        return value
    allowed = " or ".join(KIND_NAMES[kind] for kind in kinds)
    raise UserError(f"{word}={shown(value)} must be {allowed}")


def shown(value: Any) -> str:
    """A value as a person types it."""
    return json.dumps(value.value if isinstance(value, Enum) else value).strip('"')
