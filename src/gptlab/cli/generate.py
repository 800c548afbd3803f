"""The command `gptlab generate`: text from a run, a checkpoint or a transformers folder."""

import json
import sys
import time
import typing
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptlab.cli.guard import guard
from gptlab.cli.options import (
    encodable,
    load_plugins,
    print_text,
    read,
    read_standard_input,
    read_text,
    without_last_line_end,
)
from gptlab.errors import UserError
from gptlab.generation.config import SEED, GenerateConfig, OutputFormat
from gptlab.generation.threads import spin_briefly
from gptlab.quoting import unescaped
from gptlab.units import plural

if typing.TYPE_CHECKING:
    from gptlab.data.tokenizers.tokenizer import Tokenizer
    from gptlab.generation.text import Generation
    from gptlab.models.base import LanguageModel

HELP = """gptlab generate run=PATH prompt="..." [key=value ...]

    run                 a run folder (its best checkpoint), a .ckpt file, a transformers folder, a hub name
                        or the folder of GPT-2 that OpenAI released
    prompt              the text to continue; \\n is a new line, \\t a tab and \\\\ a backslash, here and in stop; given
                        several times, the prompts are answered in one batch
    prompt_file         a text file with one prompt, as it is but for the end of its last line, or a .jsonl file with
                        one per line; without prompt= and prompt_file= the prompt is read from standard input
    max_new_tokens      at most so many new tokens per sequence (100)
    temperature         0: greedy decoding; 1: the model's own distribution (1)
    top_k top_p min_p   sample among the k most likely tokens; among the most likely ones with a total
                        probability of p; among those at least p times as likely as the most likely one
    repetition_penalty  above 1: tokens that have occurred before become less likely (1)
    num_beams           beam search with so many beams, instead of sampling
    length_penalty      scores of beams are divided by their length to this power (1)
    num_return_sequences
                        sequences per prompt; with beam search, the best ones (1)
    stop                end before this text; may be given several times
    seed                same seed, same text (1337)
    precision           32, bf16 or int8, which is the fastest on a CPU (32)
    device              cpu, cuda, cuda:1 ... (a GPU where there is one)
    draft_model         a smaller model for speculative decoding, which keeps the distribution of the text
    num_draft_tokens    tokens that the draft model proposes at a time (4)
    probabilities       show for each token the probabilities of so many of the most likely ones in percent, before
                        and after each of the settings above
    logprobs            show each token's log-probability, in nats, and so many of the most likely tokens
    output              text, or json with nothing else on standard output (text)
    plugins             modules that register components of your own, as [MODULE]
"""

# Other programs' names for ours, and earlier ones, where spelling alone would not find them.
FOREIGN = {
    "n_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "length": "max_new_tokens",
    "beams": "num_beams",
    "beam_size": "num_beams",
    "n_beams": "num_beams",
    "n": "num_return_sequences",
    "n_samples": "num_return_sequences",
    "num_samples": "num_return_sequences",
    "probs": "probabilities",
    "top_logprobs": "logprobs",
    "return_probs": "probabilities",
    "best_of": "num_return_sequences",
    "assistant_model": "draft_model",
    "draft": "draft_model",
    "num_assistant_tokens": "num_draft_tokens",
    "num_speculative_tokens": "num_draft_tokens",
    "n_draft": "num_draft_tokens",
    "frequency_penalty": "repetition_penalty",
    "do_sample": "temperature",
    "start": "prompt",
    "text": "prompt",
    "input": "prompt",
    "model": "run",
    "checkpoint": "run",
    "out_dir": "run",
    "init_from": "run",
    "dtype": "precision",
    "format": "output",
}


