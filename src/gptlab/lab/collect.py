"""Runs as they are compared: read from their folders, named, and grouped by what differs."""

import glob
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptlab.config import NOT_IN_RUN_ID, as_before, to_plain
from gptlab.errors import UserError
from gptlab.evaluation.config import EVALUATIONS, EVERY
from gptlab.fields import shown
from gptlab.runs.folder import is_running, read_columns
from gptlab.runs.run import Run

FINISHED = ("finished", "stopped early")  # states of a run that took all its steps, or needed no more
HIGHER_IS_BETTER = re.compile(r"accuracy|rouge|exact_match|(?:^|[/_])f1|tokens_per_second|mfu")
MAX_LABEL_KEYS = 4  # in the label of a group, before presets stand for the keys that they set
CONTENT = ".content"  # what a file or text holds whose name is in the config: "data.content"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it is compared with others."""

    name: str  # unique among those collected: the run's own, else the shortest unique end of its path
    folder: Path
    state: str  # finished, stopped early, running, interrupted or failed
    config: dict[
        str, Any
    ]  # flat, as {"optimizer.lr": 0.001}; with "data.content" and "amendments", where there are any
    rows: dict[str, list]  # metrics.csv by column; None where a cell is empty
    summary: dict[str, Any]  # summary.json; {} where there is none
    inputs: dict[str, str]  # inputs.json: a SHA-256 of each thing that the run read; {} where there is none
    seed: int
    group: str = ""  # what of the config differs from the other runs, seeds left out
    n_steps: int | None = None  # of the whole run; None where it never started
    error: str = ""  # of a run that failed

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED

    @property
    def steps(self) -> int:
        """Optimizer steps taken so far."""
        return self.rows["step"][-1] if self.rows["step"] else 0

    @property
    def tokens(self) -> int:
        """Target tokens trained on so far."""
        return self.rows["tokens"][-1] if self.rows["tokens"] else 0

    @property
    def flops_per_token(self) -> float | None:
        """Training FLOPs of a target token; None for a run that has not ended, or of an older version."""
        return self.summary.get("flops_per_token")

    @property
    def flops(self) -> float | None:
        """Training FLOPs so far."""
        return None if self.flops_per_token is None else self.flops_per_token * self.tokens

    def standing(self) -> str:
        """Its state for a person: `interrupted at step 120 of 1,000`."""
        text = self.state
        if not self.is_finished:
            text += f" at step {self.steps:,}" + (f" of {self.n_steps:,}" if self.n_steps else "")
        return text + (f" ({self.error})" if self.error and self.state == "failed" else "")

    def last(self, metric: str) -> float | None:
        """The newest value of a metric; None where it was never measured."""
        found = [value for value in self.rows.get(metric, ()) if value is not None]
        return found[-1] if found else _number(self.summary.get(metric))

    def best(self, metric: str) -> float | None:
        """The lowest value of a metric, or for accuracies and their like the highest; None where there is none."""
        found = [value for value in self.rows.get(metric, ()) if value is not None and not math.isnan(value)]
        if not found:
            return self.last(metric)
        return max(found) if higher_is_better(metric) else min(found)

    def seconds(self) -> list[float | None]:
        """Seconds of training at each row, by the measured speed; validations and saving are left out.

        Rows before the first measurement take its speed; all are None where there is none.
        """
        rates = self.rows.get("perf/tokens_per_second", [])
        rate = next((value for value in rates if value), None)
        if rate is None:
            return [None] * len(self.rows["step"])
        found, total, before = [], 0.0, 0
        for value, tokens in zip(rates, self.rows["tokens"], strict=True):
            rate = value or rate
            total, before = total + (tokens - before) / rate, tokens
            found.append(total)
        return found


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better, as of an accuracy, but not of a loss."""
    return HIGHER_IS_BETTER.search(metric) is not None


def collect(patterns: Iterable[str | Path]) -> list[RunRecord]:
    """The runs in folders, in those that globs match, and below a sweep's folder, each once and in this order.

    UserError for what holds no run.
    """
    folders = list(dict.fromkeys(folder for pattern in patterns for folder in _folders(str(pattern))))
    if not folders:
        raise UserError("no runs to compare; name run folders such as runs/NAME, globs such as 'runs/*' or a sweep")
    return _labeled(_named([_read(folder) for folder in folders]))


def differing_keys(records: Sequence[RunRecord]) -> list[str]:
    """The config keys in which runs differ, of those that decide what is learned; seeds are left out.

    A key that some runs have not at all, as n_expert_per_token of an encoder, differs only among those that have it:
    another key says why.
    """
    found = []
    for key in dict.fromkeys(key for record in records for key in record.config):
        if not _decides(key):
            continue
        values = [record.config[key] for record in records if key in record.config]
        optional = key == "amendments"
        if any(value != values[0] for value in values) or (optional and len(values) < len(records)):
            found.append(key)
    # Where the config itself says that the data differ, what the data hold says nothing more.
    said = [key for key in found if not key.endswith(CONTENT)]
    return [
        key
        for key in found
        if not key.endswith(CONTENT) or not any(name.startswith(key.removesuffix(CONTENT)) for name in said)
    ]


def identity(record: RunRecord) -> tuple:
    """All that decides what a run learned, its seed included: a run and its reproduction share it."""
    decided = sorted((key, repr(value)) for key, value in record.config.items() if key == "seed" or _decides(key))
    return record.summary.get("parameters"), *decided


def told_apart(records: list[RunRecord], evaluation: str) -> list[RunRecord]:
    """The runs in groups whose evaluation during training of this name is the same too: its texts and its options.

    It decides nothing that is learned, so that it makes no groups where another metric is compared.
    """
    options = [evaluation_options(record, evaluation) for record in records]
    of_options = [repr(sorted(found.items())) if found else None for found in options]
    contents = [record.inputs.get(f"{EVALUATIONS}{evaluation}") for record in records]
    # A run of an older version has no content: then all are told apart by their options.
    values = contents if all(c or not o for c, o in zip(contents, options, strict=True)) else of_options
    if len({value for value in values if value is not None}) < 2:
        return records
    marked = []
    for record, value in zip(records, values, strict=True):
        short = value and (value if values is contents else sha256(value.encode()).hexdigest())[:8]
        key = f"evaluate.{evaluation}{CONTENT}"
        marked.append(replace(record, config=record.config | {key: short}) if short else record)
    return _labeled(marked)


def evaluation_options(record: RunRecord, evaluation: str) -> dict[str, Any]:
    """What the config says of an evaluation during training, but how often it takes place."""
    prefix = f"{EVALUATIONS}{evaluation}."
    found = {key.removeprefix(prefix): value for key, value in record.config.items() if key.startswith(prefix)}
    return {option: value for option, value in found.items() if option != EVERY and f".{option}" != CONTENT}


def groups(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """The runs by the label of their group, in order of first appearance."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        found.setdefault(record.group, []).append(record)
    return found


