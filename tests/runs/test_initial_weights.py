"""Weights to start from, for a longer context."""

from dataclasses import replace

import pytest
from small_runs import write_run

from gptlab.errors import UserError
from gptlab.models.decoder.config import DecoderConfig, Position, RopeType
from gptlab.runs.initial_weights import open_initial

SHAPE = {"n_layer": 1, "n_head": 2, "d_model": 16, "position": Position.rotary, "rope_theta": 100.0}


@pytest.mark.parametrize("kind", [kind for kind in RopeType if kind is not RopeType.default])
def test_a_model_whose_rotation_is_scaled_starts_from_a_shorter_one(kind, tmp_path):
    source = str(write_run(tmp_path / "run", context_length=16, **SHAPE))
    longer = DecoderConfig(**SHAPE, context_length=64, rope_type=kind, rope_factor=4.0, init_from=source)
    assert "tok_emb.weight" in open_initial(longer, 257).names
    with pytest.raises(
        UserError, match=r"add model\.context_length=16; to keep the longer context, add model\.rope_type="
    ):
        open_initial(replace(longer, rope_type=RopeType.default, rope_factor=None), 257)
    with pytest.raises(UserError, match=r"add model\.rope_(type=default|theta=100)"):
        open_initial(replace(longer, rope_factor=2.0), 257)
    with pytest.raises(UserError, match=r"add model\.rope_theta=100"):
        open_initial(replace(longer, rope_theta=50.0), 257)


def test_a_scaled_model_is_scaled_further_in_its_own_way(tmp_path):
    scaled = {**SHAPE, "rope_type": RopeType.yarn, "rope_factor": 4.0}
    source = str(write_run(tmp_path / "run", context_length=64, **scaled))
    longer = DecoderConfig(**SHAPE, context_length=128, rope_type=RopeType.yarn, rope_factor=8.0, init_from=source)
    open_initial(longer, 257)
    hint = r"to keep the longer context, add model\.rope_type=yarn model\.rope_factor=8$"
    for other in ({"rope_type": RopeType.linear, "rope_factor": 2.0}, {"rope_factor": 2.0}, {"rope_beta_fast": 9.0}):
        with pytest.raises(UserError, match=hint):
            open_initial(replace(longer, **other), 257)
