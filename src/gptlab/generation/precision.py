"""Where a model writes, and with which type of weights."""

import torch
from torch import nn

from gptlab.errors import UserError
from gptlab.generation.config import Precision
from gptlab.generation.int8 import Int8Model
from gptlab.generation.layout import lay_out


def prepare(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """The model ready to write with: on its device, in its precision, its weights laid out for single tokens.

    It takes the model's weights over: the model itself can be used no longer.
    """
    if precision is Precision.int8:
        return Int8Model(model.to(device)).eval()
    model = model.to(device, torch.bfloat16 if precision is Precision.bfloat16 else torch.float32)
    if precision is Precision.float32 and device.type == "cpu":
        lay_out(model)
    return model.eval()


def find_device(name: str | None) -> torch.device:
    """The device of that name (None: a GPU where there is one); ValueError where it cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] == "meta":
        raise UserError(f"device={name} holds no numbers; use cpu, or cuda for a GPU")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used ({str(error).splitlines()[0]}); use cpu") from None
    return device
