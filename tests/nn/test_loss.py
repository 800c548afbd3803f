import pytest
import torch

from gptlab.nn import loss
from gptlab.nn.loss import LMHead, linear_cross_entropy, target_nats

VOCAB_SIZE, WIDTH = 37, 8


def example(*, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 11, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB_SIZE, WIDTH, generator=generator).requires_grad_()
    shift = torch.randn(VOCAB_SIZE, generator=generator).requires_grad_() if bias else None
    targets = torch.randint(VOCAB_SIZE, (3, 11), generator=generator)
    return hidden, weight, shift, targets


def near(a, b, tolerance):
    assert a.dtype == b.dtype
    assert (a - b).abs().max() <= tolerance * b.abs().max()


def reference(hidden, output, targets):
    weight, bias = output.weight.double(), 0 if output.bias is None else output.bias.double()
    logits = output.scale * hidden.double() @ weight.T + bias
    if output.softcap is not None:
        logits = output.softcap * torch.tanh(logits / output.softcap)
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    picked = log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -(picked * (targets != -100)).sum()


@pytest.mark.parametrize("chunk_size", [1, 7, 32, 33, None])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(
    "scale, softcap, bias", [(1.0, None, False), (0.5, 2.0, True), (1.0, 5.0, False), (3.0, None, True)]
)
def test_equals_explicit_maths_with_all_gradients(chunk_size, ignored, scale, softcap, bias):
    hidden, weight, shift, targets = example(bias=bias)
    if ignored:
        targets[1] = -100
        targets[:, 3] = -100
    output = LMHead(weight=weight, bias=shift, scale=scale, softcap=softcap)
    inputs = [x for x in (hidden, weight, shift) if x is not None]
    expected = reference(hidden, output, targets)
    count = int((targets != -100).sum())
    factors = (0.3, 1 / count)  # any, and that of a mean
    expected_gradients = {f: torch.autograd.grad(f * expected, inputs, retain_graph=True) for f in factors}
    for factor in factors:
        obtained = linear_cross_entropy(hidden, output, targets, chunk_size=chunk_size)
        assert obtained.dtype == torch.float32 and obtained.shape == ()
        near(obtained.double(), expected, 1e-6)
        found = torch.autograd.grad(factor * obtained, inputs)
        for gradient, wanted in zip(found, expected_gradients[factor], strict=True):
            near(gradient, wanted, 2e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_targets_whose_probability_is_no_float32(bias):
    """Whose logits lie hundreds below the largest, beside others that do not."""
    hidden, weight, shift, targets = example(bias=bias)
    hidden = (hidden * torch.linspace(0.1, 60, 11)[:, None]).detach().requires_grad_()
    output, inputs = LMHead(weight, shift), [hidden, weight, *([shift] if bias else [])]
    nats = target_nats(hidden, output, targets)
    assert nats.min() < 10 and nats.max() > 300 and (nats > 104).sum() > 5, "below the smallest float32"
    expected = reference(hidden, output, targets)
    wanted = torch.autograd.grad(expected, inputs)
    for chunk_size in (5, None):
        obtained = linear_cross_entropy(hidden, output, targets, chunk_size=chunk_size)
        near(obtained.double(), expected, 1e-6)
        for gradient, want in zip(torch.autograd.grad(obtained, inputs), wanted, strict=True):
            near(gradient, want, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_uninitialized_memory_is_kept(monkeypatch, dtype):
    monkeypatch.setattr(loss.torch, "empty_like", lambda x, **options: torch.full_like(x, torch.nan, **options))
    hidden, weight, shift, targets = example(bias=True, dtype=dtype)
    linear_cross_entropy(hidden, LMHead(weight, shift), targets, chunk_size=7).backward()
    assert all(x.grad.isfinite().all() for x in (hidden, weight, shift))


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_positions_that_go_through_the_softmax_together_change_nothing(monkeypatch, rows):
    def found(n):
        monkeypatch.setattr(loss, "softmax_positions_cpu", lambda vocab_size: n)
        hidden, weight, shift, targets = example(bias=True)
        targets[1, 3:5] = -100
        total = linear_cross_entropy(hidden, LMHead(weight, shift, softcap=3.0), targets, chunk_size=12)
        return [total.detach(), *torch.autograd.grad(total, (hidden, weight))]

    assert all(map(torch.equal, found(rows), found(1000)))


@pytest.mark.parametrize(("softcap", "function"), [(None, "softmax"), (5.0, "log_softmax")])
def test_the_softmax_is_never_a_copy_of_a_whole_chunk_on_a_cpu(monkeypatch, softcap, function):
    monkeypatch.setattr(loss, "softmax_positions_cpu", lambda vocab_size: 8)
    rows, softmax = [], getattr(torch, function)

    def watched(scores, *args, **options):
        rows.append(len(scores))
        assert options.get("out", scores) is scores
        return softmax(scores, *args, **options)

    monkeypatch.setattr(loss.torch, function, watched)
    hidden, weight, _, targets = example(bias=False)
    linear_cross_entropy(hidden, LMHead(weight, softcap=softcap), targets, chunk_size=20).backward()
    assert rows == [8, 8, 1, 8, 8]


def test_other_ignore_index_and_all_ignored():
    hidden, weight, _, targets = example(bias=False)
    for chunk_size in (4, 100):
        total = linear_cross_entropy(hidden, LMHead(weight), targets.fill_(-1), ignore_index=-1, chunk_size=chunk_size)
        assert total == 0
        assert all(not g.any() for g in torch.autograd.grad(total, (hidden, weight)))


def test_only_gradients_that_are_needed():
    hidden, weight, shift, targets = example(bias=True)
    frozen = LMHead(weight.detach(), shift.detach())
    linear_cross_entropy(hidden, frozen, targets, chunk_size=5).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, LMHead(weight), targets, chunk_size=5).requires_grad
    linear_cross_entropy(hidden.detach(), LMHead(weight), targets, chunk_size=5).backward()
    assert weight.grad is not None and shift.grad is None


@pytest.mark.parametrize("chunk_size", [5, 100])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(chunk_size, autocast):
    hidden, weight, shift, targets = example(bias=True, dtype=torch.float32 if autocast else torch.bfloat16)
    output = LMHead(weight, shift, softcap=4.0)
    expected = reference(hidden, output, targets)
    expected_gradients = torch.autograd.grad(expected, (hidden, weight, shift))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        total = linear_cross_entropy(hidden, output, targets, chunk_size=chunk_size)
    assert total.dtype == torch.float32
    near(total.double(), expected, 5e-3)
    for gradient, wanted in zip(torch.autograd.grad(total, (hidden, weight, shift)), expected_gradients, strict=True):
        near(gradient, wanted, 3e-2)
    if autocast:  # a product in bfloat16 differs from one in float32
        assert total != linear_cross_entropy(hidden, output, targets, chunk_size=chunk_size)


@pytest.mark.parametrize("factor", [1.0, 1 / 33])
def test_a_second_backward_is_refused(factor):
    hidden, weight, _, targets = example(bias=False)
    total = factor * linear_cross_entropy(hidden, LMHead(weight), targets, chunk_size=5)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward through the same loss"):
        total.backward()


def test_never_holds_all_logits():
    n, vocab_size, limit = 2048, 1024, 128 * 1024
    hidden, weight = torch.randn(n, 2, requires_grad=True), torch.randn(vocab_size, 2, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        linear_cross_entropy(hidden, LMHead(weight), torch.zeros(n, dtype=torch.int64), chunk_size=128).backward()
    assert largest == limit < n * vocab_size


@pytest.mark.parametrize("wrong", [-1, VOCAB_SIZE, -101])
def test_targets_outside_the_vocabulary(wrong):
    hidden, weight, _, targets = example(bias=False)
    targets[2, 5] = wrong
    with pytest.raises(ValueError, match=rf"target {wrong} is outside the vocabulary of {VOCAB_SIZE}"):
        linear_cross_entropy(hidden, LMHead(weight), targets)


def test_shapes_that_do_not_fit():
    hidden, weight, _, targets = example(bias=False)
    with pytest.raises(ValueError, match=r"use hidden \(\*targets.shape, 8\)"):
        linear_cross_entropy(hidden[:, :5], LMHead(weight), targets)


def test_softcap_bounds_logits():
    hidden, weight, shift, _ = example(bias=True)
    plain, capped = LMHead(weight, shift).logits(100 * hidden), LMHead(weight, shift, softcap=3.0).logits(100 * hidden)
    assert plain.abs().max() > 100 and capped.abs().max() <= 3
    small = LMHead(weight, softcap=1e4).logits(hidden)
    near(small, hidden @ weight.T, 1e-5)


@pytest.mark.parametrize("chunk_elements", [VOCAB_SIZE * 2, 2**24])
def test_the_loss_of_each_target(monkeypatch, chunk_elements):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS_CPU", chunk_elements)
    hidden, weight, shift, targets = example(bias=True)
    targets[1, 4:7] = -100
    head = LMHead(weight, shift, scale=0.5, softcap=3.0)
    found = target_nats(hidden, head, targets)
    assert found.shape == targets.shape and found.isnan().equal(targets == -100)
    for i, j in ((0, 0), (1, 3), (2, 10)):
        alone = reference(hidden[i, j][None], head, targets[i, j][None])
        assert found[i, j].item() == pytest.approx(alone.item(), rel=1e-5)
    assert found.nansum().item() == pytest.approx(reference(hidden, head, targets).item(), rel=1e-5)
