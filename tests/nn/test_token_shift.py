"""Token shift, against its sum written out, and against what a model without it can know."""

from dataclasses import replace

import pytest
import torch

from gptlab.errors import UserError
from gptlab.interop.transformers_folder import architecture_for
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig, Position
from gptlab.nn.token_shift import TokenShift

CONFIG = DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=6, position=Position.rotary, token_shift=True)


@torch.no_grad()
def shifted(width=3):
    module = TokenShift(width)
    module.factor.copy_(torch.tensor([0.5, -2.0, 1.0]))
    return module


def test_each_token_gets_the_one_before_it_times_the_factors():
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    found = shifted()(x, torch.arange(4))
    for sequence in range(2):
        for position in range(4):
            expected = x[sequence, position].clone()
            if position:
                expected += torch.tensor([0.5, -2.0, 1.0]) * x[sequence, position - 1]
            assert torch.allclose(found[sequence, position], expected)


def test_a_document_gets_nothing_of_the_one_before_it():
    x = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    found = shifted()(x, torch.tensor([[0, 1, 0, 1, 2]]))
    assert torch.allclose(found[:, :2], shifted()(x[:, :2], torch.arange(2)))
    assert torch.allclose(found[:, 2:], shifted()(x[:, 2:], torch.arange(3)))


def test_it_begins_as_the_model_without_it():
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    with_it, without = build_model(CONFIG, 11, seed=3), build_model(replace(CONFIG, token_shift=False), 11, seed=3)
    assert torch.equal(with_it(tokens), without(tokens))
    assert set(with_it.state_dict()) - set(without.state_dict()) == {"token_shift.factor"}


def test_no_architecture_of_transformers_holds_it():
    with pytest.raises(UserError, match=r"has model\.token_shift=true; train with model\.token_shift=false, or"):
        architecture_for(CONFIG)
