"""Config schema: `gptlab evaluate`."""

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from gptlab.errors import UserError, did_you_mean
from gptlab.fields import bounded, check_bounds, shown
from gptlab.generation.config import OutputFormat, Precision
from gptlab.quoting import unescaped
from gptlab.values import coerce

N_SHOWN = 3
MOST_PAIRS = 100  # in a category, all different

LISTS = ("run", "corpus", "tasks", "settings", "num_fewshot", "choices", "indices", "fewshot_indices")


class Kind(Enum):
    """What is measured."""

    perplexity = "perplexity"
    choices = "choices"
    answers = "answers"
    pairs = "pairs"  # minimal pairs of grammar
    tasks = "tasks"


TEXTS = ("prompt", "answer", "separator", "delimiter", "stop")  # in which \\n is a new line


class AnswerFormat(Enum):
    """How a table names the correct one of several choices."""

    choice = "choice"  # the choice itself
    index = "index"  # from 0
    index_from_1 = "index_from_1"
    letter = "letter"  # A for the first


# Options that only some kinds have; all others are for each.
_OF_PROMPTS = (
    *("data", "subset", "revision", "hub_split", "indices", "examples", "fewshot_split", "fewshot_indices"),
    *("prompt", "answer", "num_fewshot", "separator", "delimiter", "limit", "n_shown", "seed"),
)
OPTIONS = {
    Kind.perplexity: ("corpus", "stride"),
    Kind.choices: (*_OF_PROMPTS, "choices", "answer_format"),
    Kind.answers: (*_OF_PROMPTS, "settings", "stop", "max_new_tokens"),
    Kind.pairs: ("minimal_pairs", "seed", "n_shown"),
    Kind.tasks: ("tasks", "num_fewshot", "limit", "seed"),
}
# When an option has an effect, by the first kind that has it.
NEEDED = {
    Kind.perplexity: "without data=, minimal_pairs= and tasks=, where perplexity is measured",
    Kind.choices: "with data=FILE and choices=COLUMN",
    Kind.answers: "with data=FILE and without choices=, where text is generated",
    Kind.pairs: "with minimal_pairs=N, and without data= and tasks=",
    Kind.tasks: "with tasks=[NAME]",
}


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """The options of `gptlab evaluate`; null or empty where an option is not given."""

    run: list[str] = field(default_factory=list)  # may be given several times
    corpus: list[str] = field(default_factory=list)  # text to predict; may be given several times
    stride: int | None = bounded(None, ge=1)  # of the sliding window over it; null: half the context
    data: str | None = None  # records that are prompts and answers: a file, a data set's folder or its name on the hub
    subset: str | None = None
    revision: str | None = None
    hub_split: str | None = None  # of a data set; null: train
    indices: tuple[int, ...] | None = None  # the records to evaluate, from 0; null: all
    examples: str | None = None  # a table that few-shot examples are drawn from; null: the other records
    fewshot_split: str | None = None  # of the data set that examples are drawn from; null: hub_split
    fewshot_indices: tuple[int, ...] | None = None  # the examples of every prompt, from 0; null: drawn for each
    prompt: str | None = None
    answer: str | None = None
    choices: str | tuple[str, ...] | None = None  # the column with the choices, or the same choices for each prompt
    answer_format: AnswerFormat | None = None  # null: as all records have it, where there is one way to read them
    num_fewshot: tuple[int, ...] | None = None  # null: 0, all of fewshot_indices, or what a task of lm-eval has
    separator: str | None = None  # between few-shot examples; null: a blank line
    delimiter: str | None = None  # between a prompt and its answer; null: a space
    settings: tuple[str, ...] | None = None  # decoding settings to compare; null: temperature=0
    stop: tuple[str, ...] | None = None  # texts that end an answer; null: the separator
    max_new_tokens: int | None = bounded(None, ge=1)  # of answers by settings without one; null: MAX_NEW_TOKENS
    limit: int | None = bounded(None, ge=1)  # evaluate the first so many prompts; null: all
    n_shown: int | None = bounded(None, ge=0)  # prompts that are printed with their answers; null: N_SHOWN
    minimal_pairs: int | None = bounded(None, ge=1, le=MOST_PAIRS)  # of grammar, so many in each category
    tasks: tuple[str, ...] | None = None  # names or files of lm-eval
    seed: int | None = bounded(None, ge=0, lt=2**63)  # null: generation's SEED
    precision: Precision = Precision.float32
    device: str | None = None  # null: a GPU where there is one
    output: OutputFormat = OutputFormat.text
    to: str | None = None  # a file that gets the JSON

    @property
    def kind(self) -> Kind:
        """What the options ask for."""
        if self.tasks is not None:
            return Kind.tasks
        if self.data is not None:
            return Kind.answers if self.choices is None else Kind.choices
        if self.minimal_pairs is not None:
            return Kind.pairs
        return Kind.perplexity

    @property
    def fewshot_counts(self) -> tuple[int, ...]:
        """The numbers of examples before a prompt of a table."""
        if self.num_fewshot is not None:
            return self.num_fewshot
        return (0,) if self.fewshot_indices is None else (len(self.fewshot_indices),)

    def check(self) -> None:
        """Refuse options that are out of bounds, have no effect or contradict each other."""
        if not self.run:
            raise UserError("gptlab evaluate needs run=PATH: a run folder, a .ckpt file or a transformers folder")
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, [])]
        special = {option for options in OPTIONS.values() for option in options}
        for option in given:
            if option in special and option not in OPTIONS[self.kind]:
                kinds = [kind for kind, options in OPTIONS.items() if option in options]
                if option in _OF_PROMPTS:
                    kinds = [kind for kind in kinds if kind not in (Kind.choices, Kind.answers)]
                needed = " or ".join([*["with data=FILE"] * (option in _OF_PROMPTS), *(NEEDED[kind] for kind in kinds)])
                raise UserError(f"{option}= has no effect on {self.kind.value}; use it {needed}")
        check_bounds(self)
        for option in LISTS:
            values = getattr(self, option)
            if values == () and option != "choices":
                raise UserError(f"{option}=[] is empty; leave it out, or name one")
            if isinstance(values, list | tuple) and len(set(values)) < len(values):
                twice = max(values, key=values.count)
                raise UserError(f"{option}={shown(twice)} is given twice; give it once")
        for option in ("indices", "fewshot_indices"):
            below = [index for index in getattr(self, option) or () if index < 0]
            if below:
                raise UserError(f"{option}={below[0]} must be at least 0, which is the first record")
        if any(n < 0 for n in self.num_fewshot or ()):
            raise UserError(
                f"num_fewshot={min(self.num_fewshot or ())} must be at least 0; use 0 for a prompt without examples"
            )
        if self.data is not None and self.tasks is None:
            self._check_prompts(self.fewshot_counts)
        if not all(self.corpus):
            raise UserError("corpus= is empty; name a text file, a folder or a glob")
        if self.stop and not all(self.stop):
            raise UserError("stop= has an empty text, which would end every answer at once; leave it out")
        if self.separator == "" and self.stop is None and self.kind is Kind.answers:
            raise UserError(
                "separator= is empty, and an answer ends at it; add stop=TEXT, or stop=[] to generate max_new_tokens"
            )

    def _check_prompts(self, fewshot: tuple[int, ...]) -> None:
        for option, example in (("prompt", "Question: {question} Answer:"), ("answer", "{answer}")):
            if not getattr(self, option):
                raise UserError(f'data= needs {option}=, text with the names of columns such as "{example}"')
        if isinstance(self.choices, tuple) and len(self.choices) < 2:
            raise UserError("choices= has fewer than two choices; write choices=[yes,no], or name a column")
        for choice in self.choices if isinstance(self.choices, tuple) else ():
            if not choice or choice != choice.strip():
                raise UserError(
                    f"choices= has {choice!r}, and a choice is text without spaces around it; set the space before it "
                    "with delimiter="
                )
        if not any(fewshot):
            for option in ("examples", "fewshot_split", "fewshot_indices"):
                if getattr(self, option) is not None:
                    raise UserError(f"{option}= is for few-shot examples and there are none; add num_fewshot=[0,1,5]")
        if self.fewshot_indices is not None and max(fewshot) > len(self.fewshot_indices):
            raise UserError(
                f"num_fewshot={max(fewshot)} is more than the {len(self.fewshot_indices)} of "
                f"fewshot_indices={shown(self.fewshot_indices)}; name more, or lower it"
            )
        # One command serves prompts with and without examples: with num_fewshot=0 typed out these are allowed.
        if self.num_fewshot is not None or any(fewshot):
            return
        if self.delimiter is not None and self.choices is None:
            raise UserError(
                "delimiter= goes before the answers of few-shot examples and before choices; add num_fewshot=[0,1,5]"
            )
        if self.separator is not None and (self.choices is not None or self.stop):
            raise UserError("separator= goes between few-shot examples; add num_fewshot=[0,1,5]")


