"""The command `gptlab inspect`: what is in the data, and what a training step reads; nothing is trained."""

import json
import math
import os
import shlex
import statistics
import sys
import typing
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptlab.cli.options import carry_out, compose, load_plugins, print_text
from gptlab.errors import UserError
from gptlab.fields import bounded
from gptlab.generation.config import OutputFormat
from gptlab.units import plural

if typing.TYPE_CHECKING:
    from gptlab.lab.step import StepRead
    from gptlab.runs.run import Run
    from gptlab.training.spikes import Attempt

N_SHOWN = 3
PAGE = "data.html"
PAGE_DOCUMENTS = 10
USUAL_STEPS = 100  # before a step
HELP = """gptlab inspect data=text data.path=FOLDER [group.key=value ...] [html=FILE]
gptlab inspect step=1 [group.key=value ...]
gptlab inspect run=runs/NAME step=812

Without step, what is in the data: lengths of documents, tokens by source, frequent and repeated ones, how sequences cut
documents. With step, what that update reads, and of a run the loss of each token under the nearest checkpoint.

    step          the update, as metrics.csv counts them: 1 is the first
    run           a run folder; otherwise the options that gptlab train takes say which run is meant
    html          a file that ends in .html, or a folder: one page, to be opened without a network (none; of a step of a
                  run step-STEP.html in its folder)
    n_shown       examples, or documents of the data, that are shown (3)
    sample_mb     of the data, the text that is read of each source, in MB of 10^6 bytes (16)
    by_token      true: one token a line, with its position, its id and what is to be predicted there (false)
    losses        false: no token losses of a run (true)
    checkpoint    the step of the checkpoint that they are of, last or best (the nearest to the step)
    attempt       of a step that was rolled back, which of the times that the run took it (the last)
    device        cpu, cuda, cuda:1 ... (a GPU where there is one)
    rank          of the devices, which one reads the examples (0)
    world_size    the number of devices, each of which reads its share; 1 shows the examples of all (1)
    output        text, or json with nothing else on standard output (text)
    plugins       modules that register components of your own, as [MODULE]

--config-dir DIR adds presets of your own, as for gptlab train.
"""


@dataclass(kw_only=True, slots=True)
class _Options:
    step: int | None = bounded(None, ge=1, hint="1 is the first update, as in metrics.csv")
    run: str | None = None
    html: str | None = None
    n_shown: int = bounded(N_SHOWN, ge=1)
    sample_mb: float = bounded(16.0, gt=0, lt=math.inf)
    by_token: bool = False
    losses: bool = True
    checkpoint: str | None = None
    attempt: int | None = bounded(None, ge=1)
    device: str | None = None
    rank: int = bounded(0, ge=0)
    world_size: int = bounded(1, ge=1)
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)
FOREIGN = {"page": "html", "report": "html", "format": "output", "limit": "n_shown"}
OF_A_STEP = ("by_token", "losses", "checkpoint", "attempt", "device", "rank", "world_size")
OF_A_RUN = ("losses", "checkpoint", "attempt", "device")


def main(arguments: list[str]) -> int:
    """Show what the arguments ask for; returns the exit code."""
    return carry_out(arguments, _Options, _inspect, of="gptlab inspect", help=HELP, foreign=FOREIGN)


def _inspect(own: _Options, overrides: list[str]) -> None:
    usual = _Options()
    if own.step is None:
        if own.run is not None:
            raise UserError(f"run={own.run} needs a step: {_suggested(own.run, overrides)}")
        for key in OF_A_STEP:
            if getattr(own, key) != getattr(usual, key):
                raise UserError(f"{key} has no effect on the data as a whole; give step=1, or leave it out")
        _show_data(own, overrides)
        return
    if own.sample_mb != usual.sample_mb:
        raise UserError("sample_mb has no effect on step=, which reads what the step does; leave one out")
    if own.run is None:
        for key in OF_A_RUN:
            if getattr(own, key) != getattr(usual, key):
                raise UserError(f"{key} is about a run that was trained; give run=runs/NAME, or leave it out")
    _show_step(own, own.step, overrides)


