"""The command `gptlab evaluate`: how good a trained model is, by numbers."""

import json
import os
import platform
import sys
import time
import typing
from dataclasses import dataclass, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gptlab import composition
from gptlab.cli.guard import guard
from gptlab.cli.options import read
from gptlab.errors import UserError
from gptlab.evaluation.config import SETTING_WORDS, EvaluateConfig, Kind
from gptlab.generation.config import SEED, GenerateConfig, OutputFormat

if typing.TYPE_CHECKING:
    from gptlab.config import RunConfig
    from gptlab.data.sources.corpus import Corpus
    from gptlab.evaluation.prompts import Prompts
    from gptlab.runs.load import Trained

N_SHOWN = 3
RESULTS = "evaluations"  # in the run folder
LIBRARIES = {Kind.answers: ("torchmetrics",), Kind.tasks: ("lm-eval", "datasets")}
TEXTS = ("prompt", "answer", "separator", "delimiter", "stop")
HELP = """gptlab evaluate run=PATH [run=PATH ...] [key=value ...]

    run                 a run folder (its best checkpoint), a .ckpt file, a transformers folder or a hub name;
                        said several times, one after another, and compared in the end

  perplexity and bits per byte, unless data= or tasks= is given
    corpus              text: a file, a folder or a glob; may be said several times (the run's validation split)
    stride              how far the window moves; each token has context - stride tokens before it (half the context)

  prompts from a table
    data                a .jsonl, .json, .csv or .tsv file
    prompt answer       text with columns as {question}; \\n is a new line
    choices             multiple choice: the column with the list, or the choices of all as [yes,no]
    shots               numbers of examples before each prompt, as [0,1,5] (0)
    examples            a table that examples come from (the other rows of data)
    separator           between examples (a blank line)
    delimiter           between a prompt and its answer (a space)
    seed                which examples, and what is drawn (1337)
    n_rows              evaluate the first so many rows (all)

  what is written, where there are no choices, against the answer
    settings            ways to write, as ["temperature=0", "temperature=0.7 top_p=0.9", "beams=4"] (temperature=0)
    n_tokens            at most so many tokens of each answer (100)
    stop                texts that end an answer, as ["\\n"]; [] for none (the separator)
    n_shown             rows that are shown side by side (3)

  tasks of lm-eval: pip install "gptlab[evaluation]"
    tasks               names or files, as [hellaswag,my_task.yaml]; shots, n_rows and seed as above

    precision           32, bf16 or int8 (32)
    device              cpu, cuda, cuda:1 ... (a GPU where there is one)
    output              text, or json with nothing else on standard output (text)
    to                  a file that gets the JSON; runs get it in their folders' evaluations/ as well
"""


def main(words: list[str]) -> int:
    """Evaluate as the words say; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    hints = typing.get_type_hints(EvaluateConfig)
    return guard(lambda: evaluate(EvaluateConfig(**read(words, hints, "gptlab evaluate"))))


@dataclass(slots=True)
class Subject:
    """A model to evaluate, and what is known of the run that it comes from."""

    name: str
    trained: "Trained"
    folder: Path | None = None  # of the run
    checkpoint: Path | None = None
    step: int | None = None
    config: "RunConfig | None" = None
    data: str = ""  # fingerprint of what it was trained on


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate each run, show the numbers, and leave them in the run folders."""
    config.check()
    for word in TEXTS:
        setattr(config, word, _unescaped(getattr(config, word)))
    settings = _settings(config)
    target = None if config.to is None else _writable(config.to)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `gptlab generate` does
    prompts = _prompts(config) if config.kind in (Kind.choices, Kind.answers) else None
    corpus = _corpus(config.corpus) if config.corpus else None
    for name in config.run:
        _refuse_missing(name)
    from gptlab.evaluation import report
    from gptlab.generation.precision import find_device

    device = find_device(config.device)
    results = []
    for name in config.run:
        started = time.perf_counter()
        subject = _open(name)
        found = _evaluate(subject, config, corpus, prompts, settings, device)
        result = _facts(subject, config) | found | {"seconds": time.perf_counter() - started}
        _keep(result, subject)
        results.append(result)
        if target is not None:  # after each: an error in the next one does not cost this
            _write_json(target, {"results": results})
        if config.output is OutputFormat.text:
            _print(report.text(result, n_shown=N_SHOWN if config.n_shown is None else config.n_shown))
    if config.output is OutputFormat.json:
        print(json.dumps({"results": results}, default=str))
    elif len(results) > 1:
        _print(report.comparison(results))


