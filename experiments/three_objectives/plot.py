"""Draws loss.png beside this file: how far each run's loss is below the unigram entropy of its text.

python experiments/three_objectives/plot.py LABEL=RUN ...
"""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gptlab.runs.folder import read_metrics

SPAN = 40  # steps over which a curve is averaged


def main(settings: list[str]) -> None:
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, run in (setting.split("=", 1) for setting in settings):
        rows = read_metrics(Path(run) / "metrics.csv")
        entropy = json.loads((Path(run) / "summary.json").read_text())["unigram_entropy"]
        name = "mlm_loss" if "train/mlm_loss" in rows[-1] else "loss"
        steps = [row for row in rows if row["step"]]  # without the validation before the first
        losses = [row[f"train/{name}"] for row in steps]
        means = [sum(losses[max(0, i - SPAN + 1) : i + 1]) / min(i + 1, SPAN) - entropy for i in range(len(losses))]
        (line,) = axes.plot([row["tokens"] for row in steps], means, linewidth=1.5)
        validated = [(row["tokens"], row[f"val/{name}"] - entropy) for row in rows if f"val/{name}" in row]
        axes.plot(
            *zip(*validated, strict=True),
            "o",
            color=line.get_color(),
            label=f"{label} (validation {validated[-1][1]:+.2f})",
        )
    axes.axhline(0, color="gray", linestyle=":", label="unigram entropy")
    axes.set_xlabel("tokens of text read")
    axes.set_ylabel("loss minus unigram entropy (nats per token)")
    axes.set_ylim(top=1)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(Path(__file__).with_name("loss.png"), dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
