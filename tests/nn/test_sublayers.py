import math

import pytest
import torch

from gptlab.nn.block import Block
from gptlab.nn.feedforward import GELU, SquaredReLU, SwiGLU
from gptlab.nn.norm import LayerNorm, RMSNorm

X = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)) * 2 + 0.5


def drawn(module):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def near(a, b):
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def through(linear, x):
    x = x @ linear.weight.double().T
    return x if linear.bias is None else x + linear.bias.double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "kind, inside",
    [
        (GELU, lambda m, x: gelu(through(m.up, x))),
        (SwiGLU, lambda m, x: through(m.gate, x) * torch.sigmoid(through(m.gate, x)) * through(m.up, x)),
        (SquaredReLU, lambda m, x: through(m.up, x).clamp(min=0) ** 2),
    ],
)
def test_feedforward(kind, inside, bias):
    module = drawn(kind(6, 10, bias=bias))
    assert all((linear.bias is not None) == bias for linear in module.children())
    near(module(X), through(module.down, inside(module, X.double())))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    module = drawn(LayerNorm(6, eps=0.3, bias=bias))
    x = X.double()
    variance = x.var(-1, keepdim=True, correction=0)
    expected = (x - x.mean(-1, keepdim=True)) / (variance + 0.3).sqrt() * module.weight
    near(module(X), expected + module.bias if bias else expected)


def test_rms_norm():
    module = drawn(RMSNorm(6, eps=0.3))
    x = X.double()
    near(module(X), x / (x.square().mean(-1, keepdim=True) + 0.3).sqrt() * module.weight)


def test_block_adds_each_sublayer_to_the_stream():
    parts = {name: drawn(torch.nn.Linear(6, 6)) for name in ("norm1", "attn", "norm2", "ffn")}
    x = X + parts["attn"](parts["norm1"](X))
    near(Block(**parts)(X), x + parts["ffn"](parts["norm2"](x)))
