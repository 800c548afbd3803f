"""Draws loss.png beside this file: the losses of run folders, and the largest expert load of those with experts.

python experiments/dense_and_experts/plot.py RUN RUN ...
"""

import sys
from itertools import cycle
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gptlab.runs.folder import read_metrics

N_EXPERT = 8
SPAN = 25  # steps over which a curve is averaged


def main(runs: list[str]) -> None:
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    losses, loads = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for run, color in zip(map(Path, runs), cycle(("tab:blue", "tab:orange", "tab:green"))):
        rows = read_metrics(run / "metrics.csv")
        losses.plot(*averaged(rows, "train/loss"), color=color, linewidth=1.2, alpha=0.7)
        tokens, values = series(rows, "val/loss")
        losses.plot(tokens, values, "o", color=color, label=f"{run.name} (last val/loss {values[-1]:.4f})")
        tokens, values = averaged(rows, "train/max_expert_load")
        if values:
            loads.plot(tokens, values, color=color, label=f"{run.name} (last {values[-1]:.3f})")
    losses.set_ylabel("loss (nats per token)")
    losses.set_title(f"Training loss, mean of {SPAN} steps, and validation loss")
    losses.set_ylim(top=6)
    loads.axhline(1 / N_EXPERT, color="gray", linestyle=":", label="uniform")
    loads.axhline(1.5 / N_EXPERT, color="gray", linestyle="--", label="1.5 times uniform")
    loads.set_ylabel("largest expert load")
    loads.set_xlabel("tokens seen")
    loads.set_ylim(0, 0.55)
    for axes in (losses, loads):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(Path(__file__).with_name("loss.png"), dpi=110)


def series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    found = [(row["tokens"], row[name]) for row in rows if name in row]
    return [tokens for tokens, _ in found], [value for _, value in found]


def averaged(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    tokens, values = series(rows, name)
    means = [sum(values[max(0, i - SPAN + 1) : i + 1]) / min(i + 1, SPAN) for i in range(len(values))]
    return tokens, means


if __name__ == "__main__":
    main(sys.argv[1:])
