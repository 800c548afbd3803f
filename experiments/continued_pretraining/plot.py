"""Draws loss.png beside this file: the validation loss on both domains against the bytes read in each stage.

python experiments/continued_pretraining/plot.py LABEL=RUN LABEL=RUN ...
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gptlab.runs.folder import read_metrics


def main(settings: list[str]) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, domain in zip(figure.subplots(1, 2), ("prose", "code"), strict=True):
        for setting in settings:
            label, run = setting.split("=", 1)
            name = f"val/{domain}/loss"
            rows = [row for row in read_metrics(Path(run) / "metrics.csv") if name in row]
            losses = [row[name] for row in rows]
            axes.plot(
                [row["tokens"] / 1e3 for row in rows],
                losses,
                "o-",
                markersize=3,
                label=f"{label} (last {losses[-1]:.3f})",
            )
        axes.set_title(f"{domain}: val/{domain}/loss")
        axes.set_xlabel("thousand bytes since the stage began")
        axes.set_ylabel("nats per byte")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(Path(__file__).with_name("loss.png"), dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
