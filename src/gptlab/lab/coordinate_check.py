"""Coordinate check: whether activations, and what training changes of them, keep their size as a model grows.

Small copies of a model of several widths, or depths, train for a few steps on the same batches (Tensor Programs V,
arXiv:2203.03466, appendix D.1). Where a parametrization is right, no layer's activations grow or vanish with the size.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.models.build import build_model
from gptlab.models.config import ModelConfig, Parametrization, TransformerConfig
from gptlab.objectives.base import Batch, Objective
from gptlab.training.config import OptimizerConfig
from gptlab.training.optimizers import build_optimizer
from gptlab.training.step import train_step

LIMIT, SPAN = 1.5, 16.0  # the drift that is allowed over a model so many times as large
N_WIDTHS, LEAST_WIDTH = 5, 32
DEPTHS = (2, 4, 8, 16, 32)
EMBEDDING, HIDDEN, LOGITS = "embedding", "hidden states", "logits"
LEARNED = "logits by what the head learned"


@dataclass(frozen=True, slots=True)
class Line:
    """Root mean squares of a layer's activations: by step, and in a step by the size of the model."""

    layer: str
    change: bool  # of what training changed, against the activations before it
    judged: bool
    values: tuple[tuple[float, ...], ...]

    def drift(self, sizes: Sequence[int], step: int) -> float:
        """By what factor the values grow over a model `SPAN` times as large, along a line fitted to their logarithms.

        Below 1 where they shrink; infinite where there is no number, or a zero among others.
        """
        values = self.values[step]
        if not any(values):
            return 1.0
        if not all(math.isfinite(value) and value > 0 for value in values):
            return math.inf
        x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
        middle, mean = sum(x) / len(x), sum(y) / len(y)
        slope = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)
        return SPAN**slope

    @property
    def name(self) -> str:
        return f"change of {self.layer}" if self.change else self.layer


@dataclass(frozen=True, slots=True)
class Drift:
    """Where a line drifts most."""

    line: Line
    step: int
    factor: float  # over `SPAN` times the size

    @property
    def beyond(self) -> bool:
        """Whether it is more than a right parametrization shows."""
        return not 1 / LIMIT <= self.factor <= LIMIT


@dataclass(frozen=True, slots=True)
class CoordinateCheck:
    """What was measured over the widths, or the depths, of a model."""

    dimension: str  # "width" or "depth"
    sizes: tuple[int, ...]
    lines: list[Line]

    def drifts(self) -> list[Drift]:
        """The largest drift of each line that is judged, the worst first."""
        found = []
        for line in self.lines:
            if line.judged:
                factors = [(line.drift(self.sizes, step), step) for step in range(len(line.values))]
                factor, step = max(factors, key=lambda pair: abs(math.log(pair[0])))
                found.append(Drift(line, step, factor))
        return sorted(found, key=lambda drift: -abs(math.log(drift.factor)))

    @property
    def passed(self) -> bool:
        return not any(drift.beyond for drift in self.drifts())

    def plain(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "dimension": self.dimension,
            "sizes": list(self.sizes),
            "passed": self.passed,
            "limit": LIMIT,
            "over": SPAN,
            "lines": [
                {"layer": line.layer, "change": line.change, "judged": line.judged, "values": list(line.values)}
                for line in self.lines
            ],
            "drifts": [{"name": d.line.name, "step": d.step, "factor": d.factor} for d in self.drifts()],
        }


def check_coordinates(
    copies: Mapping[int, ModelConfig],
    dimension: str,
    *,
    vocab_size: int,
    objective: Objective,
    optimizer: OptimizerConfig,
    batches: Sequence[Batch],
    probe: Batch,
    seed: int,
    n_seeds: int = 1,
    done: Callable[[int], None] = lambda n: None,
) -> CoordinateCheck:
    """Train copies of a model, by width or depth, with one update per batch, and measure activations on `probe`.

    The rate is the optimizer's own from the first step on. Values are geometric means over `n_seeds` seeds. `done` is
    called with the number of updates since the last call.
    """
    found: dict[int, list[list[dict[tuple[str, bool], float]]]] = {}
    for size, config in copies.items():
        found[size] = []
        for number in range(n_seeds):
            model = build_model(config, vocab_size, seed=seed + number)
            run = _measured(model, objective, optimizer, batches, probe, seed, done, by_place=dimension == "depth")
            found[size].append(list(run))
    first = next(iter(found.values()))[0]
    names = list(first[-1])
    lines = [
        Line(
            layer,
            change,
            # Initial logits shrink with the width, by the initial head alone; what is learned does not.
            layer != LOGITS,
            tuple(
                tuple(_mean([run[step].get((layer, change), 0.0) for run in runs]) for runs in found.values())
                for step in range(len(first))
            ),
        )
        for layer, change in names
    ]
    return CoordinateCheck(dimension, tuple(copies), lines)


def _mean(values: Sequence[float]) -> float:
    if not all(math.isfinite(value) for value in values):
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values)) if all(values) else 0.0


