"""Products of few vectors, computed in parts by all threads."""

import pytest
import torch
import torch.nn.functional as F

from gptlab.nn import linear
from gptlab.nn.linear import MAX_VECTORS, ThreadedLinear, is_plain_linear, threaded_linear

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    yield from with_threads(request.param)


@pytest.fixture
def two_threads():
    yield from with_threads(2)


def with_threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    yield n
    torch.set_num_threads(before)


@pytest.fixture
def batches(monkeypatch):
    """The matrices that were given to the library in parts, whatever their size."""
    found, bmm = [], torch.bmm
    monkeypatch.setattr(linear, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(linear, "MIN_INPUTS_PER_PART", 1)
    monkeypatch.setattr(torch, "bmm", lambda x, parts: found.append(parts) or bmm(x, parts))
    return found


@needs_mkl
@pytest.mark.parametrize("shape", [(48,), (1, 1, 48), (3, 5, 48), (MAX_VECTORS, 48), (MAX_VECTORS + 1, 48), (0, 48)])
@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("n_outputs", [96, 101])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_product(batches, n_threads, shape, by_column, n_outputs, biased):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(n_outputs, 48, generator=generator)
    bias = torch.randn(n_outputs, generator=generator) if biased else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    before = None if bias is None else bias.clone()
    given = weight.t().contiguous().t() if by_column else weight
    with torch.no_grad():
        found = threaded_linear(x, given, bias)
    assert found.shape == exact.shape and torch.allclose(found.double(), exact, atol=1e-5)
    assert bias is None or bias.equal(before)
    n_vectors = x.numel() // 48
    divides = by_column or n_outputs == 96  # 101 is a prime
    assert bool(batches) is (n_threads > 1 and 0 < n_vectors <= MAX_VECTORS and divides)


@needs_mkl
@pytest.mark.parametrize("by_column", [True, False])
def test_the_matrix_is_not_copied(batches, two_threads, by_column):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(48, 3 * 96, generator=generator).t()  # q, k and v, joined by column
    if not by_column:
        whole = whole.contiguous()
    x = torch.randn(1, 48, generator=generator)
    with torch.no_grad():
        for weight in whole.split(96):
            assert torch.allclose(threaded_linear(x, weight), x @ weight.t(), atol=1e-5)
            assert batches[-1].data_ptr() == weight.data_ptr()
    assert len(batches) == 3


def as_other_type(weight):
    return weight.as_subclass(type("Sharded", (torch.Tensor,), {}))


@pytest.mark.parametrize("change", ["float64", "bfloat16", "gradient", "autocast", "subclass", "small"])
def test_all_else_takes_the_usual_way(batches, monkeypatch, two_threads, change):
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(change, torch.float32)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 48, generator=generator).to(dtype), torch.randn(96, 48, generator=generator).to(dtype)
    if change == "small":
        monkeypatch.setattr(linear, "MIN_ELEMENTS", weight.numel() + 1)
    given = as_other_type(weight) if change == "subclass" else weight
    with (
        torch.set_grad_enabled(change == "gradient"),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=change == "autocast"),
    ):
        assert threaded_linear(x, given).equal(F.linear(x, weight))
    assert not batches


@pytest.mark.parametrize(
    "size, n_threads, most, expected",
    [
        (768, 1, 32, 1),
        (768, 2, 32, 4),
        (768, 3, 32, 6),
        (768, 16, 32, 32),
        (768, 64, 32, 32),
        (768, 2, 3, 3),
        (1733 * 29, 16, 32, 29),
        (2 * 1733, 2, 32, 2),
        (2 * 1733, 16, 32, 1),  # 14 threads would wait
        (768, 16, 6, 1),
        (768, 2, 0, 1),
    ],
)
def test_how_many_parts(size, n_threads, most, expected):
    assert linear._n_parts(size, n_threads, most) == expected


def test_it_counts_as_a_plain_linear_layer():
    layer = ThreadedLinear(4, 4)
    assert is_plain_linear(layer)
    layer.register_forward_hook(lambda *_: None)
    assert not is_plain_linear(layer)
