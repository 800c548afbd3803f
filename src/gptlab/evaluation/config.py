"""What `gptlab evaluate` may be told."""

from dataclasses import dataclass, field, fields
from enum import Enum

from gptlab.errors import UserError
from gptlab.generation.config import OutputFormat, Precision


class Kind(Enum):
    """What is measured."""

    perplexity = "perplexity"
    choices = "choices"
    answers = "answers"
    tasks = "tasks"


# Words that only some kinds have; all others are for each.
WORDS = {
    Kind.perplexity: ("corpus", "stride"),
    Kind.choices: (
        *("data", "examples", "prompt", "answer", "choices"),
        *("shots", "separator", "delimiter", "n_rows", "seed"),
    ),
    Kind.answers: (
        *("data", "examples", "prompt", "answer", "settings", "stop", "n_tokens"),
        *("shots", "separator", "delimiter", "n_rows", "n_shown", "seed"),
    ),
    Kind.tasks: ("tasks", "shots", "n_rows", "seed"),
}
# What to add for a word to have an effect, by the first kind that knows it.
NEEDED = {
    Kind.perplexity: "without data= and tasks=, where perplexity is measured",
    Kind.choices: "with data=FILE",
    Kind.answers: "with data=FILE and without choices=, where answers are written",
    Kind.tasks: "with tasks=[NAME]",
}
SETTING_WORDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "beams", "length_penalty")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """The words of `gptlab evaluate`; null and nothing are what is not said."""

    run: list[str] = field(default_factory=list)  # may be said several times
    corpus: list[str] = field(default_factory=list)  # text to predict; may be said several times
    stride: int | None = None  # of the windows over it; null: half the context
    data: str | None = None  # a table of rows to answer
    examples: str | None = None  # a table that shots are drawn from; null: the other rows
    prompt: str | None = None
    answer: str | None = None
    choices: str | tuple[str, ...] | None = None  # the column that holds them, or the same for each row
    shots: tuple[int, ...] | None = None  # null: 0, and what a task says itself
    separator: str | None = None  # between shots; null: a blank line
    delimiter: str | None = None  # between a prompt and its answer; null: a space
    settings: tuple[str, ...] | None = None  # ways to write; null: temperature=0
    stop: tuple[str, ...] | None = None  # texts that end an answer; null: the separator
    n_tokens: int | None = None  # at most, of each answer; null: N_TOKENS
    n_rows: int | None = None  # evaluate the first so many; null: all
    n_shown: int | None = None  # rows that are shown side by side; null: N_SHOWN
    tasks: tuple[str, ...] | None = None  # names or files of lm-eval
    seed: int | None = None  # null: SEED
    precision: Precision = Precision.float32
    device: str | None = None  # null: a GPU where there is one
    output: OutputFormat = OutputFormat.text
    to: str | None = None  # a file that gets the JSON

    @property
    def kind(self) -> Kind:
        """What the words ask for."""
        if self.tasks is not None:
            return Kind.tasks
        if self.data is not None:
            return Kind.answers if self.choices is None else Kind.choices
        return Kind.perplexity

    def check(self) -> None:
        """Refuse what cannot be obeyed."""
        if not self.run:
            raise UserError("gptlab evaluate needs run=PATH: a run folder, a .ckpt file or a transformers folder")
        said = [f.name for f in fields(self) if getattr(self, f.name) not in (None, [])]
        special = {word for words in WORDS.values() for word in words}
        for word in said:
            if word in special and word not in WORDS[self.kind]:
                needed = " or ".join(NEEDED[kind] for kind, words in WORDS.items() if word in words)
                raise UserError(f"{word}= has no effect on {self.kind.value}; use it {needed}")
        for word in ("stride", "n_tokens", "n_rows"):
            value = getattr(self, word)
            if value is not None and value < 1:
                raise UserError(f"{word}={value} is below 1; use at least 1")
        for word in ("n_shown", "seed"):
            value = getattr(self, word)
            if value is not None and not 0 <= value < 2**63:
                raise UserError(f"{word}={value} is outside 0 to {2**63 - 1}")
        for word in ("run", "corpus", "tasks", "settings", "shots", "choices"):
            values = getattr(self, word)
            if values == () and word != "choices":
                raise UserError(f"{word}=[] names nothing; leave it out, or name one")
            if isinstance(values, list | tuple) and len(set(values)) < len(values):
                twice = max(values, key=values.count)
                raise UserError(f"{word}={twice} is named twice; name it once")
        if any(n < 0 for n in self.shots or ()):
            raise UserError(f"shots={min(self.shots)} is below 0; use 0 for a prompt without examples")
        if self.data is not None and self.tasks is None:
            for word, example in (("prompt", "Question: {question} Answer:"), ("answer", "{answer}")):
                if not getattr(self, word):
                    raise UserError(f'data= needs {word}=, text with the names of columns such as "{example}"')
        if isinstance(self.choices, tuple) and len(self.choices) < 2:
            raise UserError("choices= has fewer than two choices; write choices=[yes,no], or name a column")
        for choice in self.choices if isinstance(self.choices, tuple) else ():
            if not choice or choice != choice.strip():
                raise UserError(
                    f"choices= has {choice!r}, and a choice is a text without spaces around it; those before it are of "
                    "delimiter="
                )
        if self.examples is not None and not any(self.shots or ()):
            raise UserError("examples= is where shots come from and there are none; add shots=[0,1,5]")
        if self.delimiter is not None and self.choices is None and not any(self.shots or ()):
            raise UserError("delimiter= stands before the answers of shots and before choices; add shots=[0,1,5]")
        if self.separator is not None and not any(self.shots or ()) and (self.choices is not None or self.stop):
            raise UserError("separator= stands between shots; add shots=[0,1,5]")
        if self.stop and not all(self.stop):
            raise UserError("stop= has an empty text, which would end every answer at once; leave it out")
        if self.separator == "" and self.stop is None and self.kind is Kind.answers:
            raise UserError(
                "separator= is empty, and an answer ends at it; add stop=TEXT, or stop=[] to go on to n_tokens"
            )
