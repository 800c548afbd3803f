"""What a model adds in training to any objective, without the objective's knowing."""

import pytest
import torch
import torch.nn.functional as F

from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.objectives.base import LossTerm, Objective, logged_means, training_counts, training_terms

SIZES = {"n_layer": 2, "n_head": 2, "d_model": 8, "context_length": 6, "init_std": 0.5}
CONFIG = DecoderConfig(**SIZES, n_expert=3, router_aux_loss_coef=0.3, router_z_loss_coef=0.2)


class LastToken(Objective):
    """Predict the last token: written as if there were no experts."""

    def examples(self, data, split, *, evaluating):
        raise NotImplementedError

    def collate(self, examples, sample_ids):
        return {"tokens": examples[:, :-1], "targets": examples[:, -1]}

    def counts(self, batch):
        return {"targets": len(batch["targets"])}

    def loss(self, model, batch):
        logits = model(batch["tokens"])[:, -1]
        return {"loss": LossTerm(F.cross_entropy(logits, batch["targets"], reduction="sum"))}

    def preview(self, context):
        return ""


@pytest.fixture
def batch():
    return LastToken().collate(torch.randint(11, (4, 7), generator=torch.Generator().manual_seed(0)), None)


def test_any_objective_gets_the_auxiliary_losses(batch):
    objective, model = LastToken(), build_model(CONFIG, 11, seed=0)
    counts = training_counts(objective, batch)
    terms = training_terms(objective, model, batch)
    means = {name: value.item() for name, value in logged_means(terms, {k: 1 / n for k, n in counts.items()}).items()}
    expected = F.cross_entropy(model(batch["tokens"])[:, -1], batch["targets"])
    assert tuple(means) == ("loss", *CONFIG.auxiliary_terms)
    assert means["loss"] == pytest.approx(expected.item(), rel=1e-6), "the loss stays the objective's own"
    added = 0.3 * means["balance_loss"] + 0.2 * means["z_loss"]
    assert added > 0.3
    assert objective.mean_loss(model, batch).item() == pytest.approx(means["loss"] + added, rel=1e-6)
    model.zero_grad()
    objective.mean_loss(model, batch).backward()
    assert all(block.ffn.router.weight.grad.any() for block in model.blocks)


def test_in_evaluation_there_are_none(batch):
    objective, model = LastToken(), build_model(CONFIG, 11, seed=0).eval()
    assert list(training_terms(objective, model, batch)) == ["loss"]
    mean = objective.loss(model, batch)["loss"].sum.item() / 4
    assert objective.mean_loss(model, batch).item() == pytest.approx(mean, rel=1e-6)


def test_a_model_without_experts_adds_nothing(batch):
    model = build_model(DecoderConfig(**SIZES), 11, seed=0)
    assert model.auxiliary is None and list(training_terms(LastToken(), model, batch)) == ["loss"]


@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_batch_add_up_to_it(batch, size):
    objective, model = LastToken(), build_model(CONFIG, 11, seed=0)
    scales = {kind: 1 / n for kind, n in training_counts(objective, batch).items()}
    whole = logged_means(training_terms(objective, model, batch), scales)
    parts = [{name: value[start : start + size] for name, value in batch.items()} for start in range(0, 4, size)]
    found = [logged_means(training_terms(objective, model, part), scales) for part in parts]
    for name, value in whole.items():
        assert sum(part[name] for part in found).item() == pytest.approx(value.item(), rel=1e-6), name
