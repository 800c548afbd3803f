"""The picture of a scaling law: losses by tokens, residuals, isoFLOP profiles and the compute-optimal frontier."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.errors import UserError
from gptlab.files import replacing
from gptlab.lab.scaling import bias_text
from gptlab.lab.scaling_law import IsoFlops, ScalingLaw
from gptlab.units import count_text

if TYPE_CHECKING:
    from gptlab.lab.ladder import HeldOut

MAX_LABELS = 10
LEAST_SHOWN = 0.3  # E as a fraction of the lowest loss
FORMATS = (".png", ".svg")


def picture_path(path: str | Path, name: str = "scaling.png") -> Path:
    """Where a picture is written: a file that ends in .png or .svg, or one called `name` in a folder."""
    if isinstance(path, str) and not path.strip():  # which Path takes for this folder
        raise UserError(f"plots= is empty; name a .png or .svg file or a folder, such as plots={name}")
    path = Path(path).expanduser()
    found = path / name if path.is_dir() else path
    if found.suffix.lower() not in FORMATS:
        raise UserError(f"plots={path} is no folder and ends in neither .png nor .svg; write plots={path}.png")
    if not found.parent.is_dir():
        raise UserError(f"plots={path} is in a folder that does not exist; create {found.parent}")
    return found


def draw(
    law: ScalingLaw, iso: IsoFlops, path: Path, *, title: str = "scaling law", held_out: "Sequence[HeldOut]" = ()
) -> None:
    """Draw the law into a PNG or SVG file, which is replaced atomically; `held_out` are predicted runs beside it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    (a, b), (c, d) = figure.subplots(2, 2)
    _losses(a, law, held_out)
    _residuals(b, law, held_out)
    _profiles(c, law, iso)
    _frontier(d, law, iso, held_out)
    for axes in (a, b, c, d):
        axes.grid(alpha=0.25)
    constants = law.constants
    shown = ", ".join(f"{name} {one.value:.4g}" for name, one in constants.items())
    figure.suptitle(f"{title}: {law.form.formula} with {shown}")
    with rc_context({"svg.hashsalt": "gptlab"}), replacing(path) as temporary:
        kind = path.suffix[1:].lower()
        figure.savefig(temporary, dpi=110, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _sizes(values: np.ndarray) -> list[np.ndarray]:
    """Indices of runs whose sizes are the same within a fifth, the smallest first."""
    order = np.argsort(values)
    groups, first = [], 0
    for place in range(1, len(order) + 1):
        if place == len(order) or values[order[place]] > 1.2 * values[order[first]]:
            groups.append(order[first:place])
            first = place
    return groups


def _color(place: int, n: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * place / max(1, n - 1))


def _losses(axes: Any, law: ScalingLaw, held_out: "Sequence[HeldOut]") -> None:
    runs = law.observations
    tokens = np.geomspace(runs.tokens.min(), max([runs.tokens.max(), *(one.tokens for one in held_out)]), 100)
    groups = _sizes(runs.parameters)
    labeled = set(np.linspace(0, len(groups) - 1, min(len(groups), MAX_LABELS)).astype(int).tolist())
    for place, group in enumerate(groups):
        size, color = float(np.exp(np.log(runs.parameters[group]).mean())), _color(place, len(groups))
        axes.plot(tokens, law.loss(size, tokens), color=color, linewidth=0.9)
        label = f"N {count_text(size)}" if place in labeled else None
        axes.plot(runs.tokens[group], runs.losses[group], "o", color=color, markersize=4, label=label)
    for one in held_out:
        axes.plot(tokens, law.loss(one.parameters, tokens), color="tab:red", linewidth=0.9, linestyle="dashed")
        low, high = one.predicted.value - one.predicted.low, one.predicted.high - one.predicted.value
        label = f"{one.name}, predicted (N {count_text(one.parameters)})"
        axes.errorbar(
            one.tokens, one.predicted.value, [[max(low, 0)], [max(high, 0)]], color="tab:red", capsize=4, label=label
        )
        if one.measured is not None:
            label = f"{one.name}, measured ({one.error:+.2%})"
            axes.plot(one.tokens, one.measured, "*", color="tab:red", markersize=13, label=label)
    irreducible = law.constants["E"].value
    if irreducible > LEAST_SHOWN * runs.losses.min():  # far below the runs it would press them together
        axes.axhline(irreducible, color="gray", linestyle="dotted", label="E")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlabel("training tokens D")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("runs and the law")
    axes.legend(frameon=False, fontsize=8)


def _residuals(axes: Any, law: ScalingLaw, held_out: "Sequence[HeldOut]") -> None:
    runs = law.observations
    shown = axes.scatter(runs.compute, 100 * law.residuals, c=np.log10(runs.tokens / runs.parameters), s=18)
    axes.figure.colorbar(shown, ax=axes, label="log10 of tokens per parameter")
    largest = runs.compute.max()
    for one in held_out:
        if one.error is not None:
            flops = one.times_the_largest * largest
            axes.plot(flops, 100 * one.error, "*", color="tab:red", markersize=13, label=f"{one.name}, held out")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("measured over fitted loss, less 1 (%)")
    axes.set_title(f"residuals; runs scatter by {law.spread:.2%}")
    if held_out:
        axes.legend(frameon=False, fontsize=8)


def _profiles(axes: Any, law: ScalingLaw, iso: IsoFlops) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("parameters N")
    axes.set_ylabel("loss (nats per token)")
    if not iso.profiles:
        axes.set_title("isoFLOP profiles")
        text = "no budget was trained with four sizes or more"
        axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
        return
    n = len(iso.profiles)
    labeled = set(np.linspace(0, n - 1, min(n, MAX_LABELS)).astype(int).tolist())
    for place, one in enumerate(iso.profiles):
        color, sizes = _color(place, n), one.runs.parameters
        label = f"{one.flops:.2g} FLOPs" if place in labeled else None
        axes.plot(sizes, one.runs.losses, "o", color=color, markersize=4, label=label)
        x = np.linspace(np.log(sizes.min()), np.log(sizes.max()), 80)
        axes.plot(np.exp(x), np.polyval(one.coefficients, x), color=color, linewidth=0.9)
        if one.inside:
            axes.plot(one.parameters, one.loss, "v", color=color, markersize=7)
        best = law.optimum(one.flops)
        axes.plot(best.parameters.value, best.loss.value, "x", color="black", markersize=6)
    axes.plot([], [], "v", color="gray", label="lowest by the parabola")
    axes.plot([], [], "x", color="black", label="lowest by the law")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(_wrapped(bias_text(iso), 92), fontsize=8)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _frontier(axes: Any, law: ScalingLaw, iso: IsoFlops, held_out: "Sequence[HeldOut]") -> None:
    runs = law.observations
    largest = runs.compute.max() * max([10, *(one.times_the_largest for one in held_out)])
    budgets = np.geomspace(runs.compute.min(), largest, 40)
    best = [law.optimum(float(budget)).parameters for budget in budgets]
    axes.fill_between(budgets, [one.low for one in best], [one.high for one in best], color="tab:blue", alpha=0.2)
    exponent = law.exponents["parameters"]
    label = f"law, 95% interval; N ~ C^{exponent.value:.3f} [{exponent.low:.3f}, {exponent.high:.3f}] by C = 6 N D"
    axes.plot(budgets, [one.value for one in best], color="tab:blue", label=label)
    axes.plot(runs.compute, runs.parameters, "o", color="gray", markersize=3, label="runs")
    if iso.exponent is not None and iso.factor is not None:
        label = f"isoFLOP minima; N ~ C^{iso.exponent:.3f}"
        axes.plot(budgets, iso.factor * budgets**iso.exponent, color="tab:orange", linestyle="dashed", label=label)
    inside = [one for one in iso.profiles if one.inside]
    axes.plot([one.flops for one in inside], [one.parameters for one in inside], "v", color="tab:orange")
    for one in held_out:
        flops = one.times_the_largest * runs.compute.max()
        axes.plot(flops, one.parameters, "*", color="tab:red", markersize=13, label=f"{one.name}, held out")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("training FLOPs C")
    axes.set_ylabel("compute-optimal parameters N")
    axes.set_title("compute-optimal frontier")
    axes.legend(frameon=False, fontsize=8)
