"""The plan of a run: its numbers, and how they are shown."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import of_objective, small_run
from torch import nn

from gptlab.data.prepare import prepare
from gptlab.distributed.config import Recompute, StrategyConfig
from gptlab.distributed.devices import Devices
from gptlab.errors import UserError
from gptlab.forecast import check_memory, count_validations, explain_allocation, make_plan
from gptlab.models.base import LanguageModel
from gptlab.models.build import shape_model
from gptlab.models.config import ModelConfig
from gptlab.models.decoder.config import DecoderConfig
from gptlab.nn.loss import LMHead
from gptlab.training.config import FinetuneConfig, Finetuning, TrainerConfig
from gptlab.training.finetune import prepare_finetuning

DEVICES = Devices(accelerator="cpu", per_node=1, world_size=1, precision="32-true", peak_flops=1e12)
VOCABULARY = 257


@pytest.fixture
def planned(tmp_path):
    """Returns a plan and what it shows."""

    def planned(objective="causal_lm", *, devices=DEVICES, model_config=None, model=None, budget_bytes=None, **options):
        if model_config is not None:
            options["model"] = model_config
        config = small_run(tmp_path / "run", **of_objective(objective, tmp_path) | options)
        data = prepare(config.data, config.tokenizer, progress=False)
        built = config.objective.build(
            tokenizer=data.tokenizer,
            model=config.model,
            data=config.data,
            context_length=config.context_length,
            seed=config.seed,
        )
        vocab_size = data.tokenizer.vocab_size
        if model is None:
            model = shape_model(config.model, vocab_size, config.n_class)
            prepare_finetuning(model, config.finetune)
        plan = make_plan(config, data, devices, vocab_size, built, model, budget_bytes=budget_bytes)
        return plan, plan.text(config, Path("runs/mine"), 0)

    return planned


def test_mfu_is_for_sequences_alone(planned):
    """Examples of a table are shorter than the context, so their FLOPs are not known beforehand."""
    assert planned()[0].peak_flops == 1e12
    assert planned("span_corruption")[0].peak_flops == 1e12
    assert planned("instruction")[0].peak_flops is None
    assert planned("classification")[0].peak_flops is None
    assert planned(devices=replace(DEVICES, peak_flops=None))[0].peak_flops is None


def test_flops_of_frozen_weights(planned):
    block, head = 12 * 32 * 32 + 2 * 16 * 32, 32 * VOCABULARY  # multiply-adds of a token
    assert planned()[0].flops_per_token == 2 * (3 * 2 * block + 3 * head)
    last, text = planned(finetune=FinetuneConfig(type=Finetuning.last_layers, n_layer=1))
    assert last.flops_per_token == 2 * (block + 3 * block + 2 * head)
    assert f"{last.parameters['trained']:,} trained (" in text


def test_the_batch_is_shown_as_its_factors(planned):
    text = planned(micro_batch_size=2)[1]
    assert (
        "per step: 2 sequences x 16 tokens x 1 device x 4 gradient accumulation steps" in text
        and " 128 tokens " in text
    )
    assert "8 sequences x 16 tokens x 1 device x 1 gradient accumulation step\n" in planned()[1]
    assert "8 examples x 16 tokens or fewer x 1 device" in planned("instruction")[1]


def test_the_budget_is_shown_in_tokens_per_parameter(planned):
    plan, text = planned(budget_steps=None, tokens_per_parameter=2.0)
    assert plan.n_steps == 2 * plan.parameters["total"] // 128
    assert (
        f"{128 * plan.n_steps:,} tokens" in text
        and f"{plan.n_steps:,} steps" in text
        and " 2.0 tokens per parameter" in text
    )


def test_active_parameters_are_shown_where_there_are_experts(planned):
    plan, text = planned(model_config=DecoderConfig(n_layer=2, n_head=2, d_model=32, context_length=16, n_expert=4))
    inactive = 2 * 2 * (2 * 32 * 128 + 128 + 32)  # two of four experts, in two blocks
    assert plan.parameters["active"] == plan.parameters["total"] - inactive
    assert f"{plan.parameters['active']:,} active" in text
    assert " active" not in planned()[1]


class ReadsValues(LanguageModel):
    """A plugin's model that cannot be counted: what it does depends on its input."""

    def __init__(self):
        super().__init__(ModelConfig(d_model=8, context_length=16))
        self.blocks = nn.ModuleList()
        self.tok_emb = nn.Embedding(VOCABULARY, 8)

    def hidden_states(self, tokens, *, attention_mask=None):
        return self.tok_emb(tokens) * tokens.max().item()

    @property
    def head(self):
        return LMHead(weight=self.tok_emb.weight)


def test_a_model_that_cannot_be_counted_has_a_plan(planned):
    with torch.device("meta"):
        model = ReadsValues()
    plan, text = planned(model=model)
    assert plan.flops_per_token == 6 * 8 * VOCABULARY and "activations" not in plan.memory
    assert "(6 N: the model does not run on the meta device" in text and "activations unknown" in text
    assert plan.memory["total"] == 16 * 8 * VOCABULARY


