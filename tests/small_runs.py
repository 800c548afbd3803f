"""Small runs that several tests carry out."""

import csv
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import yaml
from warm_python import warm_python

from gptlab.cli.guard import guard
from gptlab.config import RunConfig, to_plain
from gptlab.data.sources.config import TableConfig, TextConfig
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.config import ByteConfig
from gptlab.lab import trials
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.objectives.config import ClassificationConfig, InstructionConfig, MaskedLMConfig, SpanCorruptionConfig
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.folder import MetricsFile, RunFolder, read_metrics
from gptlab.training.config import (
    AdamWConfig,
    CallbacksConfig,
    CheckpointConfig,
    CosineConfig,
    SampleConfig,
    TrainerConfig,
)

ROOT = Path(__file__).parents[1]
FAST_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def write_text(path: Path, n_characters: int = 20_000) -> Path:
    """English with some order in it, the same on every machine."""
    words = (
        "the of and a to in is that for it as was with be by on not he his but at are this have from or had an".split()
    )
    state, text = 1, []
    while sum(map(len, text)) + len(text) < n_characters:
        state = (state * 1_103_515_245 + 12_345) % 2**31
        text.append(words[(state >> 16) % len(words)] + (".\n" if state % 11 == 0 else ""))
    path.write_text(" ".join(text)[:n_characters])
    return path


OBJECTIVES = ("causal_lm", "masked_lm", "span_corruption", "classification", "instruction")


def write_examples(path: Path, n: int = 160) -> Path:
    """Questions about sums, with their answers and whether these are even."""
    examples = ({"question": f"{i} + {7 * i % 13} =", "answer": str(i + 7 * i % 13)} for i in range(n))
    path.write_text("".join(json.dumps(e | {"even": str(int(e["answer"]) % 2 == 0)}) + "\n" for e in examples))
    return path


def of_objective(name: str, folder: Path) -> dict:
    """What a small run needs for an objective beside the text; tables are written into `folder`."""
    sizes = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}
    if name == "causal_lm":
        return {}
    if name == "masked_lm":
        texts = folder / "texts"
        if not texts.exists():  # sentence pairs are of several documents
            texts.mkdir()
            words = write_text(folder / "of_texts.txt").read_text()
            for i in range(40):
                (texts / f"{i:02}.txt").write_text(words[500 * i : 500 * (i + 1)])
        return {
            "objective": MaskedLMConfig(),
            "model": EncoderConfig(**sizes),
            "data": TextConfig(path=str(texts)),
            "tokenizer": ByteConfig(special_tokens=["<mask>", "<cls>", "<sep>", "<pad>"]),
        }
    if name == "span_corruption":
        sizes["n_layer"] = 1  # on each side
        return {
            "objective": SpanCorruptionConfig(),
            "model": EncoderDecoderConfig(**sizes),
            "tokenizer": ByteConfig(n_sentinel_tokens=8),
        }
    table = folder / "examples.jsonl"
    if not table.exists():
        write_examples(table)
    if name == "classification":
        return {
            "objective": ClassificationConfig(lm_weight=0.5),
            "data": TableConfig(
                path=str(table), prompt="{question}", label_column="even", class_names=["False", "True"]
            ),
        }
    return {
        "objective": InstructionConfig(),
        "data": TableConfig(path=str(table), prompt="{question}", response=" {answer}"),
    }


def small_run(folder: Path, **given) -> RunConfig:
    """A run of ten steps on bytes, without dropout, as an object."""
    text = folder.parent / "text.txt"
    if not text.exists():
        write_text(text)
    model = DecoderConfig(n_layer=2, n_head=2, d_model=32, context_length=16)
    usual = {
        "model": model,
        "data": TextConfig(path=str(text)),
        "tokenizer": ByteConfig(),
        "optimizer": AdamWConfig(lr=1e-2),
        "schedule": CosineConfig(warmup_steps=2),
        "trainer": TrainerConfig(accelerator="cpu", devices=1, val_check_interval=5, enable_progress_bar=False),
        "callbacks": CallbacksConfig(checkpoint=CheckpointConfig(), sample=SampleConfig(max_new_tokens=8), plot=False),
        "batch_tokens": 128,
        "budget_steps": 10,
        "run_dir": str(folder),
    }
    return RunConfig(**usual | given)


def write_run(folder, *, tokenizer=None, seed=0, vocab_size=None, **options):
    """A run folder as training leaves it, of a model with random weights."""
    tokenizer = tokenizer or ByteTokenizer()
    given = {"n_layer": 2, "n_head": 2, "d_model": 16, "context_length": 24, "init_std": 0.4}
    config = RunConfig(
        model=DecoderConfig(**given | options), data=TextConfig(path="none"), tokenizer=ByteConfig(), budget_steps=1
    )
    model = build_model(config.model, vocab_size or tokenizer.vocab_size, seed=seed)
    tokenizer_file = folder / "tokenizer.json"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(tokenizer_file)
    state = CheckpointState(step=1, config=to_plain(config), tokenizer=tokenizer.fingerprint)
    checkpoint.save(folder / "checkpoints" / "best.ckpt", state, model.state_dict())
    return folder


