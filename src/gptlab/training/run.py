"""One run from a checked config to its last line."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from gptlab.config import RunConfig, check_vocabulary, to_plain
from gptlab.data.prepare import PreparedData, prepare
from gptlab.objectives.build import build_objective
from gptlab.training import checkpoint
from gptlab.training.callbacks import Checkpoints, ProgressBar, Recorder, Sampler
from gptlab.training.config import Layout, is_whole
from gptlab.training.datamodule import WindowsDataModule
from gptlab.training.devices import Devices, find_devices, keep_freed_memory
from gptlab.training.folder import RunFolder, cut_metrics, read_metrics
from gptlab.training.initial import open_initial
from gptlab.training.launch import end_together, first_rank, watch
from gptlab.training.loggers import build_loggers
from gptlab.training.module import LanguageModule
from gptlab.training.plan import Plan, make_plan
from gptlab.training.plot import plot_loss
from gptlab.training.schedule import build_schedule
from gptlab.training.stopping import Stopped
from gptlab.training.strategy import build_strategy

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def train(config: RunConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Carry out a run, or continue it, and return its summary.

    `callbacks` are other people's, beside those of gptlab. Leaves everything in the run folder. Raises ValueError for
    what a user can change, Failure for what nobody can, Stopped after a signal.
    """
    _quieten()
    devices = find_devices(config.trainer)
    if devices.accelerator == "cpu":
        keep_freed_memory()
    config.check(devices.world_size)
    if config.strategy.cpu_offload and devices.accelerator == "cpu":
        raise ValueError("strategy.cpu_offload=true moves what a GPU need not hold, and this run is on the CPU")
    layout = config.strategy.layout(devices.world_size, config.trainer.num_nodes)
    folder = RunFolder(Path(config.folder()), writes=first_rank())
    if _is_finished(config, folder):
        return folder.summary()
    data = prepare(config.data, config.tokenizer, progress=folder.writes)
    vocab_size = config.model.vocab_size or data.tokenizer.vocab_size
    check_vocabulary(vocab_size, data.tokenizer.vocab_size, config.tokenizer.kind)
    plan = make_plan(config, data, devices, vocab_size)
    objective = build_objective(config.objective)
    datamodule = WindowsDataModule(config, data, objective, layout=layout, n_steps=plan.n_steps)
    sampler = Sampler(config, folder, data) if config.callbacks.sample is not None else None

    with folder.lock():
        if _is_finished(config, folder):  # meanwhile, by the run that held the lock
            return folder.summary()
        source, state = _resume(config, folder, fingerprints(data, devices))
        start = state["step"] if state else 0
        if start > plan.n_steps or (start == plan.n_steps and config.resume != "auto"):
            raise ValueError(
                f"{source} is at step {start:,} and the budget is {plan.n_steps:,} steps; raise the budget to go on"
            )
        if config.model.init_from is not None and start == 0:
            open_initial(
                config.model, vocab_size, data.tokenizer
            )  # whether it fits; it is read when the model is built
        datamodule.start_step = start
        module = _module(config, data, plan, objective, layout, start)
        columns = _columns(config, devices, datamodule, _metrics_source(folder, source))
        recorder = Recorder(config, folder, plan, columns=columns)
        own = [recorder, Checkpoints(config, folder, recorder, identity=fingerprints(data, devices), state=state)]
        if sampler is not None:
            own.append(sampler)
        if config.trainer.enable_progress_bar and folder.writes:
            own.append(ProgressBar(recorder, plan.n_steps))
        trainer = _trainer(config, folder, plan, devices, [*own, *callbacks])
        _count_from(trainer, start)
        watch(trainer, lambda error: folder.event("failed", step=module.finished_steps, error=error))
        # Everything that was typed is accepted: from here on the folder changes.
        loggers = []
        if folder.writes:
            if config.trainer.enable_model_summary:
                print(plan.text(config, folder.path, start), flush=True)
            _open_folder(config, folder, data, source, start, columns)
            loggers = build_loggers(config, folder.path)
            trainer.loggers = loggers
        recorder.recall(read_metrics(folder.path / "metrics.csv"))
        started = time.perf_counter()
        try:
            if start < plan.n_steps:  # a run that was killed after its last save has only its summary left to write
                trainer.fit(module, datamodule)
        except Exception as error:
            told = end_together(
                trainer, error, step=module.finished_steps, timeout_seconds=config.strategy.timeout_seconds
            )
            with suppress(OSError):  # what ended the run is what has to be said
                recorder.close(trainer)
                if not isinstance(error, Stopped):
                    folder.event("failed", step=module.finished_steps, error=f"{type(told).__name__}: {told}")
                _plot(config, folder, data)
            if told is error:
                raise
            raise told from error
        recorder.close(trainer)
        _plot(config, folder, data)
        metrics = dict(recorder.validated)
        if "test" in datamodule.eval_windows:
            trainer.test(module, datamodule, verbose=False)
            metrics |= module.evaluation
        summary = {
            "finished": module.finished_steps >= plan.n_steps,  # not after trainer.max_time, or early stopping
            "steps": module.finished_steps,
            "tokens": module.finished_steps * plan.step_tokens,
            "seconds": round(time.perf_counter() - started, 1),
            "train/loss": recorder.row.get("train/loss"),
            **metrics,
            "unigram_entropy": data.train.unigram_entropy(),
            "parameters": plan.parameters["total"],
            "config": config.identity(),
            "corpus": data.description,
            "data": data.fingerprint,
            "devices": plan.devices,
            "versions": {
                "python": sys.version.split()[0],
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
        }
        if folder.writes:
            folder.write_json("summary.json", summary)
            folder.event("finished" if summary["finished"] else "ended early", step=module.finished_steps, **metrics)
            print(_report(config, folder, summary, sampler.newest if sampler else "", loggers), flush=True)
        return summary


def _module(config: RunConfig, data: PreparedData, plan: Plan, objective, layout: Layout, start: int) -> LanguageModule:
    files = {"train_eval": data.train, "val": data.val, "test": data.test}
    module = LanguageModule(
        config,
        objective,
        build_schedule(config.schedule, n_steps=plan.n_steps, batch_tokens=plan.step_tokens),
        layout=layout,
        vocab_size=plan.vocab_size,
        n_bytes={split: file.n_bytes for split, file in files.items() if file is not None},
    )
    module.finished_steps = start
    return module


def fingerprints(data: PreparedData, devices: Devices) -> dict[str, str]:
    """What a checkpoint remembers beside its config, and a continued run has to match."""
    return {"data": data.fingerprint, "tokenizer": data.tokenizer.fingerprint, "arithmetic": devices.precision}


def _is_finished(config: RunConfig, folder: RunFolder) -> bool:
    summary = folder.summary()
    if config.resume != "auto" or summary is None or not summary["finished"]:
        return False
    saved = folder.path / "config.yaml"
    if saved.is_file():
        _refuse_changes(config, yaml.safe_load(saved.read_text()), folder.path)
    if folder.writes:
        print(f"{folder.path} is finished after {summary['steps']:,} steps; name=... starts another run")
        print(_last_line(summary, folder.path))
    return True


def _resume(config: RunConfig, folder: RunFolder, identity: dict) -> tuple[Path | None, dict | None]:
    """The checkpoint to go on from, if any, after checking that it belongs to this run."""
    if config.resume is None:
        if (folder.path / "metrics.csv").is_file():
            raise ValueError(
                f"{folder.path} holds a run and resume=null; use resume=auto to continue it, or name=... for a new one"
            )
        return None, None
    if config.resume == "auto":
        path, skipped = checkpoint.newest(folder.checkpoints)
        for reason in skipped if folder.writes else ():
            print(f"skipped: {reason}", file=sys.stderr)
        if path is None and skipped:
            raise ValueError(
                f"none of the checkpoints in {folder.checkpoints} can be read ({skipped[0]}); "
                "mend them, or start another run with name=..."
            )
        if path is None:
            return None, None
        state = checkpoint.load(path)
        _refuse_changes(config, state["config"], path)
    else:
        path = Path(config.resume)
        state = checkpoint.load(path)
        own, _ = checkpoint.newest(folder.checkpoints)
        if own is not None and path.resolve().parent != folder.checkpoints.resolve():
            raise ValueError(
                f"{folder.path} has gone on from resume={path} already; "
                "leave resume out to continue it, or start again elsewhere with name=..."
            )
        differences = _differences(to_plain(config), state["config"], ("model", "optimizer.algorithm", "objective"))
        differences = differences or _differences(
            to_plain(config), state["config"], ("batch_tokens", "data.context_length")
        )
        if differences:
            raise ValueError(f"{path} is a checkpoint of another model or batch: {differences}")
    if state["tokenizer"] != identity["tokenizer"]:
        raise ValueError(
            f"{path} was trained with another tokenizer (fingerprint {state['tokenizer'][:16]}, "
            f"now {identity['tokenizer'][:16]}); use the data and tokenizer of that run"
        )
    if (
        config.resume == "auto" and state.get("arithmetic", identity["arithmetic"]) != identity["arithmetic"]
    ):  # another machine's default
        raise ValueError(
            f"{path} was trained in {state['arithmetic']} and here it would go on in {identity['arithmetic']}; "
            "give the run another name with name=... and say trainer.precision=... from its start"
        )
    if config.resume == "auto" and state["data"] != identity["data"]:
        raise ValueError(
            f"{path} was trained on other data (fingerprint {state['data'][:16]}, now {identity['data'][:16]}): "
            "the corpus has changed since; restore it, or start another run with name=..."
        )
    return path, state


def _refuse_changes(config: RunConfig, saved: dict[str, Any], where: Path) -> None:
    plain = config.learned_from()
    differences = _differences(plain, saved, tuple(plain))
    if saved and differences:
        raise ValueError(
            f"{where} was made by another config: {differences}; "
            "restore these words, or start another run with name=..."
        )


def _differences(now: Any, then: Any, words: tuple[str, ...] | None = None, prefix: str = "") -> str:
    """Where two plain configs differ, as text; looked at only below `words`."""

    def leaves(a: Any, b: Any, path: str) -> Iterator[str]:
        if isinstance(a, dict):
            b = b if isinstance(b, dict) else {}
            for key in a:
                yield from leaves(a[key], b.get(key), f"{path}.{key}" if path else key)
        elif a != b:
            yield f"{path} was {b} and is {a}"

    def at(tree: Any, word: str) -> Any:
        for key in word.split("."):
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree

    found = [text for word in words or () for text in leaves(at(now, word), at(then, word), word)]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _open_folder(config, folder: RunFolder, data: PreparedData, source: Path | None, start: int, columns) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "config.yaml").write_text(yaml.safe_dump(to_plain(config), sort_keys=False))
    data.tokenizer.save(folder.path / "tokenizer.json")
    cut_metrics(_metrics_source(folder, source), folder.path / "metrics.csv", start, columns)
    (folder.path / "summary.json").unlink(missing_ok=True)  # of before it was taken back
    for step, later in checkpoint.kept(folder.checkpoints):
        if step > start:  # the run was taken back, or they cannot be read
            later.rename(later.with_suffix(".aside"))
            folder.event("set aside", checkpoint=later.name)


