"""Pictures of a trained model as files, for a report: what the page shows, drawn by matplotlib."""

import base64
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.files import replacing

TEMPERATURES = (5, 2, 1, 0.5, 0.1, 0.01)
N_STACKED = 8  # tokens of a stacked bar
N_BARS = 20
N_COLUMNS = 48  # tokens of a picture with one column for each
GRAY, BLUE = "0.72", "tab:blue"
SIGNED = "RdBu_r"


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of a part of the page; `draw` fills a figure from the part's data and the texts of the tokens."""

    part: str
    draw: Callable[[Any, Mapping[str, Any], Mapping[str, Sequence[str]]], None]
    size: tuple[float, float] = (7.0, 4.0)  # inches


def write_plots(
    folder: Path, found: Mapping[str, dict[str, Any] | None], texts: Mapping[str, Sequence[str]], *, suffix: str = "png"
) -> list[Path]:
    """Write the pictures of what `page.look_at` found, each atomically, as NAME.png or NAME.svg.

    `texts` are those of the tokens: `tokens`, and `source` where an encoder reads another text.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, plot in PLOTS.items():
        data = found.get(plot.part)
        if data is None:
            continue
        figure = Figure(figsize=plot.size, layout="constrained")
        FigureCanvasAgg(figure)
        plot.draw(figure, data, texts)
        if not figure.axes:
            continue
        path = folder / f"{name}.{suffix}"
        # Text of an SVG stays text, and two calls write the same file.
        with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "gptlab"}):
            warnings.filterwarnings("ignore", "Glyph")  # a token may have characters that the font lacks
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=150, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
        written.append(path)
    return written


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits (V,) in float64."""
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    p = np.exp(scaled)
    return p / p.sum()


