"""Evaluation of models as an `EvaluateConfig` asks: the results, with what is needed to reproduce them."""

import json
import math
import platform
import sys
import time
import typing
from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gptlab.data.examples.template import Template
from gptlab.data.sources.config import TextConfig
from gptlab.data.sources.source import Corpus
from gptlab.data.sources.text import open_text
from gptlab.errors import UserError
from gptlab.evaluation.config import EvaluateConfig, Kind
from gptlab.evaluation.minimal_pairs import judge_pairs, minimal_pairs
from gptlab.evaluation.perplexity import encode, perplexity
from gptlab.evaluation.prompts import DELIMITER, SEPARATOR, Example, Prompts, read_examples
from gptlab.evaluation.records import Records
from gptlab.evaluation.subject import Subject, check_causal, check_exists, open_subject, validation_split
from gptlab.files import write_text_atomic
from gptlab.generation.config import SEED, DecodingConfig
from gptlab.generation.precision import find_device, prepare
from gptlab.generation.prompt import beyond_training, has_encoder

FOLDER = "evaluations"  # in the run folder
LIBRARIES = {Kind.answers: ("torchmetrics",), Kind.tasks: ("lm-eval", "datasets")}
NOT_A_SETTING = ("run", "output", "to", "device")  # options that change no number

Result = dict[str, Any]


