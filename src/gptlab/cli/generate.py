"""The command `gptlab generate`: text from a run, a checkpoint or a transformers folder."""

import json
import os
import sys
import time
import typing
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlab.cli.guard import guard
from gptlab.cli.options import read
from gptlab.errors import UserError
from gptlab.generation.config import N_DRAFT, SEED, GenerateConfig, OutputFormat
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

if typing.TYPE_CHECKING:
    from torch import nn

    from gptlab.data.tokenizers.tokenizer import Tokenizer
    from gptlab.generation.text import TextStream

HELP = """gptlab generate run=PATH prompt="..." [key=value ...]

    run                 a run folder (its best checkpoint), a .ckpt file, a transformers folder, a hub name
                        or the folder of GPT-2 that OpenAI released
    prompt              the text to continue; said several times, several prompts are answered together
    prompt_file         a text file with one prompt, or a .jsonl file with one on each line; without either
                        word the prompt is read from standard input
    n_tokens            at most so many new tokens of each answer (100)
    temperature         0: the most likely word; 1: the model's own distribution (1)
    top_k top_p min_p   of the words, keep the k most likely; the most likely with mass p together; those at
                        least p times as likely as the most likely
    repetition_penalty  above 1: what was said becomes less likely (1)
    beams               search for the most likely text with so many beams, instead of drawing
    length_penalty      scores of beams are divided by their length to this power (1)
    n_samples           answers to each prompt; with beams, the best so many (1)
    stop                end before this text; may be said several times
    seed                same seed, same text (1337)
    precision           32, bf16 or int8, which is the fastest on a CPU (32)
    device              cpu, cuda, cuda:1 ... (a GPU where there is one)
    draft n_draft       a smaller model that proposes n_draft tokens at a time (4); the text keeps its distribution
    logprobs            show each token's log-probability and so many of the most likely words
    output              text, or json with nothing else on standard output (text)
"""


@dataclass(slots=True)
class Answer:
    """One continuation of one prompt, while it grows and when it is done."""

    prompt: int
    sample: int
    stream: "TextStream"
    tokens: list[int] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)  # with logprobs=
    score: float | None = None  # with beams=


