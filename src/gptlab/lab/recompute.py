"""Steps of a finished or interrupted run, taken once more in a folder of their own, and what came out."""

import copy
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.config import to_plain
from gptlab.distributed.config import StrategyConfig
from gptlab.distributed.devices import find_devices
from gptlab.errors import UserError
from gptlab.runs import amendments, chain, checkpoint
from gptlab.runs.chain import read_chain
from gptlab.runs.environment import FILE
from gptlab.runs.folder import RunFolder, cut_metrics, read_columns, read_events, read_metrics
from gptlab.runs.run import Run
from gptlab.training.config import LoggersConfig, SpikeAction
from gptlab.training.spikes import ROLLED_BACK
from gptlab.values import from_plain

JOB = "steps.json"  # what the process that takes the steps reads
RUN = "run"  # the folder within the job's
MODULE = "gptlab.cli.recompute"
LAST_LINES = 3  # of what a process printed that failed
CHECKPOINTS = "callbacks.checkpoint."


@dataclass(frozen=True, slots=True)
class Retaken:
    """What steps came to that were taken again."""

    rows: dict[int, dict[str, float]]  # of metrics.csv, by step
    weights: dict[int, str]  # checksums, by step


def config_again(run: Run, folder: Path, environment: Mapping[str, Any] | None) -> Any:
    """The config of a run to be carried out in another folder, as it was spread over devices; nothing is sent anywhere.

    Other people's callbacks are left out: no code runs because a run folder names it.
    """
    config = copy.deepcopy(run.config)  # the run keeps its own
    config.run_dir, config.name, config.resume = str(folder), None, "auto"
    config.logger = LoggersConfig()
    config.callbacks.extra = {}
    config.trainer.max_time = None  # a limit on one start, and no part of what is learned
    layout = (environment or {}).get("layout") or {}
    try:
        _spread(config, layout)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{run.path / FILE} names no layout that can be used ({error!r}); restore it") from None
    return config


def _spread(config: Any, layout: Mapping[str, Any]) -> None:
    """Spread it over devices as it was."""
    if layout:
        config.strategy = from_plain(StrategyConfig, layout["strategy"])
        config.micro_batch_size = layout["micro_batch_size"]
        if layout["num_nodes"] == 1:
            config.trainer.devices = layout["world_size"]
        try:
            devices = find_devices(config.trainer)
        except UserError:  # such devices are not here
            config.trainer.accelerator, config.trainer.devices, config.trainer.num_nodes = "auto", 1, 1
            config.strategy = StrategyConfig()
            devices = find_devices(config.trainer)
        if config.trainer.precision is None and devices.precision != layout["precision"]:
            config.trainer.precision = layout["precision"]  # the default of another kind of device


def checkpoints_of(run: Path) -> dict[int, Path]:
    """Every checkpoint that is kept by its step, in ascending order, also where `best` is its only name left."""
    folder = run / "checkpoints"
    found = dict(checkpoint.kept(folder))
    for path in (checkpoint.linked(folder, name) for name in ("last", "best")):
        if path is not None:
            with suppress(UserError):  # a damaged one
                found.setdefault(checkpoint.load(path).state.step, path)
    return dict(sorted(found.items()))


def copy_start(run: Path, folder: Path, start: int) -> None:
    """Bring a run to where it was after `start` steps, for the same config to go on from there in `folder`.

    What was amended, and what was left out after spikes, is on the record there too.
    """
    folder.mkdir(parents=True)
    if (run / "inputs.json").is_file():
        shutil.copyfile(run / "inputs.json", folder / "inputs.json")
    copy_record(run, folder, start)
    if start:
        path = checkpoints_of(run)[start]
        cut_metrics(run / "metrics.csv", folder / "metrics.csv", start, list(read_columns(run / "metrics.csv")))
        _copy_checkpoint(path, folder / "checkpoints", f"step_{start:08d}{'.ckpt' if path.is_file() else ''}")


def copy_record(run: Path, folder: Path, start: int | None) -> None:
    """Let a new run in `folder` do at the same steps what was done to `run` while it was going.

    A run that begins at the checkpoint of `start` leaves out what `run` did by then; None for one that will find out by
    itself when to go back.
    """
    record = RunFolder(folder, writes=True)
    for event in read_events(run):
        kind = event["event"]
        facts = {key: value for key, value in event.items() if key not in ("event", "time")}
        if kind == amendments.TAKEN:  # how it is saved is nothing that it learns from
            facts["overrides"] = {k: v for k, v in facts["overrides"].items() if not k.startswith(CHECKPOINTS)}
        went_back = kind == ROLLED_BACK and start is not None and event["to"] <= start
        if went_back or kind in (amendments.TAKEN, amendments.REFUSED):
            record.event(kind, **facts)


def _copy_checkpoint(path: Path, folder: Path, name: str) -> None:
    files = [(path / part, folder / name / part) for part in os.listdir(path)] if path.is_dir() else []
    files = files or [(path, folder / name)]
    for source, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)
    if path.is_file():
        checkpoint.write_sums(folder, {name: checkpoint.sums_of(path).get(path.name, "")})


def retake(
    run: Run,
    folder: Path,
    start: int,
    stop: int,
    environment: Mapping[str, Any] | None,
    *,
    every_steps: int | None,
    plugins: Sequence[str] = (),
) -> Retaken:
    """Take the steps after `start` up to `stop` in `folder`, which is made; the run itself is only read.

    `every_steps` is how often its chain has the weights. UserError where they cannot be taken here.
    """
    copy_start(run.path, folder / RUN, start)
    config = config_again(run, folder / RUN, environment)
    config.trainer.enable_progress_bar = config.trainer.enable_model_summary = False
    config.trainer.profiler = None
    config.callbacks.checkpoint = config.callbacks.sample = None
    config.callbacks.plot = config.callbacks.forecast = False
    if config.callbacks.spike.action is SpikeAction.rollback:  # nothing is saved to go back to
        config.callbacks.spike = type(config.callbacks.spike)()
    if config.callbacks.chain is not None:
        config.callbacks.chain.every_steps = every_steps
    n_threads = (environment or {}).get("threads")
    if config.trainer.device_count() in (None, 1):
        with _threads(n_threads), _silent():
            take(config, stop)
    else:
        job = {"config": to_plain(config), "until_step": stop}
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        _in_processes(folder, n_threads, plugins)
    rows = {int(row["step"]): row for row in read_metrics(folder / RUN / "metrics.csv") if row["step"] > (start or -1)}
    entries = read_chain(folder / RUN).entries
    weights = {entry["step"]: entry["weights"] for entry in entries if entry["entry"] == chain.WEIGHTS}
    return Retaken(rows, weights)


def take(config: Any, stop: int) -> None:
    """Carry out a config up to a step."""
    from gptlab.training.loop import train

    train(config, until_step=stop)


@contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    """Compute with as many threads as the run did."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _silent() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _in_processes(folder: Path, n_threads: int | None, plugins: Sequence[str]) -> None:
    """The same in a process of its own, which starts those of the other ranks."""
    command = [sys.executable, "-m", MODULE, str(folder), *([f"plugins=[{','.join(plugins)}]"] if plugins else [])]
    environment = dict(os.environ)
    if n_threads is not None:
        environment["OMP_NUM_THREADS"] = str(n_threads)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()][-LAST_LINES:]
        raise UserError(f"the processes that take the steps again ended with exit code {done.returncode}: {lines}")
