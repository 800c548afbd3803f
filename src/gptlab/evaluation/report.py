"""Results as people read them."""

from collections.abc import Sequence
from typing import Any


def headline(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a result that it is compared by."""
    numbers = result["numbers"]
    if result["what"] == "perplexity":
        return {name: numbers[name] for name in ("perplexity", "bits_per_byte")}
    if result["what"] == "answers":
        return {name: value for name, value in numbers.items() if name.endswith("/rougeL")}
    return numbers


def text(result: dict[str, Any], *, n_shown: int) -> str:
    """What people read of one result; its last line is for scripts too."""
    parts = []
    if result["what"] == "perplexity":
        numbers = result["numbers"]
        parts.append(
            f"{result['corpus']}: {numbers['n_tokens']:,} tokens, context {numbers['context_length']:,}, "
            f"stride {numbers['stride']:,}"
        )
    elif result["what"] == "answers":
        parts += [_side_by_side(row) for row in result["rows"][:n_shown]]
        parts.append(_score_table(result["numbers"], ("shots", "setting")))
    elif result["what"] == "choices":
        parts.append(_score_table(result["numbers"], ("shots",)))
    else:
        errors = result["standard_errors"]
        rows = []
        for name, value in result["numbers"].items():
            task, _, metric = name.rpartition("/")
            error = next((e for key, e in errors.items() if key.replace("_stderr", "") == name), None)
            rows.append([task, metric, _number(value), _number(error) if isinstance(error, float) else ""])
        parts.append(_table([["task", "metric", "value", "standard error"], *rows]))
    line = " ".join(f"{name} {_number(value)}" for name, value in headline(result).items())
    return "\n\n".join(parts) + f"\n{line} run {result['run']}\n"


def _side_by_side(row: dict[str, Any]) -> str:
    """A prompt, what should be answered, and what was, with the names of the settings before it."""
    lines = [["prompt", row["prompt"]], ["reference", row["reference"]]]
    for answer in row["answers"]:
        plural = "" if answer["shots"] == 1 else "s"
        lines.append([f"{answer['shots']} shot{plural}, {answer['setting']}", answer["text"]])
    width = max(len(name) for name, _ in lines)
    indented = [(name, text.replace("\n", "\n" + " " * (width + 2))) for name, text in lines]
    return "\n".join([f"--- {row['row']}", *(f"{name:<{width}}  {text}".rstrip() for name, text in indented)])


def _score_table(numbers: dict[str, float], names: Sequence[str]) -> str:
    """Numbers with names such as shots=5/temperature=0/rougeL: a row for each but the last part, which is a column."""
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for name, value in numbers.items():
        *place, metric = name.split("/")
        rows.setdefault(tuple(place), {})[metric] = value
    metrics = list(next(iter(rows.values())))
    body = [
        [*(part.removeprefix("shots=") for part in place), *(_number(row[metric]) for metric in metrics)]
        for place, row in rows.items()
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
