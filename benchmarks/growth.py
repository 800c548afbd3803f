"""How a training step's speed changes with model size, context, vocabulary and batch, beside what products allow.

    python benchmarks/growth.py [--rounds 3] [--plot FILE.png]

Around one small GPT-2 each of the four is varied alone. The bound is the FLOP/s of a large float32 product, measured in
the same rounds, divided by the FLOPs of a token forward and backward, as `gptlab plan` counts them: a step that did
nothing but its products, all of them at that speed. A point is the median over rounds of one step of
`gptlab.training.step.train_step` with AdamW in this process; all points take turns. CPU only.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from gptlab.costs import parameter_counts, training_pass
from gptlab.data.sources.config import StdlibConfig
from gptlab.distributed.allocator import keep_freed_memory
from gptlab.models.build import build_model, shape_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.objectives.causal_lm import CausalLM
from gptlab.training.config import AdamWConfig
from gptlab.training.optimizers import build_optimizer
from gptlab.training.step import train_step

WIDTH_OF_PRODUCT = 2048


@dataclass(frozen=True)
class Point:
    """A GPT-2 and its batch."""

    n_layer: int = 4
    d_model: int = 256
    vocab_size: int = 8192
    context_length: int = 256
    n_sequences: int = 4

    @property
    def config(self) -> DecoderConfig:
        shape = {"n_layer": self.n_layer, "d_model": self.d_model, "n_head": self.d_model // 64}
        return DecoderConfig(**shape, context_length=self.context_length)

    @property
    def step_tokens(self) -> int:
        return self.context_length * self.n_sequences

    @property
    def n_parameters(self) -> int:
        return parameter_counts(shape_model(self.config, self.vocab_size))["total"]

    @property
    def flops_per_token(self) -> float:
        shape = shape_model(self.config, self.vocab_size)
        return training_pass(shape, self.context_length, fused=False).flops_per_token


BASE = Point()


@dataclass
class Axis:
    """One of the four, its points, and the value of a point."""

    title: str
    value: Callable[[Point], int]
    points: tuple[Point, ...]
    medians: list[float] = field(default_factory=list)  # tokens per second, by point
    bounds: list[float] = field(default_factory=list)


def axes() -> list[Axis]:
    """What is varied: model size and vocabulary by themselves, context at one number of tokens a step."""
    sizes = tuple(replace(BASE, n_layer=n, d_model=d) for n, d in ((2, 128), (4, 256), (6, 384), (8, 512)))
    contexts = tuple(
        replace(BASE, context_length=length, n_sequences=BASE.step_tokens // length) for length in (64, 256, 512, 1024)
    )
    vocabularies = tuple(replace(BASE, vocab_size=size) for size in (512, 2048, 8192, 32_768))
    batches = tuple(replace(BASE, n_sequences=n) for n in (1, 4, 16))
    return [
        Axis("parameters", lambda point: point.n_parameters, sizes),
        Axis(f"context length ({BASE.step_tokens:,} tokens a step)", lambda point: point.context_length, contexts),
        Axis("vocabulary", lambda point: point.vocab_size, vocabularies),
        Axis(f"sequences a step (of {BASE.context_length} tokens)", lambda point: point.n_sequences, batches),
    ]


def stepper(point: Point) -> Callable[[], None]:
    """What takes one training step on random tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (point.n_sequences, point.context_length + 1)
    sequences = torch.randint(point.vocab_size, shape, generator=generator)
    batch = {"tokens": sequences[:, :-1].contiguous(), "targets": sequences[:, 1:].contiguous()}
    model = build_model(point.config, point.vocab_size, seed=0)
    optimizer = build_optimizer(model, AdamWConfig(), device=torch.device("cpu"))
    objective = CausalLM(data=StdlibConfig(), context_length=point.context_length)

    def step() -> None:
        train_step(model, objective, optimizer, batch, 0, seed=0, grad_clip=1.0)

    return step


def measure(varied: list[Axis], rounds: int) -> float:
    """Fill the medians and bounds of `varied`; returns the FLOP/s of the product."""
    points = list(dict.fromkeys(point for axis in varied for point in axis.points))
    steps = {point: stepper(point) for point in points}
    a = torch.randn(WIDTH_OF_PRODUCT, WIDTH_OF_PRODUCT)
    seconds: dict[Point | None, list[float]] = {None: [], **{point: [] for point in points}}
    for round_ in range(rounds + 1):
        for what in seconds:
            started = time.perf_counter()
            _ = a @ a if what is None else steps[what]()
            if round_:  # the first warms up
                seconds[what].append(time.perf_counter() - started)
    flops = 2 * WIDTH_OF_PRODUCT**3 / statistics.median(seconds[None])
    for axis in varied:
        axis.medians = [point.step_tokens / statistics.median(seconds[point]) for point in axis.points]
        axis.bounds = [flops / point.flops_per_token for point in axis.points]
    return flops


def table(varied: list[Axis]) -> str:
    """Tokens per second, the bound, and how much of it is reached."""
    lines = []
    for axis in varied:
        lines.append(f"{axis.title:38}{'tokens/s':>10}{'bound':>10}{'of it':>8}")
        for point, median, bound in zip(axis.points, axis.medians, axis.bounds, strict=True):
            lines.append(f"{axis.value(point):>38,}{median:>10,.0f}{bound:>10,.0f}{median / bound:>8.0%}")
    return "\n".join(lines)


def draw(varied: list[Axis], flops: float, path: Path) -> None:
    """A panel for each of the four, both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharey=True)
    for panel, axis in zip(panels.flat, varied, strict=True):
        values = [axis.value(point) for point in axis.points]
        panel.plot(values, axis.bounds, "--", color="gray", label=f"bound: products at {flops / 1e9:,.0f} GFLOP/s")
        panel.plot(values, axis.medians, "o-", color="tab:blue", label="measured")
        for value, median, bound in zip(values, axis.medians, axis.bounds, strict=True):
            place = {"textcoords": "offset points", "xytext": (0, -12), "ha": "center"}
            panel.annotate(f"{median / bound:.0%}", (value, median), **place, fontsize=8, color="tab:blue")
        panel.set(xscale="log", yscale="log", xlabel=axis.title)
        labels = [f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value:,}" for value in values]
        panel.set_xticks(values, labels)
        panel.set_xticks([], minor=True)
        panel.margins(x=0.1, y=0.15)  # room for the percentages
        panel.grid(alpha=0.3)
    for panel in panels[:, 0]:
        panel.set_ylabel("tokens per second")
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(
        f"A training step, float32, threads: {torch.get_num_threads()}, around {BASE.n_layer} layers, "
        f"d_model {BASE.d_model}, V {BASE.vocab_size:,}, T {BASE.context_length}, batch {BASE.n_sequences}",
        fontsize=10,
    )
    figure.savefig(path, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds} must be at least 1")
    if given.plot is not None and not given.plot.parent.is_dir():
        parser.error(f"--plot {given.plot}: the folder {given.plot.parent} does not exist; create it")
    keep_freed_memory()  # as a run on a CPU does
    varied = axes()
    flops = measure(varied, given.rounds)
    print(f"float32, threads: {torch.get_num_threads()}; {flops / 1e9:,.0f} GFLOP/s in a product of matrices", end=" ")
    print(f"{WIDTH_OF_PRODUCT} wide\n\n{table(varied)}")
    if given.plot is not None:
        draw(varied, flops, given.plot)


if __name__ == "__main__":
    from ending import finish

    finish(main)
