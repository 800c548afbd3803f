"""What `gptlab generate` may be told."""

from dataclasses import dataclass, field
from enum import Enum


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
    temperature: float | None = None  # null: 1; 0: the likeliest word
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    beams: int | None = None
    length_penalty: float | None = None  # null: 1
    n_samples: int = 1  # answers to each prompt; with beams, the best so many
    stop: list[str] = field(default_factory=list)  # may be said several times
    seed: int = 1337
    precision: Precision = Precision.float32
    device: str | None = None  # null: a GPU where there is one
    draft: str | None = None  # a smaller model with the same tokenizer
    n_draft: int | None = None  # tokens that it proposes at a time; null: 4
    logprobs: int | None = None  # show so many of the likeliest words at each step
    output: OutputFormat = OutputFormat.text

    def check(self) -> None:
        """Refuse what cannot be obeyed."""
        if not self.run:
            raise ValueError("gptlab generate needs run=PATH: a run folder, a .ckpt file or a transformers folder")
        if self.prompt and self.prompt_file is not None:
            raise ValueError("prompt= and prompt_file= are both given; use one of them")
        for name in ("n_tokens", "n_samples", "beams", "n_draft", "logprobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} is below 1; use at least 1")
        if self.beams is not None:
            for name in (
                *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
                *("draft", "logprobs"),
            ):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}= has no effect on beam search; leave out {name}= or beams=")
            if self.n_samples > self.beams:
                raise ValueError(f"n_samples={self.n_samples} is more than beams={self.beams} can give; raise beams")
        if self.length_penalty is not None and self.beams is None:
            raise ValueError("length_penalty= is a word of beam search; add beams=")
        if self.n_draft is not None and self.draft is None:
            raise ValueError("n_draft= says how far a draft model goes ahead; add draft=PATH")
