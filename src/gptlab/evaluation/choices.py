"""Multiple choice by log-likelihood."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.evaluation.progress import progress
from gptlab.evaluation.prompts import Prompts, check_fit, encode_answer
from gptlab.generation.scoring import Continuation, score_continuations
from gptlab.models.base import LanguageModel


def encode_choices(
    prompts: Prompts, i: int, n_fewshot: int, tokenizer: Tokenizer, model: LanguageModel
) -> list[list[int]]:
    """The tokens of each choice of prompt i; UserError for one that has none."""
    item, text = prompts.items[i], prompts.text(i, n_fewshot)
    found = []
    for choice in item.choices:
        try:
            ids = encode_answer(text, prompts.delimiter, choice, tokenizer, model)
        except UserError as error:
            raise UserError(f"{item.where}: {error}") from None
        if not ids:
            raise UserError(f"{item.where}: the choice {choice!r} has no tokens of its own; change delimiter=")
        found.append(ids)
    return found


def choose(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Prompts,
    num_fewshot: Sequence[int],
    *,
    show: bool = False,
    between: Callable[[], None] = lambda: None,
    on_part: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Accuracy by log-likelihood and by log-likelihood per byte of the choice, for each number of few-shot examples.

    Of equally likely choices the first one counts. `on_part` is called with what is measured so far after each number
    of examples, `between` after each batch. UserError where a prompt does not fit, before any work.
    """
    most = max(num_fewshot)
    longest = [max(map(len, encode_choices(prompts, i, most, tokenizer, model))) for i in range(len(prompts.items))]
    check_fit(prompts, num_fewshot, longest, tokenizer, model)
    numbers: dict[str, float] = {}
    samples: list[dict[str, Any]] = [
        prompts.composed(i, num_fewshot) | {"choices": list(item.choices), "fewshot": {}}
        for i, item in enumerate(prompts.items)
    ]
    for n in num_fewshot:
        continuations: list[Continuation] = []
        for i in range(len(prompts.items)):
            context = prompts.encoded(i, n, tokenizer, model)
            continuations += [Continuation(context, ids) for ids in encode_choices(prompts, i, n, tokenizer, model)]
        with progress(f"num_fewshot={n}", len(continuations), show=show, between=between) as advance:
            scores = iter(score_continuations(model, continuations, advance))
        correct = {"accuracy": 0, "accuracy_per_byte": 0}
        for item, sample in zip(prompts.items, samples, strict=True):
            log_p = [-math.fsum(next(scores).nats.tolist()) for _ in item.choices]
            sizes = [len(choice.encode("utf-8", "surrogatepass")) for choice in item.choices]
            per_byte = [value / size for value, size in zip(log_p, sizes, strict=True)]
            chosen = {
                name: item.choices[values.index(max(values))]
                for name, values in (("accuracy", log_p), ("accuracy_per_byte", per_byte))
            }
            for name, choice in chosen.items():
                correct[name] += choice == item.answer
            sample["fewshot"][str(n)] = {"log_likelihood": log_p, "chosen": chosen["accuracy"]}
        numbers |= {f"num_fewshot={n}/{name}": count / len(samples) for name, count in correct.items()}
        on_part({"numbers": numbers, "samples": samples})
    return {"numbers": numbers, "samples": samples}
