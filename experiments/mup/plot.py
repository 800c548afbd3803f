"""Prints the best rate of each model of a CSV file of rates.py, and draws it beside this file.

rates.csv becomes loss.png, any other file a picture of its own name.

python experiments/mup/plot.py FILE.csv
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def main(path: Path) -> None:
    losses: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with path.open(newline="") as file:
        for name, _, exponent, _, held_out, _ in csv.reader(file):
            losses[name][int(exponent)].append(float(held_out))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, by_rate in losses.items():
        means = {exponent: sum(found) / len(found) for exponent, found in sorted(by_rate.items())}
        best = min(means, key=lambda exponent: means[exponent])
        print(f"| {name} | {' | '.join(f'2^{e}: {loss:.4f}' for e, loss in means.items())} | best 2^{best} |")
        (line,) = axes.plot(list(means), list(means.values()), "o-", markersize=4, label=f"{name} (best 2^{best})")
        axes.plot([best], [means[best]], "o", markersize=10, fillstyle="none", color=line.get_color())
    axes.set_xlabel("base-2 logarithm of the learning rate, of which each model's best is circled")
    axes.set_ylabel("held-out loss, nats per byte")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    name = "loss" if path.stem == "rates" else path.stem
    figure.savefig(Path(__file__).with_name(f"{name}.png"), dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
