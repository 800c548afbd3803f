"""What a conversion for transformers makes of a parametrization."""

import torch

from gptlab.interop.transformers_folder import architecture_for
from gptlab.models.build import build_model, shape_model
from gptlab.models.config import Parametrization
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs.convert import _as_standard


def test_multipliers_become_part_of_the_weights():
    config = DecoderConfig(
        n_layer=3,
        n_head=2,
        d_model=24,
        context_length=8,
        init_std=0.3,
        parametrization=Parametrization.completep,
        base_d_model=8,
        base_n_layer=1,
        base_d_head=4,
    )
    model = build_model(config, 11, seed=0).eval()
    standard, weights = _as_standard(config, model.state_dict())
    assert architecture_for(standard).model_type == "gpt2" and len(weights) == len(model.state_dict())
    other = shape_model(standard, 11).to_empty(device="cpu").eval()
    other.load_state_dict(dict(weights))
    tokens = torch.arange(8)[None] % 11
    torch.testing.assert_close(other(tokens), model(tokens))
    assert _as_standard(standard, weights) == (standard, weights)