def main(words: list[str]) -> int:
    """Write as the words say; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    hints = typing.get_type_hints(GenerateConfig)
    return guard(lambda: generate(GenerateConfig(**read(words, hints, "gptlab generate"))))


def generate(config: GenerateConfig) -> None:
    """Read the model, continue the prompts, and show the text as it comes."""
    config.check()
    prompts = _prompts(config)
    # Threads that spin while they wait stop each other for milliseconds wherever other programs want the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch  # takes seconds: not for a wrong word

    from gptlab.generation.precision import find_device, prepare
    from gptlab.generation.sampling import Sampling
    from gptlab.generation.text import TextStream
    from gptlab.runs.load import load_model

    sampling = Sampling.of(config)
    sampling.check()
    device = find_device(config.device)
    model, tokenizer, ends = load_model(config.run, "run")
    if isinstance(model.config, EncoderConfig):
        raise UserError(f"run={config.run} is an encoder, which writes no text; name a decoder or an encoder-decoder")
    draft = _draft(config, tokenizer, model) if config.draft else None
    ids = [_encoded(prompt, i, len(prompts), tokenizer, model) for i, prompt in enumerate(prompts, 1)]
    anew = _begins_anew(model)
    answers = [
        Answer(i, sample, TextStream(tokenizer, [] if anew else row, stop=config.stop, ends=ends))
        for i, row in enumerate(ids)
        for sample in range(config.n_samples)
    ]
    model = prepare(model, config.precision, device)
    if draft is not None:
        draft = prepare(draft, config.precision, device)
    screen = (
        None
        if config.output is OutputFormat.json
        else _Screen(config, [""] * len(prompts) if anew else prompts, answers)
    )
    started = time.perf_counter()
    with torch.no_grad():
        if config.beams is not None:
            _search(config, model, tokenizer, ends, ids, answers)
            if screen:
                for answer in answers:
                    screen.piece(answer, answer.stream.text)
                    screen.end(answer)
        else:
            _draw(config, model, draft, tokenizer, sampling, ids, answers, screen)
    seconds = time.perf_counter() - started
    n_tokens = sum(len(answer.tokens) for answer in answers)
    if screen is None:
        report = _report(config, prompts, answers, seconds)
        text = json.dumps(report, ensure_ascii=False)
        print(text if text == _encodable(text) else json.dumps(report))
    sys.stdout.flush()
    print(f"{n_tokens:,} tokens in {seconds:.2f} s, {n_tokens / seconds:.1f} tokens/s", file=sys.stderr)


def _draw(config, model, draft, tokenizer, sampling, ids, answers, screen) -> None:
    """Draw all answers at once, or with a draft model one after another."""
    from gptlab.generation.decode import Draw, decode, seeded
    from gptlab.generation.decoding_state import DecodingState
    from gptlab.generation.speculative import speculate

    device = next(model.parameters()).device
    generators = seeded(SEED if config.seed is None else config.seed, len(answers), device)
    done: set[int] = set()

    def take(row: int, draw: Draw) -> bool:
        answer = answers[row]
        answer.tokens.append(draw.token)
        if config.logprobs is not None:
            answer.steps.append(_step(draw, tokenizer))
        piece = answer.stream.feed(draw.token)
        ended = answer.stream.finished is not None or len(answer.tokens) == config.n_tokens
        if ended:
            piece += answer.stream.close()
            done.add(row)
        if screen:
            screen.piece(answer, piece)
            if ended:
                screen.end(answer)
        return ended

    if draft is None:
        rows = [ids[answer.prompt] for answer in answers]
        reader = DecodingState(model, rows, n_more=config.n_tokens, vocab_size=tokenizer.vocab_size)
        steps = decode(
            reader,
            config.n_tokens,
            sampling,
            generators=generators,
            ends=lambda row, token: row in done,
            n_top=config.logprobs,
        )
        for draws in steps:
            for one in draws:
                take(one.row, one)
        return
    for row, answer in enumerate(answers):
        for one in speculate(
            model,
            draft,
            ids[answer.prompt],
            config.n_tokens,
            sampling,
            n_draft=config.n_draft or N_DRAFT,
            generator=generators[row],
            vocab_size=tokenizer.vocab_size,
            n_top=config.logprobs,
        ):
            if take(row, one):
                break


def _search(config, model, tokenizer, text_ends, ids, answers) -> None:
    """Find the best answers of each prompt with beam search."""
    from gptlab.generation.beam import beam_search
    from gptlab.generation.text import TextStream

    for i, prompt in enumerate(ids):

        def written(tokens: list[int], prompt=prompt) -> TextStream:
            stream = TextStream(tokenizer, [] if _begins_anew(model) else prompt, stop=config.stop, ends=text_ends)
            for token in tokens:
                stream.feed(token)
                if stream.finished:
                    break
            return stream

        beams = beam_search(
            model,
            prompt,
            config.n_tokens,
            n_beams=config.beams,
            length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
            n_best=config.n_samples,
            # Reading a text again for each candidate takes time that only stop strings are worth.
            ends=lambda tokens: tokens[-1] in text_ends or (bool(config.stop) and written(tokens).finished is not None),
            vocab_size=tokenizer.vocab_size,
        )
        if len(beams) < config.n_samples:
            raise UserError(
                f"n_samples={config.n_samples} is more than the {len(beams)} answers that the search found; "
                f"use n_samples={len(beams)}, or raise n_tokens"
            )
        own = [answer for answer in answers if answer.prompt == i]
        for answer, beam in zip(own, beams, strict=True):
            answer.tokens, answer.score, answer.stream = beam.tokens, beam.score, written(beam.tokens)
            answer.stream.close()


class _Screen:
    """Standard output for people: a single answer as it comes, several one after another."""

    def __init__(self, config: GenerateConfig, prompts: list[str], answers: list[Answer]):
        self.prompts, self.answers = prompts, answers
        self.steps = config.logprobs is not None
        self.single = len(answers) == 1
        if self.single and not self.steps:
            self._write(prompts[0])

    def piece(self, answer: Answer, piece: str) -> None:
        if not self.single:
            return
        if not self.steps:
            self._write(piece)
        elif answer.steps:
            self._write(self._line(answer.steps[-1]))

    def end(self, answer: Answer) -> None:
        if self.single:
            if not self.steps:
                self._write("\n")
            return
        n_prompts = len(self.prompts)
        head = [f"prompt {answer.prompt + 1}"] if n_prompts > 1 else []
        if len(self.answers) > n_prompts:
            head.append(f"sample {answer.sample + 1}")
        if answer.score is not None:
            head.append(f"score {answer.score:.4f}")
        self._write(f"--- {', '.join(head)}\n")
        if self.steps:
            self._write("".join(map(self._line, answer.steps)))
        else:
            self._write(f"{self.prompts[answer.prompt]}{answer.stream.text}\n")

    def _line(self, step: dict[str, Any]) -> str:
        top = "  ".join(f"{word['text']!r} {word['log_p']:.4f}" for word in step["top"])
        return f"{step['text']!r} {step['log_p']:.4f}    {top}\n"

    def _write(self, text: str) -> None:
        sys.stdout.write(_encodable(text))
        sys.stdout.flush()


def _encodable(text: str) -> str:
    """The text without what standard output cannot show: lone surrogates, and much on a terminal of few letters."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _step(draw, tokenizer: "Tokenizer") -> dict[str, Any]:
    def word(token: int, log_p: float) -> dict[str, Any]:
        return {"token": token, "text": tokenizer.decode([token]), "log_p": log_p}

    return {**word(draw.token, draw.log_p), "top": [word(*pair) for pair in draw.top]}