def test_a_run_that_does_not_fit_is_refused_with_its_figures(planned, tmp_path):
    plan, _ = planned(micro_batch_size=4)
    config = small_run(tmp_path / "run", micro_batch_size=4)
    total = plan.memory["total"]
    state = sum(plan.memory[name] for name in ("weights", "gradients", "optimizer"))
    assert check_memory(plan, config, None) == check_memory(plan, config, 2 * total) == ""
    assert "if it runs out of memory, use micro_batch_size=2" in check_memory(plan, config, total)
    with pytest.raises(UserError, match=r"needs about .* use micro_batch_size=2, .*activation_checkpointing=budget"):
        check_memory(plan, config, round(total / 1.3))
    with pytest.raises(UserError, match=r"optimizer state alone take .*; use strategy=fsdp on several GPUs or a"):
        check_memory(plan, config, state - 1)
    config.strategy.check_memory = False
    assert check_memory(plan, config, 1) == ""


def test_a_budget_of_memory(planned, tmp_path):
    large = {"micro_batch_size": 2048, "batch_tokens": 2**17}  # beside which validating is nothing
    free, text = planned(**large)
    assert free.recomputed is None and "recomputed" not in text
    total = free.memory["total"]
    strategy = StrategyConfig(activation_checkpointing=Recompute.budget)
    roomy, text = planned(**large, strategy=strategy, budget_bytes=total)
    assert roomy.recomputed == () and roomy.memory == free.memory and "; 0 of 2 blocks recomputed" in text
    tight, text = planned(**large, strategy=strategy, budget_bytes=total - 1)
    assert tight.recomputed == (0,) and tight.memory["total"] < total and "; 1 of 2 blocks recomputed" in text
    with pytest.raises(UserError, match=r"to know what the device has free; .*strategy\.memory_budget_gib=N"):
        planned(strategy=strategy)
    with torch.device("meta"):
        model = ReadsValues()
    with pytest.raises(UserError, match=r"does not run on the meta device.*; use .*activation_checkpointing=full$"):
        planned(strategy=strategy, budget_bytes=total, model=model)

    strategy.memory_budget_gib = 1e-6
    config = small_run(tmp_path / "run", **large, strategy=strategy)
    none_left, _ = planned(**large, strategy=strategy, budget_bytes=1000)
    assert none_left.recomputed == (0,), "the other would save nothing"
    config.strategy.check_memory = False  # is about what is free
    for free in (None, 10**12):
        with pytest.raises(
            UserError, match=r"budget_gib=1e-06 is less than .* use micro_batch_size=1024, strategy=fs"
        ) as refused:
            check_memory(none_left, config, free)
    assert "activation_checkpointing=" not in str(refused.value) and "lower" not in str(refused.value)
    needed = tight.memory["total"] / 2**30
    said = re.search(r"raise it: strategy\.memory_budget_gib=([\d.]+)$", str(refused.value))
    assert needed <= float(said[1]) < needed + 0.011
    strategy.memory_budget_gib = total / 2**30
    assert check_memory(tight, config, None) == ""
    config.strategy.check_memory = True
    with pytest.raises(UserError, match=r"; use micro_batch_size=1024, a lower strategy\.memory_budget_gib, strategy="):
        check_memory(roomy, config, round(total / 1.3))
    roomy = explain_allocation(MemoryError(), roomy, config)
    assert roomy is not None and "strategy.activation_checkpointing=full" in roomy
    failed = explain_allocation(MemoryError(), none_left, config)
    assert failed is not None and "activation_checkpointing" not in failed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_allocation_that_fails_is_explained(planned, tmp_path, error):
    plan, _ = planned()
    text = explain_allocation(error, plan, small_run(tmp_path / "run"))
    assert text is not None and text.startswith("out of memory; the plan is about ") and "micro_batch_size=4" in text
    assert explain_allocation(RuntimeError("shapes differ"), plan, small_run(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("validation_tflop", "run_tflop", "expected"),
    [
        (0.9, 1.0, 10),  # short
        (10.0, 10_000.0, 10),
        (10.0, 2_200.0, 10),  # eleven, with the one before the first step, are 5%
        (10.0, 2_100.0, 9),
        (10.0, 800.0, 3),
        (10.0, 1.0, 1),  # one is always made
    ],
)
def test_validations_take_a_twentieth_of_the_compute_at_most(validation_tflop, run_tflop, expected):
    found = count_validations(validation_tflop * 1e12, run_tflop * 1e12)
    assert found == expected
    if validation_tflop > 1 and found > 1:
        assert (found + 1) * validation_tflop <= 0.05 * run_tflop


def test_the_default_interval_follows_from_the_compute(planned, monkeypatch):
    def every() -> int:
        return planned(budget_steps=100, trainer=TrainerConfig(accelerator="cpu", devices=1))[0].val_every

    assert every() == 10
    monkeypatch.setattr("gptlab.forecast.SHORT_VALIDATION_FLOPS", 1.0)
    plan = planned(budget_steps=100)[0]
    assert plan.val_tokens / 3 > 0.05 * 100 * 128 / 2, "the run is too short for two"
    assert every() == 100
    monkeypatch.setattr("gptlab.forecast.count_validations", lambda validation_flops, run_flops: 9)
    assert every() == 12, "at 12, 24, ... 96, 100"


def test_a_validation_of_a_part_costs_a_part(planned, monkeypatch):
    costs = []
    monkeypatch.setattr("gptlab.forecast.count_validations", lambda flops, run_flops: costs.append(flops) or 10)
    for limit in (None, 0.5, 1):
        planned(trainer=TrainerConfig(accelerator="cpu", devices=1, limit_val_batches=limit))
    planned(trainer=TrainerConfig(accelerator="cpu", devices=1), eval_train=True)
    whole, half, one_batch, with_train = costs
    assert half == pytest.approx(whole / 2) and one_batch <= whole and with_train > 5 * whole
