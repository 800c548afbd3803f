"""Device and precision of a model that generates."""

import torch

from gptlab.errors import UserError
from gptlab.generation.config import Precision
from gptlab.generation.int8 import Int8Model
from gptlab.generation.layout import lay_out
from gptlab.models.base import LanguageModel


def prepare(model: LanguageModel, precision: Precision, device: torch.device) -> LanguageModel:
    """Prepare a model for decoding: on its device, in its precision, its weights laid out for single tokens.

    It takes over the model's weights: the model can no longer be used by itself.
    """
    if precision is Precision.int8:
        return Int8Model(model.to(device)).eval()
    model = model.to(device, torch.bfloat16 if precision is Precision.bfloat16 else torch.float32)
    if precision is Precision.float32 and device.type == "cpu":
        lay_out(model)
    return model.eval()


def find_device(name: str | None) -> torch.device:
    """The device of that name (None: a GPU where there is one); UserError where it cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] == "meta":
        raise UserError(f"device={name} holds no values; use cpu, or cuda for a GPU")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used ({str(error).splitlines()[0]}); use cpu") from None
    return device