def _report(config: GenerateConfig, prompts: list[str], answers: list[Answer], seconds: float) -> dict[str, Any]:
    results = []
    for answer in answers:
        result = {
            "prompt": prompts[answer.prompt],
            "text": answer.stream.text,
            "tokens": answer.tokens,
            "finished": answer.stream.finished or "length",
        }
        if answer.score is not None:
            result["score"] = answer.score
        if config.logprobs is not None:
            result["logprobs"] = answer.steps
        results.append(result)
    n_tokens = sum(len(answer.tokens) for answer in answers)
    return {
        "run": config.run,
        "seed": SEED if config.seed is None and config.beams is None else config.seed,
        "results": results,
        "n_tokens": n_tokens,
        "seconds": seconds,
        "tokens_per_second": n_tokens / seconds,
    }


def _begins_anew(model: "nn.Module") -> bool:
    """Whether the model answers a prompt that its encoder reads, instead of going on with it."""
    return isinstance(model.config, EncoderDecoderConfig)


def _draft(config: GenerateConfig, tokenizer: "Tokenizer", target: "nn.Module") -> "nn.Module":
    from gptlab.runs.load import load_model

    model, own, _ = load_model(config.draft, "draft")
    if type(model.config) is not type(target.config):
        raise UserError(
            f"draft={config.draft} is a model with architecture={model.config.type} and run={config.run} one "
            f"with architecture={target.config.type}; use two of the same"
        )
    if not tokenizer.agrees_with(own):
        raise UserError(f"draft={config.draft} has another tokenizer than run={config.run}; use one trained with it")
    return model


def _encoded(prompt: str, number: int, n_prompts: int, tokenizer: "Tokenizer", model) -> list[int]:
    """A prompt's tokens after the tokenizer's beginning; ValueError where the context does not hold them.

    An encoder's end with the end-of-text word, as T5 was trained.
    """
    row = tokenizer.encode(prompt).tolist()
    which = f"prompt {number} of {n_prompts}" if n_prompts > 1 else "the prompt"
    if not row:
        raise UserError(f"{which} is empty; give it at least one character")
    if _begins_anew(model):  # positions are relative: there is no limit
        return [*tokenizer.beginning, *row] + ([] if tokenizer.eot is None else [tokenizer.eot])
    row, limit = [*tokenizer.beginning, *row], model.config.context_length
    if len(row) > limit:
        raise UserError(
            f"{which} has {len(row):,} tokens and the model's context holds {limit:,}; "
            f"leave out at least {len(row) - limit:,} of them"
        )
    return row


def _prompts(config: GenerateConfig) -> list[str]:
    if config.prompt:
        return config.prompt
    if config.prompt_file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError('there is no prompt; give prompt="...", prompt_file=PATH, or text on standard input')
        return [sys.stdin.read().removesuffix("\n")]
    if not config.prompt_file:
        raise UserError("prompt_file= is empty; name a file, or leave it out to read standard input")
    path = Path(config.prompt_file).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"prompt_file={config.prompt_file} cannot be read: {reason}") from None
    if path.suffix != ".jsonl":
        return [text.removesuffix("\n")]
    return list(_rows(path, text))


def _rows(path: Path, text: str) -> Iterator[str]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"prompt_file={path} has no prompt")
    for number, line in lines:
        row = None
        with suppress(ValueError):
            row = json.loads(line)
        prompt = row.get("prompt") if isinstance(row, dict) else row
        if not isinstance(prompt, str):
            raise UserError(f'{path}, line {number}: use a JSON string, or {{"prompt": "..."}}')
        yield prompt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