def main(arguments: list[str]) -> int:
    """Generate text as the arguments ask; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: generate(arguments))


def generate(arguments: list[str]) -> None:
    """Read the model, generate, and print the text as it comes."""
    hints = typing.get_type_hints(GenerateConfig)
    config = GenerateConfig(**read(load_plugins(arguments), hints, "gptlab generate", FOREIGN))
    config.prompt, config.stop = unescaped(config.prompt), unescaped(config.stop)
    config.check()
    prompts = _prompts(config)
    spin_briefly()
    # torch takes seconds to import: not for a wrong option.
    from gptlab.generation.precision import find_device, prepare
    from gptlab.generation.prompt import beyond_training, cut_by_window
    from gptlab.generation.text import encode_prompts, generate_encoded
    from gptlab.runs.load import load_model

    device = find_device(config.device)
    assert config.run is not None  # `check` asks for it
    model, tokenizer, end_ids = load_model(config.run, "run")
    draft = _draft_model(config.draft_model, config, tokenizer, model) if config.draft_model is not None else None
    encoded = encode_prompts(prompts, tokenizer, model, f"run={config.run}")
    if (note := beyond_training(encoded, model)) is not None:
        print(f"warning: {note}", file=sys.stderr)
    model = prepare(model, config.precision, device)
    if draft is not None:
        draft = prepare(draft, config.precision, device)
    screen = None if config.output is OutputFormat.json else _Screen(config, prompts, model)
    started = time.perf_counter()
    begun: dict[tuple[int, int], Generation] = {}

    def on_text(result: "Generation", piece: str) -> None:
        begun[result.prompt_index, result.sequence_index] = result
        if screen is not None:
            screen.show(result, piece)

    try:
        results = generate_encoded(
            model, tokenizer, encoded, config, texts=prompts, draft_model=draft, end_ids=end_ids, on_text=on_text
        )
    except KeyboardInterrupt:  # what was generated until then is shown
        if screen is None:
            _print_report(config, [begun[key] for key in sorted(begun)], time.perf_counter() - started)
        else:
            screen.end()
        raise
    seconds = time.perf_counter() - started
    if screen is None:
        _print_report(config, results, seconds)
    sys.stdout.flush()
    lengths = [len(encoded[result.prompt_index]) + len(result.tokens) for result in results]
    if (note := cut_by_window(lengths, model)) is not None:
        print(f"note: {note}", file=sys.stderr)
    n_tokens = sum(len(result.tokens) for result in results)
    print(f"{plural(n_tokens, 'token')} in {seconds:.2f} s, {n_tokens / seconds:.1f} tokens/s", file=sys.stderr)


class _Screen:
    """Standard output for people: a single sequence as it is generated, several one after another."""

    def __init__(self, config: GenerateConfig, prompts: list[str], model: "LanguageModel"):
        from gptlab.generation.prompt import has_encoder

        self.continues = not has_encoder(model)  # the text is shown after its prompt
        self.n_prompts, self.n_sequences = len(prompts), config.num_return_sequences
        self.by_token = config.logprobs is not None or config.probabilities is not None
        self.single = self.n_prompts * self.n_sequences == 1
        if self.single and self.continues and not self.by_token:
            self._write(prompts[0])

    def end(self) -> None:
        """End the line of a text that was interrupted."""
        if self.single and not self.by_token:
            self._write("\n")

    def show(self, result: "Generation", piece: str) -> None:
        if self.single:
            self._write(self._tokens(result, len(result.tokens) - 1) if self.by_token else piece)
        if result.finished is None:
            return
        if self.single:
            self._write("" if self.by_token else "\n")
            return
        head = [f"prompt {result.prompt_index + 1}"] if self.n_prompts > 1 else []
        if self.n_sequences > 1:
            head.append(f"sequence {result.sequence_index + 1}")
        if result.score is not None:
            head.append(f"score {result.score:.4f}")
        self._write(f"--- {', '.join(head)}\n")
        if self.by_token:
            self._write(self._tokens(result, 0))
        else:
            self._write(f"{result.prompt if self.continues else ''}{result.text}\n")

    def _tokens(self, result: "Generation", first: int) -> str:
        """The tokens from number `first` on, each with the most likely ones."""
        if result.logprobs:
            return "".join(_line(step) for step in result.logprobs[first:])
        steps = enumerate(result.probabilities[first:], first + 1)
        return "\n".join(_percent_table(number, step) for number, step in steps) + "\n"

    def _write(self, text: str) -> None:
        print_text(text)


def _line(step: dict[str, Any]) -> str:
    top = "  ".join(f"{token['text']!r} {token['log_p']:.4f}" for token in step["top"])
    return f"{step['text']!r} {step['log_p']:.4f}    {top}\n"


def _percent_table(number: int, step: dict[str, Any]) -> str:
    """The probabilities of a token and of the most likely ones: a column for the model's own and after each setting."""
    rows = [[f"token {number}", *step["stages"]]]
    for i, token in enumerate(step["tokens"]):
        mark = "*" if token["token"] == step["token"] else " "
        part = f" {token['token']}" if "\ufffd" in token["text"] else ""  # of a character: only the id tells which
        rows.append([f"{mark} {token['text']!r}{part}", *(_percent(values[i]) for values in step["stages"].values())])
    rows.append(["  all others", *(_percent(max(0.0, 1 - sum(values))) for values in step["stages"].values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _percent(probability: float) -> str:
    return "-" if probability < 5e-7 else f"{100 * probability:.2f}%"


def _print_report(config: GenerateConfig, results: list["Generation"], seconds: float) -> None:
    report = _report(config, results, seconds)
    text = json.dumps(report, ensure_ascii=False)
    print(text if text == encodable(text) else json.dumps(report), flush=True)


def _report(config: GenerateConfig, results: list["Generation"], seconds: float) -> dict[str, Any]:
    shown = []
    for result in results:
        entry: dict[str, Any] = {
            "prompt": result.prompt,
            "text": result.text,
            "tokens": result.tokens,
            "finished": result.finished,
        }
        if result.score is not None:
            entry["score"] = result.score
        if config.logprobs is not None:
            entry["logprobs"] = result.logprobs
        if config.probabilities is not None:
            entry["probabilities"] = result.probabilities
        shown.append(entry)
    n_tokens = sum(len(result.tokens) for result in results)
    return {
        "run": config.run,
        "seed": SEED if config.seed is None and config.num_beams is None else config.seed,
        "results": shown,
        "n_tokens": n_tokens,
        "seconds": seconds,
        "tokens_per_second": n_tokens / seconds,
    }


def _draft_model(
    source: str, config: GenerateConfig, tokenizer: "Tokenizer", target: "LanguageModel"
) -> "LanguageModel":
    from gptlab.generation.speculative import check_draft
    from gptlab.runs.load import load_model

    name = f"draft_model={source}"
    model, own, _ = load_model(source, "draft_model")
    check_draft(target, model, tokenizer.vocab_size, name)
    if not tokenizer.agrees_with(own):
        raise UserError(f"{name} has another tokenizer than run={config.run}; use one trained with the same")
    return model


def _prompts(config: GenerateConfig) -> list[str]:
    if config.prompt:
        return config.prompt
    if config.prompt_file is None:
        text = read_standard_input()
        if text is None:
            raise UserError('there is no prompt; give prompt="...", prompt_file=PATH, or text on standard input')
        return [without_last_line_end(text)]
    if not config.prompt_file:
        raise UserError("prompt_file= is empty; name a file, or leave it out to read standard input")
    path = Path(config.prompt_file)
    text = read_text(path, "prompt_file")
    if path.suffix != ".jsonl":
        return [without_last_line_end(text)]
    return list(_prompts_of_lines(path, text))


def _prompts_of_lines(path: Path, text: str) -> Iterator[str]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"prompt_file={path} has no prompt")
    for number, line in lines:
        content = None
        with suppress(ValueError):
            content = json.loads(line)
        prompt = content.get("prompt") if isinstance(content, dict) else content
        if not isinstance(prompt, str):
            raise UserError(f'{path}, line {number}: use a JSON string, or {{"prompt": "..."}}')
        yield prompt
