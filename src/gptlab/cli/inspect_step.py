"""`gptlab inspect step=N`: what a training step reads, and of a run what each token costs."""

import json
import os
import statistics
import sys
import typing
from collections import Counter
from itertools import pairwise
from typing import Any

from gptlab.cli.options import compose, html_path, load_plugins, print_text
from gptlab.errors import UserError
from gptlab.generation.config import OutputFormat
from gptlab.units import plural

if typing.TYPE_CHECKING:
    from gptlab.cli.inspect import Options
    from gptlab.lab.step import StepRead
    from gptlab.runs.run import Run
    from gptlab.training.spikes import Attempt

USUAL_STEPS = 100  # before a step


def show_step(own: "Options", step: int, overrides: list[str]) -> None:
    """Compose the run, or read its config, and print what the step reads."""
    config, run = _config(own, overrides)
    if own.world_size == 1:  # the examples of a step are the same on any number of devices
        from gptlab.distributed.config import StrategyConfig

        config.strategy, config.trainer.num_nodes = StrategyConfig(), 1
    page = None if own.html is None else html_path(own.html, f"step-{step}.html")
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
    what = f"{plural(n_examples, 'example')} with {counts}"
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


def _config(own: "Options", overrides: list[str]) -> tuple[Any, "Run | None"]:
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


def suggested_step(path: str) -> str:
    """Which step of a run is worth a look, and why."""
    from gptlab.runs.folder import read_metrics
    from gptlab.runs.run import open_run
    from gptlab.training.spikes import largest_jump

    run = open_run(path)
    rows = read_metrics(run.path / "metrics.csv")
    jump = largest_jump(rows, run.events(), run.config.callbacks.spike)
    if jump is not None:
        return f"its largest loss spike is step={jump.step}"
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    rises = [(after - before, step) for (_, before), (step, after) in pairwise(losses)]
    if not rises:
        return "step=1 is the first update, as in metrics.csv"
    return f"it has no loss spike; its loss rose most at step={max(rises)[1]}"


def _history(run: "Run", own: "Options", step: int) -> "tuple[Attempt, list[tuple[str, str]], float | None]":
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


def _model(run: "Run", own: "Options", step: int) -> tuple[Any, str | None]:
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


def _has_colors() -> bool:
    """Whether standard output shows colors: a terminal, unless https://no-color.org asks for none."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
