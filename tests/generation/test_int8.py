import pytest
import torch

from gptlab.generation import int8
from gptlab.generation.int8 import Int8Linear, Int8Model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import Norm, Position
from gptlab.nn.loss import LMHead


def test_each_output_is_rounded_to_its_own_scale():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 32, generator=generator) * torch.logspace(-3, 3, 24)[:, None]
    weight[5] = 0
    layer = Int8Linear(weight, None)
    assert layer.quantized.dtype is torch.int8 and layer.quantized.abs().max() == 127 and layer.scale.shape == (24,)
    restored = layer.quantized.float() * layer.scale.float()[:, None]
    # Half a step, and at the largest weight what bfloat16 took from the scale.
    assert ((restored - weight).abs() <= 0.51 * layer.scale.float()[:, None] + 2**-8 * weight.abs()).all()
    assert (restored[5] == 0).all()


@pytest.mark.parametrize("multiplies_bfloat16", [True, False])
@pytest.mark.parametrize("n_vectors", [1, 3, int8.KERNEL_VECTORS, int8.KERNEL_VECTORS + 1])
@pytest.mark.parametrize("d_in, d_out", [(64, 96), (32, 50), (48, 257), (40, 96), (100, 17)])
def test_the_kernel_gives_the_product_by_public_operations(monkeypatch, n_vectors, d_in, d_out, multiplies_bfloat16):
    monkeypatch.setattr(int8, "cpu_multiplies_bfloat16", lambda: multiplies_bfloat16)
    generator = torch.Generator().manual_seed(0)
    layer = Int8Linear(torch.randn(d_out, d_in, generator=generator), torch.randn(d_out, generator=generator))
    x = torch.randn(n_vectors, d_in, generator=generator)
    exact = x @ (layer.quantized.float() * layer.scale.float()[:, None]).T + layer.bias.float()
    assert torch.allclose(layer(x), exact, atol=1e-4)  # float32 is never given to the kernel
    near = {"atol": 0.02 * exact.abs().max(), "rtol": 0.02}
    assert torch.allclose(layer(x.bfloat16()).float(), exact, **near)
    assert torch.allclose(layer.by_public_operations(x.bfloat16()).float(), exact - layer.bias.float(), **near)
    if hasattr(torch, "_weight_int8pack_mm") and d_in % 16 == 0:
        assert torch.allclose(layer.by_kernel(x.bfloat16()).float(), exact - layer.bias.float(), **near)


@pytest.mark.parametrize("d_in, supported", [(16, True), (40, False), (48, True), (100, False)])
def test_the_kernel_gets_only_widths_that_it_can_read(d_in, supported):
    assert int8.kernel_supports(torch.zeros(2, d_in, dtype=torch.bfloat16)) is (
        supported and hasattr(torch, "_weight_int8pack_mm")
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_embeddings": False, "position": Position.rotary, "norm": Norm.rmsnorm, "feedforward": Feedforward.swiglu},
        {"n_kv_head": 2, "qk_norm": True, "logit_softcap": 8.0, "bias": False},
        {"attention_scale": 1.0},
    ],
    ids=["gpt2", "llama", "modern", "unscaled"],
)
def test_a_model_stays_near(small, options, monkeypatch):
    model = small(d_model=32, vocab_size=257, init_std=0.15, **options)
    tokens = torch.randint(257, (4, 12), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    quantized = Int8Model(model)
    after = quantized.head.logits(quantized.hidden_states(tokens)).float()
    assert (after - before).abs().mean() < 0.03 * before.abs().mean() + 0.01
    assert not any(isinstance(module, torch.nn.Linear) for module in quantized.modules())
    monkeypatch.setattr(int8, "kernel_supports", lambda vectors: False)
    plain = quantized.head.logits(quantized.hidden_states(tokens)).float()
    assert (after - plain).abs().max() < 0.05 * before.abs().max()


def test_the_heads_scale_and_softcap_are_kept():
    generator = torch.Generator().manual_seed(0)
    head = LMHead(torch.randn(9, 16, generator=generator), scale=0.5, softcap=2.0)
    hidden = torch.randn(3, 16, generator=generator)
    assert torch.allclose(int8.Int8LMHead(head).logits(hidden), head.logits(hidden), atol=0.05)


def test_experts_are_refused(small):
    with pytest.raises(
        ValueError, match="precision=int8 does not support mixture-of-experts models; use precision=32 or bf16"
    ):
        Int8Model(small(n_expert=3))
