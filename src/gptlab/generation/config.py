"""What `gptlab generate` may be told."""

import math
import sys
from dataclasses import dataclass, field
from enum import Enum

from gptlab.errors import UserError

SEED = 1337
N_DRAFT = 4


class Precision(Enum):
    """The type of weights and activations."""

    float32 = "32"
    bfloat16 = "bf16"
    int8 = "int8"  # weights of matrices alone; the rest is bfloat16


class OutputFormat(Enum):
    """What standard output gets."""

    text = "text"
    json = "json"


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """The words of `gptlab generate`; null is what is not said."""

    run: str | None = None  # a run folder, a .ckpt file, a transformers folder or a hub name
    prompt: list[str] = field(default_factory=list)  # may be said several times
    prompt_file: str | None = None  # a text file is one prompt, a .jsonl file one on each line
    n_tokens: int = 100  # at most, of each answer
    temperature: float | None = None  # null: 1; 0: the most likely word
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    beams: int | None = None
    length_penalty: float | None = None  # null: 1
    n_samples: int = 1  # answers to each prompt; with beams, the best so many
    stop: list[str] = field(default_factory=list)  # may be said several times
    seed: int | None = None  # null: SEED
    precision: Precision = Precision.float32
    device: str | None = None  # null: a GPU where there is one
    draft: str | None = None  # a smaller model with the same tokenizer
    n_draft: int | None = None  # tokens that it proposes at a time; null: N_DRAFT
    logprobs: int | None = None  # show so many of the most likely words at each step
    output: OutputFormat = OutputFormat.text

    def check(self) -> None:
        """Refuse what cannot be obeyed."""
        if not self.run:
            raise UserError("gptlab generate needs run=PATH: a run folder, a .ckpt file or a transformers folder")
        if self.prompt and self.prompt_file is not None:
            raise UserError("prompt= and prompt_file= are both given; use one of them")
        for name in ("n_tokens", "n_samples", "beams", "n_draft", "logprobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} is below 1; use at least 1")
        if self.beams is not None:
            for name in (
                *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
                *("seed", "draft", "logprobs"),
            ):
                if getattr(self, name) is not None:
                    raise UserError(f"{name}= has no effect on beam search; leave out {name}= or beams=")
            if self.n_samples > self.beams:
                raise UserError(f"n_samples={self.n_samples} is more than beams={self.beams} can give; raise beams")
        if self.length_penalty is not None:
            if self.beams is None:
                raise UserError("length_penalty= is a word of beam search; add beams=")
            # The longest answer's length to this power divides its score.
            if not abs(self.length_penalty) * math.log(max(self.n_tokens, 2)) < math.log(sys.float_info.max):
                raise UserError(
                    f"length_penalty={self.length_penalty} is too large for answers of {self.n_tokens:,} tokens; "
                    "use a number near 1"
                )
        if self.temperature == 0:
            for name in ("top_k", "top_p", "min_p"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{name}= has no effect at temperature=0, which takes the most likely word; leave out one of them"
                    )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise UserError(f"seed={self.seed} does not fit 64 bits; use a whole number from 0 to 2^64 - 1")
        if self.n_draft is not None and self.draft is None:
            raise UserError("n_draft= says how far a draft model goes ahead; add draft=PATH")
