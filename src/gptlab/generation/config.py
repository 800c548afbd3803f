"""Config schema: decoding, and `gptlab generate`."""

import math
import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds, shown

SEED = 1337
NUM_DRAFT_TOKENS = 4
MAX_NEW_TOKENS = 100

# Bounds of the settings that `sampling.Sampling` has too.
TEMPERATURE: dict[str, Any] = {"ge": 0, "hint": "use 0 for greedy decoding, 1 for the model's own distribution"}
TOP_K: dict[str, Any] = {"ge": 1, "hint": "use null for the whole vocabulary"}
TOP_P: dict[str, Any] = {"gt": 0, "le": 1, "hint": "use 1, or null, for the whole vocabulary"}
MIN_P: dict[str, Any] = {"ge": 0, "le": 1, "hint": "use 0, or null, for the whole vocabulary"}
REPETITION_PENALTY: dict[str, Any] = {"gt": 0, "hint": "use 1 for none, more for less repetition"}

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
SETTINGS = (*SAMPLING, "num_beams", "length_penalty")  # how a text is decoded, whatever its length and number


class Precision(Enum):
    """The type of weights and activations."""

    float32 = "32"
    bfloat16 = "bf16"
    int8 = "int8"  # weights of linear layers alone; the rest is bfloat16


class OutputFormat(Enum):
    """What standard output gets."""

    text = "text"
    json = "json"


@dataclass(kw_only=True, slots=True)
class DecodingConfig:
    """How prompts are answered: sampling, greedy decoding, beam search, speculative decoding."""

    max_new_tokens: int = bounded(MAX_NEW_TOKENS, ge=1)  # per sequence
    temperature: float | None = bounded(None, **TEMPERATURE)  # null: 1; 0: greedy
    top_k: int | None = bounded(None, **TOP_K)
    top_p: float | None = bounded(None, **TOP_P)
    min_p: float | None = bounded(None, **MIN_P)
    repetition_penalty: float | None = bounded(None, **REPETITION_PENALTY)  # null: 1
    num_beams: int | None = bounded(None, ge=1)  # null: no beam search
    length_penalty: float | None = None  # null: 1
    num_return_sequences: int = bounded(1, ge=1)  # per prompt; with beam search, the best ones
    stop: list[str] = field(default_factory=list)
    seed: int | None = bounded(None, ge=-(2**63), lt=2**64)  # null: SEED
    num_draft_tokens: int | None = bounded(None, ge=1)  # proposed by the draft model at a time; null: NUM_DRAFT_TOKENS
    logprobs: int | None = bounded(None, ge=1)  # report so many of the most likely tokens at each step
    probabilities: int | None = bounded(None, ge=1)  # the same in percent, before and after each setting

    def check(self) -> None:
        """Refuse settings that are out of bounds or contradict each other."""
        check_bounds(self)
        if not all(self.stop):
            raise UserError("stop has an empty text, which would end every sequence at once; leave it out")
        if self.num_beams is not None:
            for name in (*SAMPLING, "seed", "num_draft_tokens", "logprobs", "probabilities"):
                if getattr(self, name) is not None:
                    raise UserError(f"{name}= has no effect on beam search; leave out {name}= or num_beams=")
            if self.num_return_sequences > self.num_beams:
                raise UserError(
                    f"num_return_sequences={self.num_return_sequences} is more than num_beams={self.num_beams} can "
                    "give; raise num_beams"
                )
        if self.length_penalty is not None:
            if self.num_beams is None:
                raise UserError("length_penalty= is an option of beam search; add num_beams=")
            # The longest sequence's length to this power divides its score.
            if not abs(self.length_penalty) * math.log(max(self.max_new_tokens, 2)) < math.log(sys.float_info.max):
                raise UserError(
                    f"length_penalty={self.length_penalty} is too large for sequences of {self.max_new_tokens:,} "
                    "tokens; use a number near 1"
                )
        if self.logprobs is not None and self.probabilities is not None:
            raise UserError("logprobs= and probabilities= show the same tokens in two ways; leave out one of them")
        if self.temperature == 0:
            for name in ("top_k", "top_p", "min_p"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{name}={shown(getattr(self, name))} has no effect at temperature=0, which is greedy "
                        "decoding; leave out one of them"
                    )

    def check_draft(self, *, given: bool) -> None:
        """Refuse settings that do not fit a draft model, or its absence."""
        if self.num_beams is not None and given:
            raise UserError("draft_model= has no effect on beam search; leave out draft_model= or num_beams=")
        if self.num_draft_tokens is not None and not given:
            raise UserError("num_draft_tokens= is an option of speculative decoding; add draft_model=")


@dataclass(kw_only=True, slots=True)
class GenerateConfig(DecodingConfig):
    """The options of `gptlab generate`; null where an option is not given."""

    run: str | None = None  # a run folder, a .ckpt file, a transformers folder or a hub name
    prompt: list[str] = field(default_factory=list)  # may be given several times
    prompt_file: str | None = None  # a text file is one prompt, a .jsonl file one per line
    precision: Precision = Precision.float32
    device: str | None = None  # null: a GPU where there is one
    draft_model: str | None = None  # a smaller model with the same tokenizer
    output: OutputFormat = OutputFormat.text

    def check(self) -> None:
        if not self.run:
            raise UserError("gptlab generate needs run=PATH: a run folder, a .ckpt file or a transformers folder")
        if self.prompt and self.prompt_file is not None:
            raise UserError("prompt= and prompt_file= are both given; use one of them")
        DecodingConfig.check(self)
        self.check_draft(given=self.draft_model is not None)
