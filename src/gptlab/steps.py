"""The optimizer steps of a run: how many sequences each has, how long they are, and how many tokens came before."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Points = Sequence[Sequence[int]]


class Phase(NamedTuple):
    """Steps of one size."""

    first_step: int
    first_sequence: int  # of the run, which its first step reads
    n_sequences: int  # of each step


@dataclass(frozen=True, slots=True)
class Steps:
    """The sizes of steps as functions of their number alone, so that any step is found without those before it.

    A step follows so many finished ones. `phases` begin at step 0 and the last has no end; `lengths` are points
    (tokens, length): before so many tokens a sequence is trained on in parts of this length.
    """

    context_length: int
    phases: tuple[Phase, ...]
    lengths: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(
        cls, context_length: int, batch_tokens: int, batch_warmup: Points = (), length_warmup: Points = ()
    ) -> "Steps":
        """Steps of `batch_tokens` tokens, and before that of those in `batch_warmup`: points (tokens, tokens a step).

        The size of a step follows from the tokens before it, so a point takes effect with the first step that begins
        at it or later.
        """
        phases, step, sequence = [], 0, 0
        for until, tokens in batch_warmup:
            left, size = until - sequence * context_length, tokens // context_length
            if left > 0:
                n_steps = -(-left // (size * context_length))
                phases.append(Phase(step, sequence, size))
                step, sequence = step + n_steps, sequence + n_steps * size
        phases.append(Phase(step, sequence, batch_tokens // context_length))
        return cls(context_length, tuple(phases), tuple((until, length) for until, length in length_warmup))

    def phase(self, step: int) -> Phase:
        """The phase of a step."""
        return self.phases[bisect_right(self.phases, step, key=lambda phase: phase.first_step) - 1]

    def n_sequences(self, step: int) -> int:
        """The sequences of a step, over all devices."""
        return self.phase(step).n_sequences

    def sequences_before(self, step: int) -> int:
        """The sequences of all steps before: the number of a step's first sample."""
        first_step, first_sequence, n_sequences = self.phase(step)
        return first_sequence + (step - first_step) * n_sequences

    def tokens(self, step: int) -> int:
        """The target tokens of a step, over all devices."""
        return self.n_sequences(step) * self.context_length

    def tokens_before(self, step: int) -> int:
        """The target tokens of all steps before."""
        return self.sequences_before(step) * self.context_length

    def within(self, tokens: int) -> int:
        """The whole steps that so many tokens make."""
        size = self.context_length
        at = bisect_right(self.phases, tokens, key=lambda phase: phase.first_sequence * size) - 1
        first_step, first_sequence, n_sequences = self.phases[at]
        return first_step + (tokens - first_sequence * size) // (n_sequences * size)

    def reaching(self, tokens: int) -> int:
        """The steps after which there are so many tokens, or more."""
        steps = self.within(tokens)
        return steps + (self.tokens_before(steps) < tokens)

    def length(self, step: int) -> int:
        """The tokens that a sequence of a step is trained on at a time."""
        before = self.tokens_before(step)
        return next((length for until, length in self.lengths if before < until), self.context_length)


def steps_of_config(config: Mapping[str, Any]) -> Steps:
    """The steps of a run's plain config, also of one from before there were warmups."""
    context_length = config["data"]["context_length"] or config["model"]["context_length"]
    warmups = (config.get(name) or () for name in ("batch_warmup", "length_warmup"))
    return Steps.of(context_length, config["batch_tokens"], *warmups)
