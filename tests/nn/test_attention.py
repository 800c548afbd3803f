import math

import pytest
import torch

from gptlab.nn.attention import Attention
from gptlab.nn.position import Rotary

B, T, D, H, K = 2, 5, 12, 6, 4


def attention(n_kv_head, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    module = Attention(D, n_head=H, n_kv_head=n_kv_head, d_head=K, bias=True, qkv_bias=True, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module, torch.randn(B, T, D, generator=generator)


def rotated(vector, position, theta):
    """Each pair (i, i + K/2) as a complex number, times e^(i angle)."""
    pairs = torch.complex(vector[: K // 2], vector[K // 2 :])
    angles = position * theta ** (-torch.arange(0, K, 2, dtype=torch.float64) / K)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag))


def explicit(module, x, n_kv_head, bias, *, eps=None, theta=None, scale=K**-0.5):
    """One query, one head, one sequence at a time, in float64."""
    x = x.double()
    q, k, v = (x @ part.weight.double().T + part.bias.double() for part in (module.q, module.k, module.v))
    mixed = torch.zeros(B, T, H * K, dtype=torch.float64)

    def prepared(heads, b, t, h):
        vector = heads[b, t, h * K : (h + 1) * K]
        if eps is not None:
            vector = vector / (vector.square().mean() + eps).sqrt()
        return vector if theta is None else rotated(vector, t, theta)

    for b in range(B):
        for h in range(H):
            group = h // (H // n_kv_head)
            for t in range(T):
                scores = torch.stack(
                    [prepared(q, b, t, h) @ prepared(k, b, s, group) * scale + bias[t, s] for s in range(T)]
                )
                weights = scores.exp() / scores.exp().sum()
                mixed[b, t, h * K : (h + 1) * K] = weights @ v[b, :, group * K : (group + 1) * K]
    return mixed @ module.out.weight.double().T + module.out.bias.double()


def near(a, b):
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


CAUSAL = torch.full((T, T), -math.inf).triu(1)


@pytest.mark.parametrize("n_kv_head", [1, 2, 3, 6])
@pytest.mark.parametrize("eps, theta", [(None, None), (0.1, None), (None, 20.0), (0.1, 20.0)])
def test_equals_explicit_maths(n_kv_head, eps, theta):
    module, x = attention(n_kv_head, qk_norm_eps=eps)
    rotation = None if theta is None else Rotary(K, 9, theta=theta)(torch.arange(T))
    near(module(x, rotation=rotation, causal=True), explicit(module, x, n_kv_head, CAUSAL, eps=eps, theta=theta))


@pytest.mark.parametrize("eps", [None, 0.1])
@pytest.mark.parametrize("scale", [1.0, 0.07])
def test_another_scale(scale, eps):
    module, x = attention(2, qk_norm_eps=eps, scale=scale)
    near(module(x, causal=True), explicit(module, x, 2, CAUSAL, eps=eps, scale=scale))


@pytest.mark.parametrize("n_kv_head", [2, 6])
def test_masks_are_values(n_kv_head):
    module, x = attention(n_kv_head)
    near(module(x), explicit(module, x, n_kv_head, torch.zeros(T, T)))
    near(module(x, mask=CAUSAL == 0), module(x, causal=True))
    bias = torch.randn(T, T, generator=torch.Generator().manual_seed(4))
    near(module(x, mask=bias), explicit(module, x, n_kv_head, bias))


@pytest.mark.parametrize("n_kv_head", [2, 6])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_another_sequence_can_be_looked_at(n_kv_head, scale):
    """Its last tokens are the queries' own: then that is attention to all, read at the end."""
    module, x = attention(n_kv_head, scale=scale)
    with torch.no_grad():
        module.q.weight *= 1.0 if scale is None else K**-0.5  # what a scale of 1 leaves to the weights
        module.q.bias *= 1.0 if scale is None else K**-0.5
    whole = module(x, mask=(torch.arange(T) < 3)[None])
    seen = module(x[:, -2:], source=x, mask=(torch.arange(T) < 3)[None])
    near(seen, whole[:, -2:])
    near(module(x[:, -2:], source=x[:, :3]), seen)
    near(module(x[:, -2:], source=module.keys_values(x[:, :3])), seen)
    reference, _ = attention(n_kv_head)
    near(whole, reference(x, mask=(torch.arange(T) < 3)[None]))


def test_large_matrices_are_not_joined():
    sizes = {"n_kv_head": 1, "d_head": 1024, "bias": False, "qkv_bias": False}
    with torch.device("meta"):
        assert Attention(1024, n_head=1, **sizes).joint_projection
        assert not Attention(1025, n_head=1, **sizes).joint_projection
