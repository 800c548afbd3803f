"""Results as text."""

from collections.abc import Sequence
from typing import Any


def headline(result: dict[str, Any]) -> dict[str, float]:
    """The numbers by which results are compared."""
    numbers = result["numbers"]
    if result["what"] == "perplexity":
        return {name: numbers[name] for name in ("perplexity", "bits_per_byte")}
    if result["what"] == "answers":
        return {name: value for name, value in numbers.items() if name.endswith("/rougeL")}
    return numbers


def text(result: dict[str, Any], *, n_shown: int) -> str:
    """One result as text; its last line is for scripts, too."""
    parts = []
    if result["what"] == "perplexity":
        numbers = result["numbers"]
        parts.append(
            f"{result['corpus']}: {numbers['n_tokens']:,} tokens, context {numbers['context_length']:,}, "
            f"stride {numbers['stride']:,}"
        )
    elif result["what"] == "answers":
        parts += [_with_answers(sample) for sample in result["samples"][:n_shown]]
        parts.append(_score_table(result["numbers"], ("num_fewshot", "setting")))
    elif result["what"] == "choices":
        parts.append(_score_table(result["numbers"], ("num_fewshot",)))
    else:
        rows = []
        for name, value in result["numbers"].items():
            error = result["standard_errors"].get(name)  # N/A where lm-eval has none
            rows.append([*name.rsplit("/", 1), _number(value), _number(error) if isinstance(error, float) else ""])
        parts.append(_table([["task", "metric", "value", "standard error"], *rows]))
    line = " ".join(f"{name} {_number(value)}" for name, value in headline(result).items())
    return "\n\n".join(parts) + f"\n{line} run {result['run']}\n"


def _with_answers(sample: dict[str, Any]) -> str:
    """A prompt, the reference, and the answers, each after the name of its setting."""
    lines = [["prompt", sample["prompt"]], ["reference", sample["reference"]]]
    for answer in sample["answers"]:
        lines.append([f"{answer['num_fewshot']}-shot, {answer['setting']}", answer["text"]])
    width = max(len(name) for name, _ in lines)
    indented = [(name, text.replace("\n", "\n" + " " * (width + 2))) for name, text in lines]
    return "\n".join([f"--- {sample['record']}", *(f"{name:<{width}}  {text}".rstrip() for name, text in indented)])


def _score_table(numbers: dict[str, float], names: Sequence[str]) -> str:
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
    return _table([[*names, *metrics], *body])


def comparison(results: list[dict[str, Any]]) -> str:
    """Several results of one kind in a table."""
    headlines = [headline(result) for result in results]
    names = list(dict.fromkeys(name for headline in headlines for name in headline))
    body = [
        [
            result["run"],
            "" if result["step"] is None else f"{result['step']:,}",
            *(_number(headline[name]) if name in headline else "" for name in names),
        ]
        for result, headline in zip(results, headlines, strict=True)
    ]
    return "\n" + _table([["run", "step", *names], *body]) + "\n"


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