def _folders(pattern: str) -> list[Path]:
    """The run folders that a pattern means, sorted as a person would."""
    if not pattern.strip():  # which Path takes for this folder
        raise UserError("the name of a run is empty; name a run folder such as runs/NAME, a glob or a sweep's folder")
    path = Path(pattern).expanduser()
    if path.exists():
        found = _below(path)
        if not found:
            what = "is a file" if path.is_file() else "holds no run: neither it nor a folder below has a metrics.csv"
            raise UserError(f"{pattern} {what}; name a run folder such as runs/NAME, or the folder of a sweep")
        return found
    if not glob.has_magic(pattern):
        raise UserError(f"{pattern} does not exist; name a run folder such as runs/NAME, a glob or a sweep's folder")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    found = [folder for match in sorted(matches, key=_natural) for folder in _below(match)]
    if not found:
        what = "matches nothing" if not matches else "matches no run folder"
        raise UserError(f"{pattern} {what}; a run folder has a config.yaml and a metrics.csv")
    there = set(found)
    return [folder for folder in found if there.isdisjoint(folder.parents)]  # ** goes into run folders too


def _below(path: Path) -> list[Path]:
    """`path` itself where it is a run folder, else those below it."""
    if not path.is_dir():
        return []
    if is_run(path):
        return [path.resolve()]
    inner = (entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [run for entry in sorted(inner, key=_natural) for run in _below(entry)]


def is_run(path: Path) -> bool:
    """Whether a folder holds a run that took, or began to take, steps."""
    return (path / "config.yaml").is_file() and (path / "metrics.csv").is_file()


def _natural(path: Path) -> list[tuple[bool, float, str]]:
    """A key that sorts seed=2 before seed=10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(path))
    return [(bool(i % 2), float(part) if i % 2 else 0.0, part) for i, part in enumerate(parts)]


def _read(folder: Path) -> RunRecord:
    import json

    run = Run(folder)
    summary, events = run.summary or {}, run.events()
    file = folder / "inputs.json"
    try:
        inputs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        raise UserError(f"{file} is damaged; restore it, or delete it") from None
    config = _flat(_plain(run))
    # What the machine decided where the config left it open.
    for event in events:
        if config.get("trainer.precision") is None and "devices" in event:
            config["trainer.precision"] = event["devices"].rpartition(", ")[2]
    if config.get("trainer.precision") is None:
        config.pop("trainer.precision", None)
    config |= {f"{key}{CONTENT}": value[:8] for key, value in inputs.items()}
    changes = [(event["step"], event["overrides"]) for event in events if event["event"] == "amended"]
    if changes:
        config["amendments"] = "; ".join(
            f"step {step}: {' '.join(f'{key}={shown(value)}' for key, value in what.items())}" for step, what in changes
        )
    columns = read_columns(folder / "metrics.csv")
    measured = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    return RunRecord(
        name=str(config.get("name") or folder.name),
        folder=folder,
        state=_state(folder, summary, events),
        config=config,
        rows={"step": [], "tokens": []} | measured,
        summary=summary,
        inputs=inputs,
        seed=config.get("seed", 0),
        n_steps=next((event["n_steps"] for event in reversed(events) if "n_steps" in event), None),
        error=events[-1].get("error", "") if events and events[-1]["event"] == "failed" else "",
    )


def _state(folder: Path, summary: dict[str, Any], events: list[dict[str, Any]]) -> str:
    if summary.get("stopped_early"):
        return "stopped early"
    if summary:
        return "finished" if summary.get("finished", True) else "interrupted"
    if is_running(folder):
        return "running"
    return "failed" if events and events[-1]["event"] == "failed" else "interrupted"


def _plain(run: Run) -> dict[str, Any]:
    """The config as plain values, with defaults where it lacks keys; as it is written where it needs a plugin."""
    try:
        return as_before(to_plain(run.config))
    except UserError:
        import yaml

        try:
            plain = yaml.safe_load((run.path / "config.yaml").read_text())
        except yaml.YAMLError:
            plain = None
        if not isinstance(plain, dict):
            raise
        return plain


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _decides(key: str) -> bool:
    """Whether a config key decides what is learned, and is not the seed."""
    if key == "seed" or (key.startswith("trainer.") and key != "trainer.precision"):
        return False
    return not any(key == name or key.startswith(f"{name}.") for name in NOT_IN_RUN_ID)


def _named(records: list[RunRecord]) -> list[RunRecord]:
    """The records with unique names."""
    n_own = Counter(record.name for record in records)
    ends = {record.folder: record.folder.parts for record in records}
    named = []
    for record in records:
        if n_own[record.name] > 1:
            parts = ends[record.folder]
            others = [other for folder, other in ends.items() if folder != record.folder]
            length = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
            record = replace(record, name="/".join(parts[-length:]))
        named.append(record)
    return named


def _labeled(records: list[RunRecord]) -> list[RunRecord]:
    """The records with the label of their group."""
    keys = differing_keys(records)
    values = [tuple(repr(record.config.get(key)) for key in keys) for record in records]
    labels = [_label(record, keys) for record in records]
    if len(keys) > MAX_LABEL_KEYS:
        short = [_label(record, _with_presets(records, keys)) for record in records]
        # Only where a shorter label means one set of values alone.
        if _is_function(short, values) and max(map(len, short)) < max(map(len, labels)):
            labels = short
    return [replace(record, group=label) for record, label in zip(records, labels, strict=True)]


def _with_presets(records: list[RunRecord], keys: list[str]) -> list[str]:
    """The keys, but `model_tag` in place of those of the model that depend on it, and so on."""
    found = list(keys)
    for tag, group in (("model_tag", "model."), ("data_tag", "data.")):
        tags = [record.config.get(tag) for record in records]
        told = [
            key
            for key in found
            if key.startswith(group) and _is_function(tags, [repr(record.config.get(key)) for record in records])
        ]
        if told and len(set(tags)) > 1:
            found[found.index(told[0])] = tag
            found = [key for key in found if key not in told]
    return found


def _is_function(inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """Whether equal inputs always have equal outputs."""
    return len(set(inputs)) == len(set(zip(inputs, outputs, strict=True)))


def _label(record: RunRecord, keys: Sequence[str]) -> str:
    there = [key for key in keys if key in record.config]
    text = ", ".join(f"{key.removesuffix('_tag')}={shown(record.config[key])}" for key in there)
    return text or f"{record.config.get('model_tag', 'custom')}-{record.config.get('data_tag', 'custom')}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