def _evaluate(subject: Subject, config: EvaluateConfig, corpus, prompts, settings, device) -> dict[str, Any]:
    from gptlab.generation.precision import prepare

    model, tokenizer, ends = subject.trained
    seed, show = SEED if config.seed is None else config.seed, sys.stderr.isatty()
    shots = list(config.shots or (0,))
    if config.kind is Kind.perplexity:
        from gptlab.evaluation.perplexity import encode, perplexity

        _refuse_to_predict(subject)
        text = _validation(subject) if corpus is None else encode(corpus, tokenizer)
        context = subject.config.context_length if subject.config and subject.data else None  # as it was trained
        model = prepare(model, config.precision, device)
        numbers = perplexity(model, tokenizer, text, stride=config.stride, context_length=context, show=show)
        return {"corpus": text.description, "numbers": numbers}
    model = prepare(model, config.precision, device)
    if config.kind is Kind.tasks:
        from gptlab.evaluation.harness import Harness, evaluate_tasks

        harness = Harness(model, tokenizer, ends, seed=seed, show=show)
        found = evaluate_tasks(harness, config.tasks, shots=config.shots, n_rows=config.n_rows)
        if found["n_cut"]:
            print(
                f"{found['n_cut']:,} requests were longer than the context and lost their beginning: lm-eval's way",
                file=sys.stderr,
            )
        return found
    if config.kind is Kind.choices:
        from gptlab.evaluation.choices import choose

        if config.delimiter is not None and not any(shots) and model.config.type == "encoder_decoder":
            raise UserError(
                f"delimiter= stands before the answers of shots alone, since run={subject.name} is an encoder-decoder, "
                "whose answers are texts of their own; add shots=[0,1,5]"
            )
        return choose(model, tokenizer, prompts, shots, show=show)
    from gptlab.evaluation.responses import N_TOKENS, Writer, answer

    writer, n_tokens = Writer(model, tokenizer, ends), config.n_tokens or N_TOKENS
    return answer(writer, prompts, shots, settings, n_tokens=n_tokens, stop=config.stop, show=show)


def _refuse_to_predict(subject: Subject) -> None:
    architecture = subject.trained.model.config.type
    if architecture != "decoder":
        raise UserError(
            f"run={subject.name} is a model with architecture={architecture}, which answers a text and does not "
            "predict one; name a decoder, or add data=FILE prompt=... answer=..."
        )


def _refuse_missing(name: str) -> None:
    from gptlab.runs.initial_weights import open_weights

    if not Path(name).expanduser().exists():
        open_weights(name, "run")  # from the hub, or an error before any work


def _open(name: str) -> Subject:
    from gptlab.interop.external_folder import ExternalFolder
    from gptlab.runs.initial_weights import open_weights
    from gptlab.runs.load import read_model
    from gptlab.runs.run_tokenizer import run_of

    source = open_weights(name, "run")
    subject = Subject(name, read_model(source, name))
    if subject.trained.model.config.type == "encoder":
        raise UserError(
            f"run={name} is an encoder, which neither predicts nor writes a text; name a decoder, or an "
            "encoder-decoder with data= or tasks="
        )
    if isinstance(source, ExternalFolder):
        return subject
    path = source.path
    subject.checkpoint, subject.step, subject.data = path, source.state.step, source.state.data
    if path.resolve().parent.name == "checkpoints":
        subject.folder = run_of(path)
        if (subject.folder / "config.yaml").is_file():
            subject.config = composition.load_config(subject.folder / "config.yaml")
    return subject


def _corpus(paths: list[str]) -> "Corpus":
    from gptlab.data.sources.config import TextConfig
    from gptlab.data.sources.corpus import open_corpus

    try:
        return open_corpus(TextConfig(paths=paths))
    except ValueError as error:
        raise UserError(str(error).replace("data.path=", "corpus=")) from None  # the word that was typed


