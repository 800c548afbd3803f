"""The page of a trained model: each of its parts that applies, and which do not."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.lab import html
from gptlab.lab.inspection.attention import attention
from gptlab.lab.inspection.embeddings import embeddings
from gptlab.lab.inspection.logit_lens import logit_lens
from gptlab.lab.inspection.norm_weights import norm_weights
from gptlab.lab.inspection.norms import norms
from gptlab.lab.inspection.over_training import over_training
from gptlab.lab.inspection.positions import positions
from gptlab.lab.inspection.sampling import sampling
from gptlab.lab.inspection.scores import scores
from gptlab.lab.inspection.subject import Subject
from gptlab.lab.inspection.token_loss import token_loss
from gptlab.units import plural


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the page: what is looked at, drawn by the function of this name in `assets/inspection/NAME.js`."""

    title: str
    look: Callable[[Subject], dict[str, Any] | None]  # plain values; None: it does not apply
    needs: str  # what a model has to have for it


_ATTENTION = "layers that attend as gptlab's nn.Attention does"
PARTS: dict[str, Part] = {
    "sampling": Part("Sampling", sampling, "a model that continues a text"),
    "token_loss": Part("Loss of each token", token_loss, "tokens that the model predicts"),
    "attention": Part("Attention maps", attention, _ATTENTION),
    "scores": Part("Scores and softmax", scores, _ATTENTION),
    "norm_weights": Part("LayerNorm and RMSNorm", norm_weights, "norms with weights: nn.LayerNorm or nn.RMSNorm"),
    "norms": Part("Activations and gradients", norms, "blocks"),
    "logit_lens": Part(
        "Logit lens",
        logit_lens,
        "a head over the vocabulary, and blocks of which each reads what the one before it gives",
    ),
    "embeddings": Part("Embeddings", embeddings, "a table of token embeddings: nn.Embedding"),
    "positions": Part("Positions", positions, "learned, sinusoidal or rotary positions, or relative biases"),
    "over_training": Part("Over training", over_training, "a run trained with callbacks.inspect.every_steps"),
}


def look_at(subject: Subject) -> dict[str, dict[str, Any] | None]:
    """What each part shows, as plain values, in the order of the page; None where it does not apply."""
    return {name: part.look(subject) for name, part in PARTS.items()}


def summary(subject: Subject, found: Mapping[str, dict[str, Any] | None]) -> list[tuple[str, str]]:
    """What was looked at, as names and texts."""
    config = subject.model.config
    n_parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    shapes = [plural(config.n_layer, "layer"), f"d_model {config.d_model:,}"]
    n_head = getattr(config, "n_head", None)  # not every model has heads
    shapes += [plural(n_head, "head")] if isinstance(n_head, int) else []
    facts = [("model", f"{config.type}, {', '.join(shapes)}, {n_parameters:,} parameters")]
    if subject.checkpoint is not None:
        facts.append(("checkpoint", f"{subject.checkpoint}, after step {subject.step or 0:,}"))
    read = plural(subject.tokens.shape[1], "token")
    if subject.source is not None:
        read = f"{plural(subject.source.shape[1], 'token')} by the encoder, {read} by the decoder"
    facts += [("text", f"{subject.text_from}: {read}"), *(("note", note) for note in subject.notes)]
    loss = (found.get("norms") or {}).get("loss")
    if loss is not None:
        facts.append(("loss", f"{loss:.4f} nats per token of the text"))
    left_out = [f"{PARTS[name].title} needs {PARTS[name].needs}" for name, one in found.items() if one is None]
    return [*facts, *(("not shown", reason) for reason in left_out)]


def write_inspection(subject: Subject, path: Path, *, title: str, found: Mapping[str, dict[str, Any] | None]) -> None:
    """Write the page of what `look_at` found, atomically."""
    there = {name: one for name, one in found.items() if one is not None}
    source = None if subject.source is None else subject.labels(subject.source)
    data = {
        "title": title,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "facts": summary(subject, found),
        "tokens": subject.labels(),
        "source": source,
        "parts": [{"name": name, "title": PARTS[name].title} for name in there],
        **there,
    }
    scripts = ["inspect/parts.js", "inspection/draw.js", *(f"inspection/{name}.js" for name in there)]
    text = html.document(
        title,
        '<div id="app"></div>',
        data=data,
        scripts=[*scripts, "inspection/page.js"],
        styles=["inspect/inspect.css", "inspection/inspection.css"],
        charts=False,
    )
    html.write_document(path, text)
