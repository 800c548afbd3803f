"""What the page says of positions, against formulas and transformers."""

import base64
import math

import numpy as np
import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.lab.inspection.positions import positions
from gptlab.lab.inspection.subject import Subject
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig, Position, RopeType
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.position import rotate

SIZES = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 24}


def of(config):
    model = build_model(config, 257, seed=0).eval()
    return model, positions(Subject(name="", model=model, tokenizer=ByteTokenizer(), tokens=torch.tensor([[1, 2]])))


@pytest.mark.parametrize("config", [DecoderConfig(**SIZES), EncoderConfig(**SIZES)], ids=["decoder", "encoder"])
def test_learned_positions(config):
    model, found = of(config)
    table, weight = found["table"], model.pos_emb.weight.detach().numpy()
    assert table["kind"] == "learned" and set(found) == {"table"}
    cosines = [
        [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(weight, weight[d:], strict=False)]
        for d in range(24)
    ]
    assert table["cosine_by_distance"] == pytest.approx([float(np.mean(one)) for one in cosines], abs=1e-5)
    picture = np.frombuffer(base64.b64decode(table["values"]), np.int8).reshape(24, 16) / 127 * table["largest"]
    assert np.abs(picture - weight).max() <= table["largest"] / 127
    assert np.frombuffer(base64.b64decode(table["cosines"]), np.int8).reshape(24, 24)[3, 3] == 127


def test_sinusoidal_positions_are_alike_by_distance_alone():
    _, found = of(DecoderConfig(**SIZES, position=Position.sinusoidal))
    expected = [np.mean([math.cos(d * 10_000 ** (-2 * i / 16)) for i in range(8)]) for d in range(24)]
    assert found["table"]["kind"] == "sinusoidal"
    assert found["table"]["cosine_by_distance"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scaled", [{}, {"rope_type": RopeType.linear, "rope_factor": 2.0}], ids=str)
def test_rotary_frequencies(scaled):
    model, found = of(DecoderConfig(**SIZES, position=Position.rotary, rope_theta=100.0, **scaled))
    slower = scaled.get("rope_factor", 1.0)
    waves = [2 * math.pi * slower * 100 ** (2 * i / 8) for i in range(4)]
    assert found["rotary"]["wavelengths"] == pytest.approx(waves)
    turned = rotate(torch.ones(1, 24, 1, 8), model.rotary(torch.arange(24)))[0, :, 0]
    assert found["rotary"]["cosine_by_distance"] == pytest.approx((turned @ turned[0] / 8).tolist(), abs=1e-5)


def test_biases_of_an_encoder_decoder_are_t5s():
    model, found = of(EncoderDecoderConfig(**SIZES))
    encoder, decoder = found["biases"]
    assert encoder["distances"][0] == -encoder["distances"][-1] and decoder["distances"][-1] == 0
    for one, is_decoder in ((encoder, False), (decoder, True)):
        module = model.get_submodule(one["name"])
        config = T5Config(d_model=16, num_heads=2, d_kv=8, is_decoder=is_decoder)
        theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
        theirs.relative_attention_bias.weight.data = module.table.weight.data
        n = 160
        bias = theirs.compute_bias(n, n)[0]  # (H, T, S)
        for head in range(2):
            for distance, value in zip(one["distances"], one["heads"][head], strict=True):
                query = max(0, -distance)
                assert value == pytest.approx(bias[head, query, query + distance].item(), abs=1e-6)


def test_no_positions():
    assert of(DecoderConfig(**SIZES, position=Position.none))[1] is None
