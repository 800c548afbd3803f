"""Few-shot prompts, and whether they fit the model's context."""

import math
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gptlab.data.examples.template import Template
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.evaluation.config import AnswerFormat
from gptlab.evaluation.records import Records
from gptlab.evaluation.references import Choices, Question, correct, question
from gptlab.generation.prompt import encode_prompt, has_encoder
from gptlab.models.base import LanguageModel

SEPARATOR = "\n\n"
DELIMITER = " "


@dataclass(kw_only=True, slots=True)
class Example:
    """A record of a table as text: a prompt and its reference answer."""

    where: str  # in the table, for people
    index: int = 0  # of the record in the table, from 0
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


def read_examples(
    records: Records,
    prompt: Template,
    answer: Template,
    choices: Choices | None = None,
    *,
    answer_format: AnswerFormat | None = None,
    indices: Collection[int] = (),
    first: float = math.inf,
) -> dict[int, Example]:
    """The examples of a table by their record's index, from 0: the `first` so many, and those of `indices`.

    Other records are not checked, and none after the last is read. UserError names the record that lacks a field, or
    whose answer is not among its choices, and an index beyond the last record.
    """
    found: dict[int, Example] = {}
    questions: list[Question] = []
    end = max(first, *(index + 1 for index in indices), 0)
    n_records = 0
    for index, values in enumerate(records):
        n_records = index + 1
        if index >= first and index not in indices:
            continue
        where = f"record {index + 1:,} of {records.title}"
        text = answer.fill(values, where).strip()
        example = Example(where=where, index=index, prompt=prompt.fill(values, where), answer=text)
        if not text:
            raise UserError(f"{where} has no answer: answer={answer.text!r} gives an empty text; leave the record out")
        if choices is not None:
            # A template of one field and nothing else keeps whether the answer is a number.
            plain = len(answer.parts) == 3 and answer.parts[0] == answer.parts[2] == ""
            questions.append(question(choices, values, values[answer.parts[1]] if plain else text, where))
        found[index] = example
        if n_records >= end:
            break
    beyond = max(indices, default=-1)
    if beyond >= n_records:
        raise UserError(
            f"the index {beyond} is beyond {records.title}, whose {n_records:,} records have the indices 0 to "
            f"{n_records - 1:,}; lower it in indices= or fewshot_indices="
        )
    if choices is not None:
        numbers = correct(questions, answer_format)
        for example, one, number in zip(found.values(), questions, numbers, strict=True):
            example.choices, example.answer = one.choices, one.choices[number]
    return found


@dataclass(kw_only=True, slots=True)
class Prompts:
    """Prompts to evaluate, each after few-shot examples from a pool.

    The examples of a prompt are drawn by `seed` and the prompt's index alone: with more of them a prompt has the same
    ones and some more. An example with the same prompt is never drawn. Of a pool that is `fixed` every prompt gets the
    first ones, in their order.
    """

    items: list[Example]  # to evaluate
    pool: list[Example]  # that few-shot examples are drawn from
    pool_name: str  # for errors
    separator: str = SEPARATOR
    delimiter: str = DELIMITER
    seed: int
    fixed: bool = False

    def check(self, num_fewshot: Sequence[int]) -> None:
        """UserError where a prompt has fewer examples than `num_fewshot` asks for."""
        same, most = Counter(example.prompt for example in self.pool), max(num_fewshot)
        if self.fixed:
            return
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
        if self.fixed:
            yield from self.pool
            return
        draw, seen = random.Random(f"{self.seed} {i}"), set()
        while len(seen) < len(self.pool):
            found = draw.randrange(len(self.pool))
            if found not in seen and self.pool[found].prompt != self.items[i].prompt:
                yield self.pool[found]
            seen.add(found)

    def composed(self, i: int, num_fewshot: Sequence[int]) -> dict[str, Any]:
        """Prompt i as a result shows it: whole, for each number of examples, and which these are."""
        item, most = self.items[i], max(num_fewshot)
        return {
            "record": item.where,
            "index": item.index,
            "prompt": item.prompt,
            "prompts": {str(n): self.text(i, n) for n in num_fewshot},
            "fewshot_indices": [example.index for example in islice(self.fewshot(i), most)],
            "reference": item.answer,
        }

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
