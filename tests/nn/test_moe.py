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


def randn(*shape, seed=0):
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
    """The formula, sequence by sequence, token by token and choice by choice, in float64."""
    own = [dense_of(layer, e, kind, bias).double() for e in range(layer.n_expert)]
    n_chosen = torch.zeros(len(x), layer.n_expert, dtype=torch.int64)
    mixed = torch.zeros(x.shape, dtype=torch.float64)
    for b, sequence in enumerate(x.double()):
        for t, token in enumerate(sequence):
            logits = layer.router.weight.double() @ token
            chosen = logits.argsort(descending=True)[: layer.n_active].tolist()
            p = logits.softmax(0) if layer.softmax is RouterSoftmax.before else logits[chosen].softmax(0)
            for i, e in enumerate(chosen):
                n_chosen[b, e] += 1
                if capacity is None or n_chosen[b, e] <= capacity:
                    mixed[b, t] += own[e](token) * (p[e] if layer.softmax is RouterSoftmax.before else p[i])
    return mixed.detach(), n_chosen


def near(a, b):
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softmax", RouterSoftmax)
@pytest.mark.parametrize("sizes", [(8, 12), (7, 11)], ids=["grouped", "one by one"])
def test_each_token_is_answered_by_the_experts_it_chose(sizes, softmax, kind, bias):
    layer = experts(kind, *sizes, bias=bias, softmax=softmax)
    x = randn(3, 7, sizes[0])
    assert moe.runs_grouped(x, layer.experts.up.weight) == (sizes == (8, 12))
    mixed, routing = layer(x)
    expected, n_chosen = written_out(layer, x, kind, bias)
    near(mixed, expected)
    near(routing.logits, x.double() @ layer.router.weight.double().T)
    assert torch.equal(routing.n_chosen, n_chosen) and not routing.n_dropped.any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_later_choices_of_a_sequence_are_dropped(factor, kind, bias):
    layer = experts(kind, bias=bias, capacity_factor=factor)
    x = randn(3, 14, 8)
    capacity = {0.5: 3, 1.0: 6, 2.0: 12}[factor]  # of a sequence's 28 choices among 5 experts, rounded up
    mixed, routing = layer(x)
    expected, n_chosen = written_out(layer, x, kind, bias, capacity)
    near(mixed, expected)
    assert torch.equal(routing.n_chosen, n_chosen)
    assert torch.equal(routing.n_dropped, (n_chosen - capacity).clamp(min=0).sum(1))
    assert routing.n_dropped.any() == (factor < 2.0)
    whole, routing = layer.eval()(x)
    near(whole, written_out(layer, x, kind, bias)[0])
    assert not routing.n_dropped.any(), "nothing is dropped in evaluation"


def test_enough_capacity_is_dropless():
    x = randn(2, 9, 8).requires_grad_()
    found = []
    for factor in (None, 5.0):
        layer = experts(capacity_factor=factor)
        mixed, routing = layer(x)
        assert not routing.n_dropped.any()
        found.append([mixed, *torch.autograd.grad(mixed.sin().sum(), [x, *layer.parameters()])])
    for a, b in zip(*found, strict=True):
        near(a, b)


def test_whether_a_token_is_dropped_does_not_depend_on_later_ones():
    layer = experts(capacity_factor=0.7)
    x = randn(1, 30, 8)
    whole, routing = layer(x)
    assert routing.n_dropped.all()
    changed = torch.cat([x[:, :20], -x[:, 20:]], 1)
    assert torch.equal(layer(changed)[0][:, :20], whole[:, :20])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_shared", [1, 2])
def test_shared_experts_read_every_token(n_shared, kind):
    layer = experts(kind, n_shared=n_shared, bias=True)
    x = randn(2, 5, 8)
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
    x = randn(3, 7, 8).requires_grad_()
    mixed, expected = layer(x)[0], dense(x)
    assert torch.equal(mixed, expected)
    upstream = randn(3, 7, 8, seed=3)
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
    x = randn(1, 6, 4).double().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def mix(x, *parameters):
        # Router logits are rounded to float32, which finite differences would see.
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        assert torch.autograd.gradcheck(mix, (x, *layer.parameters()))