def write_trained(
    folder: Path,
    losses: Mapping[int, float] | Sequence[float] = (3.0, 2.0),
    *,
    summary: Mapping[str, object] | None = None,
    content: str = "d" * 64,
    inputs: Mapping[str, str] | None = None,
    events: Sequence[Mapping[str, object]] = (),
    rows: Sequence[Mapping[str, float]] | None = None,
    **given,
) -> Path:
    """A run folder with the metrics of a run that took place nowhere: validation losses, by step or one a step.

    `summary` is added to what a run that finished leaves; {} leaves none. `given` are fields of the config.
    """
    folder.mkdir(parents=True)
    config = small_run(folder, **{"data": TextConfig(path="text.txt"), **given})
    (folder / "config.yaml").write_text(yaml.dump(to_plain(config), Dumper=FAST_DUMPER, sort_keys=False))
    by_step = dict(losses) if isinstance(losses, Mapping) else dict(enumerate(losses, 1))
    tokens = config.batch_tokens
    if rows is None:
        rows = [
            {"step": step, "tokens": tokens * step, "train/loss": loss + 0.1, "perf/tokens_per_second": 1000.0}
            | {"val/loss": loss, "val/bits_per_byte": loss / math.log(2)}
            for step, loss in by_step.items()
        ]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["step", "tokens"]
    file = MetricsFile(folder / "metrics.csv", columns)
    for row in rows:
        file.write(dict(row))
    file.close()
    written = RunFolder(folder, writes=True)
    written.event("started", step=0, n_steps=max(by_step, default=0), devices="1 x CPU (threads: 1), 32-true")
    for event in events:
        written.event(**{"kind": event["event"], **{k: v for k, v in event.items() if k != "event"}})
    written.write_json("inputs.json", {"data": content, "tokenizer": "t" * 64, **(inputs or {})})
    if summary != {}:
        last = rows[-1] if rows else {"step": 0, "tokens": 0}
        usual = {"finished": True, "stopped_early": False, "steps": last["step"], "tokens": last["tokens"]}
        usual |= {"seconds": 2.0, "flops_per_token": 1e6, "parameters": 1000, "data": content, "amendments": []}
        usual |= {name: value for name, value in last.items() if name.startswith("val/")}
        written.write_json("summary.json", usual | dict(summary or {}))
    return folder


def overrides_of(text: Path, **more) -> list[str]:
    """The same run as overrides for train.py."""
    values = {
        "data": "text",
        "data.path": text,
        "tokenizer": "byte",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.d_model": 32,
        "model.context_length": 16,
        "batch_tokens": 128,
        "budget_steps": 10,
        "optimizer": "adamw",
        "optimizer.lr": 1e-2,
        "schedule.warmup_steps": 2,
        "trainer.val_check_interval": 5,
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
        "callbacks.sample": "null",
        "callbacks.plot": "false",
    }
    return [f"{key}={value}" for key, value in {**values, **more}.items()]


def objective_overrides(name: str, folder: Path) -> dict[str, object]:
    """What `of_objective` says, as overrides for train.py."""
    overrides, parts = {"objective": name}, of_objective(name, folder)
    if "data" in parts:
        overrides["data.path"] = parts["data"].path
    match name:
        case "masked_lm":
            overrides |= {"model": "bert_laptop", "tokenizer.special_tokens": '["<mask>","<cls>","<sep>","<pad>"]'}
        case "span_corruption":
            overrides |= {"model": "t5_laptop", "model.n_layer": 1, "tokenizer.n_sentinel_tokens": 8}
        case "classification":
            overrides |= {"data": "table", "data.prompt": "{question}", "data.label_column": "even"}
            overrides |= {"data.class_names": "['False','True']", "objective.lm_weight": 0.5}
        case "instruction":
            overrides |= {"data": "table", "data.prompt": "{question}", "data.response": " {answer}"}
    return overrides


def train(
    overrides: list[str], folder: Path, *, program: Path = ROOT / "train.py", **environment
) -> subprocess.CompletedProcess:
    """Run the real command in `folder`."""
    return subprocess.run(
        [warm_python(), str(program), *overrides],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def start_sweep(arguments: list[str], folder: Path, **environment) -> subprocess.Popen:
    """Start `gptlab ARGUMENTS`, a sweep, as a process to be waited for."""
    code = f"import sys; sys.argv = ['gptlab', *{list(map(str, arguments))!r}]\n"
    code += "from gptlab.cli.main import main; sys.exit(main())"
    return subprocess.Popen(
        [warm_python(), "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TrialsInProcess:
    """In place of `gptlab.lab.trials.Starter`: a trial is a call of a function with its config, in this process.

    What the function returns is the run's summary, as events and summary.json have it; None for an ordinary one. What
    it raises ends the trial as it ends a command.
    """

    def __init__(self, task, monkeypatch):
        self.task = task
        self.seen: list[RunConfig] = []
        monkeypatch.setattr(trials, "Starter", lambda stopping: self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, folder: Path, log: Path, plugins):
        self.seen.append(trials.read_frozen(folder))
        with open(log, "a") as file, redirect_stdout(file), redirect_stderr(file):
            code = guard(lambda: self._carry_out(folder))
        return Ended(code)

    def _carry_out(self, folder: Path) -> None:
        summary = {"finished": True, "steps": 10, "seconds": 1.0, "val/loss": 1.0, **(self.task(self.seen[-1]) or {})}
        (folder / "summary.json").write_text(json.dumps(summary))


class Ended:
    """A process that has ended already."""

    def __init__(self, code: int):
        self.returncode = code

    def poll(self) -> int:
        return self.returncode


def learned(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv as text, without what depends on the clock."""
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def step_rows(metrics: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv of steps, without that of the validation before the first."""
    return [row for row in read_metrics(metrics) if row["step"] > 0]
