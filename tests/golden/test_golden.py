"""Twenty steps whose losses must not move: a change that should not alter computation leaves these files untouched.

`pytest --update-golden` rewrites them.
"""

import pytest
import torch
from golden.runs import RUNS, golden_file, golden_losses, golden_run
from small_runs import step_rows

from gptlab.training.loop import train

LEARNS = {"classification": 0.5}  # nats in twenty steps; 1 elsewhere


@pytest.mark.parametrize("name", RUNS)
def test_losses_stay(name, tmp_path, update_golden):
    torch.set_num_threads(1)
    train(golden_run(name, tmp_path))
    losses = [row["train/loss"] for row in step_rows(tmp_path / "run" / "metrics.csv")]
    if update_golden:
        golden_file(name).write_text("".join(f"{loss:.7f}\n" for loss in losses))
    assert losses == pytest.approx(golden_losses(name), abs=1e-4)
    assert losses[-1] < losses[0] - LEARNS.get(name, 1), "it learns"