def _validation(subject: Subject):
    """The validation split that a run was measured by."""
    from gptlab.data.prepare import prepare
    from gptlab.evaluation.perplexity import EncodedText

    config, name = subject.config, subject.name
    if config is None or not subject.data:
        raise UserError(f"run={name} does not say what it was trained on; name a text with corpus=FILE")
    if config.objective.type != "causal_lm":
        raise UserError(
            f"run={name} was trained with objective={config.objective.type}, whose validation is no text to predict; "
            "name a text with corpus=FILE"
        )
    if config.data.val_fraction == 0:
        raise UserError(f"run={name} has no validation split (data.val_fraction=0); name a text with corpus=FILE")
    data = prepare(config.data, config.tokenizer, progress=sys.stderr.isatty())
    if data.fingerprint != subject.data:
        raise UserError(
            f"run={name} was trained on other data than {data.description} now holds; name a text with corpus=FILE"
        )
    return EncodedText(
        tokens=data.val.tokens, n_bytes=data.val.n_bytes, description=f"validation split of {data.description}"
    )


def _prompts(config: EvaluateConfig) -> "Prompts":
    from gptlab.data.examples.template import Template
    from gptlab.evaluation.prompts import DELIMITER, SEPARATOR, Prompts, read_rows

    prompt, answer = Template(config.prompt, "prompt"), Template(config.answer, "answer")
    for template in (prompt, answer):
        if not template.fields:
            raise UserError(
                f"{template.word}={template.text!r} names no column, so that all rows have the same; write a column as "
                "{name}"
            )
    rows = read_rows(config.data, prompt, answer, config.choices)
    source, examples = config.data, rows
    if config.examples is not None:
        source, examples = config.examples, read_rows(config.examples, prompt, answer, config.choices)
    prompts = Prompts(
        rows=rows[: config.n_rows],
        examples=examples,
        source=source,
        separator=SEPARATOR if config.separator is None else config.separator,
        delimiter=DELIMITER if config.delimiter is None else config.delimiter,
        seed=SEED if config.seed is None else config.seed,
    )
    prompts.check(config.shots or (0,))
    return prompts


def _settings(config: EvaluateConfig) -> dict[str, GenerateConfig]:
    """Ways to write by their names; ValueError where one cannot be obeyed."""
    hints = {word: hint for word, hint in typing.get_type_hints(GenerateConfig).items() if word in SETTING_WORDS}
    found = {}
    for text in ("temperature=0",) if config.settings is None else config.settings:
        words = text.split()
        if not words:
            raise UserError("settings= has an empty one; write its words, as in settings=[temperature=0]")
        setting = GenerateConfig(run="the same", **read(words, hints, "settings="))
        if config.n_tokens is not None:
            setting.n_tokens = config.n_tokens
        setting.check()
        if setting in found.values():
            raise UserError(f"settings= has {text} twice; name each way to write once")
        found[",".join(words)] = setting
    if config.kind is Kind.answers:
        from gptlab.generation.sampling import Sampling

        for setting in found.values():
            Sampling.of(setting).check()
    return found


def _unescaped(value: Any) -> Any:
    """Text with \\n as a new line, \\t as a tab and \\\\ as a backslash."""
    if isinstance(value, tuple):
        return tuple(map(_unescaped, value))
    if not isinstance(value, str):
        return value
    parts = value.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)


def _writable(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"to={name} is no file in a folder that exists; name one, such as to=results.json")
    return path


def _facts(subject: Subject, config: EvaluateConfig) -> dict[str, Any]:
    """What was measured of what, so that the numbers can be had again."""
    said = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("run", "output", "to", "device")}
    said = {word: getattr(value, "value", value) for word, value in said.items() if value not in (None, [])}
    libraries = ("gptlab", "torch", *LIBRARIES.get(config.kind, ()))
    return {
        "what": config.kind.value,
        "run": subject.name,
        "checkpoint": None if subject.checkpoint is None else str(subject.checkpoint),
        "step": subject.step,
        "config": None if subject.config is None else subject.config.identity(),
        "seed": SEED if config.seed is None else config.seed,
        "settings": said,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }


def _keep(result: dict[str, Any], subject: Subject) -> None:
    """Leave the result in the run folder, under a name of its step, what it measures, and the settings."""
    if subject.folder is None:
        return
    digest = sha256(json.dumps(result["settings"], sort_keys=True).encode()).hexdigest()[:8]
    path = subject.folder / RESULTS / f"{subject.step:08}-{result['what']}-{digest}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        _write_json(path, result)
    except OSError as error:  # the numbers were the work, and are shown
        print(f"{path} cannot be written ({error.strerror}); use to=FILE", file=sys.stderr)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from gptlab.runs.folder import write_text

    write_text(path, json.dumps(content, indent=2, default=str) + "\n")  # lm-eval's rows may hold any type


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
