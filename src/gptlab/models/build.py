"""From a config to a model with its initial values."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.models.config import ModelConfig
from gptlab.nn.lora import ADAPTERS


def build_model(config: ModelConfig, vocab_size: int, *, seed: int) -> LanguageModel:
    """Build the model on the CPU, with initial values that depend on the seed and on each parameter's name."""
    config.check()
    model = shape_model(config, vocab_size).to_empty(device="cpu")
    init_weights(model, seed)
    return model


def shape_model(config: ModelConfig, vocab_size: int, n_class: int | None = None) -> LanguageModel:
    """Build the model on the meta device: shapes and names, no values and no memory.

    With `n_class` it has a `class_head` for that many classes. UserError for sizes beyond what a tensor can have.
    """
    try:
        with torch.device("meta"), _NoValues():
            model = config.build(vocab_size)
            if n_class is not None:
                model.add_class_head(n_class)
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        sizes = {f.name: getattr(config, f.name) for f in fields(config) if type(getattr(config, f.name)) is int}
        name, value = max(sizes.items(), key=lambda item: item[1])
        raise UserError(
            f"model.{name}={value} makes a tensor of more than {torch.iinfo(torch.int64).max:.0e} bytes, which torch "
            "cannot count; make it smaller"
        ) from None
    return model


class _NoValues(TorchFunctionMode):
    """Leaves out `torch.nn.init`: on the meta device there are no values, and torch imports its compiler for them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@torch.no_grad()
def init_weights(model: LanguageModel, seed: int) -> None:
    """Give each parameter its initial value, on whatever device it is."""
    for _, parameter, value in initial_values(model, seed):
        parameter.copy_(value)


def initial_values(
    model: LanguageModel, seed: int, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yield name, parameter and initial value (unsharded, float32, on the CPU), one parameter at a time.

    A value is a function of seed, name and shape only, so that any sharding starts from the same model. `wanted`
    selects by name.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if wanted(name):
                yield name, parameter, _initial_value(model, name, parameter, module, seed)


@torch.no_grad()
def _initial_value(model: LanguageModel, name: str, parameter: Tensor, module: nn.Module, seed: int) -> Tensor:
    value = torch.empty(parameter.shape, device="cpu")
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    if name.endswith(ADAPTERS):  # kaiming_uniform_ with a = sqrt(5) into the low rank, and zeros out of it
        assert isinstance(module, nn.Linear)
        bound = 0.0 if name.endswith(".lora_up") else module.in_features**-0.5
        value.uniform_(-bound, bound, generator=generator)
    else:
        model.init_parameter(name, value, module, generator)
    return value