EVALUATIONS = "callbacks.evaluate."  # how the keys of evaluations during training begin, before a name of their own
PREFIX = "eval/"  # of the columns of metrics.csv that an entry of `callbacks.evaluate` fills
EVERY = "every_steps"  # of an entry of `callbacks.evaluate`, beside the options of `gptlab evaluate`
# Options that an evaluation during training does not have, and why.
NOT_IN_TRAINING = {
    "run": "it is about the model in training",
    "output": "its numbers are in metrics.csv and the loggers",
    "to": "its numbers are in metrics.csv and the loggers",
    "n_shown": "its numbers alone are written",
    "device": "the model stays where it is",
    "precision": "it is the run's",
    "settings": "answers are greedy; compare settings with gptlab evaluate",
    "tasks": "lm-eval's take minutes and draw from the run's random state; use gptlab evaluate run=CHECKPOINT",
}


def probe_options() -> dict[str, Any]:
    """The options of an entry of `callbacks.evaluate`, with their types."""
    hints = typing.get_type_hints(EvaluateConfig)
    return {EVERY: int | None} | {name: hint for name, hint in hints.items() if name not in NOT_IN_TRAINING}


def probe_config(name: str, options: Any) -> tuple[int | None, EvaluateConfig]:
    """How often an entry of `callbacks.evaluate` is measured (None: with each validation), and what; UserError where
    it cannot be."""
    key = f"callbacks.evaluate.{name}"
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise UserError(f"{key}: an evaluation's name is part of its columns; use letters, digits, _ . -")
    if not isinstance(options, Mapping):
        raise UserError(f"{key}={shown(options)} is no evaluation; set options of it, such as {key}.minimal_pairs=50")
    hints = probe_options()
    for option in options:
        if option in NOT_IN_TRAINING:
            raise UserError(
                f"{key}.{option}: an evaluation during training has no {option}=: {NOT_IN_TRAINING[option]}"
            )
        if option not in hints:
            raise UserError(f"unknown option {key}.{option}{did_you_mean(option, hints)}")
    given = {option: coerce(f"{key}.{option}", value, hints[option]) for option, value in options.items()}
    every_steps = given.pop(EVERY, None)
    if every_steps is not None and every_steps < 1:
        raise UserError(f"{key}.{EVERY}={every_steps} must be at least 1")
    config = EvaluateConfig(run=["this"], **given)
    for option in TEXTS:
        setattr(config, option, unescaped(getattr(config, option)))
    try:
        config.check()
        if config.kind is Kind.perplexity and not config.corpus:
            raise UserError("it names nothing to measure; set corpus=TEXT, data=TABLE or minimal_pairs=N")
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    return every_steps, config