def _show_data(own: _Options, overrides: list[str]) -> None:
    """Compose the data, and print what a sample of it shows."""
    page = None
    if own.html is not None:
        path = Path(own.html).expanduser()
        page = _html_path(own.html, path / PAGE if path.is_dir() else path)
    config = compose(overrides, "gptlab inspect")
    from gptlab.lab.data_look import look_at
    from gptlab.lab.data_page import as_text, write_data_page

    look = look_at(
        config.data,
        config.tokenizer,
        context_length=config.context_length,
        seed=config.seed,
        n_shown=max(own.n_shown, 0 if page is None else PAGE_DOCUMENTS),
        sample_bytes=int(own.sample_mb * 1e6),
    )
    if page is not None:
        try:
            write_data_page(look, page, title=f"{config.data_tag}: what is in the data")
        except OSError as error:
            raise UserError(f"html={page} cannot be written ({error.strerror or error})") from None
    if own.output is OutputFormat.json:
        print(json.dumps(look.plain() | ({} if page is None else {"page": str(page)})))
        return
    print_text(f"{as_text(look, own.n_shown)}\n")
    told = "html=FILE writes a page with charts and more documents" if page is None else f"page in {page}"
    print_text(f"\n{told}\n")


def _show_step(own: _Options, step: int, overrides: list[str]) -> None:
    """Compose the run, or read its config, and print what the step reads."""
    config, run = _config(own, overrides)
    if own.world_size == 1:  # the examples of a step are the same on any number of devices
        from gptlab.distributed.config import StrategyConfig

        config.strategy, config.trainer.num_nodes = StrategyConfig(), 1
    page = None if own.html is None else _page_path(own.html, step)
    from gptlab.lab.batches import as_text, n_targets, read_examples
    from gptlab.lab.step import read_step, to_plain
    from gptlab.lab.step_page import documents_text, legend, scale_of, tokens_text, write_step_page
    from gptlab.training.loop import open_batches

    if run is not None:  # what it has read is recorded when it starts
        from gptlab.data.mixture.prepare import inputs_of_run
        from gptlab.training.resume import refuse_other_inputs

        inputs = inputs_of_run(config.data, config.tokenizer)
        refuse_other_inputs(inputs, run.path, "restore it, or inspect the data without run=")
    data, batches = open_batches(config, own.rank, own.world_size)
    if run is not None and (run.summary or {}).get("data", data.fingerprint) != data.fingerprint:
        raise UserError(
            f"run={own.run} was trained on other data than {data.description} now holds; restore it, or inspect the "
            "data without run="
        )
    attempt, facts, usual = (None, [], None) if run is None else _history(run, own, step)
    item = step - 1 + (attempt.skipped_steps if attempt is not None else 0)
    found, of_mixture = batches[item], batches.sources(item)
    names = getattr(config.data.first, "class_names", ())
    examples = read_examples(found, data.tokenizer, class_names=names, sources=of_mixture, limit=own.n_shown)
    n_examples = len(next(iter(found.values())))

    model, under = (None, None) if run is None or not own.losses else _model(run, own, step)
    if under is not None:
        facts.append(("token losses under", under))
    shows_progress = sys.stderr.isatty() and own.output is OutputFormat.text
    read = read_step(data, batches, item, model=model, usual=usual, n_texts=own.n_shown, shows_progress=shows_progress)
    _name_documents(config, data, read)
    vocab_size = data.tokenizer.vocab_size
    if read.scored and page is None and run is not None:
        page = run.path / f"step-{step}{'' if own.attempt is None else f'-attempt-{own.attempt}'}.html"
    counts = ", ".join(f"{n:,} {name}" for name, n in n_targets(found).items())
    if of_mixture is not None:
        by_source = Counter(source["name"] for source in of_mixture)
        counts += "; " + ", ".join(f"{n:,} of {name}" for name, n in sorted(by_source.items()))
    title = f"step {step:,} of {own.run if run is not None else 'a run'}"
    what = f"{n_examples:,} examples with {counts}"
    if page is not None:
        told = [("data", data.description), ("read", what), *facts]
        try:
            write_step_page(page, read, title=title, facts=told, vocab_size=vocab_size)
        except OSError as error:
            if own.html is not None:
                raise UserError(f"html={page} cannot be written ({error.strerror or error})") from None
            print(f"no page: {page} cannot be written ({error.strerror or error})", file=sys.stderr)
            page = None
    if own.output is OutputFormat.json:
        shapes = {name: list(value.shape) for name, value in found.items()}
        content = {"step": step, "n_examples": n_examples, "shapes": shapes, "n_targets": n_targets(found)}
        content |= {} if of_mixture is None else {"sources": of_mixture}
        content |= {"data": data.description, "objective": config.objective.type, "examples": examples}
        content |= {"facts": dict(facts), **to_plain(read, n_examples=own.n_shown)}
        print(json.dumps(content | ({} if page is None else {"page": str(page)})))
        return
    shapes = ", ".join(f"{name} {' x '.join(map(str, value.shape))}" for name, value in found.items())
    print_text(f"{data.description}\n")
    print(f"step {step:,} of objective={config.objective.type}: {what}")
    print(f"tensors: {shapes}")
    print_text("".join(f"{name}: {text}\n" for name, text in facts))
    print_text("".join(f"note: {note}\n" for note in read.notes))
    if read.documents:
        print_text(f"\n{documents_text(read)}\n")
    if read.scored and not own.by_token:
        color = _has_colors()
        scale = scale_of(vocab_size)
        print_text(f"\n{legend(scale)}\n" if color else "")
        print_text(f"\n{tokens_text(read, scale, color=color)}\n")
    else:
        print_text(f"\n{as_text(examples, by_token=own.by_token)}\n")
    if page is not None:
        print_text(f"\npage in {page}\n")


