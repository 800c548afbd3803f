"""Float8 training: the linear layers of a model's blocks as torchao's `Float8Linear`."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.nn.linear import is_plain_linear
from gptlab.training.config import FLOAT8

# torchao's recipe of rowwise scaling, which its page on training names first: inputs, weights and gradients are
# float8_e4m3fn, with a scale for each token and each channel, a power of two, computed when they are used. With
# "tensorwise", one scale for a whole tensor, what the model says of a token would depend on the tokens after it.
RECIPE = "rowwise"
MULTIPLE = 16  # which a GPU's float8 products need both sizes of a matrix to be divisible by
MIN_CAPABILITY = (8, 9)  # Ada and Hopper were the first GPUs with float8 products
INSTEAD = "use trainer.precision=bf16-mixed"


def check_installed() -> None:
    """Raise UserError where torchao, which computes in float8, is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f'trainer.precision={FLOAT8} needs the torchao package; type: pip install "gptlab[fp8]"')


def check_capability(device: str, capability: tuple[int, int]) -> None:
    """Raise UserError for a GPU, by its name or key, that has no float8 products."""
    if capability < MIN_CAPABILITY:
        needed, own = (".".join(map(str, version)) for version in (MIN_CAPABILITY, capability))
        raise UserError(
            f"trainer.precision={FLOAT8} needs a GPU of compute capability {needed} or above, such as an L4, an "
            f"L40S or an H100, and that of {device} is {own}; {INSTEAD}"
        )


def check_layers(model: LanguageModel) -> None:
    """Raise UserError for a model without linear layers in its blocks, or with one whose sizes float8 does not take."""
    layers = float8_layers(model)
    if not layers:
        raise UserError(
            f"trainer.precision={FLOAT8} is about the linear layers of a model's blocks, and a model of "
            f"model.type={model.config.type} has none; {INSTEAD}"
        )
    for name, layer in layers.items():
        for size, what in ((layer.in_features, "inputs"), (layer.out_features, "outputs")):
            if size % MULTIPLE:
                raise UserError(
                    f"trainer.precision={FLOAT8} needs layers whose sizes are multiples of {MULTIPLE}, and {name} has "
                    f"{layer.in_features} inputs and {layer.out_features} outputs; choose sizes of the model that make "
                    f"its {what} a multiple of {MULTIPLE}, or {INSTEAD}"
                )


def float8_layers(model: LanguageModel) -> dict[str, nn.Linear]:
    """The layers that compute in float8, by name: the linear layers of blocks.

    Not the head and the embeddings, and of experts neither the router, which computes in float32, nor their stacks of
    matrices. A layer that does more than a product, such as one with an adapter, is left out as well.
    """
    chosen = {layer for block in model.blocks for layer in model.linear_layers(block).values()}
    named = ((name, module) for name, module in model.named_modules() if module in chosen)
    return {name: module for name, module in named if is_plain_linear(module)}


def use_float8(model: LanguageModel, *, emulate: bool) -> None:
    """Make the layers of `float8_layers` compute in float8, in place; names and parameters stay what they are.

    The model may be on the meta device. `emulate`: the numbers are rounded to float8 and multiplied in float32, for
    devices that have no float8 products.
    """
    with quiet():
        from torchao.float8 import (  # pyright: ignore[reportMissingImports]
            Float8LinearConfig,
            convert_to_float8_training,
        )

        # The gradient of a weight is a product over tokens, whose number need not be a multiple of 16.
        config = replace(Float8LinearConfig.from_recipe_name(RECIPE), emulate=emulate, pad_inner_dim=True)
        chosen = set(float8_layers(model).values())
        convert_to_float8_training(model, module_filter_fn=lambda module, name: module in chosen, config=config)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what is logged and warned of when torchao is imported, of kernels that are not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(before)
