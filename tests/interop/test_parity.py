"""What is read from a transformers folder computes what transformers computes, gradients included."""

import pytest
import torch
from interop.foreign import CASES, WORDS

from gptlab.interop.transformers_folder import TransformersFolder
from gptlab.models.build import build_model
from gptlab.objectives.causal_lm import CausalLM
from gptlab.objectives.config import CausalLMConfig


def assert_near(a, b, name):
    assert b.abs().max() > 0, name
    assert (a - b).abs().max() <= 1e-4 * b.abs().max(), name


def windows(length=13, batch=3):
    return torch.randint(WORDS, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients(name, tmp_path):
    case = CASES[name]
    folder = TransformersFolder(case.save(tmp_path / "theirs"))
    theirs = case.model()
    ours = build_model(folder.config, folder.vocab_size, seed=0).eval()
    ours.load_state_dict(dict(folder.tensors()))

    batch = CausalLM(CausalLMConfig()).collate(windows())
    reference = theirs(batch["tokens"]).logits
    assert_near(ours(batch["tokens"]), reference, "logits")
    result = CausalLM(CausalLMConfig()).loss(ours, batch)
    assert_near(result.total / result.n_targets, theirs(windows(), labels=windows()).loss, "loss")

    log_p = reference.log_softmax(-1).gather(-1, batch["targets"][..., None])
    (-log_p.sum()).backward()
    result.total.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest_key_bias = max(p.grad.abs().max() for p in ours.parameters())
    places = folder.architecture.places(folder.config)
    for own, parameter in ours.named_parameters():
        wanted = places[own].take(gradients[places[own].name])
        if own.endswith("attn.k.bias") and ours.rotary is None:  # moves all scores of a query alike: rounding alone
            assert (parameter.grad - wanted).abs().max() <= 1e-6 * largest_key_bias, own
        else:
            assert_near(parameter.grad, wanted, own)
    assert {place.name for place in places.values()} == set(gradients)
