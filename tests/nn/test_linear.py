"""Products that are spread over the threads of a CPU."""

import pytest
import torch
import torch.nn.functional as F

from gptlab.nn import linear
from gptlab.nn.linear import SpreadLinear, is_plain_linear, spread_linear


@pytest.fixture(params=[1, 2, 3, 7])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch):
    """How many products were given to BLAS as a batch."""
    found, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args: found.append(1) or bmm(*args))
    return found


@pytest.mark.parametrize("shape", [(48,), (1, 1, 48), (3, 5, 48), (16, 48), (17, 48), (0, 48)])
@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("n_outputs", [96, 101])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_product(monkeypatch, calls, n_threads, shape, by_column, n_outputs, biased):
    monkeypatch.setattr(linear, "MIN_ELEMENTS", 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(n_outputs, 48, generator=generator)
    bias = torch.randn(n_outputs, generator=generator) if biased else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    before = None if bias is None else bias.clone()
    given = weight.t().contiguous().t() if by_column else weight
    with torch.no_grad():
        found = spread_linear(x, given, bias)
    assert found.shape == exact.shape and torch.allclose(found.double(), exact, atol=1e-5)
    assert bias is None or bias.equal(before)
    n_vectors = x.numel() // 48
    divides = by_column or n_outputs == 96  # 101 is a prime
    assert bool(calls) is (n_threads > 1 and 0 < n_vectors <= linear.MAX_VECTORS and divides)


def test_parts_of_a_matrix_of_parts_are_taken_as_they_lie():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(768, 2304, generator=generator).t()  # q, k and v, joined by column
    x = torch.randn(1, 768, generator=generator)
    with torch.no_grad():
        for part in whole.split(768):
            assert torch.allclose(spread_linear(x, part), x @ part.t(), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_gradients_take_the_usual_way(monkeypatch, calls, dtype):
    monkeypatch.setattr(linear, "MIN_ELEMENTS", 0)
    layer = SpreadLinear(48, 96)
    x = torch.randn(1, 48)
    assert layer(x).equal(F.linear(x, layer.weight, layer.bias)) and layer(x).requires_grad
    with torch.no_grad():
        assert layer.to(dtype)(x.to(dtype)).equal(F.linear(x.to(dtype), layer.weight, layer.bias))
    assert not calls


def test_it_counts_as_a_plain_linear_layer():
    layer = SpreadLinear(4, 4)
    assert is_plain_linear(layer)
    layer.register_forward_hook(lambda *_: None)
    assert not is_plain_linear(layer)
