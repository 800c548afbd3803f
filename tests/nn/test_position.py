"""Sinusoidal position encodings against the paper's formula, one entry at a time, and against what they promise."""

import math

import pytest
import torch

from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig, Init, Position
from gptlab.nn.position import Sinusoidal


def by_the_paper(position: int, channel: int, width: int) -> float:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)) and PE(pos, 2i + 1) = cos(the same) (arXiv:1706.03762, section 3.5)."""
    angle = position / 10_000 ** (2 * (channel // 2) / width)
    return math.cos(angle) if channel % 2 else math.sin(angle)


@pytest.mark.parametrize("width", [2, 6, 16])
def test_each_entry_is_the_papers(width):
    expected = [[by_the_paper(position, channel, width) for channel in range(width)] for position in range(40)]
    found = Sinusoidal(40, width)(torch.arange(40))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_they_are_those_of_marian_whose_halves_are_sines_and_cosines():
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    theirs = MarianSinusoidalPositionalEmbedding(50, 12)
    theirs.weight.data = theirs.create_weight()
    found = Sinusoidal(50, 12)(torch.arange(50))
    torch.testing.assert_close(found[:, 0::2], theirs.weight[:, :6], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 1::2], theirs.weight[:, 6:], rtol=0, atol=1e-6)


def test_a_shift_is_a_rotation_of_each_pair():
    table = Sinusoidal(64, 8)(torch.arange(64))
    for i in range(4):
        angle = 5 * 10_000 ** (-2 * i / 8)
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        torch.testing.assert_close(
            table[5:, 2 * i : 2 * i + 2], table[:-5, 2 * i : 2 * i + 2] @ turn.T, rtol=0, atol=2e-6
        )


def test_an_odd_width_lacks_the_last_cosine():
    torch.testing.assert_close(Sinusoidal(9, 5)(torch.arange(9)), Sinusoidal(9, 6)(torch.arange(9))[:, :5])


def test_the_table_is_computed_again_where_values_are_lost():
    table = Sinusoidal(7, 4).table.clone()
    with torch.device("meta"):
        module = Sinusoidal(7, 4)
    assert not module.state_dict() and not list(module.parameters())
    assert torch.equal(module.to_empty(device="cpu").table, table)
    assert torch.equal(module.bfloat16().table, table)


def test_a_decoder_adds_them_to_scaled_token_embeddings():
    config = DecoderConfig(n_layer=1, n_head=2, d_model=16, context_length=10, position=Position.sinusoidal)
    model = build_model(config, 11, seed=0)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    model(tokens)
    table = torch.tensor([[by_the_paper(position, channel, 16) for channel in range(16)] for position in range(5)])
    torch.testing.assert_close(seen[0][0], 4 * model.tok_emb.weight[tokens[0]] + table)
    assert model.bfloat16()(tokens).dtype == torch.bfloat16
    config.position = Position.learned
    learned = sum(p.numel() for p in build_model(config, 11, seed=0).parameters())
    assert sum(p.numel() for p in model.parameters()) == learned - 10 * 16


def test_embeddings_of_unit_size_stay_so_when_they_are_scaled():
    config = DecoderConfig(n_layer=1, n_head=2, d_model=64, init=Init.zero, tie_embeddings=False)
    for position in (Position.learned, Position.sinusoidal):
        config.position = position
        model = build_model(config, 300, seed=0)
        scale = 8 if position is Position.sinusoidal else 1
        assert (scale * model.tok_emb.weight).std().item() == pytest.approx(1, abs=0.05)
