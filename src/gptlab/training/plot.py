"""loss.png: loss, accuracies and learning rate over the tokens seen; and the losses of several runs in one picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.files import replacing
from gptlab.runs.folder import read_metrics

MAX_OVERLAID_NAMES = 10


def plot_loss(
    metrics: Path,
    target: Path,
    *,
    title: str,
    unigram_entropy: float | None = None,
    perplexity: bool = True,
    epoch_tokens: float | None = None,
) -> None:
    """Draw loss.png from a metrics.csv; nothing where it has no rows.

    `perplexity` adds an axis for exp(loss), where the loss is per token, and `epoch_tokens` one for epochs of so many
    tokens.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    if not rows:
        return
    accuracies = [
        name.removeprefix("train/") for name in rows[-1] if name.startswith("train/") and name.endswith("accuracy")
    ]
    figure = Figure(figsize=(9, 8 if accuracies else 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, *between, beneath = figure.subplots(
        2 + bool(accuracies), 1, sharex=True, height_ratios=[4, *[2] * bool(accuracies), 1]
    )

    tokens, losses = _series(rows, "train/loss")
    above.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    above.plot(tokens, _smooth(losses), color="tab:blue", linewidth=1.5, label="training (smoothed)")
    for name, color, label in (
        ("val", "tab:orange", "validation"),
        ("train_eval", "tab:green", "training, in eval mode"),
    ):
        x, y = _series(rows, f"{name}/loss")
        if x:
            above.plot(x, y, "o-", color=color, markersize=3.5, linewidth=1.5, label=f"{label} (last {y[-1]:.4f})")
    of_sources = [n for n in _names(rows) if n.startswith("val/") and n.endswith("/loss") and n.count("/") == 2]
    for i, name in enumerate(of_sources):
        x, y = _series(rows, name)
        label = f"validation, {name.split('/')[1]} (last {y[-1]:.4f})"
        above.plot(x, y, "o--", color=f"C{(i + 3) % 10}", markersize=2.5, linewidth=1.0, label=label)
    if unigram_entropy is not None:
        above.axhline(unigram_entropy, color="gray", linestyle=":", label=f"unigram entropy ({unigram_entropy:.2f})")
    above.set_ylabel("loss (nats per token)" if perplexity else "loss (nats)")
    above.set_title(title)
    above.grid(alpha=0.25)
    above.legend(frameon=False)
    if perplexity:
        _add_perplexity(above)
    if epoch_tokens is not None:
        top = above.secondary_xaxis("top", functions=(lambda x: x / epoch_tokens, lambda x: x * epoch_tokens))
        top.set_xlabel("epochs")
    for panel in between:
        _draw_accuracies(panel, rows, accuracies)

    beneath.plot(*_series(rows, "train/lr"), color="tab:purple", linewidth=1.5)
    beneath.set_ylabel("learning rate")
    beneath.set_xlabel("tokens seen")
    beneath.set_ylim(bottom=0)
    beneath.grid(alpha=0.25)
    beneath.xaxis.set_major_formatter(lambda value, _: _short(value))

    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _add_perplexity(panel) -> None:
    """An axis for exp(loss) beside that of the loss."""
    right = panel.twinx()
    low, high = panel.get_ylim()
    right.set_ylim(low, high)
    ticks = _perplexity_ticks(low, high)
    right.set_yticks(
        [math.log(tick) for tick in ticks], [f"{tick:,.0f}" if tick >= 10 else f"{tick:g}" for tick in ticks]
    )
    right.set_ylabel("perplexity")


def _draw_accuracies(panel, rows: list[dict[str, float]], names: list[str]) -> None:
    for name, color in zip(names, ("tab:blue", "tab:red", "tab:green"), strict=False):
        tokens, values = _series(rows, f"train/{name}")
        panel.plot(tokens, _smooth(values), color=color, alpha=0.5, linewidth=1.2)
        tokens, values = _series(rows, f"val/{name}")
        label = name.replace("_", " ") + (f" (validation, last {values[-1]:.3f})" if values else "")
        panel.plot(tokens, values, "o-", color=color, markersize=3.5, linewidth=1.5, label=label)
    panel.set_ylabel("accuracy")
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)


def _names(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    pairs = [(row["tokens"], row[name]) for row in rows if name in row]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _smooth(values: list[float]) -> list[float]:
    """An exponential mean whose span grows with the run, free of the start's bias."""
    decay = 1 - 1 / max(1.0, len(values) / 50)
    smooth, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        smooth.append(mean / weight)
    return smooth


def _perplexity_ticks(low: float, high: float, most: int = 12) -> list[float]:
    """Round perplexities whose logarithms lie within the axis, as many as can be read."""
    for mantissas in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        powers = (mantissa * 10.0**power for power in range(0, 8) for mantissa in mantissas)
        ticks = [tick for tick in powers if low <= math.log(tick) <= high]
        if len(ticks) <= most:
            break
    return ticks


def _short(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


@dataclass(frozen=True, slots=True)
class OverlaidRun:
    """A run's part of a picture of several: the name of its group, and rows of its metrics.csv by column."""

    group: str
    rows: Mapping[str, Sequence]


def plot_overlaid(runs: Sequence[OverlaidRun], target: Path, *, title: str, metric: str = "val/loss") -> bool:
    """Draw a metric and the training loss of several runs over the tokens seen; returns whether there was anything.

    Each group has one color. The legend names groups by the last value of the metric, the best first, and the ten
    best where there are more. `metric` is a loss: less is better.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [(run, _columns(run.rows, metric), _columns(run.rows, "train/loss")) for run in runs]
    drawn = [(run, of_metric, of_loss) for run, of_metric, of_loss in drawn if of_metric[0] or of_loss[0]]
    if not drawn:
        return False
    last: dict[str, list[float]] = {}
    for run, (_, values), _ in drawn:
        last.setdefault(run.group, []).extend(values[-1:])
    means = {group: sum(values) / len(values) if values else math.nan for group, values in last.items()}
    ranked = sorted(last, key=lambda group: means[group] if math.isfinite(means[group]) else math.inf)
    few = len(ranked) <= MAX_OVERLAID_NAMES
    colors = {
        group: f"C{i}" if few else colormaps["viridis"](0.9 * i / (len(ranked) - 1)) for i, group in enumerate(ranked)
    }
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True)
    named: set[str] = set()
    for run, of_metric, (tokens, losses) in reversed(sorted(drawn, key=lambda one: ranked.index(one[0].group))):
        style = {"color": colors[run.group], "linewidth": 1.2, "alpha": 0.85}
        panels[0].plot(*of_metric, "o-", markersize=2.5, **style)
        panels[1].plot(tokens, _smooth(losses), **style)
    for group in ranked[:MAX_OVERLAID_NAMES]:
        panels[0].plot([], [], color=colors[group], label=f"{group} ({means[group]:.4f})" if last[group] else group)
        named.add(group)
    if len(ranked) > len(named):
        panels[0].plot([], [], " ", label=f"and {len(ranked) - len(named)} more")
    for panel, label, values in (
        (panels[0], metric, [y for _, (_, found), _ in drawn for y in found]),
        (panels[1], "train/loss (smoothed)", [y for *_, (_, found) in drawn for y in found]),
    ):
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
        finite = sorted(value for value in values if math.isfinite(value))
        if finite:  # one trial that diverged does not flatten all others
            top = max(finite[int(0.98 * (len(finite) - 1))], finite[0] + 1e-9)
            panel.set_ylim(finite[0] - 0.04 * (top - finite[0]), top + 0.04 * (top - finite[0]))
    panels[0].set_title(title)
    panels[0].legend(frameon=True, framealpha=0.8, edgecolor="none", fontsize="small", loc="upper right")
    panels[1].set_xlabel("tokens seen")
    panels[1].xaxis.set_major_formatter(lambda value, _: _short(value))
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return True


def _columns(rows: Mapping[str, Sequence], name: str) -> tuple[list[float], list[float]]:
    pairs = [
        (tokens, value)
        for tokens, value in zip(rows.get("tokens", ()), rows.get(name, ()), strict=False)
        if value is not None
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]
