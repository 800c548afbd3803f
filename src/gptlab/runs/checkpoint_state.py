"""Everything in a checkpoint but weights and optimizer state."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import UserError

FORMAT = 1
TENSOR, TUPLE, PAIRS = "__tensor__", "__tuple__", "__pairs__"


@dataclass(kw_only=True, slots=True)
class CheckpointState:
    """Everything in a checkpoint but weights and optimizer state; JSON, with its tensors beside it."""

    format: int = FORMAT
    step: int = 0  # finished optimizer steps
    samples: int = 0  # that were learned from
    skipped_steps: int = 0  # whose samples were left out after loss spikes
    best: dict[str, Any] | None = None  # the best evaluation so far: "val/loss" and "step"
    config: dict[str, Any] = field(default_factory=dict)  # of the run, as `to_plain` made it
    data: str = ""  # fingerprint of the data; empty: not known
    tokenizer: str = ""  # fingerprint of the tokenizer; empty: not known
    arithmetic: str | None = None  # the precision that was used; None: not known
    special_tokens: dict[str, Any] = field(default_factory=dict)  # by role, of weights from another library
    precision: dict[str, Any] = field(default_factory=dict)  # the loss scale of 16-mixed
    callbacks: dict[str, Any] = field(default_factory=dict)  # their states by key
    chain: str | None = None  # the hash of the newest entry of the run's chain; None: it keeps none
    rng: Tensor | None = field(default_factory=torch.get_rng_state)  # of torch's generator on the CPU

    def to_json(self) -> tuple[str, dict[str, Tensor]]:
        """The state as JSON, and the tensors that it names by their keys.

        UserError where a callback's state holds what a checkpoint cannot.
        """
        tensors: dict[str, Tensor] = {}
        plain = {f.name: _encode(getattr(self, f.name), f.name, tensors) for f in fields(self)}
        return json.dumps(plain), tensors

    @classmethod
    def from_json(cls, text: str, read: Callable[[str], Tensor]) -> "CheckpointState":
        """What `to_json` wrote; `read` gives a tensor by its key. ValueError, KeyError or TypeError if damaged."""
        plain = json.loads(text)
        plain.setdefault("chain", None)  # which came after there were checkpoints
        return cls(**{f.name: _decode(plain[f.name], read) for f in fields(cls)})


def format_of(text: str) -> int:
    """The format of a state that may be of a newer version."""
    return int(json.loads(text)["format"])


def _encode(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            tensors[key] = value.detach()
            return {TENSOR: key}
        case list():
            return [_encode(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
        case tuple():
            return {TUPLE: [_encode(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]}
        case dict() if all(isinstance(name, str) and not name.startswith("__") for name in value):
            return {name: _encode(item, f"{key}/{name}", tensors) for name, item in value.items()}
        case dict():
            pairs = [[name, item] for name, item in value.items()]
            return {PAIRS: _encode(pairs, key, tensors)}
    raise UserError(
        f"{key.replace('/', ' > ')} is of type {type(value).__name__}, which a checkpoint cannot hold; return numbers, "
        "text, tensors, lists and dicts from the callback's state_dict"
    )


def _decode(value: Any, read: Callable[[str], Tensor]) -> Any:
    match value:
        case {"__tensor__": key}:
            return read(key)
        case {"__tuple__": items}:
            return tuple(_decode(item, read) for item in items)
        case {"__pairs__": pairs}:
            return {_decode(name, read): _decode(item, read) for name, item in pairs}
        case dict():
            return {name: _decode(item, read) for name, item in value.items()}
        case list():
            return [_decode(item, read) for item in value]
    return value
