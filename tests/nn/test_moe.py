import pytest
import torch

from gptlab.models.decoder.config import RouterSoftmax
from gptlab.nn import moe
from gptlab.nn.feedforward import FEEDFORWARDS, GELU, SwiGLU
from gptlab.nn.moe import GroupedLinear, MoE, Routing, auxiliary

KINDS = [*FEEDFORWARDS.values()]


def drawn(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def experts(kind=SwiGLU, d_model=8, d_ff=12, *, n_expert=5, n_active=2, bias=False, **options):
    return drawn(MoE(kind, d_model, d_ff, bias=bias, n_expert=n_expert, n_active=n_active, **options))


def dense_of(layer, expert, kind, bias):
    """One of the experts as a feedforward of its own."""
    d_ff, d_model = layer.experts.up.weight.shape[1:]
    dense = kind(d_model, d_ff, bias=bias)
    dense.load_state_dict({name: value[expert] for name, value in layer.experts.state_dict().items()})
    return dense


def written_out(layer, x, kind, bias, capacity=None):
    """The formula, token by token and choice by choice, in float64."""
    own = [dense_of(layer, e, kind, bias).double() for e in range(layer.n_expert)]
    taken = [0] * layer.n_expert
    rows = []
    for token in x.double().flatten(0, -2):
        logits = layer.router.weight.double() @ token
        chosen = logits.argsort(descending=True)[: layer.n_active].tolist()
        p = logits.softmax(0) if layer.softmax is RouterSoftmax.before else logits[chosen].softmax(0)
        row = torch.zeros_like(token)
        for place, e in enumerate(chosen):
            taken[e] += 1
            if capacity is None or taken[e] <= capacity:
                row = row + own[e](token) * (p[e] if layer.softmax is RouterSoftmax.before else p[place])
        rows.append(row)
    return torch.stack(rows).view(x.shape), torch.tensor(taken)


def near(a, b):
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softmax", RouterSoftmax)
@pytest.mark.parametrize("sizes", [(8, 12), (7, 11)], ids=["grouped", "one by one"])
def test_each_token_is_answered_by_the_experts_it_chose(sizes, softmax, kind, bias):
    layer = experts(kind, *sizes, bias=bias, softmax=softmax)
    x = numbers(3, 7, sizes[0])
    assert moe.runs_grouped(x, layer.experts.up.weight) == (sizes == (8, 12))
    mixed, routing = layer(x)
    expected, n_chosen = written_out(layer, x, kind, bias)
    near(mixed, expected)
    near(routing.logits, x.flatten(0, 1).double() @ layer.router.weight.double().T)
    assert torch.equal(routing.n_chosen, n_chosen) and routing.n_dropped == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_later_choices_find_no_room(factor, kind, bias):
    layer = experts(kind, bias=bias, capacity_factor=factor)
    x = numbers(3, 7, 8)
    capacity = {0.5: 5, 1.0: 9, 1.5: 13}[factor]  # of 42 choices among 5 experts, rounded up
    mixed, routing = layer(x)
    expected, n_chosen = written_out(layer, x, kind, bias, capacity)
    near(mixed, expected)
    assert torch.equal(routing.n_chosen, n_chosen)
    assert routing.n_dropped == (n_chosen - capacity).clamp(min=0).sum()
    assert (routing.n_dropped > 0) == (factor < 1.5)
    whole, routing = layer.eval()(x)
    near(whole, written_out(layer, x, kind, bias)[0])
    assert routing.n_dropped == 0, "nothing is dropped but in training"


def test_room_for_all_is_dropless():
    x = numbers(2, 9, 8).requires_grad_()
    found = []
    for factor in (None, 5.0):
        layer = experts(capacity_factor=factor)
        mixed, routing = layer(x)
        assert routing.n_dropped == 0
        found.append([mixed, *torch.autograd.grad(mixed.sin().sum(), [x, *layer.parameters()])])
    for a, b in zip(*found, strict=True):
        near(a, b)


def test_whether_a_token_is_dropped_does_not_depend_on_later_ones():
    layer = experts(capacity_factor=0.7)
    x = numbers(1, 30, 8)
    whole, routing = layer(x)
    assert routing.n_dropped > 0
    changed = torch.cat([x[:, :20], -x[:, 20:]], 1)
    assert torch.equal(layer(changed)[0][:, :20], whole[:, :20])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_shared", [1, 2])
def test_shared_experts_answer_every_token(n_shared, kind):
    layer = experts(kind, n_shared=n_shared, bias=True)
    x = numbers(2, 5, 8)
    assert layer.shared.up.weight.shape == (n_shared * 12, 8)
    both, _ = layer(x)
    shared, layer.shared = layer.shared, None
    near(both, layer(x)[0] + shared(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softmax", RouterSoftmax)
def test_one_expert_is_the_dense_feedforward_bit_for_bit(softmax, kind, bias):
    layer = experts(kind, n_expert=1, n_active=1, bias=bias, softmax=softmax)
    dense = dense_of(layer, 0, kind, bias)
    x = numbers(3, 7, 8).requires_grad_()
    mixed, expected = layer(x)[0], dense(x)
    assert torch.equal(mixed, expected)
    upstream = numbers(3, 7, 8, seed=3)
    (from_experts,) = torch.autograd.grad(mixed, x, upstream, retain_graph=True)
    (from_dense,) = torch.autograd.grad(expected, x, upstream, retain_graph=True)
    assert torch.equal(from_experts, from_dense)
    mixed.backward(upstream)
    expected.backward(upstream)
    for name, parameter in dense.named_parameters():
        assert torch.equal(layer.experts.get_parameter(name).grad[0], parameter.grad), name
    assert not layer.router.weight.grad.any()


@pytest.mark.parametrize("capacity_factor", [None, 0.8])
@pytest.mark.parametrize("kind", [GELU, SwiGLU])
def test_gradients_are_those_of_finite_differences(kind, capacity_factor):
    layer = experts(kind, 4, 6, n_expert=3, bias=True, capacity_factor=capacity_factor, n_shared=1).double()
    x = numbers(1, 6, 4).double().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def mix(x, *parameters):
        # Router logits are rounded to float32, which finite differences would see.
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        assert torch.autograd.gradcheck(mix, (x, *layer.parameters()))


@pytest.mark.parametrize("crowded", [False, True], ids=["", "all of one holder"])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_what_holders_of_some_experts_answer_adds_up(capacity_factor, crowded):
    """Outputs and all gradients; each holder routes like the others, also where nobody chose its experts."""
    layer = experts(n_expert=6, bias=True, capacity_factor=capacity_factor)
    x = numbers(3, 7, 8)
    if crowded:
        x = x.abs()
        with torch.no_grad():
            layer.router.weight[2:] = -1.0
            layer.router.weight[:2] = 1.0 + numbers(2, 8).abs()
    whole, routing = passed(layer, x)
    sums = {name: torch.zeros_like(value) for name, value in whole.items()}
    for held in (range(0, 2), range(2, 3), range(3, 6)):
        part = experts(n_expert=6, bias=True, capacity_factor=capacity_factor)
        part.load_state_dict(layer.state_dict())
        part.division = part.division._replace(held=held)
        for parameter in part.experts.parameters():
            parameter.data = parameter.data[held.start : held.stop].clone()
        values, own = passed(part, x)
        assert all(torch.equal(*pair) for pair in zip(own, routing, strict=True))
        for name, value in values.items():
            target = sums[name][held.start : held.stop] if name.startswith("experts.") else sums[name]
            target += value
    if crowded:
        assert routing.n_chosen[2:].sum() == 0
    for name, value in whole.items():
        near(sums[name], value)


def passed(layer, x):
    """The output, the gradients of the input and the parameters, and how it was routed."""
    x = x.clone().requires_grad_()
    mixed, routing = layer(x)
    (mixed * numbers(*mixed.shape, seed=5)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": mixed.detach(), "input": x.grad, **gradients}, routing


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_products_are_the_same(dtype, bias):
    layer = drawn(GroupedLinear(6, 16, 24, bias=bias)).to(dtype)
    x = numbers(40, 16).to(dtype).requires_grad_()
    ends = torch.tensor([3, 3, 20, 21, 39, 40], dtype=torch.int32)  # one expert has no rows
    upstream = numbers(40, 24, seed=2).to(dtype)
    found = []
    for product in (moe.grouped, moe.one_by_one):
        y = product(x, layer.weight, layer.bias, ends)
        found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], upstream)])
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * b.abs().max()
    assert not found[0][2][1].any(), "an expert without rows has a gradient of zeros"


