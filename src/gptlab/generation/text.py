"""Text generation: text in, text out."""

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.generation.beam import beam_search
from gptlab.generation.config import MAX_NEW_TOKENS, NUM_DRAFT_TOKENS, SEED, DecodingConfig
from gptlab.generation.decode import Draw, decode, seeded
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.prompt import (
    beyond_training,
    check_generates,
    check_length,
    encode_prompt,
    has_encoder,
)
from gptlab.generation.sampling import Sampling
from gptlab.generation.speculative import check_draft, speculate
from gptlab.generation.stream import TextStream
from gptlab.models.base import LanguageModel

BATCH_TOKENS = 16_384  # of prompts and continuations together, decoded at a time


@dataclass(slots=True)
class Generation:
    """What a model generated for a prompt; `str()` gives its text."""

    prompt: str
    prompt_index: int = 0
    sequence_index: int = 0  # among those of the prompt, 0 to num_return_sequences - 1
    text: str = ""  # without the prompt, the end-of-text token and the stop text
    tokens: list[int] = field(default_factory=list)
    finished: str | None = None  # by "stop", "end_of_text" or "length"; None while it is being generated
    score: float | None = None  # of beam search: log-probability / len(tokens)^length_penalty
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # per token: token, text, log_p and the top tokens'
    # Per token: token, text and, by setting, the probabilities of the most likely tokens.
    probabilities: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text


OnText = Callable[[Generation, str], None]


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    num_return_sequences: int = 1,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    draft_model: LanguageModel | None = None,
    num_draft_tokens: int | None = None,
    logprobs: int | None = None,
    probabilities: int | None = None,
    end_ids: Collection[int] | None = None,
    on_text: OnText | None = None,
) -> list[Generation]:
    """Generate text after prompts: `num_return_sequences` results for each prompt, in the order of the prompts.

    `print(generate(model, tokenizer, "To be")[0])` prints the text that follows one prompt. Settings that are None have
    no effect or these defaults: temperature 1 (0 is greedy decoding), length_penalty 1, `seed` gptlab's own. A sequence
    ends after `max_new_tokens` tokens, before a text of `stop`, or with a token of `end_ids` (None: those of the
    model, or the tokenizer's end-of-text token). What a sequence draws does not depend on the rest of the batch.
    `on_text` is called with a result and each new piece of its text; the last has `finished` set. The model is used
    where it is, in eval mode.

    UserError for a setting that cannot work and a prompt that is empty or longer than the model's context.
    """
    config = DecodingConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
        length_penalty=length_penalty,
        num_return_sequences=num_return_sequences,
        stop=[stop] if isinstance(stop, str) else list(stop),
        seed=seed,
        num_draft_tokens=num_draft_tokens,
        logprobs=logprobs,
        probabilities=probabilities,
    )
    config.check()
    config.check_draft(given=draft_model is not None)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    encoded = encode_prompts(texts, tokenizer, model)
    if (note := beyond_training(encoded, model)) is not None:
        warnings.warn(note, stacklevel=2)
    return generate_encoded(
        model, tokenizer, encoded, config, texts=texts, draft_model=draft_model, end_ids=end_ids, on_text=on_text
    )


def encode_prompts(
    texts: Sequence[str], tokenizer: Tokenizer, model: LanguageModel, what: str = "the model"
) -> list[list[int]]:
    """The tokens of prompts for a model; UserError for one that is empty or too long, and for a model that generates
    no text, which the error calls `what`."""
    check_generates(model.config, what)
    encoded = []
    for number, text in enumerate(texts, 1):
        name = f"prompt {number} of {len(texts)}" if len(texts) > 1 else "the prompt"
        encoded.append(encode_prompt(text, tokenizer, model, name))
        check_length(encoded[-1], model, name)
    return encoded


@torch.no_grad()
def generate_encoded(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    config: DecodingConfig,
    *,
    texts: Sequence[str] = (),
    draft_model: LanguageModel | None = None,
    end_ids: Collection[int] | None = None,
    on_text: OnText | None = None,
) -> list[Generation]:
    """As `generate`, after prompts that are encoded already and with settings that are checked."""
    if end_ids is None:
        usual = () if tokenizer.eot is None else (tokenizer.eot,)
        end_ids = usual if model.end_ids is None else model.end_ids
    decoder = _Decoder(model, tokenizer, config, frozenset(end_ids), on_text)
    jobs = [
        _Job(Generation(texts[i] if texts else "", i, j), list(prompt), decoder.stream(prompt))
        for i, prompt in enumerate(prompts)
        for j in range(config.num_return_sequences)
    ]
    models = [model] if draft_model is None else [model, draft_model]
    training = [own.training for own in models]
    try:
        for own in models:
            own.eval()
        if config.num_beams is not None:
            decoder.search(jobs, config.num_beams)
        elif draft_model is not None:
            check_draft(model, draft_model, tokenizer.vocab_size)
            decoder.speculate(jobs, draft_model)
        else:
            decoder.sample(jobs)
    finally:
        for own, was in zip(models, training, strict=True):
            own.train(was)
    return [job.result for job in jobs]


