"""Multiple choice: which answer a model finds most likely."""

import math
from typing import Any

from torch import nn

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.evaluation.progress import progress
from gptlab.evaluation.prompts import Prompts, check_fit, encode_answer, encode_prompt
from gptlab.generation.scoring import Continuation, continuation_costs


def encode_choices(prompts: Prompts, i: int, n_shots: int, tokenizer: Tokenizer, model: nn.Module) -> list[list[int]]:
    """The tokens of each choice of row i; ValueError for one that has none."""
    row, text = prompts.rows[i], prompts.text(i, n_shots)
    found = []
    for choice in row.choices:
        try:
            ids = encode_answer(text, prompts.delimiter, choice, tokenizer, model)
        except ValueError as error:
            raise UserError(f"{row.where}: {error}") from None
        if not ids:
            raise UserError(f"{row.where}: the choice {choice!r} has no tokens of its own; change delimiter=")
        found.append(ids)
    return found


def choose(
    model: nn.Module, tokenizer: Tokenizer, prompts: Prompts, shots: list[int], *, show: bool = False
) -> dict[str, Any]:
    """Accuracy by log-likelihood and by log-likelihood per byte of the choice, for each number of shots.

    Of choices that are as likely the first one counts. ValueError where a prompt does not fit, before any work.
    """
    longest = [
        max(map(len, encode_choices(prompts, i, max(shots), tokenizer, model))) for i in range(len(prompts.rows))
    ]
    check_fit(prompts, shots, longest, tokenizer, model)
    numbers: dict[str, float] = {}
    rows = [
        {"row": row.where, "prompt": row.prompt, "reference": row.answer, "choices": list(row.choices), "shots": {}}
        for row in prompts.rows
    ]
    for n_shots in shots:
        continuations: list[Continuation] = []
        for i, row in enumerate(prompts.rows):
            context = encode_prompt(prompts.text(i, n_shots), row.where, tokenizer, model)
            continuations += [Continuation(context, c) for c in encode_choices(prompts, i, n_shots, tokenizer, model)]
        with progress(f"{n_shots} shots", len(continuations), show=show) as advance:
            costs = iter(continuation_costs(model, continuations, advance))
        right = {"accuracy": 0, "accuracy_per_byte": 0}
        for row, told in zip(prompts.rows, rows, strict=True):
            log_p = [-math.fsum(next(costs).nats.tolist()) for _ in row.choices]
            sizes = [len(choice.encode("utf-8", "surrogatepass")) for choice in row.choices]
            per_byte = [value / size for value, size in zip(log_p, sizes, strict=True)]
            chosen = {
                name: row.choices[values.index(max(values))]
                for name, values in (("accuracy", log_p), ("accuracy_per_byte", per_byte))
            }
            for name, choice in chosen.items():
                right[name] += choice == row.answer
            told["shots"][str(n_shots)] = {"log_likelihood": log_p, "chosen": chosen["accuracy"]}
        numbers |= {f"shots={n_shots}/{name}": count / len(rows) for name, count in right.items()}
    return {"numbers": numbers, "rows": rows}
