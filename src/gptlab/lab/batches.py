"""A batch as people read it: what goes in, what is to be predicted, and what is padding."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from gptlab.data.tokenizers.pieces import columns, escaped, pieces, special_spellings
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.nn.loss import IGNORE_INDEX

PADDING, NO_TARGET = "padding", "no target"
MASKS = {"tokens": "attention_mask", "source": "source_mask"}  # which tokens of a text are real
NEXT_SENTENCE = ("the second segment follows the first", "the second segment is from elsewhere")
TEXTS = ("source", "tokens", "targets")
RUNS = ("segments", "document_ids")  # shown as runs of equal numbers
OTHERS = (*RUNS, "masked_positions", "labels", "nsp_labels")


def read_examples(
    batch: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    *,
    class_names: Sequence[str] = (),
    sources: Sequence[Mapping[str, Any]] | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """The examples of a batch, at most `limit`, as JSON holds them.

    Each text (`source`, `tokens`, `targets`) has `ids`, and `text` with special tokens spelled and what is no token in
    brackets, as [padding x 3]. `masked` has the position, what is read there and the label of each masked token;
    `class` and `next_sentence` say what is to be predicted of the whole. Other tensors are lists. `sources` says of
    which source of a mixture each example is, which `from` holds then.
    """
    n = len(next(iter(batch.values())))
    found = [_example(batch, i, tokenizer, class_names) for i in range(n if limit is None else min(limit, n))]
    return found if sources is None else [{"from": dict(s), **one} for s, one in zip(sources, found, strict=False)]


def n_targets(batch: Mapping[str, Tensor]) -> dict[str, int]:
    """How many targets of each kind a batch has, by the tensor that holds them."""
    found = {}
    for name in ("targets", "labels", "nsp_labels"):
        if name in batch:
            found[name] = int((batch[name] != IGNORE_INDEX).sum())
    return found


def as_text(examples: Sequence[Mapping[str, Any]], *, by_token: bool = False) -> str:
    """Examples as text: each under a line of its own; `by_token` shows every token with its position and id."""
    return "\n\n".join(
        "\n".join([f"--- example {number} of the step", *(_by_token(example) if by_token else _fields(example))])
        for number, example in enumerate(examples, 1)
    )


def _example(batch: Mapping[str, Tensor], i: int, tokenizer: Tokenizer, class_names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in TEXTS:
        if name in batch and batch[name].ndim >= 2:  # parts of a sequence one after the other
            ids = batch[name][i].flatten().tolist()
            mask = batch.get(MASKS.get(name, ""))
            found[name] = _text(ids, None if mask is None else mask[i].flatten().tolist(), tokenizer)
    found |= {name: batch[name][i].flatten().tolist() for name in RUNS if name in batch}
    if "masked_positions" in batch:
        positions, labels = batch["masked_positions"][i].tolist(), batch["labels"][i].tolist()
        shown = {token["position"]: token for token in found["tokens"]["tokens"]}
        found["masked"] = [
            {"position": at, "read": shown[at]["text"], "label": _alone(label, tokenizer)}
            for at, label in sorted(zip(positions, labels, strict=True))
            if label != IGNORE_INDEX
        ]
    elif "labels" in batch and batch["labels"].ndim == 1:
        label = int(batch["labels"][i])
        found["class"] = {"label": label} | ({"name": class_names[label]} if label < len(class_names) else {})
    if "nsp_labels" in batch:
        found["next_sentence"] = NEXT_SENTENCE[int(batch["nsp_labels"][i])]
    known = {*TEXTS, *OTHERS, *MASKS.values()}
    return found | {name: value[i].tolist() for name, value in batch.items() if name not in known}


def _text(ids: list[int], mask: list[bool] | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """A sequence's ids, its tokens one by one, and its text."""
    spelled = special_spellings(tokenizer)
    kinds = [
        PADDING if mask is not None and not mask[at] else NO_TARGET if token == IGNORE_INDEX else ""
        for at, token in enumerate(ids)
    ]
    tokens: list[dict[str, Any]] = []
    text = []
    for kind, group in groupby(enumerate(ids), key=lambda item: kinds[item[0]]):
        run = list(group)
        if kind:
            text.append(f"[{kind} x {len(run)}]")
            tokens += [{"position": at, "id": token, "text": f"[{kind}]"} for at, token in run]
            continue
        found = pieces(tokenizer, [token for _, token in run])
        for (at, token), piece in zip(run, found, strict=True):
            content = piece.text if token in spelled else str(piece)
            tokens.append({"position": at, "id": token, "text": content})
        text += [piece.text for piece in found if piece.part == 1]
    return {"ids": ids, "text": "".join(text), "tokens": tokens}