def evaluate(
    config: EvaluateConfig,
    settings: dict[str, DecodingConfig],
    *,
    on_result: Callable[[list[Result]], None] = lambda results: None,
    on_part: Callable[[list[Result]], None] = lambda results: None,
    show: bool = False,
) -> list[Result]:
    """Evaluate each run, one after another, and write the results into the run folders.

    `config` and the named decoding `settings` are checked already. `on_result` is called with the results so far after
    each run, so that an error in the next one does not cost them, and `on_part` after each part of a run: its last
    result then has `complete` false. `show` shows progress on standard error. UserError where something cannot work, if
    possible before any work.
    """
    prompts = read_prompts(config) if config.kind in (Kind.choices, Kind.answers) else None
    corpus = open_corpus(config.corpus) if config.corpus else None
    for name in config.run:
        check_exists(name)
    device = find_device(config.device)
    results: list[Result] = []
    for name in config.run:
        started = time.perf_counter()
        subject = open_subject(name)
        facts = _facts(subject, config)

        def part(found: Result, facts: Result = facts, started: float = started) -> None:
            seconds = time.perf_counter() - started
            on_part([*results, facts | found | {"seconds": seconds, "complete": False}])

        found = _evaluate(subject, config, corpus, prompts, settings, device, show, part)
        results.append(facts | found | {"seconds": time.perf_counter() - started, "complete": True})
        _write_into_run(results[-1], subject)
        on_result(results)
    return results


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file, whole or not at all."""
    write_text_atomic(path, json.dumps(content, indent=2, default=str) + "\n")  # lm-eval's samples may hold any type


def _evaluate(
    subject: Subject,
    config: EvaluateConfig,
    corpus: Corpus | None,
    prompts: Prompts | None,
    settings: dict[str, DecodingConfig],
    device: torch.device,
    show: bool,
    on_part: Callable[[Result], None],
) -> Result:
    model, tokenizer, end_ids = subject.trained
    num_fewshot = config.fewshot_counts
    if config.kind is Kind.perplexity:
        check_causal(subject)
        text = validation_split(subject, show=show) if corpus is None else encode(corpus, tokenizer)
        context = subject.run.config.context_length if subject.run and subject.data else None  # as it was trained
        model = prepare(model, config.precision, device)
        confined = subject.run is not None and subject.run.config.data.by_document
        separator = tokenizer.eot if confined else None
        numbers = perplexity(
            model, tokenizer, text, stride=config.stride, context_length=context, separator=separator, show=show
        )
        if text.lost_text is not None:
            print(
                f"warning: no bits per byte: the tokenizer does not give the text back ({text.lost_text})",
                file=sys.stderr,
                flush=True,
            )
        return {"corpus": text.description, "numbers": numbers}
    model = prepare(model, config.precision, device)
    if config.kind is Kind.pairs:
        check_causal(subject)
        pairs = minimal_pairs(config.minimal_pairs or 0, SEED if config.seed is None else config.seed)
        return judge_pairs(model, tokenizer, pairs, show=show)
    if config.kind is Kind.tasks:
        from gptlab.evaluation.harness import Harness, evaluate_tasks

        harness = Harness(model, tokenizer, end_ids, seed=SEED if config.seed is None else config.seed, show=show)
        found = evaluate_tasks(harness, config.tasks or (), num_fewshot=config.num_fewshot, limit=config.limit)
        if found["n_truncated"]:
            print(
                f"{found['n_truncated']:,} requests were longer than the context and were truncated on the left, as "
                "lm-eval does",
                file=sys.stderr,
            )
        return found
    assert prompts is not None
    encoded = [prompts.encoded(i, max(num_fewshot), tokenizer, model) for i in range(len(prompts.items))]
    if (note := beyond_training(encoded, model)) is not None:
        print(f"warning: {note}", file=sys.stderr)
    if config.kind is Kind.choices:
        from gptlab.evaluation.choices import choose

        if config.delimiter is not None and config.num_fewshot is None and has_encoder(model) and not any(num_fewshot):
            raise UserError(
                f"delimiter= has no effect on run={subject.name}, whose decoder starts each answer as a text of its "
                "own; it goes before the answers of few-shot examples: add num_fewshot=[0,1,5]"
            )
        return choose(model, tokenizer, prompts, num_fewshot, show=show, on_part=on_part)
    from gptlab.evaluation.responses import Responder, respond_to_all

    return respond_to_all(
        Responder(model, tokenizer, end_ids),
        prompts,
        num_fewshot,
        settings,
        stop=config.stop,
        show=show,
        on_part=on_part,
    )


def open_corpus(paths: list[str]) -> Corpus:
    """The texts of `corpus=`."""
    try:
        return open_text(TextConfig(paths=paths, text_column=None))  # a table too is text as it stands
    except UserError as error:
        raise UserError(str(error).replace("data.path=", "corpus=")) from None  # the option that was typed


def read_prompts(config: EvaluateConfig) -> Prompts:
    """The prompts of a table as the options ask; UserError where one cannot work."""
    prompt, answer = Template(config.prompt or "", "prompt"), Template(config.answer or "", "answer")
    for option, template in (("prompt", prompt), ("answer", answer)):
        if not template.fields:
            raise UserError(
                f"{option}={template.text!r} names no column, so that it is the same for all records; write a column "
                "as {name}"
            )
    choices = config.choices
    if isinstance(choices, tuple):
        choices = [Template(choice, "choices") for choice in choices]
    records, pool_records = _tables(config)
    fixed, indices, limit = config.fewshot_indices, config.indices, config.limit
    options = {"answer_format": config.answer_format}
    shared = any(config.fewshot_counts) and records == pool_records
    named = {*(indices or ()), *(fixed if shared and fixed else ())}
    if shared and fixed is None:
        first = math.inf  # examples are drawn from all records
    elif indices is not None:
        first = 0
    else:
        first = math.inf if limit is None else limit + len(named)  # those that are examples are left out below
    found = read_examples(records, prompt, answer, choices, indices=named, first=first, **options)
    items, pool = list(found.values()) if indices is None else [found[index] for index in indices], found
    if any(config.fewshot_counts) and not shared:
        first = math.inf if fixed is None else 0
        pool = read_examples(pool_records, prompt, answer, choices, indices=fixed or (), first=first, **options)
    if fixed is not None:
        pool = {index: pool[index] for index in fixed}
        items = _without(items, list(pool.values()), explicit=indices is not None)
    prompts = Prompts(
        items=items[:limit],
        pool=list(pool.values()),
        pool_name=pool_records.title,
        separator=SEPARATOR if config.separator is None else config.separator,
        delimiter=DELIMITER if config.delimiter is None else config.delimiter,
        seed=SEED if config.seed is None else config.seed,
        fixed=fixed is not None,
    )
    prompts.check(config.fewshot_counts)
    return prompts


def _tables(config: EvaluateConfig) -> tuple[Records, Records]:
    """What is evaluated, and what few-shot examples come from."""
    data = typing.cast(str, config.data)
    records = Records(name=data, subset=config.subset, revision=config.revision, split=config.hub_split)
    split = config.hub_split if config.fewshot_split is None else config.fewshot_split
    if config.examples is None:
        return records, replace(records, split=split)
    # Another data set has subsets and revisions of its own.
    return records, Records(name=config.examples, key="examples", split=config.fewshot_split)


def _without(items: list[Example], pool: list[Example], *, explicit: bool) -> list[Example]:
    """The prompts that are not among the examples before them, which would give their answers away."""
    given = {example.prompt: example for example in pool}
    left = [item for item in items if item.prompt not in given]
    if explicit and len(left) < len(items):
        item = next(item for item in items if item.prompt in given)
        raise UserError(
            f"indices={item.index} has the prompt of fewshot_indices={given[item.prompt].index}, which gives its "
            "answer away; evaluate another record, or give another example"
        )
    if not left:
        raise UserError("fewshot_indices= names every record, and none is left to evaluate; name fewer")
    return left


def _facts(subject: Subject, config: EvaluateConfig) -> Result:
    """What was measured of what, so that the numbers can be reproduced."""
    given = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_A_SETTING}
    given = {option: getattr(value, "value", value) for option, value in given.items() if value not in (None, [])}
    libraries = ("gptlab", "torch", *LIBRARIES.get(config.kind, ()))
    return {
        "what": config.kind.value,
        "run": subject.name,
        "checkpoint": None if subject.checkpoint is None else str(subject.checkpoint),
        "step": subject.step,
        "run_id": None if subject.run is None else subject.run.config.run_id(),
        "seed": SEED if config.seed is None else config.seed,
        "settings": given,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }


def _write_into_run(result: Result, subject: Subject) -> None:
    """Write the result into the run folder, named by its step, what it measures, and a hash of the settings."""
    if subject.folder is None:
        return
    digest = sha256(json.dumps(result["settings"], sort_keys=True).encode()).hexdigest()[:8]
    path = subject.folder / FOLDER / f"{subject.step:08}-{result['what']}-{digest}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, result)
    except OSError as error:  # the numbers were the work, and are shown
        print(f"{path} cannot be written ({error.strerror}); use to=FILE", file=sys.stderr)
