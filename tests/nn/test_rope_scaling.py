"""Rotary frequencies for longer contexts, held against transformers and against what each promises."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import DecoderConfig, Position, RopeType
from gptlab.models.decoder.network import Decoder
from gptlab.nn.rope_scaling import frequencies, linear, llama3, yarn

WIDTH, THETA, FACTOR, ORIGINAL = 64, 10_000.0, 4.0, 512
TURNS = ORIGINAL * frequencies(WIDTH, THETA) / (2 * math.pi)  # of each pair in the context trained with


def theirs(kind, **options):
    parameters = {"rope_type": kind, "rope_theta": THETA, "factor": FACTOR, **options}
    config = LlamaConfig(hidden_size=WIDTH, num_attention_heads=1, max_position_embeddings=2048)
    config.rope_parameters = parameters
    found, amplitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return found.double(), amplitude


@pytest.mark.parametrize(
    "kind, theirs_options, ours",
    [
        ("linear", {}, lambda own: linear(own, FACTOR)),
        (
            "yarn",
            {"original_max_position_embeddings": ORIGINAL},
            lambda own: yarn(own, FACTOR, ORIGINAL, THETA, 32.0, 1.0),
        ),
        (
            "yarn",
            {"original_max_position_embeddings": 100, "beta_fast": 9.0, "beta_slow": 2.0},
            lambda own: yarn(own, FACTOR, 100, THETA, 9.0, 2.0),
        ),
        (
            "llama3",
            {"original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            lambda own: llama3(own, FACTOR, ORIGINAL, 4.0, 1.0),
        ),
    ],
)
def test_frequencies_are_those_of_transformers(kind, theirs_options, ours):
    expected, _ = theirs(kind, **theirs_options)
    torch.testing.assert_close(ours(frequencies(WIDTH, THETA)), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scaled", [yarn, llama3])
def test_fast_pairs_are_kept_and_slow_ones_slowed(scaled):
    own = frequencies(WIDTH, THETA)
    found = yarn(own, 4.0, ORIGINAL, THETA, 16.0, 1.0) if scaled is yarn else llama3(own, 4.0, ORIGINAL, 16.0, 1.0)
    # YaRN's ends are rounded outwards to whole pairs: one pair each way may be between.
    fast, slow = TURNS > 16 * THETA ** (2 / WIDTH), TURNS < THETA ** (-2 / WIDTH)
    assert fast.any() and slow.any() and not (fast | slow).all()
    torch.testing.assert_close(found[fast], own[fast])
    torch.testing.assert_close(found[slow], own[slow] / 4)
    assert ((found <= own) & (found >= own / 4)).all()


def config_of(**options):
    return DecoderConfig(
        n_layer=1, n_head=2, d_model=32, context_length=64, position=Position.rotary,
        feedforward=Feedforward.swiglu, **options,
    )  # fmt: skip


def rotary(config):
    found = Decoder(config, 11).rotary
    assert found is not None
    return found


def test_linear_scaling_reads_positions_in_between():
    # Position 4 p of the scaled model is position p of the other.
    plain = rotary(config_of())
    scaled = rotary(config_of(rope_type=RopeType.linear, rope_factor=4.0))
    torch.testing.assert_close(scaled.cos[::4], plain.cos[:16])
    torch.testing.assert_close(scaled.sin[::4], plain.sin[:16])


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    config = config_of(rope_type=RopeType.ntk, rope_factor=4.0)
    own, found = frequencies(16, 10_000.0), frequencies(16, config.rotation.rope_theta)
    assert found[0] == own[0] and float(found[-1] / own[-1]) == pytest.approx(1 / 4)


def test_yarn_sharpens_the_scores():
    config = config_of(rope_type=RopeType.yarn, rope_factor=4.0, rope_original_context=16)
    found = rotary(config)
    amplitude = theirs("yarn", original_max_position_embeddings=16)[1]
    assert found.amplitude == pytest.approx(amplitude) == pytest.approx(0.1 * math.log(4) + 1)
    torch.testing.assert_close(found.cos**2 + found.sin**2, torch.full_like(found.cos, amplitude**2))


def test_a_factor_of_one_changes_nothing():
    plain = rotary(config_of())
    for scaling in RopeType:
        options = {} if scaling is RopeType.default else {"rope_factor": 1.0}
        found = rotary(config_of(rope_type=scaling, **options))
        torch.testing.assert_close(found.cos, plain.cos)
