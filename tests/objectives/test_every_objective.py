"""Invariants of all objectives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import OBJECTIVES, of_objective, small_run, step_rows

from gptlab.data.prepare import prepare
from gptlab.models.build import init_weights, shape_model
from gptlab.models.config import Capability
from gptlab.objectives.base import SEQUENCES, logged_means, training_counts, training_terms
from gptlab.registry import variants
from gptlab.training.loop import train


def test_all_are_tested_here():
    assert {name for name, kind in variants("objective").items() if kind.__module__.startswith("gptlab.")} == set(
        OBJECTIVES
    )


def objective_of(config, tokenizer):
    return config.objective.build(
        tokenizer=tokenizer,
        model=config.model,
        data=config.data,
        context_length=config.context_length,
        seed=config.seed,
    )


def built(name, tmp_path):
    config = small_run(tmp_path / "run", **of_objective(name, tmp_path))
    config.check()
    data = prepare(config.data, config.tokenizer, progress=False)
    objective = objective_of(config, data.tokenizer)
    model = shape_model(config.model, data.tokenizer.vocab_size, config.n_class).to_empty(device="cpu")
    init_weights(model, 0)
    examples = objective.examples(data, "train", evaluating=False)
    return objective, model, objective.collate(examples.gather(np.arange(8)), np.arange(8))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_batch_can_be_overfit(name, tmp_path):
    objective, model, batch = built(name, tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    first = end = objective.mean_loss(model, batch).item()
    for _ in range(8):  # times 50 steps
        if end < 0.05 * first:
            break
        for _ in range(50):
            loss = objective.mean_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        # Nothing before a text's first token predicts it.
        end = objective.mean_loss(model, batch).item()
    assert first > 1 and end < 0.05 * first, (first, end)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_a_batch_add_up_to_it(name, tmp_path):
    """Sums of terms, whatever the examples beside: what accumulation and several devices rest on."""
    objective, model, batch = built(name, tmp_path)
    model.eval()
    kinds = objective.counts(batch)
    whole = logged_means(objective.loss(model, batch), dict.fromkeys(kinds, 1.0))
    parts = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 3), slice(3, 8))]
    halves = [logged_means(objective.loss(model, part), dict.fromkeys(kinds, 1.0)) for part in parts]
    assert list(whole) == list(objective.names)
    for term in whole:
        assert sum(half[term] for half in halves).item() == pytest.approx(whole[term].item(), rel=1e-5), term
    for kind, count in kinds.items():
        assert sum(int(objective.counts(part)[kind]) for part in parts) == int(count)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_unused_parameters_are_those_without_a_gradient(name, tmp_path):
    objective, model, batch = built(name, tmp_path)
    objective.mean_loss(model, batch).backward()
    names = [name for name, _ in model.named_parameters()]
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert without == {name for name in names if name.startswith(objective.unused_parameters)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_records_what_the_objective_measures_and_shows_examples(name, tmp_path):
    config = small_run(tmp_path / "run", **of_objective(name, tmp_path))
    summary = train(config).summary
    row = step_rows(tmp_path / "run" / "metrics.csv")[-1]
    objective = objective_of(config, prepare(config.data, config.tokenizer, progress=False).tokenizer)
    for term in objective.names:
        assert f"train/{term}" in row and f"val/{term}" in row and f"val/{term}" in summary
    assert ("val/bits_per_byte" in row) == objective.per_byte
    assert ("val/perplexity" in row) == (objective.perplexity_of is not None)
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step") == 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_does_not_depend_on_its_micro_batches_with_experts(name, tmp_path):
    """Padding included: texts of different lengths route as they would alone."""
    config = small_run(tmp_path / "run", **of_objective(name, tmp_path))
    if Capability.causal not in config.model.capabilities:
        assert not config.model.auxiliary_terms
        return
    config.model = replace(config.model, n_expert=4, capacity_factor=1.0, router_aux_loss_coef=0.5)
    data = prepare(config.data, config.tokenizer, progress=False)
    objective = objective_of(config, data.tokenizer)
    model = shape_model(config.model, data.tokenizer.vocab_size, config.n_class).to_empty(device="cpu")
    init_weights(model, 0)
    examples = objective.examples(data, "train", evaluating=False).gather(np.arange(6))
    whole = objective.collate(examples, np.arange(6))
    # Collated apart, a batch is as long as its own longest text.
    parts = [objective.collate(examples[i : i + 2], np.arange(i, i + 2)) for i in (0, 2, 4)]
    scales = {kind: 1 / int(n) for kind, n in training_counts(objective, whole).items()}
    assert scales[SEQUENCES] == 1 / 6
    expected = logged_means(training_terms(objective, model, whole), scales)
    found = [logged_means(training_terms(objective, model, part), scales) for part in parts]
    assert expected["dropped_token_fraction"] > 0
    for term, value in expected.items():
        assert sum(part[term] for part in found).item() == pytest.approx(value.item(), rel=1e-5), term
