from dataclasses import replace

import pytest
from small_runs import of_objective, small_run

from gptlab.data.prepare import prepare
from gptlab.distributed.devices import find_devices
from gptlab.objectives.build import build_objective
from gptlab.training.config import FinetuneConfig, Finetuning
from gptlab.training.plan import make_plan


@pytest.fixture
def plan_of(tmp_path):
    def plan_of(objective="causal_lm", **words):
        config = small_run(tmp_path / "run", **of_objective(objective, tmp_path), **words)
        data = prepare(config.data, config.tokenizer, progress=False)
        devices = replace(find_devices(config.trainer), peak_flops=1e12)
        return make_plan(config, data, devices, 257, build_objective(config, data.tokenizer))

    return plan_of


def test_utilization_is_of_windows_alone(plan_of):
    """Rows are shorter than the context, and of them nobody knows what is computed."""
    assert plan_of().peak_flops == 1e12
    assert plan_of("span_corruption").peak_flops == 1e12
    assert plan_of("instruction").peak_flops is None


def test_frozen_weights_are_not_counted_as_if_they_were_trained(plan_of):
    block, words = 12 * 32 * 32 + 2 * 16 * 32, 32 * 257  # multiply-adds of a token
    assert plan_of().flops_per_token == 2 * (3 * 2 * block + 3 * words)
    last = plan_of(finetune=FinetuneConfig(mode=Finetuning.last_layers, n_layer=1))
    assert last.flops_per_token == 2 * (block + 3 * block + 2 * words)
