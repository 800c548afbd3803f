"""Prints what the reference run had learned by when, and draws learned.png beside this file.

python experiments/reference/plot.py runs/reference
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import gptlab

N_PAIRS = 40  # of a category
FORMS = {"0_shot": "no example", "1_shot": "one example", "4_shot": "four examples"}


def main(folder: str) -> None:
    """`folder` is a run of experiment=reference."""
    rows = gptlab.open_run(folder).metrics()
    probed = rows[rows["eval/grammar/accuracy"].notna()]
    categories = {
        column.split("/")[2]: probed[column] for column in rows if column.count("/") == 3 and "/grammar/" in column
    }
    print(f"| tokens | val/bits_per_byte | minimal pairs | {' | '.join(FORMS.values())} |\n|---|---|---|---|---|---|")
    for _, row in probed.iterrows():
        forms = " | ".join(f"{row[f'eval/forms/{n}/accuracy']:.2f}" for n in FORMS)
        print(
            f"| {row['tokens']:,.0f} | {row['val/bits_per_byte']:.3f} | {row['eval/grammar/accuracy']:.3f} | {forms} |"
        )
    print("\n| category | first | last |\n|---|---|---|")
    for name, values in categories.items():
        print(f"| {name.replace('_', ' ')} | {values.iloc[0]:.3f} | {values.iloc[-1]:.3f} |")
    draw(rows, probed, categories)


def draw(rows, probed, categories) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, grammar, forms = figure.subplots(1, 3)
    millions = rows["tokens"] / 1e6
    loss.plot(millions, rows["train/loss"].rolling(9, min_periods=1).mean(), label="training")
    validated = rows[rows["val/loss"].notna()]
    loss.plot(validated["tokens"] / 1e6, validated["val/loss"], marker="o", label="validation")
    loss.set_ylabel("nats per token")
    loss.set_title("loss")
    for name, values in categories.items():
        grammar.plot(probed["tokens"] / 1e6, values, linewidth=0.8, alpha=0.6, label=name.replace("_", " "))
    grammar.plot(probed["tokens"] / 1e6, probed["eval/grammar/accuracy"], color="black", linewidth=2, label="all")
    grammar.axhline(0.5, color="black", linewidth=0.8, linestyle="dotted")
    grammar.set_title(f"minimal pairs, {N_PAIRS} of each kind (dotted: a guess)")
    for n, name in FORMS.items():
        forms.plot(probed["tokens"] / 1e6, probed[f"eval/forms/{n}/accuracy"], marker="o", label=name)
    forms.axhline(1 / 3, color="black", linewidth=0.8, linestyle="dotted")
    forms.set_title("the form of a verb (dotted: a guess)")
    for axes in (grammar, forms):
        axes.set_ylim(0, 1)
        axes.set_ylabel("accuracy")
    for axes in (loss, grammar, forms):
        axes.set_xlabel("million tokens")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(Path(__file__).with_name("learned.png"), dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
