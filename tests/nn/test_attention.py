import math
import timeit

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parametrize

from gptlab.nn.attention import Attention, _fusible
from gptlab.nn.lora import LoRALinear
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


@pytest.fixture
def products(monkeypatch):
    """Output features of every linear product."""
    sizes, linear = [], F.linear

    def counted(x, weight, bias=None):
        sizes.append(len(weight))
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    return sizes


FUSED, SEPARATE = [3 * H * K, D], [H * K, H * K, H * K, D]


def test_q_k_and_v_are_one_product_where_they_are_small(products, monkeypatch):
    module, x = attention(H)
    module(x)
    assert products == FUSED
    monkeypatch.setattr("gptlab.nn.attention.FUSED_ELEMENTS", D * H * K - 1)
    module, x = attention(H)
    products.clear()
    module(x)
    assert products == SEPARATE


def forward_hook(module):
    return module.q.register_forward_hook(lambda layer, args, result: result * 2).remove


def forward_pre_hook(module):
    return module.v.register_forward_pre_hook(lambda layer, args: (args[0] * 2,)).remove


def backward_hook(module):
    return module.k.register_full_backward_hook(lambda layer, inputs, outputs: (inputs[0] * 2,)).remove


def backward_pre_hook(module):
    return module.v.register_full_backward_pre_hook(lambda layer, outputs: (outputs[0] * 2,)).remove


def global_hook(module):
    own = {module.q, module.k, module.v}
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda layer, args, result: result * 2 if layer in own else result
    )
    return handle.remove


def parametrization(module):
    class Double(torch.nn.Module):
        def forward(self, weight):
            return weight * 2

    parametrize.register_parametrization(module.q, "weight", Double())
    return lambda: parametrize.remove_parametrizations(module.q, "weight", leave_parametrized=False)


def own_forward(module):
    usual = module.v.forward
    module.v.forward = lambda x: usual(x) * 2

    def undo():
        del module.v.forward

    return undo


def adapter(module):
    layer, own = module.q, LoRALinear(D, H * K, bias=True, rank=2, alpha=4.0)
    with torch.no_grad():
        own.weight.copy_(layer.weight)
        own.bias.copy_(layer.bias)
        for parameter in (own.lora_down, own.lora_up):
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    module.q = own

    def undo():
        module.q = layer

    return undo


LISTENERS = [
    forward_hook,
    forward_pre_hook,
    backward_hook,
    backward_pre_hook,
    global_hook,
    parametrization,
    own_forward,
    adapter,
]


def passed(module, x):
    x = x.clone().requires_grad_()
    result = module(x)
    (gradient,) = torch.autograd.grad(result.sin().sum(), x)
    return result.detach(), gradient


def called(module, x):
    """The same layer with q, k and v always run as modules."""
    small, module._small, joined, module._joined = module._small, False, module._joined, None
    try:
        return passed(module, x)
    finally:
        module._small, module._joined = small, joined


@pytest.mark.parametrize("listen", LISTENERS, ids=lambda listen: listen.__name__)
def test_what_listens_to_a_projection_is_heard(listen, products):
    """Also where it comes after the first forward pass, and no longer once it has gone."""
    module, x = attention(H)
    before = passed(module, x)
    assert products == FUSED
    undo = listen(module)
    products.clear()
    during = passed(module, x)
    expected = called(module, x)
    assert 3 * H * K not in products
    assert all(torch.equal(*pair) for pair in zip(during, expected, strict=True))
    assert not torch.allclose(during[1], before[1]), "it changes something"
    undo()
    products.clear()
    assert all(torch.equal(*pair) for pair in zip(passed(module, x), before, strict=True))
    assert products == FUSED


@pytest.mark.parametrize("listen", LISTENERS, ids=lambda listen: listen.__name__)
@pytest.mark.parametrize("join_first", [True, False])
def test_what_listens_is_heard_in_decoding_too(listen, join_first):
    module, x = attention(2)
    if join_first:
        module.join()
    undo = listen(module)
    if not join_first:
        module.join()
    with torch.no_grad():
        near(module(x), called_without_gradients(module, x))
    undo()


def called_without_gradients(module, x):
    small, module._small, joined, module._joined = module._small, False, module._joined, None
    result = module(x)
    module._small, module._joined = small, joined
    return result


def test_joined_weights_are_used_while_they_are_the_parameters(products):
    module, x = attention(2)
    expected = module(x).detach()
    module.join()
    products.clear()
    with torch.no_grad():
        near(module(x), expected)
        assert module._addresses() == module._joined_addresses
        module.k.weight.mul_(2)  # a view: the joined matrix follows
        near(module(x), called_without_gradients(module, x))
        module.k.weight = torch.nn.Parameter(module.k.weight / 2)
        near(module(x), expected)
    module(x).sum().backward()
    assert all(part.weight.grad is not None for part in (module.q, module.k, module.v)), "gradients reach parameters"
    assert (module.double()(x.double()).detach() - expected).abs().max() < 1e-5


def test_the_check_costs_little():
    module, _ = attention(2)
    parts = module.q, module.k, module.v
    n = 2000
    best = min(timeit.repeat(lambda: _fusible(*parts), number=n, repeat=5)) / n
    assert best < 100e-6, "per layer and forward pass"