@pytest.mark.parametrize("crowded", [False, True], ids=["", "all of one shard"])
@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_the_answers_of_expert_shards_add_up(capacity_factor, crowded, padded):
    """Outputs and all gradients; each shard routes like the others, also where no token chose its experts."""
    layer = experts(n_expert=6, bias=True, capacity_factor=capacity_factor)
    x = randn(3, 7, 8)
    if crowded:
        x = x.abs()
        with torch.no_grad():
            layer.router.weight[2:] = -1.0
            layer.router.weight[:2] = 1.0 + randn(2, 8).abs()
    mask = torch.arange(7) < torch.tensor([7, 2, 5])[:, None] if padded else None
    whole, routing = passed(layer, x, mask)
    sums = {name: torch.zeros_like(value) for name, value in whole.items()}
    for local in (range(0, 2), range(2, 3), range(3, 6)):
        part = experts(n_expert=6, bias=True, capacity_factor=capacity_factor)
        part.load_state_dict(layer.state_dict())
        part.shard = part.shard._replace(local_experts=local)
        for parameter in part.experts.parameters():
            parameter.data = parameter.data[local.start : local.stop].clone()
        values, own = passed(part, x, mask)
        assert all(torch.equal(*pair) for pair in zip(own[:3], routing[:3], strict=True))
        for name, value in values.items():
            target = sums[name][local.start : local.stop] if name.startswith("experts.") else sums[name]
            target += value
    if crowded:
        assert not routing.n_chosen[:, 2:].any()
    for name, value in whole.items():
        near(sums[name], value)


def passed(layer, x, mask=None):
    """The output at real tokens, the gradients of the input and the parameters, and how it was routed."""
    x = x.clone().requires_grad_()
    mixed, routing = layer(x, mask)
    if mask is not None:
        mixed = mixed * mask[..., None]
    (mixed * randn(*mixed.shape, seed=5)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": mixed.detach(), "input": x.grad, **gradients}, routing


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_products_are_the_same(dtype, bias):
    layer = drawn(GroupedLinear(6, 16, 24, bias=bias)).to(dtype)
    x = randn(40, 16).to(dtype).requires_grad_()
    ends = torch.tensor([3, 3, 20, 21, 39, 40], dtype=torch.int32)  # one expert has no tokens
    upstream = randn(40, 24, seed=2).to(dtype)
    found = []
    for product in (moe.grouped, moe.one_by_one):
        y = product(x, layer.weight, layer.bias, ends)
        found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], upstream)])
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * b.abs().max()
    assert not found[0][2][1].any(), "an expert without tokens has a gradient of zeros"


def test_the_router_computes_in_float32_under_autocast():
    layer = experts()
    x = randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, routing = layer(x)
    assert mixed.dtype == torch.bfloat16 and routing.logits.dtype == torch.float32
    assert torch.equal(routing.logits, layer(x)[1].logits)
    mixed = layer.bfloat16()(x.bfloat16())
    assert mixed[0].dtype == torch.bfloat16 and mixed[1].logits.dtype == torch.float32


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_sequences_do_not_depend_on_one_another(capacity_factor):
    """So neither does a step on its micro-batches, nor on the number of devices."""
    layer = experts(capacity_factor=capacity_factor, n_shared=1)
    x = randn(4, 12, 8)
    whole, routing = layer(x)
    assert (capacity_factor is None) == (not routing.n_dropped.any())
    for b in range(4):
        alone, own = layer(x[b : b + 1])
        near(alone[0], whole[b])
        assert torch.equal(own.n_chosen[0], routing.n_chosen[b]) and own.n_dropped[0] == routing.n_dropped[b]


