"""Trains a model at learning rates in steps of a factor of 2, and adds a line for each run to a CSV file.

python experiments/mup/rates.py FILE.csv NAME FIRST LAST [group.key=value ...]   # rates from 2^FIRST to 2^LAST

All runs are in one process, since starting one takes longer here than the run.
"""

import csv
import sys
import time
from pathlib import Path

import torch

import gptlab
from gptlab.models.build import build_model
from gptlab.training.loop import open_batches
from gptlab.training.optimizers import build_optimizer
from gptlab.training.step import train_step

N_LAST = 20  # updates, over which the training loss is averaged
N_HELD_OUT = 32  # batches behind the last update


def main(path: Path, name: str, first: int, last: int, overrides: list[str]) -> None:
    config = gptlab.compose("experiment=mup", *overrides)
    data, batches = open_batches(config)
    n_steps = config.budget_steps
    assert n_steps is not None
    schedule = config.schedule.build(n_steps=n_steps, batch_tokens=config.batch_tokens)
    for exponent in range(first, last + 1):
        config.optimizer.lr = 2.0**exponent
        start = time.process_time()
        model = build_model(config.model, data.tokenizer.vocab_size, seed=config.seed)
        optimizer = build_optimizer(model, config.optimizer, device=torch.device("cpu"))
        losses = []
        for step in range(n_steps):
            measured = train_step(
                model,
                batches.objective,
                optimizer,
                batches[step],
                step,
                seed=config.seed,
                lr_factor=schedule.factor(step),
                grad_clip=config.optimizer.grad_clip,
            )
            losses.append(measured["loss"].item())
        model.eval()
        with torch.no_grad():
            held_out = [batches.objective.mean_loss(model, batches[n_steps + i]).item() for i in range(N_HELD_OUT)]
        row = [name, config.seed, exponent, sum(losses[-N_LAST:]) / N_LAST, sum(held_out) / N_HELD_OUT]
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([*row, f"{time.process_time() - start:.1f}"])
        print(*row, f"{time.process_time() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
