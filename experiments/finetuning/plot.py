"""Draws accuracy.png beside this file: validation accuracy against steps, the mean over seeds of each setting.

python experiments/finetuning/plot.py LABEL=RUN,RUN LABEL=RUN,RUN ...
"""

import sys
from itertools import cycle
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gptlab.runs.folder import read_metrics

MAJORITY = 0.352  # fraction of the largest class


def main(settings: list[str]) -> None:
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = cycle([("tab:blue", "-"), ("tab:blue", "--"), ("tab:orange", "-"), ("tab:orange", "--")])
    for setting in settings:
        label, runs = setting.split("=", 1)
        color, line = next(styles) if "BERT" not in label else ("tab:green", "-" if "from" not in label else "--")
        curves = [
            {
                row["step"]: row["val/accuracy"]
                for row in read_metrics(Path(run) / "metrics.csv")
                if "val/accuracy" in row
            }
            for run in runs.split(",")
        ]
        steps = sorted(curves[0])
        means = [sum(curve[step] for curve in curves) / len(curves) for step in steps]
        axes.plot(steps, means, line, color=color, marker="o", markersize=3, label=f"{label} (last {means[-1]:.3f})")
    axes.axhline(MAJORITY, color="gray", linestyle=":", label="always the largest class")
    axes.set_xlabel("steps of 32 functions")
    axes.set_ylabel("validation accuracy")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(Path(__file__).with_name("accuracy.png"), dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
