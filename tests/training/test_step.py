"""A training step without a Trainer is the one that runs take."""

import pytest
import torch
from small_runs import OBJECTIVES, of_objective, small_run

from gptlab.errors import UserError
from gptlab.models.build import build_model, shape_model
from gptlab.runs import checkpoint
from gptlab.training.config import AdamWConfig, CallbacksConfig, CheckpointConfig, MuonConfig
from gptlab.training.loop import _open_data, batch, train
from gptlab.training.step import loss_and_gradients, train_step


def run_of(folder, **given):
    settings = CallbacksConfig(checkpoint=CheckpointConfig(every_steps=5, keep_last=9), sample=None, plot=False)
    return small_run(folder, callbacks=settings, **given)


@pytest.mark.parametrize("objective_name", OBJECTIVES)
def test_a_recorded_step_is_reproduced_from_its_checkpoint(tmp_path, objective_name):
    """Five steps from the checkpoint at step 5, by plain torch objects: the losses and norms of metrics.csv."""
    parts = of_objective(objective_name, tmp_path)
    config = run_of(tmp_path / "run", optimizer=MuonConfig(lr=1e-2, grad_clip=0.3), micro_batch_size=4, **parts)
    if "model" not in parts:
        config.model.dropout = 0.1
    run = train(config)
    saved = checkpoint.load(run.checkpoints[5])
    _, objectives, vocab_size = _open_data(config, progress=False)
    (objective,) = objectives.values()
    model = shape_model(config.model, vocab_size, config.n_class).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if name.startswith(objective.unused_parameters):
            parameter.requires_grad_(False)
    checkpoint.restore_model(model, saved.model)
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    optimizer = config.optimizer.build(trained, device=torch.device("cpu"))
    checkpoint.restore_optimizer(optimizer, saved.optimizer)
    schedule = config.schedule.build(n_steps=10, batch_tokens=config.batch_tokens)
    rows = run.metrics().set_index("step")
    for step in range(5, 10):
        measured = train_step(
            model,
            objective,
            optimizer,
            batch(config, step),
            step,
            seed=config.seed,
            lr_factor=schedule.factor(step),
            grad_clip=0.3,
            micro_batch_size=4,
        )
        row = rows.loc[step + 1]
        assert measured["loss"].item() == pytest.approx(row["train/loss"], rel=1e-6)
        assert measured["grad_norm"].item() == pytest.approx(row["train/grad_norm"], rel=1e-6)


def test_the_batches_of_all_ranks_are_the_batch_of_one(tmp_path):
    config = small_run(tmp_path / "run")
    for step in (0, 3):
        whole = batch(config, step)
        ranks = [batch(config, step, rank, 4) for rank in range(4)]
        for name, value in whole.items():
            assert torch.equal(torch.cat([part[name] for part in ranks]), value)
    assert not any(torch.equal(a, b) for a, b in zip(batch(config, 0).values(), batch(config, 1).values(), strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(batch(config, 3).values(), batch(config, 1, skipped_steps=2).values(), strict=True)
    )


def test_a_step_or_rank_that_is_not_there_is_refused(tmp_path):
    config = small_run(tmp_path / "run")
    for wrong in ({"step": -1}, {"step": 0, "rank": 2, "world_size": 2}, {"step": 0, "rank": -1}):
        with pytest.raises(UserError, match=r"(step|rank)=-?\d must be at least 0"):
            batch(config, **wrong)


def test_gradients_do_not_depend_on_the_size_of_micro_batches(tmp_path):
    config = small_run(tmp_path / "run", optimizer=AdamWConfig())
    _, objectives, vocab_size = _open_data(config, progress=False)
    (objective,) = objectives.values()
    whole = batch(config, 0)
    found = {}
    for size in (None, 1, 3):
        model = build_model(config.model, vocab_size, seed=1)
        terms = loss_and_gradients(model, objective, whole, micro_batch_size=size)
        found[size] = [terms["loss"], *(p.grad for p in model.parameters())]
    for size in (1, 3):
        for a, b in zip(found[size], found[None], strict=True):
            assert torch.allclose(a, b, atol=1e-6)
