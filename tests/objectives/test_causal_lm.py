import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.config import RunConfig
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.objectives.causal_lm import CausalLM
from gptlab.objectives.config import OBJECTIVES

objective = CausalLM(RunConfig())


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_collate_shifts_by_one_without_a_copy(kind):
    windows = kind(np.arange(14).reshape(2, 7))
    batch = objective.collate(windows)
    assert batch["tokens"].tolist() == [[0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4, 5, 6], [8, 9, 10, 11, 12, 13]]
    windows[1, 3] = 99
    assert batch["tokens"][1, 3] == batch["targets"][1, 2] == 99


def test_loss_is_a_sum_over_targets():
    model = build_model(DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=6, init_std=0.5), 11, seed=0)
    batch = objective.collate(torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0)))
    result = objective.loss(model, batch)
    expected = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten(), reduction="sum")
    assert torch.allclose(result["loss"].sum, expected, rtol=1e-6)
    assert objective.counts(batch) == {"targets": 18}
    assert torch.allclose(objective.mean_loss(model, batch), expected / 18, rtol=1e-6)
    logged = logged_means(result, {"targets": 1.0})
    assert list(logged) == ["loss"] and logged["loss"] == result["loss"].sum and not logged["loss"].requires_grad
    halves = [
        objective.loss(model, {k: v[rows] for k, v in batch.items()})["loss"].sum for rows in (slice(0, 1), slice(1, 3))
    ]
    assert torch.allclose(sum(halves), expected, rtol=1e-6)


def test_experts_add_their_terms_in_training_and_the_loss_stays_the_cross_entropy():
    sizes = {"n_layer": 2, "n_head": 2, "d_model": 8, "context_length": 6, "init_std": 0.5}
    config = DecoderConfig(**sizes, n_expert=3, router_aux_loss_coef=0.3, router_z_loss_coef=0.2)
    model = build_model(config, 11, seed=0)
    batch = objective.collate(torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0)))
    result = objective.loss(model, batch)
    means = {name: value.item() for name, value in logged_means(result, {"targets": 1 / 18}).items()}
    expected = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())
    assert list(means) == ["loss", "balance_loss", "z_loss", "dropped_token_fraction", "max_expert_load"]
    assert means["loss"] == pytest.approx(expected.item(), rel=1e-6)
    added = 0.3 * means["balance_loss"] + 0.2 * means["z_loss"]
    assert objective.mean_loss(model, batch).item() == pytest.approx(means["loss"] + added, rel=1e-6)
    evaluated = objective.loss(model.eval(), batch)
    assert list(evaluated) == ["loss"] and evaluated["loss"].sum == result["loss"].sum


def test_listed_under_its_name():
    assert OBJECTIVES["causal_lm"]().name == "causal_lm"
