"""Types of weights to write with."""

import torch
from torch import nn

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
