import copy
import io

import pytest
import torch

from gptlab.training.muon import Muon, orthogonalize


def exact_newton_schulz(matrix, n_steps=5):
    x = matrix.double() / matrix.double().norm()
    for _ in range(n_steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def parameters(shapes=((6, 4), (4, 6), (6, 4), (5, 5), (7,), (3, 4)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_gradients(params, seed):
    for parameter, other in zip(params, parameters([p.shape for p in params], seed + 100), strict=True):
        parameter.grad = other.detach().clone()


def groups(params, n_muon=4, **settings):
    return [{"params": params[:n_muon], "muon": True, **settings}, {"params": params[n_muon:], "weight_decay": 0.0}]


@pytest.mark.parametrize("shape", [(8, 8), (4, 9), (9, 4), (1, 5)])
def test_orthogonalize_equals_explicit_maths_and_flattens_the_spectrum(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    result = orthogonalize(matrices)
    for matrix, obtained in zip(matrices, result, strict=True):
        assert (obtained.double() - exact_newton_schulz(matrix)).abs().max() <= 1e-5
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.3


def test_orthogonalize_batched_is_one_by_one_and_zero_stays_zero():
    matrices = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(3))
    single = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    assert (orthogonalize(matrices) - single).abs().max() <= 1e-6
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


def test_steps_equal_explicit_maths_and_adamw():
    params, lr, decay, momentum = parameters(), 0.1, 0.2, 0.9
    expected = [p.detach().double().clone() for p in params[:4]]
    averages = [torch.zeros_like(p) for p in expected]
    others = [torch.nn.Parameter(p.detach().clone()) for p in params[4:]]
    adamw = torch.optim.AdamW(others, lr=lr, betas=(0.8, 0.9), weight_decay=0.0)
    optimizer = Muon(groups(params), lr=lr, betas=(0.8, 0.9), weight_decay=decay, momentum=momentum)
    for step in range(4):
        set_gradients(params, step)
        for other, parameter in zip(others, params[4:], strict=True):
            other.grad = parameter.grad.clone()
        optimizer.step()
        adamw.step()
        for i, parameter in enumerate(params[:4]):
            gradient = parameter.grad.double()
            averages[i] = momentum * averages[i] + (1 - momentum) * gradient
            ahead = (1 - momentum) * gradient + momentum * averages[i]
            wide = ahead.shape[0] <= ahead.shape[1]
            direction = exact_newton_schulz(ahead) if wide else exact_newton_schulz(ahead.T).T
            scale = 0.2 * max(ahead.shape) ** 0.5
            expected[i] = (1 - lr * decay) * expected[i] - lr * scale * direction
            assert (parameter.detach() - expected[i]).abs().max() <= 1e-5
    for other, parameter in zip(others, params[4:], strict=True):
        assert torch.equal(other, parameter)


def test_near_torch_muon():
    ours, theirs = parameters(((16, 8), (8, 16))), parameters(((16, 8), (8, 16)))
    known = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = (
        Muon([{"params": ours, "muon": True}], **known),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **known),
    )
    start = [p.detach().clone() for p in ours]
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for optimizer in optimizers:
            optimizer.step()
    for before, a, b in zip(start, ours, theirs, strict=True):
        assert (a - b).norm() <= 0.03 * (b - before).norm()  # theirs is in bfloat16


def test_batched_equals_one_by_one():
    together, apart = parameters(), parameters()
    optimizers = [Muon(groups(together), lr=0.1)]
    optimizers += [
        Muon([{"params": [p], "muon": i < 4}], lr=0.1, weight_decay=0.01 if i < 4 else 0) for i, p in enumerate(apart)
    ]
    for step in range(3):
        set_gradients(together, step)
        set_gradients(apart, step)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, apart, strict=True):
        assert (a - b).abs().max() <= 1e-6


@pytest.mark.parametrize("fused", [None, True])
def test_state_dict_round_trip_is_exact(fused):
    params = parameters()
    optimizer = Muon(groups(params), lr=0.1, fused=fused)
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_params = copy.deepcopy(params)
    resumed = Muon(groups(resumed_params), lr=0.7, fused=fused)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(2, 4):
        for some, opt in ((params, optimizer), (resumed_params, resumed)):
            set_gradients(some, step)
            opt.step()
    for a, b in zip(params, resumed_params, strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradients_are_left_alone():
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = Muon(groups(params), lr=0.1)
    set_gradients(params, 0)
    params[0].grad = params[5].grad = None
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(params, before, strict=True)]
    assert changed == [False, True, True, True, True, False]


def test_closure_and_plain_parameters():
    params = parameters(((3, 4),))
    optimizer = Muon(params, lr=0.1)

    def closure():
        optimizer.zero_grad()
        value = params[0].square().sum()
        value.backward()
        return value

    before = optimizer.step(closure)
    assert closure() < before
    assert not optimizer.param_groups[0]["muon"]


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"shape \(7,\) is not one; put it into a group with muon=False"):
        Muon([{"params": parameters(((7,),)), "muon": True}], lr=0.1)


def test_a_stack_is_its_matrices_one_by_one():
    for shape in ((5, 6, 4), (5, 4, 6), (8, 2, 3)):
        stack = parameters((shape,))
        apart = [torch.nn.Parameter(matrix.detach().clone()) for matrix in stack[0]]
        optimizers = [Muon([{"params": params, "muon": True}], lr=0.1) for params in (stack, apart)]
        for step in range(3):
            set_gradients(stack, step)
            for own, gradient in zip(apart, stack[0].grad, strict=True):
                own.grad = gradient.clone()
            for optimizer in optimizers:
                optimizer.step()
        assert (stack[0] - torch.stack(apart)).abs().max() <= 1e-6
