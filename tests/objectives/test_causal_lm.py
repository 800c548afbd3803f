import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.data.sources.config import TextConfig
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.objectives.base import logged_means
from gptlab.objectives.causal_lm import CausalLM

objective = CausalLM(data=TextConfig(path="none"), context_length=6)


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
        objective.loss(model, {k: v[part] for k, v in batch.items()})["loss"].sum for part in (slice(0, 1), slice(1, 3))
    ]
    assert torch.allclose(sum(halves), expected, rtol=1e-6)
