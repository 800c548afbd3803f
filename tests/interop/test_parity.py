"""What is read from a transformers folder computes what transformers computes, gradients included."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from interop.external import CASES, VOCAB_SIZE, as_saved, at_location
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from gptlab.interop.transformers_folder import TransformersFolder
from gptlab.models.build import build_model


def assert_near(a, b, name):
    assert b.abs().max() > 0, name
    assert (a - b).abs().max() <= 1e-4 * b.abs().max(), name


def cross_entropy(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def windows(length=13, batch=3):
    return torch.randint(VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients(name, tmp_path):
    case = CASES[name]
    folder = TransformersFolder(case.save(tmp_path / "theirs"))
    theirs = case.model()
    ours = build_model(folder.config, folder.vocab_size, seed=0).eval()
    ours.load_state_dict(dict(folder.tensors()))

    batch = {"tokens": windows()[:, :-1], "targets": windows()[:, 1:]}
    reference = theirs(batch["tokens"]).logits
    assert_near(ours(batch["tokens"]), reference, "logits")
    loss = cross_entropy(ours.eval()(batch["tokens"]), batch["targets"])
    assert_near(loss, theirs(windows(), labels=windows()).loss, "loss")

    log_p = reference.log_softmax(-1).gather(-1, batch["targets"][..., None])
    (-log_p.mean()).backward()
    loss.backward()
    gradients = as_saved({name: parameter.grad for name, parameter in theirs.named_parameters()})
    largest_key_bias = max(p.grad.abs().max() for p in ours.parameters())
    locations = folder.architecture.locations(folder.config)
    for own, parameter in ours.named_parameters():
        wanted = at_location(locations[own], gradients)
        if own.endswith("attn.k.bias") and ours.rotary is None:  # moves all scores of a query alike: rounding alone
            assert (parameter.grad - wanted).abs().max() <= 1e-6 * largest_key_bias, own
        else:
            assert_near(parameter.grad, wanted, own)
    assert {name for location in locations.values() for name in location.names} == set(gradients)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mixtral")])
def test_the_balance_loss_and_its_gradients(name, tmp_path):
    """By transformers' function, per layer and sequence; the model there takes all layers and tokens as one."""
    case, coefficient = CASES[name], 0.3
    folder = TransformersFolder(case.save(tmp_path / "theirs"))
    theirs, n_active = case.model(), folder.config.n_expert_per_token
    # Its shares are of tokens and sum up to the number of choices, ours are of choices.
    config = replace(folder.config, router_aux_loss_coef=coefficient * n_active, router_z_loss_coef=None)
    ours = build_model(config, folder.vocab_size, seed=0)
    ours.load_state_dict(dict(folder.tensors()))

    batch = {"tokens": windows()[:, :-1], "targets": windows()[:, 1:]}
    labels = dict.fromkeys(("labels", "shift_labels"), batch["targets"].contiguous())
    found = theirs(batch["tokens"], output_router_logits=True, **labels)
    layers = [gates.view(*batch["tokens"].shape, -1) for gates in found.router_logits]
    balance = [load_balancing_loss_func((own,), config.n_expert, n_active) for gates in layers for own in gates]
    loss = theirs.loss_function(found.logits, vocab_size=VOCAB_SIZE, **labels)
    loss = loss + coefficient * sum(balance) / len(balance)
    result = cross_entropy(ours(batch["tokens"]), batch["targets"]) + ours.auxiliary.loss / len(batch["tokens"])
    assert_near(result, loss, "loss")
    if config.n_layer == 1:
        theirs.router_aux_loss_coef = coefficient
        one = {"tokens": batch["tokens"][:1], "targets": batch["targets"][:1].contiguous()}
        labels = dict.fromkeys(("labels", "shift_labels"), one["targets"])
        own = cross_entropy(ours(one["tokens"]), one["targets"]) + ours.auxiliary.loss
        assert_near(own, theirs(one["tokens"], output_router_logits=True, **labels).loss, "the model's own loss")
    loss.backward()
    result.backward()
    gradients = as_saved({name: parameter.grad for name, parameter in theirs.named_parameters()})
    locations = folder.architecture.locations(folder.config)
    for own, parameter in ours.named_parameters():
        assert_near(parameter.grad, at_location(locations[own], gradients), own)
