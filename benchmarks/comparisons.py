"""How often `gptlab compare` is right: of equal runs, and of runs with a difference that is known.

    python benchmarks/comparisons.py [--runs FOLDER] [--seeds 40]

Trains small runs that are equal but for their seeds, in one process; with --runs they are kept, and not trained again.
Then 200 times two groups of disjoint seeds are drawn from them, of 6 to 20 runs each, and paired arbitrarily: a test at
5% may call 18 of 200 different at most (99% bound). Then one of the groups is made better by 0.02: six pairs say how
many seeds they need to show that, and so many are drawn.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from small_runs import train_small

SIZES = "model.n_layer=2 model.n_head=2 model.d_model=32 budget_steps=200"
REST = "optimizer.lr=3e-3 trainer.val_check_interval=1.0 data.val_fraction=0.05"
N_COMPARISONS = 200
EFFECT = 0.02


def losses(folder: Path, n_seeds: int) -> np.ndarray:
    """The last validation loss of each run."""
    from gptlab.lab.collect import collect

    for seed in range(n_seeds):
        train_small(folder / f"seed={seed}", seed, f"{SIZES} {REST}")
        print(f"\r{seed + 1} of {n_seeds} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return np.array([record.last("val/loss") for record in collect([folder]) if record.seed < n_seeds])


def draw(rng: np.random.Generator, runs: np.ndarray, n: int) -> tuple[dict[int, float], dict[int, float]]:
    """Two groups of n runs with disjoint seeds, paired arbitrarily; with repetition where there are too few."""
    both = rng.permutation(runs)
    a, b = both[: len(runs) // 2], both[len(runs) // 2 :]
    if n > len(a):
        a, b = rng.choice(a, n), rng.choice(b, n)
    return dict(enumerate(a[:n].tolist())), dict(enumerate(b[:n].tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="a folder that keeps the runs")
    parser.add_argument("--seeds", type=int, default=40)
    given = parser.parse_args()
    from gptlab.lab.statistics import compare_groups, seeds_needed

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = losses(folder, given.seeds)
    print(f"{len(runs)} runs: val/loss {runs.mean():.4f}, deviation over seeds {runs.std(ddof=1):.4f}")

    rng, called, few = np.random.default_rng(0), 0, 0
    for i in range(N_COMPARISONS):
        called += compare_groups(*draw(rng, runs, 6 + i % 15), effect=EFFECT).is_called_different
        few += compare_groups(*draw(rng, runs, 2 + i % 4), effect=EFFECT).is_called_different
    print(f"equal: {called} of {N_COMPARISONS} called different with 6 to 20 pairs (18 at most), {few} with 2 to 5 (0)")

    found, asked = 0, []
    for _ in range(N_COMPARISONS):
        a, b = draw(rng, runs, 6)
        deviation = float(np.std([b[seed] - EFFECT - a[seed] for seed in a], ddof=1))
        n = seeds_needed(deviation, 5, EFFECT)
        if n is None:
            continue
        asked.append(n)
        a, b = draw(rng, runs, n)
        found += compare_groups(a, {seed: v - EFFECT for seed, v in b.items()}, effect=EFFECT).is_called_different
    print(
        f"better by {EFFECT}: found in {found / N_COMPARISONS:.0%} of {N_COMPARISONS} (80% at least) by as many pairs "
        f"as six asked for: {np.median(asked):.0f} at the median, {max(asked)} at most"
    )


if __name__ == "__main__":
    from ending import finish

    finish(main)
