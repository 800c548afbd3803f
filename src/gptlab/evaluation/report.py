"""Results as text."""

from collections.abc import Sequence
from typing import Any

from gptlab.units import plural

NUMBERS = ("perplexity", "bits_per_byte")  # of a perplexity, by which results are compared
INDENT = "    "


def text(result: dict[str, Any], *, n_shown: int) -> str:
    """One result as text: what was measured, and the numbers in a table at the end.

    Perplexity ends with a line for scripts. The first `n_shown` prompts are shown whole, with what the model made of
    them.
    """
    parts = []
    if result["what"] == "perplexity":
        numbers = result["numbers"]
        line = " ".join(f"{name} {_number(numbers[name])}" for name in NUMBERS if name in numbers)
        return (
            f"{result['corpus']}: {numbers['n_tokens']:,} tokens, context {numbers['context_length']:,}, "
            f"stride {numbers['stride']:,}\n{line} run {result['run']}\n"
        )
    if result["what"] in ("answers", "choices"):
        sample = _with_answers if result["what"] == "answers" else _with_choices
        parts += [sample(sample_) for sample_ in result["samples"][:n_shown]]
        about = f"{plural(len(result['samples']), 'prompt')} of {result['settings']['data']}"
    elif result["what"] == "pairs":
        parts += [_with_pairs(result["samples"], n_shown)] if n_shown else []
        about = plural(len(result["samples"]), "minimal pair")
    else:
        about = "tasks of lm-eval"
    if not result.get("complete", True):
        about += ", not all settings"
    step = "" if result["step"] is None else f", step {result['step']:,}"
    return "\n\n".join([*parts, f"run {result['run']}{step}: {about}\n\n{_table(*_rows(result))}"]) + "\n"


def comparison(results: list[dict[str, Any]]) -> str:
    """Several results of one kind in a table: a row for each run beneath each other, one setting after another."""
    if results[0]["what"] == "perplexity":
        body = [
            [
                result["run"],
                _step(result),
                *(_number(result["numbers"][name]) if name in result["numbers"] else "" for name in NUMBERS),
            ]
            for result in results
        ]
        return "\n" + _table([["run", "step", *NUMBERS], *body], n_text=1) + "\n"
    tables = [_rows(result) for result in results]
    (header, *_), n_text = tables[0]
    keys = list(dict.fromkeys(tuple(row[:n_text]) for rows, _ in tables for row in rows[1:]))
    body = []
    for key in keys:
        for result, (rows, _) in zip(results, tables, strict=True):
            body += [
                [*key, result["run"], _step(result), *row[n_text:]] for row in rows[1:] if tuple(row[:n_text]) == key
            ]
    return "\n" + _table([[*header[:n_text], "run", "step", *header[n_text:]], *body], n_text=n_text + 1) + "\n"


def _step(result: dict[str, Any]) -> str:
    return "" if result["step"] is None else f"{result['step']:,}"


def _rows(result: dict[str, Any]) -> tuple[list[list[str]], int]:
    """The numbers as rows with a header, and how many columns in front are text."""
    if result["what"] == "tasks":
        rows = []
        for name, value in result["numbers"].items():
            error = result["standard_errors"].get(name)  # N/A where lm-eval has none
            rows.append([*name.rsplit("/", 1), _number(value), _number(error) if isinstance(error, float) else ""])
        return [["task", "metric", "value", "standard error"], *rows], 2
    if result["what"] == "pairs":
        rows = [[name.rpartition("/")[0] or "all", _number(value)] for name, value in result["numbers"].items()]
        return [["category", "accuracy"], *rows[1:], rows[0]], 1
    return _scores(result["numbers"], ("num_fewshot", "setting") if result["what"] == "answers" else ("num_fewshot",))


def _scores(numbers: dict[str, float], names: Sequence[str]) -> tuple[list[list[str]], int]:
    """Numbers with names such as num_fewshot=5/temperature=0/rougeL: the last part is a column, the others a row."""
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for name, value in numbers.items():
        *key, metric = name.split("/")
        rows.setdefault(tuple(key), {})[metric] = value
    metrics = list(next(iter(rows.values())))
    body = [
        [*(part.removeprefix("num_fewshot=") for part in key), *(_number(row[metric]) for metric in metrics)]
        for key, row in rows.items()
    ]
    return [[*names, *metrics], *body], len(names)


def _with_answers(sample: dict[str, Any]) -> str:
    """The composed prompts, the reference, and the answers, each after the name of its setting."""
    lines = _prompts(sample)
    named = [("reference", sample["reference"])]
    named += [(f"{answer['num_fewshot']}-shot, {answer['setting']}", answer["text"]) for answer in sample["answers"]]
    width = max(len(name) for name, _ in named)
    for name, content in named:
        lines.append(f"{name:<{width}}  {content}".replace("\n", "\n" + " " * (width + 2)).rstrip())
    return "\n".join(lines)


def _with_choices(sample: dict[str, Any]) -> str:
    """The composed prompts, and each choice with its log-likelihood in nats by the number of examples."""
    lines = _prompts(sample)
    header = ["", "choice", *(f"{n}-shot" for n in sample["fewshot"])]
    rows = []
    for i, choice in enumerate(sample["choices"]):
        values = [
            _number(found["log_likelihood"][i]) + ("*" if choice == found["chosen"] else " ")
            for found in sample["fewshot"].values()
        ]
        rows.append(["reference" if choice == sample["reference"] else "", choice.replace("\n", "\\n"), *values])
    return "\n".join([*lines, _table([header, *rows], n_text=2)])


def _with_pairs(samples: list[dict[str, Any]], n_shown: int) -> str:
    """The first pairs of each category: their sentences, with the log-likelihoods in nats."""
    rows = [["", "acceptable", "", "unacceptable", ""]]
    for category in dict.fromkeys(sample["category"] for sample in samples):
        for sample in [one for one in samples if one["category"] == category][:n_shown]:
            first, second = (_number(value) for value in sample["log_likelihood"])
            right = "" if sample["correct"] else "wrong"
            rows.append([right, sample["acceptable"], first, sample["unacceptable"], second])
    return _table(rows, n_text=5)


def _prompts(sample: dict[str, Any]) -> list[str]:
    lines = [f"--- {sample['record']} (index {sample['index']})"]
    for n, prompt in sample["prompts"].items():
        lines.append(f"{n}-shot prompt")
        lines += [f"{INDENT}{line}".rstrip() for line in prompt.split("\n")]
    return lines


def _table(rows: list[list[str]], n_text: int) -> str:
    """Columns in line: the first `n_text` hold text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < n_text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
