"""Int8 weights: a quarter of the bytes to read for each token."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.nn.attention import Attention
from gptlab.nn.cache import KVCache
from gptlab.nn.linear import is_plain_linear
from gptlab.nn.loss import LMHead
from gptlab.nn.moe import GroupedLinear

# Up to so many vectors are multiplied by the integers as they are. More share the cost of converting them.
KERNEL_VECTORS = 64
# Where the inputs are no multiple of this, the kernel reads out of bounds: garbage, or a crash.
KERNEL_INPUTS = 16


class Int8Linear(nn.Module):
    """A linear layer whose weight is an int8 matrix times one scale per output, symmetric about 0.

    The largest weight of each output becomes 127 or -127. torch's own kernel for it is private: where it is missing or
    does not support the input's type, device or width, the same product is computed by public operations. The matrix is
    called `quantized`, so that code that reads a layer's `weight` fails instead of computing without the scale.
    """

    quantized: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        scale = scale.bfloat16()  # the type that the kernel needs; rounding the weights makes up for what it lost
        self.register_buffer("quantized", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().bfloat16())
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        vectors = x.reshape(-1, self.in_features)
        product = self.by_kernel(vectors) if kernel_supports(vectors) else self.by_public_operations(vectors)
        product = product if self.bias is None else product + self.bias.to(x.dtype)
        return product.view(*x.shape[:-1], self.out_features)

    def by_kernel(self, vectors: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(vectors, self.quantized, self.scale)

    def by_public_operations(self, vectors: Tensor) -> Tensor:
        dtype = vectors.dtype
        if dtype is torch.bfloat16 and vectors.device.type == "cpu" and not cpu_multiplies_bfloat16():
            dtype = torch.float32
        product = F.linear(vectors.to(dtype), self.quantized.to(dtype)).mul_(self.scale.to(dtype))
        return product.to(vectors.dtype)


def kernel_supports(vectors: Tensor) -> bool:
    """Whether torch's kernel supports this input, and is the faster way."""
    return (
        hasattr(torch, "_weight_int8pack_mm")
        and vectors.device.type == "cpu"
        and vectors.dtype is torch.bfloat16
        and len(vectors) <= KERNEL_VECTORS
        and vectors.shape[-1] % KERNEL_INPUTS == 0
    )


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it; without them, a product takes eight times as long as in float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


class Int8LMHead:
    """An `LMHead` with int8 weights."""

    def __init__(self, head: LMHead):
        self.linear = Int8Linear(head.weight, head.bias)
        self.scale, self.softcap = head.scale, head.softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary: hidden (..., D) -> (..., V)."""
        logits = self.linear(hidden * self.scale if self.scale != 1.0 else hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class Int8Model(LanguageModel):
    """A model whose linear layers and head have int8 weights, and all else is bfloat16.

    It takes over the modules of the model, which can no longer be used by itself. Token embeddings stay in bfloat16.
    So do linear layers with hooks, adapters or parametrizations, which go on working.
    """

    def __init__(self, model: LanguageModel):
        super().__init__(model.config)
        if any(isinstance(module, GroupedLinear) for module in model.modules()):
            raise UserError("precision=int8 does not support mixture-of-experts models; use precision=32 or bf16")
        self._head = Int8LMHead(model.head)
        if getattr(model, "lm_head", None) is not None:
            model.register_module("lm_head", None)
        for module in model.modules():
            if isinstance(module, Attention):  # q, k and v are called as modules
                module._joined = None
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if is_plain_linear(child):
                    setattr(module, name, Int8Linear(child.weight, child.bias))
        self.model: LanguageModel = model.bfloat16()

    @property
    def blocks(self) -> Sequence[nn.Module] | nn.ModuleList:
        return self.model.blocks

    @property
    def head(self) -> Int8LMHead:
        return self._head

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Any:
        return self.model.encode(source, mask)

    def new_cache(self, batch_size: int, n_positions: int) -> KVCache | None:
        return self.model.new_cache(batch_size, n_positions)

    def hidden_states(self, tokens: Tensor, **options: Any) -> Tensor:
        return self.model.hidden_states(tokens, **options)
