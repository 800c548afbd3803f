"""The card of an exported model: what it is, what it was trained on, how it is used, and its limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gptlab.runs.checkpoint import Checkpoint
from gptlab.runs.folder import read_metrics, read_summary
from gptlab.runs.run_tokenizer import run_of, tokenizer_of
from gptlab.steps import steps_of_config

# The classes of transformers that open a model, by its task on the hub.
AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
}
USES = {
    "text-generation": "It continues a text in the manner of its training data.",
    "text2text-generation": "It reads a text and writes another, as in its training examples.",
    "fill-mask": "It predicts masked tokens of a text, and its states can be the input of another model.",
    "feature-extraction": "Its states can be the input of another model.",
    "text-classification": "It assigns a text to one of the classes of its training data.",
}
OPTIMAL_TOKENS = 20  # per parameter (arXiv:2203.15556)


def model_card(source: Checkpoint, *, n_parameters: int, task: str, own_code: str | None = None) -> str:
    """README.md of the model in a checkpoint.

    `task` is what the hub calls its use, and `own_code` the file with the model's code, where transformers has none for
    it. Of files on this machine the card has the names alone, not where they lie.
    """
    path, state = source.path, source.state
    run = run_of(path)
    own = run != path.resolve().parent  # the files beside a checkpoint that was copied elsewhere are other runs'
    rows = [row for row in read_metrics(run / "metrics.csv") if own and row["step"] == state.step]
    metrics = {name: value for row in rows for name, value in row.items() if name.startswith(("train/", "val/"))}
    summary = (read_summary(run) if own else None) or {}
    tags = ["gptlab", *["custom_code"] * (own_code is not None)]
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [{', '.join(tags)}]\n---",
        f"# {run.name if own else path.stem}",
        _about(state.config, state.step, n_parameters, tokenizer_of(source)),
        "## Data",
        _data(state.config, state.step, summary),
        "## Use",
        _use(task, own_code),
        "## Limits",
        "\n".join(f"* {limit}" for limit in _limits(state.config, state.step, n_parameters)),
    ]
    if metrics:
        table = ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in metrics.items())]
        parts += ["## Results", "\n".join(table), "Losses are in nats per token, measured at this checkpoint's step."]
    config = yaml.safe_dump(_without_folders(state.config), sort_keys=False).rstrip()
    return "\n\n".join([*parts, "## Config", f"```yaml\n{config}\n```"]) + "\n"


def _about(config: Mapping[str, Any], step: int, n_parameters: int, tokenizer: Any) -> str:
    model = config["model"]
    vocabulary = (
        "" if tokenizer is None else f", {tokenizer.type} tokenizer with a vocabulary of {tokenizer.vocab_size:,}"
    )
    start = f" It started from the weights of {_name(model['init_from'])}." if model.get("init_from") else ""
    trained = f"trained with gptlab for {step:,} steps" if step else "converted with gptlab, which has not trained it"
    return (
        f"A language model of {n_parameters:,} parameters ({model['type']}, {model['n_layer']} layers, "
        f"d_model {model['d_model']}, context {model['context_length']:,} tokens{vocabulary}), {trained}.{start}"
    )


def _data(config: Mapping[str, Any], step: int, summary: Mapping[str, Any]) -> str:
    if not step:
        return "The weights come from elsewhere; what they were trained on is on the card of the original."
    data = config["data"]
    shared = {key: data[key] for key in ("val_fraction", "test_fraction") if data.get(key) is not None}
    # Of a mixture its sources, in the order of their names; what it says for all counts.
    corpora = [{**one, **shared} for _, one in sorted(data["sources"].items())] if "sources" in data else [data]
    lines = []
    if "corpus" in summary:
        corpus = summary["corpus"]
        for place in (place for one in corpora for place in (one.get("path"), *(one.get("paths") or ()))):
            corpus = corpus.replace(place, _name(place)) if place else corpus
        lines.append(f"Corpus: {corpus}.")
    else:
        lines.append(f"Corpus: data={data['type']}.")
    for one in corpora:
        where = {"data set": one.get("dataset"), "subset": one.get("subset"), "revision": one.get("revision")}
        where["address"] = one.get("url")
        lines += [f"{name.capitalize()}: {value}." for name, value in where.items() if value]
    n_tokens = steps_of_config(config).tokens_before(step)
    held_out = " and ".join(
        f"{_share(one.get('val_fraction', 0))} for validation, {_share(one.get('test_fraction', 0))} for a test"
        for one in corpora
    )
    if "shares" in summary:
        lines.append("Shares: " + ", ".join(f"{name} {share:.2%}" for name, share in summary["shares"].items()) + ".")
    lines.append(f"Read in training: {n_tokens:,} tokens, counting a token each time it is read. Held out: {held_out}.")
    lines.append("The license of the data is that of its source, and was not checked here; nor was its content.")
    return "\n".join(lines)


def _share(fraction: float | None) -> str:
    return "as it was prepared" if fraction is None else f"{fraction:.0%}"


def _use(task: str, own_code: str | None) -> str:
    kind = AUTO_CLASSES[task]
    trust = "" if own_code is None else ", trust_remote_code=True"
    code = (
        f"from transformers import AutoTokenizer, {kind}\n\n"
        f"model = {kind}.from_pretrained(FOLDER{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})"
    )
    note = "" if own_code is None else f"\n\n{own_code} is the model's code, which `trust_remote_code=True` runs."
    return f"{USES[task]}\n\n```python\n{code}\n```{note}"


def _limits(config: Mapping[str, Any], step: int, n_parameters: int) -> list[str]:
    objective, context = config.get("objective", {}).get("type"), config["model"]["context_length"]
    limits = [f"It was made for texts of up to {context:,} tokens."]
    if step:
        n_tokens = steps_of_config(config).tokens_before(step)
        ratio = n_tokens / n_parameters
        if ratio < OPTIMAL_TOKENS and not config["model"].get("init_from"):
            limits.append(
                f"It has read {ratio:.2g} tokens per parameter; about {OPTIMAL_TOKENS} make the best use of a "
                "given compute (arXiv:2203.15556), so it would get better with more."
            )
        limits.append("It knows the language and the subjects of its data alone.")
        if objective in ("causal_lm", "span_corruption", "masked_lm"):
            limits.append("It was not trained to follow instructions or to answer questions.")
    limits += [
        "It was not made safe: what it writes may be false, offensive, or a passage of its training data.",
        "It was measured on held-out parts of the same data at most, not in any use: measure it in yours first.",
    ]
    return limits


def _without_folders(value: Any) -> Any:
    """Plain values with paths on this machine reduced to their last part."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return _name(value) if isinstance(value, str) and value.startswith(("/", "~/")) and "\n" not in value else value


def _name(place: str) -> str:
    return Path(place).name if place.startswith(("/", "~/")) else place