@dataclass(slots=True)
class _Job:
    result: Generation
    prompt: list[int]
    stream: TextStream


class _Decoder:
    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        config: DecodingConfig,
        end_ids: frozenset[int],
        on_text: OnText | None,
    ):
        self.model, self.tokenizer, self.config, self.end_ids = model, tokenizer, config, end_ids
        self.on_text = on_text or (lambda result, piece: None)

    def stream(self, prompt: Sequence[int]) -> TextStream:
        before = [] if has_encoder(self.model) else prompt
        return TextStream(self.tokenizer, before, stop=self.config.stop, end_ids=self.end_ids)

    def sample(self, jobs: list[_Job]) -> None:
        config, sampling, generators = self.config, Sampling.of(self.config), self._generators(jobs)
        order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].prompt))
        while order:
            size = max(1, BATCH_TOKENS // (len(jobs[order[0]].prompt) + config.max_new_tokens))
            batch, order = order[:size], order[size:]
            state = DecodingState(
                self.model,
                [jobs[i].prompt for i in batch],
                n_more=config.max_new_tokens,
                vocab_size=self.tokenizer.vocab_size,
            )
            steps = decode(
                state,
                config.max_new_tokens,
                sampling,
                generators=[generators[i] for i in batch],
                ends=lambda i, token, batch=batch: jobs[batch[i]].result.finished is not None,
                n_top=config.logprobs,
                n_stages=config.probabilities,
            )
            for draws in steps:
                for draw in draws:
                    self._take(jobs[batch[draw.index]], draw)

    def speculate(self, jobs: list[_Job], draft_model: LanguageModel) -> None:
        for job, generator in zip(jobs, self._generators(jobs), strict=True):
            for draw in speculate(
                self.model,
                draft_model,
                job.prompt,
                self.config.max_new_tokens,
                Sampling.of(self.config),
                num_draft_tokens=self.config.num_draft_tokens or NUM_DRAFT_TOKENS,
                generator=generator,
                vocab_size=self.tokenizer.vocab_size,
                n_top=self.config.logprobs,
                n_stages=self.config.probabilities,
            ):
                self._take(job, draw)
                if job.result.finished is not None:
                    break

    def search(self, jobs: list[_Job], num_beams: int) -> None:
        config, n = self.config, self.config.num_return_sequences
        for own in (jobs[start : start + n] for start in range(0, len(jobs), n)):
            prompt = own[0].prompt

            def ends(tokens: list[int], prompt: list[int] = prompt) -> bool:
                if tokens[-1] in self.end_ids:
                    return True
                if not config.stop:  # decoding a text again for each candidate takes time that only stop texts need
                    return False
                return _fed(self.stream(prompt), tokens).finished is not None

            beams = beam_search(
                self.model,
                prompt,
                config.max_new_tokens,
                num_beams=num_beams,
                length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
                num_return_sequences=n,
                ends=ends,
                vocab_size=self.tokenizer.vocab_size,
            )
            if len(beams) < n:
                raise UserError(
                    f"num_return_sequences={n} is more than the {len(beams)} sequences that the search found; "
                    f"use num_return_sequences={len(beams)}, or raise max_new_tokens"
                )
            for job, beam in zip(own, beams, strict=True):
                _fed(job.stream, beam.tokens).close()
                job.result.tokens, job.result.score = beam.tokens, beam.score
                job.result.text, job.result.finished = job.stream.text, job.stream.finished or "length"
                self.on_text(job.result, job.result.text)

    def _generators(self, jobs: list[_Job]) -> list[torch.Generator]:
        device = next(self.model.parameters()).device
        return seeded(SEED if self.config.seed is None else self.config.seed, len(jobs), device)

    def _take(self, job: _Job, draw: Draw) -> None:
        result = job.result
        result.tokens.append(draw.token)
        if self.config.logprobs is not None:
            top = [self._logprob(token, log_p) for token, log_p in draw.top]
            result.logprobs.append({**self._logprob(draw.token, draw.log_p), "top": top})
        if self.config.probabilities is not None:
            result.probabilities.append(self._probabilities(draw))
        piece = job.stream.feed(draw.token)
        if job.stream.finished is not None or len(result.tokens) == self.config.max_new_tokens:
            piece += job.stream.close()
            result.finished = job.stream.finished or "length"
        result.text = job.stream.text
        self.on_text(result, piece)

    def _probabilities(self, draw: Draw) -> dict[str, Any]:
        tokens = list(next(iter(draw.stages.values())))
        return {
            "token": draw.token,
            "text": self.tokenizer.decode([draw.token]),
            "tokens": [{"token": token, "text": self.tokenizer.decode([token])} for token in tokens],
            "stages": {name: [values[token] for token in tokens] for name, values in draw.stages.items()},
        }

    def _logprob(self, token: int, log_p: float | None) -> dict[str, Any]:
        return {"token": token, "text": self.tokenizer.decode([token]), "log_p": log_p}


def _fed(stream: TextStream, tokens: list[int]) -> TextStream:
    for token in tokens:
        stream.feed(token)
        if stream.finished:
            break
    return stream