def _measured(
    model: LanguageModel,
    objective: Objective,
    optimizer: OptimizerConfig,
    batches: Sequence[Batch],
    probe: Batch,
    seed: int,
    done: Callable[[int], None],
    *,
    by_place: bool,
) -> Iterator[dict[tuple[str, bool], float]]:
    """The sizes of activations and of their changes, before the first update and after each."""
    built = build_optimizer(model, optimizer, device=torch.device("cpu"))
    layers = layers_of(model, by_place=by_place)
    before: dict[str, Tensor] = {}
    head: Tensor | None = None
    for step in range(len(batches) + 1):
        now, head = _activations(model, objective, probe, layers, head)
        before = before or now
        sizes = {(name, False): _size(value) for name, value in now.items() if name != LEARNED}
        for name, value in now.items():
            # What the head learned is a change already.
            sizes[name, True] = _size(value if name == LEARNED else value - before[name])
        yield sizes
        if step < len(batches):
            train_step(model, objective, built, batches[step], step, seed=seed, grad_clip=optimizer.grad_clip)
            done(1)


def _size(value: Tensor) -> float:
    return value.double().square().mean().sqrt().item()


def layers_of(model: LanguageModel, *, by_place: bool = False) -> dict[str, nn.Module]:
    """The modules whose outputs are compared, by name: the token embedding, each block and its sublayers.

    With `by_place` the blocks are those that models of different depths have at the same place, the middle one and the
    last one. Their sublayers are left out: in a model of few blocks those of the last read a stream to which more is
    still to come.
    """
    found: dict[str, nn.Module] = {}
    embedding = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if embedding is not None:
        found[EMBEDDING] = embedding
    blocks = list(model.blocks)
    chosen = {f"block {i}": i for i in range(len(blocks))}
    if by_place:
        chosen = {"the middle block": (len(blocks) - 1) // 2, "the last block": len(blocks) - 1}
    for name, i in chosen.items():
        for inner, module in blocks[i].named_children():
            if not by_place and sum(parameter.ndim > 1 for parameter in module.parameters()) > 1:
                found[f"{name}, {inner}"] = module
        found[name] = blocks[i]
    return found


@torch.no_grad()
def _activations(
    model: LanguageModel, objective: Objective, probe: Batch, layers: Mapping[str, nn.Module], head: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Activations on `probe` by layer, in eval mode, and the head's first weight (`head`; None: it is now)."""
    model.eval()
    with _recorded(layers) as found:
        predicted = objective.predictions(model, probe)
        if predicted is None:
            objective.loss(model, probe)
    if predicted is not None:
        own = model.head
        head = own.weight.clone() if head is None else head
        found[HIDDEN] = predicted.states
        found[LOGITS] = own.logits(predicted.states)
        found[LEARNED] = replace(own, weight=own.weight - head, bias=None, softcap=None).logits(predicted.states)
    model.train()
    return found, head


@contextmanager
def _recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def hook(name: str):
        def record(module: nn.Module, given: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def of_width(model: ModelConfig, width: int) -> ModelConfig:
    """A copy of another width: heads become wider, or where the base model's are as wide as here, more.

    UserError where the width has no whole heads.
    """
    ratio = width / model.d_model
    changes: dict[str, Any] = {"d_model": width}
    if isinstance(model, TransformerConfig):
        if model.d_ff is not None:
            changes["d_ff"] = max(1, round(model.d_ff * ratio))
        if grows_by_heads(model):
            n_kv_head = getattr(model, "n_kv_head", None)
            counts = {"n_head": model.n_head, **({} if n_kv_head is None else {"n_kv_head": n_kv_head})}
            for key, count in counts.items():
                changes[key] = round(count * ratio)
                if changes[key] < 1 or changes[key] != count * ratio:
                    raise UserError(
                        f"widths={width}: a model of that width would have model.{key}={count * ratio:g}; "
                        f"use multiples of {unit_of(model)}"
                    )
        elif model.d_head is not None:
            changes["d_head"] = max(1, round(model.d_head * ratio))
    copy = replace(model, **changes)
    try:
        copy.check()
    except UserError as error:
        raise UserError(f"widths={width}: {error}") from None
    return copy


def grows_by_heads(model: TransformerConfig) -> bool:
    """Whether a wider model has more heads, rather than wider ones."""
    return model.base_d_head == model.head_width and model.base_d_model != model.d_model


def unit_of(model: ModelConfig) -> int:
    """The width of which other widths are multiples."""
    if not isinstance(model, TransformerConfig):
        return 1
    if grows_by_heads(model):
        return model.d_model // math.gcd(model.n_head, model.kv_heads)
    return 2 * model.n_head  # rotary positions turn pairs of channels


def usual_widths(model: ModelConfig) -> list[int]:
    """Five widths over a factor of 16, from the smallest that fits on."""
    unit = unit_of(model)
    first = -(-LEAST_WIDTH // unit) * unit
    return [first * 2**i for i in range(N_WIDTHS)]


def of_depth(model: ModelConfig, depth: int) -> ModelConfig:
    """A copy of another depth."""
    copy = replace(model, n_layer=depth)
    copy.check()
    return copy


def usual_depths(model: ModelConfig) -> list[int]:
    """Depths over a factor of 16, for a parametrization that says something about depth; else none."""
    return list(DEPTHS) if model.parametrization is Parametrization.completep else []
