"""What holds for each objective alike."""

import numpy as np
import pytest
import torch
from small_runs import OBJECTIVES, of_objective, small_run

from gptlab.data.prepare import prepare
from gptlab.distributed.devices import Devices
from gptlab.models.build import init_weights, shape_model
from gptlab.objectives.build import CLASSES, build_objective
from gptlab.objectives.config import OBJECTIVES as CONFIGS
from gptlab.runs.folder import read_metrics
from gptlab.training.loop import train
from gptlab.training.plan import make_plan


def test_each_is_known_by_its_name():
    assert tuple(CLASSES) == tuple(CONFIGS) == OBJECTIVES
    assert all(CONFIGS[name]().name == name for name in OBJECTIVES)


def built(name, tmp_path):
    config = small_run(tmp_path / "run", **of_objective(name, tmp_path))
    config.check()
    data = prepare(config.data, config.tokenizer, progress=False)
    objective = build_objective(config, data.tokenizer)
    model = shape_model(config.model, data.tokenizer.vocab_size, config.n_class).to_empty(device="cpu")
    init_weights(model, config.model, 0)
    examples = objective.examples(data, "train", evaluating=False)
    return objective, model, objective.collate(examples.gather(np.arange(8)), np.arange(8))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_batch_is_learned_by_heart(name, tmp_path):
    objective, model, batch = built(name, tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    first = objective.mean_loss(model, batch).item()
    for _ in range(400):
        loss = objective.mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # What a text begins with cannot be told from anything before it.
    end = objective.mean_loss(model, batch).item()
    assert first > 1 and end < 0.05 * first, (first, end)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_a_batch_add_up_to_it(name, tmp_path):
    """Sums of terms, whatever the examples beside: what accumulation and several devices rest on."""
    objective, model, batch = built(name, tmp_path)
    model.eval()
    kinds = objective.counts(batch)
    whole = logged_means(objective.loss(model, batch), dict.fromkeys(kinds, 1.0))
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 3), slice(3, 8))]
    halves = [logged_means(objective.loss(model, part), dict.fromkeys(kinds, 1.0)) for part in parts]
    assert list(whole) == list(objective.names)
    for term in whole:
        assert sum(half[term] for half in halves).item() == pytest.approx(whole[term].item(), rel=1e-5), term
    for kind, count in kinds.items():
        assert sum(int(objective.counts(part)[kind]) for part in parts) == int(count)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_idle_parameters_are_those_without_a_gradient(name, tmp_path):
    objective, model, batch = built(name, tmp_path)
    objective.mean_loss(model, batch).backward()
    without = {parameter for parameter, value in model.named_parameters() if value.grad is None}
    assert without == {parameter for parameter, _ in model.named_parameters() if parameter.startswith(objective.idle)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_records_what_the_objective_measures_and_shows_examples(name, tmp_path):
    config = small_run(tmp_path / "run", **of_objective(name, tmp_path))
    summary = train(config)
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    objective = CLASSES[name]
    for term in build_names(config):
        assert f"train/{term}" in row and f"val/{term}" in row and f"val/{term}" in summary
    assert ("val/bits_per_byte" in row) == objective.per_byte
    assert ("val/perplexity" in row) == (objective.perplexity_of is not None)
    assert (tmp_path / "run" / "samples.txt").read_text().count("--- step") == 2


def build_names(config):
    return build_objective(config, prepare(config.data, config.tokenizer, progress=False).tokenizer).names


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_share_of_the_peak_is_told_only_where_a_steps_tokens_are_known(name, tmp_path):
    config = small_run(tmp_path / "run", **of_objective(name, tmp_path))
    data = prepare(config.data, config.tokenizer, progress=False)
    devices = Devices(accelerator="cpu", per_node=1, world_size=1, precision="32-true", peak_flops=1e12)
    objective = build_objective(config, data.tokenizer)
    plan = make_plan(config, data, devices, data.tokenizer.vocab_size, objective)
    # Rows are shorter than the context, each its own bit.
    assert plan.peak_flops == (None if name in ("classification", "instruction") else 1e12)
