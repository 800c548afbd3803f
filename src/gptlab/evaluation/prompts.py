"""Few-shot prompts, and whether they fit the model's context."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gptlab.data.examples.template import Template
from gptlab.data.sources.table import read_table
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.generation.prompt import encode_prompt, has_encoder
from gptlab.models.base import LanguageModel

SEPARATOR = "\n\n"
DELIMITER = " "


@dataclass(kw_only=True, slots=True)
class Example:
    """A record of a table as text: a prompt and its reference answer."""

    where: str  # in the file, for errors
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


def read_examples(
    file: str, prompt: Template, answer: Template, choices: str | tuple[str, ...] | None = None
) -> list[Example]:
    """Read a table, one example per record; `choices` is a column that holds a list, or the same choices for all.

    An answer may also be the index of the correct choice, from 0, where no choice is spelled like that. UserError names
    the record that lacks a field, or whose answer is not among its choices.
    """
    examples = []
    for number, values in enumerate(read_table(file), 1):
        where = f"record {number} of {file}"
        example = Example(where=where, prompt=prompt.fill(values, where), answer=answer.fill(values, where).strip())
        if not example.answer:
            raise UserError(f"{where} has no answer: answer={answer.text!r} gives an empty text; leave the record out")
        if choices is not None:
            example.choices = choices if isinstance(choices, tuple) else _choices(choices, values, where)
            example.answer = _correct(example)
        examples.append(example)
    return examples


def _choices(column: str, values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if column not in values:
        raise UserError(
            f"choices={column} is not a column of {where}, which has {', '.join(map(str, values))}; "
            "name one, or write the choices as choices=[yes,no]"
        )
    cell = values[column]
    if isinstance(cell, str):  # as CSV has it
        try:
            cell = json.loads(cell)
        except ValueError:
            cell = None
    if not isinstance(cell, list) or len(cell) < 2 or not all(isinstance(c, str | int | float) for c in cell):
        raise UserError(f'choices={column} in {where} is not a list of two or more texts, such as ["yes", "no"]')
    found = tuple(str(choice).strip() for choice in cell)
    if not all(found) or len(set(found)) < len(found):
        raise UserError(f"choices={column} in {where} has a choice that is empty or given twice")
    return found


def _correct(example: Example) -> str:
    answer, choices = example.answer, example.choices
    if answer in choices:
        return answer
    if answer.isdecimal() and int(answer) < len(choices):
        return choices[int(answer)]
    raise UserError(f"{example.where}: the answer {answer!r} is not among the choices {', '.join(choices)}")


@dataclass(kw_only=True, slots=True)
class Prompts:
    """Prompts to evaluate, each after few-shot examples from a pool.

    The examples of a prompt are drawn by `seed` and the prompt's index alone: with more of them a prompt has the same
    ones and some more. An example with the same prompt is never drawn.
    """

    items: list[Example]  # to evaluate
    pool: list[Example]  # that few-shot examples are drawn from
    pool_name: str  # for errors
    separator: str = SEPARATOR
    delimiter: str = DELIMITER
    seed: int

    def check(self, num_fewshot: Sequence[int]) -> None:
        """UserError where a prompt has fewer examples than `num_fewshot` asks for."""
        same, most = Counter(example.prompt for example in self.pool), max(num_fewshot)
        for item in self.items:
            available = len(self.pool) - same[item.prompt]
            if available < most:
                raise UserError(
                    f"num_fewshot={most} needs {most} examples before {item.where}, and {self.pool_name} has "
                    f"{available} with another prompt; lower num_fewshot, or name a larger table with examples=FILE"
                )

    def text(self, i: int, n_fewshot: int) -> str:
        """Prompt i after `n_fewshot` examples."""
        shots = [f"{shot.prompt}{self.delimiter}{shot.answer}" for shot in islice(self.fewshot(i), n_fewshot)]
        return self.separator.join([*shots, self.items[i].prompt])

    def fewshot(self, i: int) -> Iterator[Example]:
        """All examples that prompt i may have, in the order in which they are drawn."""
        draw, seen = random.Random(f"{self.seed} {i}"), set()
        while len(seen) < len(self.pool):
            found = draw.randrange(len(self.pool))
            if found not in seen and self.pool[found].prompt != self.items[i].prompt:
                yield self.pool[found]
            seen.add(found)

    def encoded(self, i: int, n_fewshot: int, tokenizer: Tokenizer, model: LanguageModel) -> list[int]:
        """The tokens of prompt i after `n_fewshot` examples."""
        where = self.items[i].where
        return encode_prompt(self.text(i, n_fewshot), tokenizer, model, f"the prompt of {where}")


def encode_answer(prompt: str, delimiter: str, answer: str, tokenizer: Tokenizer, model: LanguageModel) -> list[int]:
    """The tokens of an answer as it follows its prompt: what the two together have beyond the prompt's tokens."""
    if has_encoder(model):
        return tokenizer.encode(answer).tolist()
    return tokenizer.encode(f"{prompt}{delimiter}{answer}").tolist()[len(tokenizer.encode(prompt)) :]


def check_fit(
    prompts: Prompts,
    num_fewshot: Sequence[int],
    answer_lengths: Sequence[int],
    tokenizer: Tokenizer,
    model: LanguageModel,
    *,
    advice: str = "shorten its choices",
) -> None:
    """Refuse prompts that do not fit the model's context with `answer_lengths` tokens for each prompt's answer.

    UserError names the longest, and how many few-shot examples would fit, or `advice` on how an answer gets shorter. A
    model with an encoder has no limit.
    """
    if has_encoder(model):
        return
    limit = model.config.context_length

    def excess(i: int, n_fewshot: int) -> int:
        n_prompt = len(prompts.encoded(i, n_fewshot, tokenizer, model))
        return n_prompt + answer_lengths[i] - 1 - limit  # the last token of an answer is not read

    most = max(num_fewshot)
    over, worst = max((excess(i, most), -i) for i in range(len(prompts.items)))
    if over <= 0:
        return
    worst = -worst
    n_answer = answer_lengths[worst]
    n_prompt = over + limit + 1 - n_answer
    fits = next((n for n in range(most - 1, -1, -1) if all(excess(i, n) <= 0 for i in range(len(prompts.items)))), None)
    advice = f"leave the record out, shorten prompt=, or {advice}"
    if fits is not None:
        advice = f"every prompt fits with num_fewshot={fits}"
    raise UserError(
        f"{prompts.items[worst].where} with num_fewshot={most} has {n_prompt:,} tokens and needs {n_answer:,} for its "
        f"answer: {over:,} more than the context of {limit:,} holds; {advice}"
    )
