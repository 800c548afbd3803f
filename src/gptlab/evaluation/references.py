"""Multiple choice: the choices of a record, and which of them its answer names."""

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptlab.data.examples.template import Template
from gptlab.errors import UserError
from gptlab.evaluation.config import AnswerFormat

Choices = str | Sequence[Template]  # a column that holds a list, or a text for each choice with columns as {name}


@dataclass(kw_only=True, slots=True)
class Question:
    """The choices of a record, and its answer as the table has it."""

    where: str  # in the table, for errors
    choices: tuple[str, ...]
    labels: tuple[str, ...]  # the table's own name of each choice, as A or 1; none where it gives none
    answer: Any
    typed: bool  # whether the choices are text in a file that tells text from numbers

    @property
    def spellings(self) -> tuple[str, ...]:
        """The answer as text; true and false as JSON and as Python write them."""
        text = str(self.answer).strip()
        return (text, text.lower()) if isinstance(self.answer, bool) else (text,)

    @property
    def is_index(self) -> bool:
        """Whether the answer is a number beside choices that are text."""
        return self.typed and type(self.answer) is int

    def readings(self) -> dict[AnswerFormat, int]:
        """The number of the choice that the answer names, in each format that it can be read in."""
        found, n = {}, len(self.choices)
        text = self.spellings[0]
        for spelling in self.spellings:
            if spelling in self.choices:
                found[AnswerFormat.choice] = self.choices.index(spelling)
        if text.isdecimal() and text == str(int(text)):
            if int(text) < n:
                found[AnswerFormat.index] = int(text)
            if 1 <= int(text) <= n:
                found[AnswerFormat.index_from_1] = int(text) - 1
        if len(text) == 1 and text in string.ascii_uppercase[:n]:
            found[AnswerFormat.letter] = string.ascii_uppercase.index(text)
        return found


def question(choices: Choices, values: Mapping[str, Any], answer: Any, where: str) -> Question:
    """The choices that a record has; UserError where they are not two or more texts, each once."""
    labels: tuple[str, ...] = ()
    typed = False
    if isinstance(choices, str):
        if choices not in values:
            raise UserError(
                f"choices={choices} is not a column of {where}, which has {', '.join(map(str, values))}; "
                "name one, or write the choices as choices=[yes,no]"
            )
        cell = values[choices]
        if isinstance(cell, str):  # as CSV has it
            try:
                cell = json.loads(cell)
            except ValueError:
                cell = None
        if isinstance(cell, Mapping) and {"text", "label"} <= cell.keys():  # as ARC has it
            cell, labels = cell["text"], tuple(str(label).strip() for label in cell["label"])
        if not isinstance(cell, list) or len(cell) < 2 or not all(isinstance(c, str | int | float) for c in cell):
            raise UserError(f'choices={choices} in {where} is not a list of two or more texts, such as ["yes", "no"]')
        found = tuple(str(choice).strip() for choice in cell)
        typed = all(isinstance(choice, str) for choice in cell)
        if labels and (len(labels) != len(found) or len(set(labels)) < len(labels)):
            raise UserError(f"choices={choices} in {where} needs a label of its own for each text")
    else:
        found = tuple(choice.fill(values, where).strip() for choice in choices)
    if not all(found) or len(set(found)) < len(found):
        name = f"choices={choices}" if isinstance(choices, str) else "choices="
        raise UserError(f"{name} in {where} has a choice that is empty or given twice")
    return Question(where=where, choices=found, labels=labels, answer=answer, typed=typed)


def correct(questions: Sequence[Question], format: AnswerFormat | None = None) -> list[int]:
    """The number of each question's correct choice.

    All answers are read in one format. Without `format` it follows from the table: the labels that it gives itself; the
    index from 0 where an answer is a number beside choices that are text; else the only format in which all answers can
    be read. UserError where there is none, and where two of them name different choices.
    """
    if format is None and all(one.labels for one in questions):
        return [_labeled(one) for one in questions]
    readings = [one.readings() for one in questions]
    if format is None:
        format = _format_of(questions, readings)
    for one, found in zip(questions, readings, strict=True):
        if format not in found:
            raise UserError(
                f"{one.where}: the answer {one.spellings[0]!r} is no {format.value.replace('_', ' ')} of the choices "
                f"{', '.join(one.choices)}; correct it, or use another answer_format="
            )
    return [found[format] for found in readings]


def _labeled(one: Question) -> int:
    text = one.spellings[0]
    if text in one.labels:
        return one.labels.index(text)
    raise UserError(f"{one.where}: the answer {text!r} is not among the labels {', '.join(one.labels)}")


def _format_of(questions: Sequence[Question], readings: Sequence[Mapping[AnswerFormat, int]]) -> AnswerFormat:
    usual = (AnswerFormat.choice, AnswerFormat.index, AnswerFormat.letter)
    fitting = [format for format in usual if all(format in found for found in readings)]
    if AnswerFormat.index in fitting and all(one.is_index for one in questions):
        return AnswerFormat.index
    if not fitting:
        raise UserError(_misfit(questions, readings, usual))
    first, *others = fitting
    for one, found in zip(questions, readings, strict=True):
        for other in others:
            if found[first] != found[other]:
                raise UserError(
                    f"{one.where}: the answer {one.spellings[0]!r} can be read as answer_format={first.value}, "
                    f"{one.choices[found[first]]!r}, and as answer_format={other.value}, "
                    f"{one.choices[found[other]]!r}; add the one that is meant"
                )
        if one.is_index and found.get(AnswerFormat.index, found[first]) != found[first]:
            raise UserError(
                f"{one.where}: the answer {one.answer} is a number and would be an index, "
                f"{one.choices[found[AnswerFormat.index]]!r}, where other records answer with the choice itself; "
                "answer all in one way, or add answer_format=choice"
            )
    return first


def _misfit(
    questions: Sequence[Question],
    readings: Sequence[Mapping[AnswerFormat, int]],
    usual: Sequence[AnswerFormat],
) -> str:
    for one, found in zip(questions, readings, strict=True):
        if not found.keys() & set(usual):
            hint = ""
            if all(AnswerFormat.index_from_1 in found for found in readings):
                hint = "; where indices begin with 1, add answer_format=index_from_1"
            return (
                f"{one.where}: the answer {one.spellings[0]!r} is not among the choices {', '.join(one.choices)}{hint}"
            )
    first, found = questions[0], readings[0]
    other = next(
        one for one, also in zip(questions, readings, strict=True) if not (set(usual) & found.keys()) <= also.keys()
    )
    if all(AnswerFormat.index_from_1 in found for found in readings):
        return (
            f"{other.where}: the answer {other.spellings[0]!r} is beyond the last index, from 0, of the choices "
            f"{', '.join(other.choices)}; where indices begin with 1, add answer_format=index_from_1"
        )
    return (
        f"{first.where} has the answer {first.spellings[0]!r} and {other.where} the answer {other.spellings[0]!r}, "
        "which name choices in different ways; answer all with the choice itself, its index from 0 or its letter"
    )
