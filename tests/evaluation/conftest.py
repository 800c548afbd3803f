"""Small models whose weights are large enough for positions and words to matter."""

import pytest

from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig


@pytest.fixture
def small():
    def build(vocab_size=257, context_length=12, seed=0, **options):
        given = {"n_layer": 2, "n_head": 2, "d_model": 16, "init_std": 0.5}
        config = DecoderConfig(**given | {"context_length": context_length} | options)
        return build_model(config, vocab_size, seed=seed).eval()

    return build