def _temperatures(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    logits, axes = _logits(data), figure.subplots()
    order = np.argsort(-logits, kind="stable")[:N_STACKED]
    columns = np.stack([softmax(logits, temperature)[order] for temperature in TEMPERATURES])  # (6, N)
    x, below = np.arange(len(TEMPERATURES)), np.zeros(len(TEMPERATURES))
    handles = []
    for i, (token, p) in enumerate(zip(order, columns.T, strict=True)):
        color = f"C{i if i < 7 else 8}"  # C7 is gray, as the others are
        handles.append((axes.bar(x, p, bottom=below, width=0.8, color=color), _token(data, int(token))))
        below = below + p
    if len(logits) > len(order):
        rest = axes.bar(x, 1 - below, bottom=below, width=0.8, color=GRAY)
        handles.append((rest, f"the other {len(logits) - len(order):,}"))
    axes.set_xticks(x, [f"{temperature:g}" for temperature in TEMPERATURES])
    axes.set(xlabel="temperature", ylabel="probability", ylim=(0, 1), title="The next token at six temperatures")
    axes.legend(*zip(*handles, strict=True), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _next_token(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    logits, axes = _logits(data), figure.subplots()
    p = softmax(logits)
    order = np.argsort(-logits, kind="stable")[:N_BARS]
    axes.barh(np.arange(len(order)), 100 * p[order], color=BLUE)
    for i, token in enumerate(order):
        axes.annotate(f" {100 * p[token]:.3g}%", (100 * p[token], i), va="center", fontsize=8)
    axes.set_yticks(np.arange(len(order)), [_token(data, int(token)) for token in order], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="probability in percent", title="The most likely next tokens, at temperature 1")


def _token_loss(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    rows, axes = data["rows"][:N_COLUMNS], figure.subplots()
    axes.bar(range(len(rows)), [row["nats"] for row in rows], color="tab:red")
    axes.axhline(data["loss"], color="0.3", linestyle="--", linewidth=1)
    _ticks(axes.xaxis, [row["token"] for row in rows], rotation=90)
    left_out = f", the first {len(rows)} tokens" if len(rows) < len(data["rows"]) else ""
    axes.set(
        ylabel="loss in nats",
        title=f"Loss of each token{left_out}: mean {data['loss']:.3f}, perplexity {data['perplexity']:.4g}",
    )


def _attention(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    """Every head's map in a mosaic: a row for each layer."""
    groups = data["groups"]
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        n_queries, n_keys = group["n_queries"], group["n_keys"]
        gap = max(1, n_keys // 16)
        n_head = max(layer["n_head"] for layer in group["layers"])
        shape = (len(group["layers"]) * (n_queries + gap) - gap, n_head * (n_keys + gap) - gap)
        whole = np.full(shape, np.nan)
        for i, layer in enumerate(group["layers"]):
            for h, one in enumerate(attention_maps(layer, n_queries, n_keys, causal=group["causal"])):
                top, left = i * (n_queries + gap), h * (n_keys + gap)
                whole[top : top + n_queries, left : left + n_keys] = np.sqrt(one)
        axes.imshow(whole, vmin=0, vmax=1, cmap="viridis", interpolation="nearest", aspect="auto")
        axes.set_xticks([h * (n_keys + gap) + n_keys / 2 for h in range(n_head)], range(n_head), fontsize=7)
        names = [_short(layer["name"]) for layer in group["layers"]]
        axes.set_yticks([i * (n_queries + gap) + n_queries / 2 for i in range(len(names))], names, fontsize=7)
        axes.set(xlabel="head", title=group["title"])


def attention_maps(layer: Mapping[str, Any], n_queries: int, n_keys: int, *, causal: bool) -> np.ndarray:
    """The weights (H, T, S) that a layer's bytes stand for."""
    values = np.frombuffer(base64.b64decode(layer["maps"]), np.uint8).astype(np.float64)
    weights = (values / 255) ** 2
    if not causal:
        return weights.reshape(layer["n_head"], n_queries, n_keys)
    found = np.zeros((layer["n_head"], n_queries, n_keys))
    rows, columns = np.tril_indices(n_queries, m=n_keys)
    found[:, rows, columns] = weights.reshape(layer["n_head"], -1)
    return found


def _qk_std(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    layers, axes = data["layers"], figure.subplots()
    for i, layer in enumerate(layers):
        stds = [head["std"] for head in layer["heads"]]
        axes.plot([i] * len(stds), stds, "o", color=BLUE, markersize=4, label=None if i else "query times key, by head")
        scaled = [one * layer["scale"] for one in stds]
        axes.plot([i] * len(stds), scaled, "x", color="tab:orange", label=None if i else "as the layer scales them")
    roots = [layer["sqrt_d_head"] for layer in layers]
    axes.plot(range(len(layers)), roots, "--", color="0.4", label="sqrt(d_head)")
    _ticks(axes.xaxis, [_short(layer["name"]) for layer in layers], rotation=60, quoted=False)
    axes.set(yscale="log", ylabel="standard deviation", title="Scores of each head")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _softmax(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    layers = data["layers"]
    measures = {"entropy": "entropy in nats", "largest": "largest probability", "gradient": "norm of the Jacobian"}
    for axes, (measure, label) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
        for name in ("unscaled", "divided by sqrt(d_head)"):
            means = [np.mean([head["softmax"][name][measure] for head in layer["heads"]]) for layer in layers]
            axes.plot(range(len(layers)), means, "o-", markersize=3, label=name)
        _ticks(axes.xaxis, [_short(layer["name"]) for layer in layers], rotation=90, quoted=False)
        axes.set(ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("What the scale of the scores does to softmax, the mean of each layer's heads")


def _norm_weights(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    for axes, (kind, one) in zip(figure.subplots(1, len(data), squeeze=False)[0], data.items(), strict=True):
        layers = one["layers"]
        for i, layer in enumerate(layers):
            counts = np.array(layer["counts"]) / max(1, *layer["counts"])
            axes.stairs(i - 0.85 * counts, one["edges"], baseline=i, fill=True, color=BLUE)
        _ticks(axes.yaxis, [_short(layer["name"]) for layer in layers], quoted=False)
        axes.set(title=f"{kind}s of norms", ylim=(len(layers) - 0.5, -1))


def _norms(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    above, below = figure.subplots(1, 2)
    blocks, parts = data["activations"], data["parameters"]
    for kind, label in (("rms", "block"), ("attn", "attention"), ("cross", "cross-attention"), ("ffn", "feedforward")):
        if any(block.get(kind) is not None for block in blocks):
            values = [math.nan if block.get(kind) is None else block[kind] for block in blocks]
            above.plot(range(len(blocks)), values, "o-", markersize=3, label=label)
    _ticks(above.xaxis, [_short(block["name"]) for block in blocks], rotation=90, quoted=False)
    above.set(title="Activations", ylabel="root mean square of the output", yscale="log")
    above.legend(frameon=False)
    for kind, label in (("weights", "weights"), ("gradient", "gradient of the loss")):
        values = [math.nan if not part[kind] else part[kind] for part in parts]
        if not np.isnan(values).all():
            below.plot(range(len(parts)), values, "o-", markersize=3, label=label)
    _ticks(below.xaxis, [_short(part["name"]) for part in parts], rotation=90, quoted=False)
    below.set(title="Weights and gradients", ylabel="2-norm", yscale="log")
    below.legend(frameon=False)


def _logit_lens(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    layers, axes = data["layers"], figure.subplots()
    n = min(16, len(layers[0]["token"]))
    values = np.array([layer["probability"][-n:] for layer in layers])
    image = axes.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, layer in enumerate(layers):
        for j, text in enumerate(layer["text"][-n:]):
            color = "white" if values[i, j] > 0.6 else "black"
            axes.text(j, i, _plain(text[:9]), ha="center", va="center", fontsize=6, color=color)
    _ticks(axes.xaxis, list(data["read"])[-n:], rotation=60)
    _ticks(axes.yaxis, [_short(layer["name"]) for layer in layers], quoted=False)
    axes.set_title("Logit lens: the most likely token if each layer were the last")
    figure.colorbar(image, label="its probability")


def _embeddings(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    axes = figure.subplots()
    image = axes.imshow(np.array(data["cosines"]), vmin=-1, vmax=1, cmap=SIGNED)
    _ticks(axes.xaxis, data["tokens"], rotation=90)
    _ticks(axes.yaxis, data["tokens"])
    axes.set_title("Cosines between token embeddings")
    figure.colorbar(image)


def _positions(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    table, rotary, biases = data.get("table"), data.get("rotary"), data.get("biases", [])
    n = 2 * (table is not None) + 2 * (rotary is not None) + len(biases)
    panels = iter(figure.subplots(1, n, squeeze=False)[0])
    if table is not None:
        axes, shape = next(panels), (len(table["rows"]), len(table["columns"]))
        values = np.frombuffer(base64.b64decode(table["values"]), np.int8).reshape(shape) / 127 * table["largest"]
        extent = (0, table["columns"][-1] + 1, table["rows"][-1] + 1, 0)
        largest = table["largest"] or 1.0
        axes.imshow(values, vmin=-largest, vmax=largest, cmap=SIGNED, aspect="auto", extent=extent)
        axes.set(xlabel="channel", ylabel="position", title=f"{table['kind']} encodings")
    if rotary is not None:
        axes = next(panels)
        axes.semilogy(rotary["wavelengths"], "o", markersize=3)
        axes.axhline(rotary["context"], color="0.4", linestyle="--")
        axes.set(xlabel="pair of channels", ylabel="tokens of a whole turn", title="rotary positions")
    for one in (table, rotary):
        if one is not None:
            axes = next(panels)
            axes.plot(one["distances"], one["cosine_by_distance"])
            axes.set(xlabel="distance in tokens", ylabel="mean cosine", title="likeness by distance")
            axes.grid(alpha=0.25)
    for bias in biases:
        axes = next(panels)
        for head, values in enumerate(bias["heads"]):
            axes.plot(bias["distances"], values, label=f"head {head}")
        axes.set(xlabel="key less query, in tokens", ylabel="bias of the scores", title=bias["name"])
        axes.legend(frameon=False, fontsize=7)


def _over_training(figure: Any, data: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> None:
    kinds = data["kinds"]
    for axes, (kind, layers) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds.items(), strict=True):
        for name, values in layers.items():
            axes.plot(data["steps"], [value or math.nan for value in values], label=_short(name), linewidth=1)
        axes.set(title=kind.replace("_", " "), xlabel="step", yscale="log")
        axes.legend(frameon=False, fontsize=7)


PLOTS = {
    "temperatures": Plot("sampling", _temperatures),
    "next_token": Plot("sampling", _next_token, (6.5, 5.0)),
    "token_loss": Plot("token_loss", _token_loss, (10.0, 4.0)),
    "attention": Plot("attention", _attention, (10.0, 8.0)),
    "qk_std": Plot("scores", _qk_std),
    "softmax": Plot("scores", _softmax, (11.0, 4.0)),
    "norm_weights": Plot("norm_weights", _norm_weights, (9.0, 7.0)),
    "norms": Plot("norms", _norms, (10.0, 4.5)),
    "logit_lens": Plot("logit_lens", _logit_lens, (12.0, 5.0)),
    "embeddings": Plot("embeddings", _embeddings, (7.5, 6.5)),
    "positions": Plot("positions", _positions, (12.0, 4.0)),
    "over_training": Plot("over_training", _over_training, (13.0, 4.5)),
}


def _logits(data: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data["logits"]), "<f4")


def _token(data: Mapping[str, Any], token: int) -> str:
    return _quoted(data["texts"].get(str(token), f"<token {token}>"))


def _quoted(text: str) -> str:
    return _plain(f"'{text}'")


def _plain(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _short(name: str) -> str:
    return name.replace("blocks.", "")


def _ticks(axis: Any, names: Sequence[str], *, rotation: float = 0, quoted: bool = True) -> None:
    axis.set_ticks(range(len(names)), [_quoted(name) if quoted else name for name in names])
    axis.set_tick_params(rotation=rotation, labelsize=7)