def _alone(token: int, tokenizer: Tokenizer) -> str:
    (piece,) = pieces(tokenizer, [token])
    return str(piece)


def _fields(example: Mapping[str, Any]) -> list[str]:
    lines: list[tuple[str, str]] = []
    if "from" in example:
        of = example["from"]
        lines.append(("from", f"{of['name']}, example {of['example']:,}, epoch {of['epoch']:,}"))
    for name in TEXTS:
        if name in example:
            shifted = _shifted(example) if name == "targets" else None
            lines.append((name, shifted or _readable(example[name]["text"])))
    for name in RUNS:
        if name in example:
            runs = [(value, len(list(group))) for value, group in groupby(example[name])]
            lines.append((name.replace("_", " "), ", ".join(f"{value} x {n}" for value, n in runs)))
    if "masked" in example:
        width = max((columns(one["read"]) for one in example["masked"]), default=0)
        rows = [
            f"{one['position']:>5}  {one['read']}{' ' * (width - columns(one['read']))}  label {one['label']}"
            for one in example["masked"]
        ]
        lines.append(("masked", "\n".join([f"{len(rows)} positions", *rows])))
    if "class" in example:
        lines.append(("class", " ".join(str(value) for value in example["class"].values())))
    if "next_sentence" in example:
        lines.append(("next sentence", example["next_sentence"]))
    known = {*TEXTS, *RUNS, "from", "masked", "class", "next_sentence"}
    lines += [(name, str(value)) for name, value in example.items() if name not in known]
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {text}".replace("\n", "\n" + " " * (width + 2)).rstrip() for name, text in lines]


def _shifted(example: Mapping[str, Any]) -> str | None:
    """What to say of targets that are the tokens from the second on; None where they are not."""
    tokens, targets = example["tokens"]["ids"], example["targets"]["ids"]
    if len(tokens) != len(targets) or targets[:-1] != tokens[1:]:
        return None
    return f"each token's next one, and at the end {example['targets']['tokens'][-1]['text']}"


def _by_token(example: Mapping[str, Any]) -> list[str]:
    lines = []
    labels = {one["position"]: one["label"] for one in example.get("masked", ())}
    for name in TEXTS:
        if name not in example or (name == "targets" and len(example["tokens"]["ids"]) == len(example[name]["ids"])):
            continue
        lines.append(name)
        tokens = example[name]["tokens"]
        targets = example["targets"]["tokens"] if name == "tokens" and "targets" in example else None
        widths = [max(len(str(token[key])) for token in tokens) for key in ("position", "id")]
        width = max(columns(token["text"]) for token in tokens)
        for at, token in enumerate(tokens):
            line = f"{token['position']:>{widths[0]}}  {token['id']:>{widths[1]}}  {token['text']}"
            to = targets[at]["text"] if targets is not None and at < len(targets) else labels.get(token["position"])
            if to is not None and (name == "tokens"):
                line += " " * (width - columns(token["text"])) + f"  -> {to}"
            lines.append(f"    {line}")
    rest = {name: value for name, value in example.items() if name not in (*TEXTS, "masked")}
    return [*lines, *(_fields(rest) if rest else [])]


def _readable(text: str) -> str:
    """Text over several lines, with control characters and tabs as escapes."""
    return "".join(character if character == "\n" else escaped(character) for character in text)
