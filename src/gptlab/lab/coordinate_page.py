"""A coordinate check for a person: tables, a sentence, charts as PNG, and a page."""

import math
from collections.abc import Sequence
from pathlib import Path

from gptlab.files import replacing
from gptlab.lab import html
from gptlab.lab.coordinate_check import LIMIT, SPAN, CoordinateCheck, Drift, Line
from gptlab.lab.html import escape
from gptlab.units import grid, plural

N_NAMED = 3  # layers in the sentence about a failure
WIDTH, HEIGHT = 250, 170  # of a chart of the page, in pixels
MARGIN = 34
STYLE = """<style>
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 0.6rem; }
.charts figure { margin: 0; } .charts figcaption { font-size: 0.85rem; }
.charts svg { width: 100%; height: auto; } .charts text { font-size: 10px; fill: currentColor; }
.charts .axis { stroke: currentColor; opacity: 0.4; fill: none; } .bad { color: #d03b3b; font-weight: 600; }
main { max-width: 78rem; margin: 0 auto; padding: 1rem; }
</style>"""
NOTE = (
    "Root mean squares over all positions of one batch, with the same batches for all sizes. The change is against the "
    "activations before the first update. A drift is what a line fitted to the logarithms of all sizes gains over "
    f"{SPAN:g} times the size; beyond a factor of {LIMIT:g} the parametrization is refused. The logits themselves are "
    "not judged: an initial head adds less to those of a wider model, and what it learned is judged by itself."
)


def as_text(check: CoordinateCheck) -> str:
    """The values after the last update, in columns, and the largest drift of each line."""
    worst = {drift.line: drift for drift in check.drifts()}
    header = [f"by {check.dimension}", *map(str, check.sizes), f"over {SPAN:g}x", "after"]
    rows = []
    for line in check.lines:
        drift = worst.get(line)
        values = [f"{value:.3g}" for value in line.values[-1]]
        about = ["not judged", ""] if drift is None else [shown(drift) + ("!" if drift.beyond else ""), _when(drift)]
        rows.append([line.name, *values, *about])
    return grid(header, rows)


def verdict(check: CoordinateCheck, parametrization: str) -> str:
    """Whether the parametrization is right, in a sentence."""
    drifts = check.drifts()
    beyond = [drift for drift in drifts if drift.beyond]
    if not beyond:
        return (
            f"model.parametrization={parametrization} keeps activations at their size over {check.dimension}s "
            f"{check.sizes[0]} to {check.sizes[-1]}: none drifts by more than a factor of {LIMIT:g} over {SPAN:g} "
            f"times the {check.dimension} (at most {shown(drifts[0])}: {drifts[0].line.name})"
        )
    named = ", ".join(f"{drift.line.name} by {shown(drift)} ({_when(drift)})" for drift in beyond[:N_NAMED])
    more = len(beyond) - N_NAMED
    return (
        f"model.parametrization={parametrization} is not right over {check.dimension}s {check.sizes[0]} to "
        f"{check.sizes[-1]}: over {SPAN:g} times the {check.dimension} {named}"
        + (f" and {plural(more, 'other line')}" if more > 0 else "")
        + f" drift beyond a factor of {LIMIT:g}"
    )


def shown(drift: Drift) -> str:
    """A drift as a factor, of which the sign tells the direction: x2 grows, /2 shrinks."""
    if not math.isfinite(drift.factor) or drift.factor <= 0:
        return "without a number"
    return f"x{drift.factor:.3g}" if drift.factor >= 1 else f"/{1 / drift.factor:.3g}"


def _when(drift: Drift) -> str:
    return f"after {plural(drift.step, 'update')}" if drift.step else "before training"


