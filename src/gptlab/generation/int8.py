"""Weights as 8-bit integers: a quarter of the bytes to read for each token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.nn.attention import Attention
from gptlab.nn.loss import LMHead
from gptlab.nn.moe import GroupedLinear

# Up to so many rows the integers are multiplied as they are. More rows share the cost of turning them to bfloat16.
KERNEL_ROWS = 16
# Where the inputs are no multiple of this, the kernel reads beyond its rows: garbage, or the end of the process.
KERNEL_INPUTS = 16


class Int8Linear(nn.Module):
    """A linear layer whose weight is an integer matrix times one scale for each output, symmetric about 0.

    The largest weight of each output becomes 127 or -127. torch's own kernel for it is private: where it is missing or
    does not take the input's type, device or width, the same product is written out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        scale = scale.bfloat16()  # the type the kernel needs; rounding to integers then makes up for what it lost
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().bfloat16())
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        product = self.by_kernel(rows) if kernel_takes(rows) else self.written_out(rows)
        product = product if self.bias is None else product + self.bias.to(x.dtype)
        return product.view(*x.shape[:-1], self.out_features)

    def by_kernel(self, rows: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(rows, self.weight, self.scale)

    def written_out(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight.to(rows.dtype)) * self.scale.to(rows.dtype)


def kernel_takes(rows: Tensor) -> bool:
    """Whether torch's kernel is there for this input, and the faster way."""
    return (
        hasattr(torch, "_weight_int8pack_mm")
        and rows.device.type == "cpu"
        and rows.dtype is torch.bfloat16
        and len(rows) <= KERNEL_ROWS
        and rows.shape[-1] % KERNEL_INPUTS == 0
    )


class Int8Output:
    """A head in integers, with what `nn.loss.LMHead` does to its logits."""

    def __init__(self, output: LMHead):
        self.linear = Int8Linear(output.weight, output.bias)
        self.scale, self.softcap = output.scale, output.softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every word: hidden (..., D) -> (..., V)."""
        logits = self.linear(hidden * self.scale if self.scale != 1.0 else hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class Int8Model(nn.Module):
    """A model whose matrices and head are integers and whose other weights and activations are bfloat16.

    It takes the model's modules over: the model itself can be used no longer. Embeddings are only looked up, and stay.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if any(isinstance(module, GroupedLinear) for module in model.modules()):
            raise UserError("precision=int8 knows no stacks of experts, as this model has; use 32 or bf16")
        self.config = model.config
        self.output = Int8Output(model.head)
        if getattr(model, "lm_head", None) is not None:
            model.lm_head = None
        for module in model.modules():
            if isinstance(module, Attention):
                module._joined = None
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child.weight, child.bias))
        self.model = model.bfloat16()
        if hasattr(model, "encode"):
            self.encode = model.encode

    def hidden_states(self, tokens: Tensor, **options) -> Tensor:
        return self.model.hidden_states(tokens, **options)