@pytest.mark.parametrize("capacity_factor", [None, 0.7])
def test_padding_changes_nothing(capacity_factor):
    layer = experts(capacity_factor=capacity_factor, n_shared=1)
    x, lengths = randn(4, 12, 8), [12, 3, 7, 1]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    mixed, routing = layer(x, mask)
    added = auxiliary([routing], balance_coef=1.0, z_coef=1.0)
    expected = 0.0
    for b, length in enumerate(lengths):
        alone, own = layer(x[b : b + 1, :length])
        near(mixed[b, :length], alone[0])
        assert torch.equal(own.n_chosen[0], routing.n_chosen[b]) and own.n_dropped[0] == routing.n_dropped[b]
        assert routing.n_chosen[b].sum() == length * 2
        expected += auxiliary([own], balance_coef=1.0, z_coef=1.0).loss
    near(added.loss, expected)


def routings(n_layer=3, batch_size=4, n_tokens=20, n_expert=5, n_active=2):
    for seed in range(n_layer):
        logits = randn(batch_size, n_tokens, n_expert, seed=seed).requires_grad_()
        chosen = logits.topk(n_active).indices.flatten(1)
        n_chosen = torch.stack([sequence.bincount(minlength=n_expert) for sequence in chosen])
        yield Routing(logits, n_chosen, torch.arange(batch_size) + seed)


def test_auxiliary_losses_are_the_papers_formulas():
    """DeepSeek-V3's equations 17 to 20, sequence by sequence, and ST-MoE's equation 5."""
    layers = list(routings())
    found = auxiliary(layers, balance_coef=0.3, z_coef=0.2)
    balance, z, load = [], [], []
    for b in range(4):
        for routing in layers:
            p = routing.logits[b].double().softmax(-1)
            f = [5 / (2 * 20) * n for n in routing.n_chosen[b].tolist()]
            balance.append(sum(f[i] * sum(p[:, i].tolist()) / 20 for i in range(5)))
            z.append(sum(token.exp().sum().log().item() ** 2 for token in routing.logits[b].double()) / 20)
        load.append(max(routing.n_chosen[b].max() / 40 for routing in layers))
    expected = {"balance_loss": sum(balance) / 3, "z_loss": sum(z) / 3}
    expected["dropped_token_fraction"] = sum(3 * b + 0 + 1 + 2 for b in range(4)) / 120
    expected["max_expert_load"] = sum(load)
    assert found.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert found.terms[name].item() == pytest.approx(float(value), rel=1e-5), name
        assert not found.terms[name].requires_grad
    near(found.loss, 0.3 * expected["balance_loss"] + 0.2 * torch.tensor(expected["z_loss"]))
    assert found.loss.requires_grad
    near(auxiliary(layers, balance_coef=None, z_coef=0.2).loss, 0.2 * found.terms["z_loss"])
    assert auxiliary(layers, balance_coef=None, z_coef=None).loss == 0


def test_balance_is_one_where_all_are_chosen_alike_and_more_elsewhere():
    even = Routing(torch.zeros(1, 10, 5), torch.full((1, 5), 4), torch.zeros(1))
    assert auxiliary([even], balance_coef=1.0, z_coef=None).loss == pytest.approx(1.0)
    logits = torch.zeros(1, 10, 5)
    logits[..., 2] = 20.0
    one = Routing(logits, torch.tensor([[0, 0, 20, 0, 0]]), torch.zeros(1))
    assert auxiliary([one], balance_coef=1.0, z_coef=None).loss == pytest.approx(5.0)


def test_it_is_deterministic():
    layer = experts(n_active=3, bias=True)
    x = randn(4, 50, 8).requires_grad_()
    runs = []
    for _ in range(3):
        mixed, _ = layer(x)
        runs.append([mixed, *torch.autograd.grad(mixed.square().sum(), [x, *layer.parameters()])])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