def _config(own: _Options, overrides: list[str]) -> tuple[Any, "Run | None"]:
    """The config of the run that is meant, and the run where there is one."""
    if own.run is not None:
        run = _open(own.run, overrides)
        return run.config, run
    return compose(overrides, "gptlab inspect"), None


def _open(path: str, overrides: list[str]) -> "Run":
    from gptlab.runs.run import open_run

    rest = load_plugins(overrides)
    if rest:
        raise UserError(f"{rest[0]} has no effect on run={path}, whose config is shown as it is; leave out one")
    return open_run(path)


def _suggested(path: str, overrides: list[str]) -> str:
    from gptlab.runs.folder import read_metrics
    from gptlab.training.spikes import largest_jump

    run = _open(path, overrides)
    rows = read_metrics(run.path / "metrics.csv")
    jump = largest_jump(rows, run.events(), run.config.callbacks.spike)
    if jump is not None:
        return f"its largest loss spike is step={jump.step}"
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    rises = [(after - before, step) for (_, before), (step, after) in pairwise(losses)]
    if not rises:
        return "step=1 is the first update, as in metrics.csv"
    return f"it has no loss spike; its loss rose most at step={max(rises)[1]}"


def _history(run: "Run", own: _Options, step: int) -> "tuple[Attempt, list[tuple[str, str]], float | None]":
    """Which of the times that the run took the step is meant, what is known of it, and the usual loss before it."""
    from gptlab.runs.folder import read_metrics
    from gptlab.training.spikes import attempts

    events = run.events()
    taken = attempts(events, step, _skipped_before(run))
    number = len(taken) if own.attempt is None else own.attempt
    if number > len(taken):
        times = "once" if len(taken) == 1 else f"{len(taken)} times"
        raise UserError(f"attempt={number}: the run took step {step:,} {times}; use 1 to {len(taken)}")
    attempt, facts = taken[number - 1], []
    rows = {int(row["step"]): row for row in read_metrics(run.path / "metrics.csv")}
    if attempt.went_back_to is None and step in rows and "train/loss" in rows[step]:
        row = rows[step]
        norm = f", gradient norm {row['train/grad_norm']:.4g}" if "train/grad_norm" in row else ""
        facts.append(("in training", f"loss {row['train/loss']:.4f}{norm}"))
    elif attempt.loss is not None:
        facts.append(("in training", f"loss {attempt.loss:.4f}, a spike"))
    elif attempt.went_back_to is None:
        last = f"its last is {max(rows):,}" if rows else "it has none"
        facts.append(("in training", f"metrics.csv has no such step, {last}: this is what it would read"))
    column = "train/mlm_loss" if any("train/mlm_loss" in row for row in rows.values()) else "train/loss"
    before = [row[column] for at, row in rows.items() if step - USUAL_STEPS <= at < step and column in row]
    usual = statistics.median(before) if before else None
    if usual is not None:
        facts.append(("usual loss", f"{usual:.4f}, the median of {plural(len(before), 'step')} before"))
    if attempt.went_back_to is not None:
        facts.append(("rolled back", f"the run went back to step {attempt.went_back_to:,} and took this step again"))
    if len(taken) > 1:
        facts.append(("attempt", f"{number} of {len(taken)}; attempt=N shows another"))
    if attempt.skipped_steps:
        facts.append(("left out before", f"the samples of {attempt.skipped_steps:,} steps, which were rolled back"))
    if any(event["event"] == "skipped" and event["step"] == step for event in events) and number == len(taken):
        facts.append(("skipped", "a loss spike: the update was left out, and the weights stayed as they were"))
    return attempt, facts, usual