def _metrics_source(folder: RunFolder, source: Path | None) -> Path:
    """The metrics.csv whose rows lead up to the checkpoint `source`."""
    return (folder.path if source is None else source.parent.parent) / "metrics.csv"


def _columns(config: RunConfig, devices: Devices, datamodule: WindowsDataModule, earlier: Path) -> list[str]:
    columns = ["step", "tokens", "train/loss", *(f"train/{name}" for name in config.model.auxiliary_terms)]
    columns += ["train/lr", "train/grad_norm"]
    if devices.precision == "16-mixed":
        columns.append("train/loss_scale")
    columns += ["perf/tokens_per_second", "perf/memory_gib"]
    if devices.peak_flops is not None:
        columns.append("perf/mfu")
    whole = is_whole(config.trainer.limit_val_batches)
    for split in datamodule.eval_splits:
        prefix = split if whole else f"{split}_part"
        columns += [f"{prefix}/{name}" for name in ("loss", "perplexity", "bits_per_byte")[: 3 if whole else 2]]
    recorded = {name: None for row in read_metrics(earlier) for name in row}
    return list(dict.fromkeys([*columns, *recorded]))  # what an earlier part of the run measured is kept


def _trainer(
    config: RunConfig, folder: RunFolder, plan: Plan, devices: Devices, callbacks: list[Callback]
) -> lightning.Trainer:
    given = config.trainer
    own = {
        "accelerator": devices.accelerator,
        "devices": devices.per_node,
        "precision": devices.precision,
        "strategy": build_strategy(config.strategy, world_size=devices.world_size, accelerator=devices.accelerator),
        "logger": False,
        "callbacks": callbacks,
        "max_steps": plan.n_steps,
        "max_epochs": 1,
        "val_check_interval": plan.val_every or plan.n_steps,
        "check_val_every_n_epoch": None,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    if plan.val_every is None:
        own["limit_val_batches"] = 0
    if given.profiler is not None:
        own["profiler"] = PROFILERS[given.profiler](dirpath=folder.path, filename="profile")
    asked = {name: value for name, value in to_plain(given).items() if name not in own}
    return lightning.Trainer(**own, **asked)


def _count_from(trainer: lightning.Trainer, step: int) -> None:
    # A continued run is a new fit over the steps that remain, whose counters go on: Lightning's own way restarts
    # its loops in the middle, and may then run a validation of one batch or skip one.
    loop = trainer.fit_loop.epoch_loop
    for progress in (loop.batch_progress.total, loop.manual_optimization.optim_step_progress.total):
        progress.ready = progress.completed = step
    loop.batch_progress.total.started = loop.batch_progress.total.processed = step
    loop._batches_that_stepped = step


def _plot(config: RunConfig, folder: RunFolder, data: PreparedData) -> None:
    if not (config.callbacks.plot and folder.writes):
        return
    plot_loss(
        folder.path / "metrics.csv",
        folder.path / "loss.png",
        title=folder.path.name,
        unigram_entropy=data.train.unigram_entropy(),
    )


def _report(config: RunConfig, folder: RunFolder, summary: dict, sample: str, loggers: list[Logger]) -> str:
    lines = [""]
    if sample:
        lines += ["The model writes:", "", *(f"    {line}" for line in sample.strip("\n").splitlines()), ""]
    lines.append(
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:,.0f} s"
        + ("" if summary["finished"] else " (ended before the budget)")
    )
    lines.append(f"unigram entropy of the training text {summary['unigram_entropy']:.4f} nats per token")
    for split, label in (("val", "validation"), ("train_eval", "training, in eval mode"), ("test", "test")):
        for prefix, part in ((split, ""), (f"{split}_part", " of a part")):
            if f"{prefix}/loss" in summary:
                lines.append(f"{label} loss{part} {summary[f'{prefix}/loss']:.4f}")
    if config.callbacks.plot:
        lines.append(f"the curves are in {folder.path / 'loss.png'}")
    if config.trainer.profiler is not None:
        lines.append(f"the profile is in {folder.path / 'fit-profile.txt'}")
    lines += [hint for logger in loggers if (hint := getattr(logger, "hint", None))]
    lines.append(_last_line(summary, folder.path))
    return "\n".join(lines)


def _last_line(summary: dict[str, Any], path: Path) -> str:
    names = [name for name in ("val/loss", "val/perplexity", "val/bits_per_byte") if name in summary]
    digits = {"val/perplexity": 2}
    numbers = [f"{name} {summary[name]:.{digits.get(name, 4)}f}" for name in names]
    if not numbers:
        numbers = [f"train/loss {summary['train/loss']:.4f}"]
    return f"{' '.join(numbers)} run {path}"


def _quieten() -> None:
    """Keep Lightning's advice about what gptlab does on purpose off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # Whole matrices for Muon are gathered over two dimensions of a mesh, which it would do in one.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*The `srun` command is available.*",
        ".*is smaller than the logging interval.*",
        ".*`ModelParallelStrategy` is experimental.*",
        ".*treespec, LeafSpec.*",
        ".*sync_dist=True.*",
    ):
        warnings.filterwarnings("ignore", message=message)
