"""Which parameters get which treatment."""

import pytest
import torch

from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.training.config import AdamWConfig, Decay, MuonConfig
from gptlab.training.optimizers import retune

CPU = torch.device("cpu")


@pytest.fixture
def model():
    return build_model(DecoderConfig(n_layer=2, n_head=2, d_model=8, context_length=4), 11, seed=0)


def treated(model, config):
    """Parameter name -> its group."""
    optimizer = config.build(model.named_parameters(), device=CPU)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(model.parameters())), "each parameter is in exactly one group"
    return {name: groups[id(p)] for name, p in model.named_parameters()}


def test_decay_is_for_matrices_only(model):
    for name, group in treated(model, AdamWConfig(weight_decay=0.3)).items():
        matrix = dict(model.named_parameters())[name].ndim >= 2
        assert group["weight_decay"] == (0.3 if matrix else 0.0), name


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.3), MuonConfig(weight_decay=0.3)], ids=["adamw", "muon"])
def test_stacks_of_experts_are_matrices_and_stacks_of_biases_are_not(config):
    model = DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=4, n_expert=3)
    groups = treated(build_model(model, 11, seed=0), config)
    assert groups["blocks.0.ffn.experts.up.weight"]["weight_decay"] == 0.3
    assert groups["blocks.0.ffn.experts.up.weight"].get("muon", False) == isinstance(config, MuonConfig)
    assert groups["blocks.0.ffn.experts.up.bias"]["weight_decay"] == 0.0
    assert not groups["blocks.0.ffn.experts.up.bias"].get("muon", False)


def test_a_group_that_begins_with_stacks_of_biases_is_retuned_as_biases():
    """As a group does where these are divided otherwise than the norms."""
    stacked = DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=4, n_expert=3)
    parameters = [(name, p) for name, p in build_model(stacked, 11, seed=0).named_parameters() if ".experts." in name]
    optimizer = AdamWConfig(weight_decay=0.3).build(parameters, device=CPU)
    retune(optimizer, AdamWConfig(weight_decay=0.2))
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert decays == {name: 0.2 if name.endswith("weight") else 0.0 for name, _ in parameters}


def test_decay_for_all(model):
    groups = treated(model, AdamWConfig(weight_decay=0.3, decay=Decay.all))
    assert {group["weight_decay"] for group in groups.values()} == {0.3}


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest(model):
    for name, group in treated(model, MuonConfig(lr=0.02, adamw_lr=0.005)).items():
        hidden = name.startswith("blocks.") and name.endswith("weight") and "norm" not in name
        assert group["muon"] == hidden, name
        assert group["lr"] == group["initial_lr"] == (0.02 if hidden else 0.005)


def test_one_learning_rate_serves_both_unless_told(model):
    assert {group["lr"] for group in treated(model, MuonConfig(lr=0.01)).values()} == {0.01}


def test_adamw_takes_the_papers_first_step(model):
    """arXiv 1711.05101, algorithm 2: after one step the moments are the gradient itself."""
    config = AdamWConfig(lr=0.1, weight_decay=0.2, eps=1e-8)
    before = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    optimizer = config.build(model.named_parameters(), device=CPU)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    for name, p in model.named_parameters():
        decay = 0.2 if p.ndim >= 2 else 0.0
        gradient = p.grad.double()
        expected = before[name] * (1 - 0.1 * decay) - 0.1 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)