def _skipped_before(run: "Run") -> int:
    """The steps whose samples a run without rollbacks leaves out: those of the run that it was begun from."""
    if run.summary is not None:
        return run.summary.get("skipped_steps", 0)
    from gptlab.runs import checkpoint

    path, _ = checkpoint.newest(run.path / "checkpoints")
    return 0 if path is None else checkpoint.load(path).state.skipped_steps


def _model(run: "Run", own: _Options, step: int) -> tuple[Any, str | None]:
    """The model of the checkpoint that is meant, and its name for a person; no model where the run keeps none."""
    from gptlab.generation.precision import find_device

    device = find_device(own.device)
    if own.checkpoint is not None:
        given = int(own.checkpoint) if own.checkpoint.isdecimal() else own.checkpoint
        path = run.checkpoint(given)
    elif run.checkpoints:
        # The weights that the update began from are those of the step before.
        nearest = min(run.checkpoints, key=lambda at: (abs(at - (step - 1)), at))
        path = run.checkpoints[nearest]
    else:
        return None, "none: the run keeps no checkpoint (callbacks.checkpoint)"
    from gptlab.runs import checkpoint
    from gptlab.runs.load import load_model

    at = checkpoint.load(path).state.step
    distance = at - (step - 1)
    where = "the weights that this update began from"
    if distance:
        where = (
            f"{abs(distance):,} step{'s' * (abs(distance) != 1)} {'after' if distance > 0 else 'before'} this update"
        )
    return load_model(str(path)).model.to(device), f"{path} (after step {at:,}: {where})"


def _name_documents(config: Any, data: Any, read: "StepRead") -> None:
    """Add the files or records of documents, where they can be found."""
    from gptlab.data.origins import origins

    reasons = set()
    for name, corpus in config.data.corpora.items():
        own = [one for one in read.documents if one.source == name and one.number is not None]
        if not own:
            continue
        numbers = {one.number for one in own if one.number is not None}
        found, reason = origins(corpus, config.tokenizer, data.corpora[name], "train", numbers)
        for one in own:
            one.name = found.get(one.number) if one.number is not None else None
        if reason is not None:
            reasons.add(reason)
    read.notes += [f"no files: {reason}" for reason in sorted(reasons)]


def _page_path(given: str, step: int) -> Path:
    path = Path(given).expanduser()
    return _html_path(given, path / f"step-{step}.html" if path.is_dir() else path)


def _html_path(given: str, path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"html={given} is no folder and does not end in .html; write {shlex.quote(f'html={given}.html')}"
        )
    if not path.parent.is_dir():
        raise UserError(f"html={given} is in a folder that does not exist; create {path.parent}")
    return path


def _has_colors() -> bool:
    """Whether standard output shows colors: a terminal, unless https://no-color.org asks for none."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
