import math

import pytest
import torch

from gptlab.models.config import Feedforward
from gptlab.nn.block import Block, CrossBlock
from gptlab.nn.feedforward import FEEDFORWARDS, GEGLU, GELU, ExactGELU, ReLU, SquaredReLU, SwiGLU

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
        (ExactGELU, lambda m, x: through(m.up, x) * 0.5 * (1 + torch.erf(through(m.up, x) / math.sqrt(2)))),
        (GEGLU, lambda m, x: gelu(through(m.gate, x)) * through(m.up, x)),
        (ReLU, lambda m, x: through(m.up, x).clamp(min=0)),
        (SwiGLU, lambda m, x: through(m.gate, x) * torch.sigmoid(through(m.gate, x)) * through(m.up, x)),
        (SquaredReLU, lambda m, x: through(m.up, x).clamp(min=0) ** 2),
    ],
)
def test_feedforward(kind, inside, bias):
    module = drawn(kind(6, 10, bias=bias))
    assert all((linear.bias is not None) == bias for linear in module.children())
    near(module(X), through(module.down, inside(module, X.double())))


@pytest.mark.parametrize("name", Feedforward)
def test_dropout_falls_on_the_inner_channels(name):
    module = FEEDFORWARDS[name](6, 4000, bias=False, dropout=0.25).train()
    seen = []
    module.down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(0)
    module(X)
    inside = module.activations(X)
    kept = seen[0] != 0
    assert 0.73 < kept[inside != 0].float().mean() < 0.77
    near(seen[0][kept], inside[kept] / 0.75)


def test_a_block_adds_each_sublayer_to_the_stream():
    parts = {name: drawn(torch.nn.Linear(6, 6)) for name in ("norm1", "attn", "norm2", "ffn")}
    x = X + parts["attn"](parts["norm1"](X))
    near(Block(**parts)(X), x + parts["ffn"](parts["norm2"](x)))


def test_a_cross_block_attends_to_the_source_between_its_sublayers():
    parts = {name: drawn(torch.nn.Linear(6, 6)) for name in ("norm1", "attn", "norm_cross", "norm2", "ffn")}

    class Cross(torch.nn.Module):
        def forward(self, x, *, source, mask):
            return x * source.sum() + mask

    x = X + parts["attn"](parts["norm1"](X))
    x = x + (parts["norm_cross"](x) * 3 + 2)
    block = CrossBlock(**parts, cross=Cross())
    near(block(X, source=torch.ones(3), source_mask=torch.tensor(2.0)), x + parts["ffn"](parts["norm2"](x)))
