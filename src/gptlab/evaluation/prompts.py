"""Prompts with any number of worked examples before them, and whether they fit the model."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn

from gptlab.data.examples.template import Template
from gptlab.data.sources.table import read_table
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

SEPARATOR = "\n\n"
DELIMITER = " "


@dataclass(kw_only=True, slots=True)
class TokenizedExample:
    """A row of a table as text: what is asked, and what should be answered."""

    where: str  # in the file, for errors
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


def read_rows(
    file: str, prompt: Template, answer: Template, choices: str | tuple[str, ...] | None = None
) -> list[TokenizedExample]:
    """The rows of a table; `choices` is a column that holds a list for each, or the choices of all.

    ValueError names the row that lacks a field, or whose answer is not among its choices. An answer may also be the
    number of the right choice, from 0, where no choice is spelled like that.
    """
    rows = []
    for number, values in enumerate(read_table(file), 1):
        where = f"row {number} of {file}"
        row = TokenizedExample(
            where=where, prompt=prompt.fill(values, where), answer=answer.fill(values, where).strip()
        )
        if not row.answer:
            raise UserError(f"{where} has no answer: answer={answer.text!r} gives an empty text; leave the row out")
        if choices is not None:
            row.choices = choices if isinstance(choices, tuple) else _choices(choices, values, where)
            row.answer = _right(row)
        rows.append(row)
    return rows


def _choices(column: str, values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if column not in values:
        raise UserError(
            f"choices={column} is not a column of {where}, which has {', '.join(map(str, values))}; "
            "name one, or write the choices as choices=[yes,no]"
        )
    held = values[column]
    if isinstance(held, str):  # as CSV has it
        try:
            held = json.loads(held)
        except ValueError:
            held = None
    if not isinstance(held, list) or len(held) < 2 or not all(isinstance(c, str | int | float) for c in held):
        raise UserError(f'choices={column} in {where} is not a list of two or more texts, such as ["yes", "no"]')
    found = tuple(str(choice).strip() for choice in held)
    if not all(found) or len(set(found)) < len(found):
        raise UserError(f"choices={column} in {where} has a choice that is empty, or is there twice")
    return found


def _right(row: TokenizedExample) -> str:
    if row.answer in row.choices:
        return row.answer
    if row.answer.isdecimal() and int(row.answer) < len(row.choices):
        return row.choices[int(row.answer)]
    raise UserError(f"{row.where}: the answer {row.answer!r} is not among the choices {', '.join(row.choices)}")


@dataclass(kw_only=True, slots=True)
class Prompts:
    """What is asked of a model: the first `n_rows` rows of a table, each after examples from a table.

    An example is drawn for a row by `seed` and the row's place alone: with more shots a row has the same and some more.
    A row whose prompt is the row's own is never an example for it.
    """

    rows: list[TokenizedExample]
    examples: list[TokenizedExample]
    source: str  # of the examples, for errors
    separator: str = SEPARATOR
    delimiter: str = DELIMITER
    seed: int

    def check(self, shots: Sequence[int]) -> None:
        """ValueError where a row has fewer examples than `shots` asks for."""
        same = Counter(example.prompt for example in self.examples)
        for row in self.rows:
            there = len(self.examples) - same[row.prompt]
            if there < max(shots):
                raise UserError(
                    f"shots={max(shots)} needs {max(shots)} examples before {row.where}, and {self.source} has {there} "
                    "with another prompt; use fewer shots, or name a larger table with examples=FILE"
                )

    def text(self, i: int, n_shots: int) -> str:
        """The prompt of row i after `n_shots` examples."""
        shots = [f"{shot.prompt}{self.delimiter}{shot.answer}" for shot in islice(self.shots(i), n_shots)]
        return self.separator.join([*shots, self.rows[i].prompt])

    def shots(self, i: int) -> Iterator[TokenizedExample]:
        """All examples of row i, in the order in which they are taken up."""
        draw, seen = random.Random(f"{self.seed} {i}"), set()
        while len(seen) < len(self.examples):
            found = draw.randrange(len(self.examples))
            if found not in seen and self.examples[found].prompt != self.rows[i].prompt:
                yield self.examples[found]
            seen.add(found)


def encode_prompt(text: str, where: str, tokenizer: Tokenizer, model: nn.Module) -> list[int]:
    """A prompt's tokens after the tokenizer's beginning; for an encoder they end with the end-of-text word."""
    try:
        ids = tokenizer.encode(text).tolist()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if not ids:
        raise UserError(f"{where} has an empty prompt; give it at least one character")
    ends = [tokenizer.eot] if answers_anew(model) and tokenizer.eot is not None else []
    return [*tokenizer.beginning, *ids, *ends]


def encode_answer(prompt: str, delimiter: str, answer: str, tokenizer: Tokenizer, model: nn.Module) -> list[int]:
    """The tokens of an answer as it follows its prompt: those that the two together have more than the prompt alone."""
    if answers_anew(model):
        return tokenizer.encode(answer).tolist()
    return tokenizer.encode(f"{prompt}{delimiter}{answer}").tolist()[len(tokenizer.encode(prompt)) :]


def answers_anew(model: nn.Module) -> bool:
    """Whether the model answers a prompt that its encoder reads, instead of going on with it."""
    return isinstance(model.config, EncoderDecoderConfig)


def check_fit(
    prompts: Prompts,
    shots: Sequence[int],
    rooms: Sequence[int],
    tokenizer: Tokenizer,
    model: nn.Module,
    *,
    advice: str = "shorten its choices",
) -> None:
    """Refuse prompts that do not fit the model's context with `rooms` tokens for each row's answer.

    ValueError names the longest, and how many shots would fit, or `advice` on how an answer gets shorter. A model with
    an encoder has no limit.
    """
    if answers_anew(model):
        return
    limit = model.config.context_length

    def excess(i: int, n_shots: int) -> int:
        n_prompt = len(encode_prompt(prompts.text(i, n_shots), prompts.rows[i].where, tokenizer, model))
        return n_prompt + rooms[i] - 1 - limit  # the last token of an answer is not read

    most = max(shots)
    over, worst = max((excess(i, most), -i) for i in range(len(prompts.rows)))
    if over <= 0:
        return
    worst = -worst
    fits = next((n for n in range(most - 1, -1, -1) if all(excess(i, n) <= 0 for i in range(len(rooms)))), None)
    n_prompt, room = over + limit + 1 - rooms[worst], rooms[worst]
    advice = f"leave the row out, shorten prompt=, or {advice}"
    if fits is not None:
        advice = f"with {fits} shot{'' if fits == 1 else 's'} every row fits"
    raise UserError(
        f"{prompts.rows[worst].where} with shots={most} has {n_prompt:,} tokens and needs {room:,} for its answer: "
        f"{over:,} more than the context of {limit:,} holds; {advice}"
    )
