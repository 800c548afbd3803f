"""How well train.py forecasts a run: its final loss and its time, over 20 small runs one after another.

    python benchmarks/forecasts.py [--runs FOLDER] [--first-seed 0]

Four recipes with five seeds each, in one process; with --runs they are kept, and not trained again. The first run of a
recipe is forecast by its own curve alone, later ones by those that finished before too. Loss and time are the forecast
at the end of the first fifth; the time before the first step is known from the second run of a recipe on.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from small_runs import train_small

COMMON = "model.n_head=2 data.val_fraction=0.1"
RECIPES = {
    "cosine": "model.n_layer=2 model.d_model=32 budget_steps=400 optimizer.lr=5e-3 schedule=cosine",
    "wsd": "model.n_layer=2 model.d_model=48 budget_steps=400 optimizer.lr=3e-3 schedule=wsd",
    "linear": "model.n_layer=1 model.d_model=64 budget_steps=500 optimizer.lr=2e-3 schedule=linear",
    "muon": "model.n_layer=2 model.d_model=32 budget_steps=400 optimizer=muon schedule=cosine",
}
N_SEEDS = 5


def train_all(folder: Path, first_seed: int) -> list[Path]:
    """The run folders, in the order in which they were trained."""
    runs = []
    for seed in range(first_seed, first_seed + N_SEEDS):
        for name, recipe in RECIPES.items():
            runs.append(folder / f"{name}-{seed}")
            train_small(runs[-1], seed, f"{COMMON} {recipe}")
            print(f"\r{len(runs)} of {N_SEEDS * len(RECIPES)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return runs


def show(name: str, errors: list[float | None]) -> None:
    """A line about relative errors."""
    there = np.array([error for error in errors if error is not None])
    if len(there):
        off = np.abs(there)
        print(
            f"{name:<36} {len(there):>2} runs  {np.median(off):6.1%} at the median  {off.max():6.1%} at most", end="  "
        )
        print(f"{there.mean():+6.1%} on the mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="a folder that keeps the runs")
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    from gptlab.runs.forecasts import errors_of, read

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = [read(run) for run in train_all(folder, given.first_seed)]
    errors = [errors_of(one) for one in found if one is not None]
    alone = [one is not None and not one["before"]["earlier_runs"] for one in found]
    show("loss", [e.loss for e in errors])
    show("    by its own curve alone", [e.loss for e, own in zip(errors, alone, strict=True) if own])
    show("    with finished runs of the recipe", [e.loss for e, own in zip(errors, alone, strict=True) if not own])
    held = [e.held for e in errors if e.held is not None]
    print(f"{'80% intervals that held':<36} {len(held):>2} runs  {np.mean(held):6.1%} (65 to 95%)")
    show("seconds", [e.seconds for e in errors])
    show("seconds before the first step", [e.seconds_before for e in errors])
    show("memory before the first step", [e.memory for e in errors])


if __name__ == "__main__":
    from ending import finish

    finish(main)