def test_the_router_computes_in_float32_under_autocast():
    layer = experts()
    x = numbers(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, routing = layer(x)
    assert mixed.dtype == torch.bfloat16 and routing.logits.dtype == torch.float32
    assert torch.equal(routing.logits, layer(x)[1].logits)
    mixed = layer.bfloat16()(x.bfloat16())
    assert mixed[0].dtype == torch.bfloat16 and mixed[1].logits.dtype == torch.float32


def routings(n_layer=3, n_tokens=20, n_expert=5, n_active=2):
    for seed in range(n_layer):
        logits = numbers(n_tokens, n_expert, seed=seed).requires_grad_()
        n_chosen = logits.topk(n_active).indices.flatten().bincount(minlength=n_expert)
        yield Routing(logits, n_chosen, torch.tensor(seed))


def test_auxiliary_losses_are_the_papers_formulas():
    layers = list(routings())
    found = auxiliary(layers, balance_coef=0.3, z_coef=0.2)
    balance, z = [], []
    for logits, n_chosen, _ in layers:
        p = logits.double().softmax(-1)
        balance.append(5 * sum(n_chosen[i] / 40 * sum(p[:, i].tolist()) / 20 for i in range(5)))
        z.append(sum(row.exp().sum().log().item() ** 2 for row in logits.double()) / 20)
    expected = {"balance_loss": sum(balance) / 3, "z_loss": sum(z) / 3}
    expected["dropped_token_fraction"] = (0 + 1 + 2) / 120
    expected["max_expert_load"] = max(n_chosen.max() / 40 for _, n_chosen, _ in layers)
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert found.terms[name].item() == pytest.approx(float(value), rel=1e-5), name
        assert not found.terms[name].requires_grad
    near(found.loss, 0.3 * expected["balance_loss"] + 0.2 * torch.tensor(expected["z_loss"]))
    assert found.loss.requires_grad
    near(auxiliary(layers, balance_coef=None, z_coef=0.2).loss, 0.2 * found.terms["z_loss"])
    assert auxiliary(layers, balance_coef=None, z_coef=None).loss == 0


def test_balance_is_one_where_all_are_chosen_alike_and_more_elsewhere():
    even = Routing(torch.zeros(10, 5), torch.full((5,), 4), torch.tensor(0))
    assert auxiliary([even], balance_coef=1.0, z_coef=None).loss == pytest.approx(1.0)
    logits = torch.zeros(10, 5)
    logits[:, 2] = 20.0
    one = Routing(logits, torch.tensor([0, 0, 20, 0, 0]), torch.tensor(0))
    assert auxiliary([one], balance_coef=1.0, z_coef=None).loss == pytest.approx(5.0)


def test_it_is_deterministic():
    layer = experts(n_active=3, bias=True)
    x = numbers(4, 50, 8).requires_grad_()
    runs = []
    for _ in range(3):
        mixed, _ = layer(x)
        runs.append([mixed, *torch.autograd.grad(mixed.square().sum(), [x, *layer.parameters()])])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
