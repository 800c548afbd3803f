"""Twenty steps whose losses must not move: a change that should not alter computation leaves these files untouched.

`pytest --update-golden` rewrites them.
"""

from pathlib import Path

import pytest
import torch
from small_runs import OBJECTIVES, of_objective, small_run, step_rows

from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import DecoderConfig, Init, Norm, Position
from gptlab.training.config import AdamWConfig, CosineConfig, MuonConfig
from gptlab.training.loop import train

HERE = Path(__file__).parent
SHAPE = {"n_layer": 2, "n_head": 4, "d_model": 32, "context_length": 16}

RUNS = {
    **{name: {"objective": name} for name in OBJECTIVES if name != "causal_lm"},
    "causal_lm_gpt2_adamw": {
        "model": DecoderConfig(**SHAPE, dropout=0.1),
        "optimizer": AdamWConfig(lr=1e-2),
    },
    "causal_lm_modern_muon": {
        "model": DecoderConfig(
            **SHAPE,
            n_kv_head=2,
            position=Position.rotary,
            norm=Norm.rmsnorm,
            feedforward=Feedforward.relu2,
            bias=False,
            qk_norm=True,
            tie_embeddings=False,
            logit_softcap=15.0,
            init=Init.zero,
        ),
        "optimizer": MuonConfig(lr=1e-2),
    },
}

LEARNS = {"classification": 0.5}  # nats in twenty steps; 1 elsewhere


@pytest.mark.parametrize("name", RUNS)
def test_losses_stay(name, tmp_path, update_golden):
    torch.set_num_threads(1)
    options = dict(RUNS[name])
    if "objective" in options:
        options |= of_objective(options["objective"], tmp_path)
    config = small_run(
        tmp_path / "run", budget_steps=20, schedule=CosineConfig(warmup_steps=4), micro_batch_size=4, **options
    )
    train(config)
    losses = [row["train/loss"] for row in step_rows(tmp_path / "run" / "metrics.csv")]
    file = HERE / f"{name}.txt"
    if update_golden:
        file.write_text("".join(f"{loss:.7f}\n" for loss in losses))
    expected = [float(line) for line in file.read_text().split()]
    assert losses == pytest.approx(expected, abs=1e-4)
    assert losses[-1] < losses[0] - LEARNS.get(name, 1), "it learns"
