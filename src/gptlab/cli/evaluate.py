"""The command `gptlab evaluate`: perplexity, prompts of a table, and lm-eval's tasks."""

import json
import sys
import typing
from pathlib import Path

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, read
from gptlab.errors import UserError
from gptlab.evaluation.config import N_SHOWN, TEXTS, EvaluateConfig
from gptlab.generation.config import MAX_NEW_TOKENS, SETTINGS, DecodingConfig, OutputFormat
from gptlab.generation.threads import spin_briefly
from gptlab.quoting import unescaped

HELP = """gptlab evaluate run=PATH [run=PATH ...] [key=value ...]

    run                 a run folder (its best checkpoint), a .ckpt file, a transformers folder or a hub name;
                        given several times, the runs are evaluated one after another and compared in the end

  perplexity and bits per byte, unless data= or tasks= is given
    corpus              text: a file, a folder or a glob; may be given several times (the run's validation split)
    stride              of the sliding window; each token has context - stride tokens before it (half the context)

  prompts of a table
    data                a file (.jsonl .json .csv .tsv .parquet, also with .gz), the folder of a data set or its name on
                        the hub
    subset revision     of a data set
    hub_split           of a data set (train)
    indices             evaluate these records, counted from 0, as [200] (all)
    limit               evaluate the first so many prompts (all)
    prompt answer       text with columns as {question}; \\n is a new line
    choices             multiple choice: the column with the list, or the choices for all prompts, as [yes,no] or with
                        columns as ["{sol1}","{sol2}"]
    answer_format       how answer names one of them: choice, index (from 0), index_from_1 or letter (the one way in
                        which the table can be read)
    num_fewshot         numbers of examples before each prompt, as [0,1,5] (0)
    examples            a table that examples are drawn from (the other records of data)
    fewshot_split       the split of a data set that examples are drawn from (hub_split)
    fewshot_indices     these examples before every prompt, counted from 0, as [40,80,120] (drawn for each prompt)
    separator           between examples (a blank line)
    delimiter           between a prompt and its answer (a space)
    seed                of the choice of examples and of sampling (1337)
    n_shown             prompts that are printed whole (3)

  generated answers against the reference, where there are no choices
    settings            decoding settings to compare, as ["temperature=0.7 top_p=0.9", "num_beams=4 max_new_tokens=20"]
                        (temperature=0)
    max_new_tokens      at most so many tokens per answer, where a setting has no number of its own (100)
    stop                texts that end an answer, as ["\\n"]; [] for none (the separator)

  minimal pairs of grammar, of which the acceptable sentence should be the more likely one
    minimal_pairs       so many in each category, at most 100; seed and n_shown as above

  tasks of lm-eval: pip install "gptlab[evaluation]"
    tasks               names or files, as [hellaswag,my_task.yaml]; num_fewshot, limit and seed as above

    precision           32, bf16 or int8 (32)
    device              cpu, cuda, cuda:1 ... (a GPU where there is one)
    output              text, or json with nothing else on standard output (text)
    to                  a file that gets the JSON; runs get it in their folders' evaluations/ as well
    plugins             modules that register components of your own, as [MODULE]
"""

# Other programs' names for ours, and earlier ones, where spelling alone would not find them.
FOREIGN = {
    "shots": "num_fewshot",
    "n_shot": "num_fewshot",
    "n_shots": "num_fewshot",
    "fewshot": "num_fewshot",
    "n_rows": "limit",
    "max_samples": "limit",
    "num_samples": "limit",
    "n_samples": "limit",
    "n_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "until": "stop",
    "gen_kwargs": "settings",
    "dtype": "precision",
    "model": "run",
    "pretrained": "run",
    "checkpoint": "run",
    "task": "tasks",
    "blimp": "minimal_pairs",
    "pairs": "minimal_pairs",
    "n_pairs": "minimal_pairs",
    "text": "corpus",
    "dataset": "data",
    "output_path": "to",
    "format": "output",
    "label": "answer",
    "target": "answer",
    "split": "hub_split",
    "test_split": "hub_split",
    "streaming": "data",
    "index": "indices",
    "ids": "indices",
    "rows": "indices",
    "shot_indices": "fewshot_indices",
    "example_indices": "fewshot_indices",
    "max_length": "max_new_tokens",
    "fewshot_delimiter": "separator",
    "target_delimiter": "delimiter",
}
SETTINGS_FOREIGN = {"beams": "num_beams", "beam_size": "num_beams", "do_sample": "temperature"}


def main(arguments: list[str]) -> int:
    """Evaluate as the arguments ask; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: evaluate(arguments))


def evaluate(arguments: list[str]) -> None:
    """Evaluate each run and print the numbers."""
    hints = typing.get_type_hints(EvaluateConfig)
    config = EvaluateConfig(**read(load_plugins(arguments), hints, "gptlab evaluate", FOREIGN))
    config.check()
    for option in TEXTS:
        setattr(config, option, unescaped(getattr(config, option)))
    settings = _settings(config)
    target = None if config.to is None else _writable(config.to)
    spin_briefly()
    # torch takes seconds to import: not for a wrong option.
    from gptlab.evaluation import measure, report

    def on_result(results: list[measure.Result]) -> None:
        parts.clear()
        if target is not None:
            measure.write_json(target, {"results": results})
        if config.output is OutputFormat.text:
            print_text(report.text(results[-1], n_shown=N_SHOWN if config.n_shown is None else config.n_shown))

    parts: list[measure.Result] = []  # of the run that is being evaluated

    def on_part(results: list[measure.Result]) -> None:
        parts[:] = results[-1:]
        if target is not None:
            measure.write_json(target, {"results": results})

    try:
        results = measure.evaluate(config, settings, on_result=on_result, on_part=on_part, show=sys.stderr.isatty())
    except KeyboardInterrupt:
        if parts and config.output is OutputFormat.text:  # hours may have gone into them
            print_text(report.text(parts[-1], n_shown=0))
        raise
    if config.output is OutputFormat.json:
        print(json.dumps({"results": results}, default=str))
    elif len(results) > 1:
        print_text(report.comparison(results))


def _settings(config: EvaluateConfig) -> dict[str, DecodingConfig]:
    """Decoding settings by their names; UserError where one cannot work."""
    keys = (*SETTINGS, "max_new_tokens")
    hints = {key: hint for key, hint in typing.get_type_hints(DecodingConfig).items() if key in keys}
    every_length = True
    found: dict[str, DecodingConfig] = {}
    for text in ("temperature=0",) if config.settings is None else config.settings:
        options = text.split()
        if not options:
            raise UserError("settings= has an empty one; write its options, as in settings=[temperature=0]")
        given = read(options, hints, "settings=", SETTINGS_FOREIGN)
        every_length &= "max_new_tokens" in given
        given.setdefault("max_new_tokens", config.max_new_tokens or MAX_NEW_TOKENS)
        setting = DecodingConfig(**given)
        setting.check()
        if setting in found.values():
            raise UserError(f"settings= has {text} twice; name each setting once")
        found[",".join(options)] = setting
    if config.max_new_tokens is not None and every_length:
        raise UserError(
            f"max_new_tokens={config.max_new_tokens} has no effect where every one of settings= has its own; leave out "
            "one of them"
        )
    return found


def _writable(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"to={name} is not a file in a folder that exists; name one, such as to=results.json")
    return path
