"""Prints the loss by position before and after a continued training, and draws loss.png beside this file.

python experiments/long_context/plot.py runs/unscaled runs/linear runs/ntk runs/yarn
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import gptlab
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.prepare import prepare
from gptlab.models.base import LanguageModel
from gptlab.models.build import shape_model
from gptlab.runs.initial_weights import load_initial

N_SEQUENCES = 256
PARTS = 4  # of a sequence, each as long as the context before
BINS = 32  # of a sequence, in the picture


def main(folders: list[str]) -> None:
    """`folders` are runs that began from the same shorter one."""
    losses = {}
    for folder in folders:
        run = gptlab.open_run(folder)
        config = run.config
        data = prepare(config.data, config.tokenizer, progress=False)
        windows = SlidingWindows(data.existing_part("val").tokens, config.context_length, config.context_length)
        chosen = np.linspace(0, len(windows) - 1, min(N_SEQUENCES, len(windows))).astype(int)
        sequences = torch.from_numpy(windows.gather(chosen))
        vocab_size = data.tokenizer.vocab_size
        before = shape_model(config.model, vocab_size).to_empty(device="cpu")
        load_initial(before, config.model, vocab_size, seed=config.seed)
        after, _ = run.load()
        losses[Path(folder).name] = [by_position(model, sequences) for model in (before, after)]
    n = len(next(iter(losses.values()))[0])
    ranges = [f"{i * n // PARTS} to {(i + 1) * n // PARTS - 1}" for i in range(PARTS)]
    print(f"| | {' | '.join(ranges)} | all |\n|---|{'---|' * (PARTS + 1)}")
    for name, pair in losses.items():
        for when, values in zip(("before", "after"), pair, strict=True):
            numbers = [*(part.mean() for part in np.split(values, PARTS)), values.mean()]
            print(f"| {name}, {when} | {' | '.join(f'{number:.4f}' for number in numbers)} |")
    draw(losses)


@torch.no_grad()
def by_position(model: LanguageModel, sequences: torch.Tensor) -> np.ndarray:
    """The mean loss at each position (T,) of sequences (B, T + 1)."""
    model.eval()
    found = [
        F.cross_entropy(model(part[:, :-1]).transpose(1, 2), part[:, 1:], reduction="none").double().sum(0)
        for part in sequences.split(16)
    ]
    return (sum(found) / len(sequences)).numpy()


def draw(losses: dict[str, list[np.ndarray]]) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, at, title in zip(figure.subplots(1, 2), (0, 1), ("before", "after"), strict=True):
        for name, pair in losses.items():
            values = pair[at].reshape(BINS, -1).mean(1)
            places = (np.arange(BINS) + 0.5) * len(pair[at]) / BINS
            axes.plot(places, values, label=f"{name} ({pair[at].mean():.3f})")
        axes.axvline(len(pair[at]) / PARTS, color="black", linewidth=0.8, linestyle="dotted")
        axes.set_title(f"{title} the continued training")
        axes.set_xlabel("position in the sequence (dotted: the context before)")
        axes.set_ylabel("nats per byte")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(Path(__file__).with_name("loss.png"), dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
