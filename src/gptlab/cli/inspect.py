"""The command `gptlab inspect`: what a training step reads, as text; nothing is trained."""

import json
import typing
from collections import Counter
from dataclasses import dataclass
from typing import Any

from gptlab.cli.guard import guard
from gptlab.cli.options import compose, load_plugins, print_text, read
from gptlab.errors import UserError
from gptlab.fields import bounded, check_bounds
from gptlab.generation.config import OutputFormat

if typing.TYPE_CHECKING:
    from gptlab.runs.run import Run

N_SHOWN = 3
HELP = """gptlab inspect step=0 [group.key=value ...]
gptlab inspect step=0 run=runs/NAME

    step          the update, from 0, whose examples are shown (0)
    run           a run folder; otherwise the options that gptlab train takes say which run is meant
    n_shown       examples that are shown (3)
    by_token      true: one token a line, with its position, its id and what is to be predicted there (false)
    rank          of the devices, which one reads the examples (0)
    world_size    the number of devices, each of which reads its share; 1 shows the examples of all (1)
    output        text, or json with nothing else on standard output (text)
    plugins       modules that register components of your own, as [MODULE]

--config-dir DIR adds presets of your own, as for gptlab train.
"""


@dataclass(kw_only=True, slots=True)
class _Options:
    step: int = bounded(0, ge=0)
    run: str | None = None
    n_shown: int = bounded(N_SHOWN, ge=1)
    by_token: bool = False
    rank: int = bounded(0, ge=0)
    world_size: int = bounded(1, ge=1)
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)


def main(arguments: list[str]) -> int:
    """Show what the arguments ask for; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in OPTIONS]
    return guard(lambda: inspect(arguments, overrides), overrides)


def inspect(arguments: list[str], overrides: list[str]) -> None:
    """Compose the run, or read its config, and print the examples of the step."""
    own = _Options(**read([argument for argument in arguments if argument not in overrides], OPTIONS, "gptlab inspect"))
    check_bounds(own)
    config, run = _config(own, overrides)
    if own.world_size == 1:  # the examples of a step are the same on any number of devices
        from gptlab.distributed.config import StrategyConfig

        config.strategy, config.trainer.num_nodes = StrategyConfig(), 1
    from gptlab.data.mixture.prepare import prepare_run
    from gptlab.lab.batches import as_text, n_targets, read_examples
    from gptlab.training.loop import batch, sources

    found = batch(config, own.step, own.rank, own.world_size)
    of_mixture = sources(config, own.step, own.rank, own.world_size)
    data = prepare_run(config.data, config.tokenizer, progress=False)
    if run is not None and (run.summary or {}).get("data", data.fingerprint) != data.fingerprint:
        raise UserError(
            f"run={own.run} was trained on other data than {data.description} now holds; restore it, or inspect the "
            "data without run="
        )
    names = getattr(config.data.first, "class_names", ())
    examples = read_examples(found, data.tokenizer, class_names=names, sources=of_mixture, limit=own.n_shown)
    n_examples = len(next(iter(found.values())))
    if own.output is OutputFormat.json:
        shapes = {name: list(value.shape) for name, value in found.items()}
        print(
            json.dumps(
                {"step": own.step, "n_examples": n_examples, "shapes": shapes, "n_targets": n_targets(found)}
                | ({} if of_mixture is None else {"sources": of_mixture})
                | {"data": data.description, "objective": config.objective.type, "examples": examples}
            )
        )
        return
    shapes = ", ".join(f"{name} {' x '.join(map(str, value.shape))}" for name, value in found.items())
    counts = ", ".join(f"{n:,} {name}" for name, n in n_targets(found).items())
    if of_mixture is not None:
        by_source = Counter(source["name"] for source in of_mixture)
        counts += "; " + ", ".join(f"{n:,} of {name}" for name, n in sorted(by_source.items()))
    print_text(f"{data.description}\n")
    print(f"step {own.step:,} of objective={config.objective.type}: {n_examples:,} examples with {counts}")
    print(f"tensors: {shapes}\n")
    print_text(as_text(examples, by_token=own.by_token) + "\n")


def _config(own: _Options, overrides: list[str]) -> tuple[Any, "Run | None"]:
    """The config of the run that is meant, and the run where there is one."""
    if own.run is not None:
        from gptlab.runs.run import open_run

        rest = load_plugins(overrides)
        if rest:
            raise UserError(f"{rest[0]} has no effect on run={own.run}, whose config is shown as it is; leave out one")
        run = open_run(own.run)
        return run.config, run
    return compose(overrides, "gptlab inspect"), None