def draw(check: CoordinateCheck, folder: Path, *, title: str) -> Path:
    """Draw all lines into a PNG file of the folder, which is made; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    n_columns = 4
    n_rows = -(-len(check.lines) // n_columns)
    figure = Figure(figsize=(3.2 * n_columns, 2.4 * n_rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    worst = {drift.line: drift for drift in check.drifts()}
    all_axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes, line in zip(all_axes, check.lines, strict=False):
        for step, values in enumerate(line.values):
            if any(values):
                axes.plot(
                    check.sizes, values, "o-", color=f"C{step}", markersize=3, linewidth=1.2, label=f"after {step}"
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        low, high = _limits(line)
        axes.set_ylim(low, high)
        axes.set_xticks(check.sizes, [str(size) for size in check.sizes])
        axes.minorticks_off()
        drift = worst.get(line)
        color = "tab:red" if drift is not None and drift.beyond else "black"
        axes.set_title(f"{line.name}\n{shown(drift) if drift else 'not judged'}", fontsize=8, color=color)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    for axes in all_axes[len(check.lines) :]:
        axes.set_axis_off()
    handles, labels = all_axes[0].get_legend_handles_labels()
    style = {"loc": "outside lower center", "ncols": len(labels), "frameon": False, "fontsize": 8}
    figure.legend(handles, [*labels[:-1], f"{labels[-1]} updates"], **style)
    figure.suptitle(f"{title}, over {check.dimension}s", fontsize=10)
    path = folder / f"coordinate_check_{check.dimension}.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    return path


def _limits(line: Line) -> tuple[float, float]:
    """An axis on which every chart has at least a factor of 10, so that small differences look small."""
    values = [value for values in line.values for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = min(values) / 1.2, max(values) * 1.2
    missing = max(1.0, 10 * low / high) ** 0.5
    return low / missing, high * missing


def write_coordinate_page(checks: Sequence[CoordinateCheck], path: Path, *, title: str) -> None:
    """Write the page of these checks to `path`, atomically; it needs no script and no network."""
    parametrization = title.partition(": ")[2].partition(",")[0]
    parts = [STYLE, f"<main><header><h1>{escape(title)}</h1><p>{escape(NOTE)}</p></header>"]
    for check in checks:
        kind = "" if check.passed else ' class="bad"'
        parts.append(f"<section><h2>Over {check.dimension}s</h2><p{kind}>{escape(verdict(check, parametrization))}</p>")
        worst = {drift.line: drift for drift in check.drifts()}
        figures = "".join(_figure(check, line, worst.get(line)) for line in check.lines)
        parts.append(f'<div class="charts">{figures}</div></section>')
    html.write_document(path, html.document(title, "".join(parts) + "</main>", charts=False))


def _figure(check: CoordinateCheck, line: Line, drift: Drift | None) -> str:
    low, high = map(math.log, _limits(line))
    sizes = [math.log(size) for size in check.sizes]

    def x(size: float) -> float:
        return MARGIN + (size - sizes[0]) / (sizes[-1] - sizes[0]) * (WIDTH - MARGIN - 12)

    def y(value: float) -> float:
        return HEIGHT - 20 - (math.log(value) - low) / (high - low) * (HEIGHT - 28)

    drawn = []
    for step, values in enumerate(line.values):
        points = [
            f"{x(size):.1f},{y(value):.1f}"
            for size, value in zip(sizes, values, strict=True)
            if value > 0 and math.isfinite(value)
        ]
        shade = 35 + 50 * step / max(1, len(line.values) - 1)
        drawn.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="hsl(212 75% {100 - shade:.0f}%)" '
            f'stroke-width="1.8"><title>after {step} updates</title></polyline>'
        )
    ticks = "".join(
        f'<text x="{x(size):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>'
        for size, label in zip(sizes, check.sizes, strict=True)
    )
    # Inside the frame, rather than at its ends.
    for share in (0.1, 0.5, 0.9):
        value = math.exp(low + share * (high - low))
        ticks += f'<text x="{MARGIN - 4}" y="{y(value) + 3:.1f}" text-anchor="end">{value:.2g}</text>'
    name = escape(line.name)
    told = "not judged" if drift is None else f"{shown(drift)} over {SPAN:g}x, {_when(drift)}"
    kind = ' class="bad"' if drift is not None and drift.beyond else ""
    return (
        f'<figure class="card"><figcaption><b>{name}</b><br><span{kind}>{escape(told)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name} by {check.dimension}">'
        f'<path class="axis" d="M{MARGIN} 8V{HEIGHT - 20}H{WIDTH - 12}"/>{"".join(drawn)}{ticks}</svg></figure>'
    )
