"""One run from a checked config to its last line."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from gptlab.config import RunConfig, check_vocabulary, to_plain
from gptlab.data.prepare import PreparedData, prepare
from gptlab.distributed.devices import Devices, find_devices, keep_freed_memory
from gptlab.distributed.launch import end_together, first_rank, watch
from gptlab.distributed.parallelize import build_strategy
from gptlab.distributed.signals import Failure, Stopped
from gptlab.errors import UserError
from gptlab.forecast import Plan, make_plan
from gptlab.models.build import shape_model
from gptlab.objectives.base import Objective
from gptlab.runs import checkpoint
from gptlab.runs.folder import RunFolder, cut_metrics, read_metrics, write_text
from gptlab.runs.initial_weights import open_initial
from gptlab.training.callbacks.amender import Amender
from gptlab.training.callbacks.checkpoints import Checkpoints
from gptlab.training.callbacks.progress_bar import ProgressBar
from gptlab.training.callbacks.recorder import Recorder
from gptlab.training.callbacks.sampler import Sampler
from gptlab.training.config import FinetuneConfig, SpikeAction, is_whole
from gptlab.training.datamodule import ExamplesDataModule
from gptlab.training.finetune import prepare_finetuning
from gptlab.training.loggers import build_loggers
from gptlab.training.module import LanguageModule
from gptlab.training.plot import plot_loss
from gptlab.training.spikes import ROLLED_BACK, Rollback, Spike, last_rollback

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def train(
    config: RunConfig, callbacks: Sequence[Callback] = (), *, command: str = "gptlab.train(config)"
) -> dict[str, Any]:
    """Carry out a run, or continue it, and return its summary.

    `callbacks` are other people's, beside those of gptlab; `command` is what continues the run, as messages say it. Leaves everything in the run folder. Raises ValueError for
    what a user can change, Failure for what nobody can, Stopped after a signal.
    """
    _quieten()
    devices = find_devices(config.trainer)
    if devices.accelerator == "cpu":
        keep_freed_memory()
    config.check(devices.world_size)
    if config.strategy.cpu_offload and devices.accelerator == "cpu":
        raise UserError("strategy.cpu_offload=true moves what a GPU need not hold, and this run is on the CPU")
    folder = RunFolder(Path(config.folder()), writes=first_rank())
    if _is_finished(config, folder):
        return folder.summary()
    data = prepare(config.data, config.tokenizer, progress=folder.writes)
    vocab_size = config.model.vocab_size or data.tokenizer.vocab_size
    check_vocabulary(vocab_size, data.tokenizer.vocab_size, config.tokenizer.type)
    objective = config.objective.build(
        tokenizer=data.tokenizer,
        model=config.model,
        data=config.data,
        context_length=config.context_length,
        seed=config.seed,
    )
    shape = shape_model(config.model, vocab_size, config.n_class)
    prepare_finetuning(shape, config.finetune)
    plan = make_plan(config, data, devices, vocab_size, objective, shape)
    datamodule = ExamplesDataModule(config, data, objective, layout=plan.layout, n_steps=plan.n_steps)
    sampler = None
    if config.callbacks.sample is not None:
        examples = datamodule.eval_examples.get("val", datamodule.train_examples)
        sampler = Sampler(config, folder, objective, data.tokenizer, examples)

    with folder.lock():
        if _is_finished(config, folder):  # meanwhile, by the run that held the lock
            return folder.summary()
        source, state = _resume(config, folder, fingerprints(data, devices))
        step = state["step"] if state else 0
        if step > plan.n_steps or (step == plan.n_steps and config.resume != "auto"):
            raise UserError(
                f"{source} is at step {step:,} and the budget is {plan.n_steps:,} steps; raise the budget to go on"
            )
        if config.model.init_from is not None and step == 0:  # whether it fits; it is read when the model is built
            open_initial(config.model, vocab_size, data.tokenizer)
        run = _Run(
            config=config,
            folder=folder,
            data=data,
            devices=devices,
            plan=plan,
            datamodule=datamodule,
            callbacks=[*([sampler] if sampler is not None else []), *callbacks],
            command=command,
            columns=_columns(config, devices, plan, datamodule, _metrics_source(folder, source)),
        )
        run.begin(state, _last_rollback(folder, source))
        best = state["best"] if state else None
        del state  # its tensors are parts of a file, which would stay on the disk after it is deleted
        # Everything that was typed is accepted: from here on the folder changes.
        if folder.writes:
            if config.trainer.enable_model_summary:
                print(plan.text(config, folder.path, step), flush=True)
            _open_folder(config, folder, data, source, step, best, run.columns)
            run.loggers = build_loggers(config, folder.path)
        started = time.perf_counter()
        try:
            run.fit()
        except Exception as error:
            told = run.end_together(error)
            with suppress(OSError):  # what ended the run is what has to be said
                run.recorder.close(run.trainer)
                if not isinstance(error, Stopped):
                    folder.event("failed", step=run.module.finished_steps, error=f"{type(told).__name__}: {told}")
                _plot(config, folder, data, objective)
            if told is error:
                raise
            raise told from error
        run.recorder.close(run.trainer)
        _plot(config, folder, data, objective)
        metrics = run.recorder.validated | run.test()
        summary = _summary(config, data, plan, run, metrics, time.perf_counter() - started)
        if folder.writes:
            folder.write_json("summary.json", summary)
            folder.event("finished" if summary["finished"] else "ended early", step=summary["steps"], **metrics)
            shown = sampler.newest if sampler else ""
            print(_report(config, folder, objective, summary, shown, run.loggers), flush=True)
        return summary


@dataclass(kw_only=True)
class _Run:
    """The steps of a run, which after a spike may begin again from a checkpoint."""

    config: RunConfig
    folder: RunFolder
    data: PreparedData
    devices: Devices
    plan: Plan
    datamodule: ExamplesDataModule
    callbacks: list[Callback]  # that keep what they know when the run goes back
    columns: list[str]  # of metrics.csv
    command: str  # what continues the run
    command: str  # what continues the run
    loggers: list[Logger] = field(default_factory=list)
    rollback: Rollback = field(default_factory=Rollback)
    trainer: lightning.Trainer | None = None
    recorder: Recorder | None = None
    starter: lightning.Trainer | None = None  # the first one, which started the other processes

    def begin(self, state: dict[str, Any] | None, rollback: Rollback) -> None:
        """Build what takes the steps that remain after a checkpoint, or all of them."""
        config, folder, plan = self.config, self.folder, self.plan
        step = state["step"] if state else 0
        skipped = state.get("skipped_steps", 0) if state else 0
        self.rollback = rollback
        if rollback.step == step:  # which this checkpoint, being from before it, does not know of
            skipped = max(skipped, rollback.skipped_steps)
        self.datamodule.start_step, self.datamodule.skipped_steps = step, skipped
        self.module = _module(config, self.data, plan, self.datamodule.objective, step)
        self.module.skipped_steps = skipped
        earlier = self.recorder
        self.recorder = Recorder(config, folder, plan, columns=self.columns, command=self.command)
        if earlier is not None:
            self.recorder.received_signal = earlier.received_signal
        if config.callbacks.spike.action is SpikeAction.skip:
            self.module.spikes = self.recorder.spikes
        identity = fingerprints(self.data, self.devices)
        checkpoints = Checkpoints(config, folder, self.recorder, identity=identity, state=state)
        self.amender = Amender(config, folder, self.recorder, checkpoints)
        own = [self.recorder, checkpoints, self.amender]
        if config.trainer.enable_progress_bar and folder.writes:
            own.append(ProgressBar(self.recorder, plan.n_steps))
        clocks = [timer.state_dict() for timer in _timers(self.trainer)]
        self.trainer = _trainer(config, folder, plan, self.devices, [*own, *self.callbacks])
        for timer, clock in zip(_timers(self.trainer), clocks, strict=False):
            timer.load_state_dict(clock)  # a limit on time goes on over a rollback
        _count_from(self.trainer, step)
        if self.starter is None:
            self.starter = self.trainer
            watch(self.trainer, lambda error: folder.event("failed", step=self.module.finished_steps, error=error))

    def fit(self) -> None:
        """Take all steps that remain."""
        while True:
            self.recorder.recall(read_metrics(self.folder.path / "metrics.csv"))
            if self.module.finished_steps >= self.plan.n_steps:
                return  # killed after its last save, a run has only its summary left to write
            self.trainer.loggers = self.loggers
            try:
                return self.trainer.fit(self.module, self.datamodule)
            except Spike as spike:
                found = spike.with_traceback(None)  # which would keep the model in memory
            self._rollback(found)

    def end_together(self, error: Exception) -> Exception:
        """End what is left of the other ranks after `error`; returns the error that tells a person the cause."""
        seconds = self.config.strategy.timeout_seconds
        return end_together(self.starter, error, step=self.module.finished_steps, timeout_seconds=seconds)

    def _rollback(self, spike: Spike) -> None:
        """Begin again from a checkpoint before the spike, without the samples since."""
        settings, folder, seen = self.config.callbacks.spike, self.folder, self.module.skipped_steps
        self.recorder.close(self.trainer)
        path, _ = checkpoint.newest(folder.checkpoints, until=spike.step - settings.rollback_steps)
        if path is None:
            raise Failure(
                f"{spike}; no checkpoint is of step {max(0, spike.step - settings.rollback_steps)} or before; "
                f"save more often with callbacks.checkpoint.every_steps=... and keep more with "
                "callbacks.checkpoint.keep_last=..., or use callbacks.spike.action=skip"
            )
        state = checkpoint.load(path)
        step = state["step"]
        in_a_row = self.rollback.in_a_row + 1 if step <= (self.rollback.step or 0) else 1
        if in_a_row > settings.max_rollbacks:
            raise Failure(
                f"{spike}; the run went back to step {self.rollback.step} {self.rollback.in_a_row} times already "
                f"(callbacks.spike.max_rollbacks); lower the learning rate with gptlab amend run={folder.path} "
                "optimizer.lr=..., or go further back with callbacks.spike.rollback_steps=..."
            )
        rollback = Rollback(step, seen + spike.step - step, in_a_row)
        if folder.writes:
            checkpoint.rollback(folder.checkpoints, step, state["best"])
            cut_metrics(folder.path / "metrics.csv", folder.path / "metrics.csv", step, self.columns)
            print(f"{spike}; back to step {step}, without the samples since", file=sys.stderr, flush=True)
        facts = {"from": spike.step, "to": step, "loss": spike.loss}
        folder.event(ROLLED_BACK, **facts, skipped_steps=rollback.skipped_steps, in_a_row=in_a_row)
        self.begin(state, rollback)

    def test(self) -> dict[str, float]:
        """The trained model's numbers on the test split, where there is one."""
        if "test" not in self.datamodule.eval_examples:
            return {}
        self.trainer.test(self.module, self.datamodule, verbose=False)
        return self.module.evaluation


def _timers(trainer: lightning.Trainer | None) -> list[Timer]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Timer)] if trainer is not None else []


def _summary(
    config: RunConfig, data: PreparedData, plan: Plan, run: _Run, metrics: dict[str, float], seconds: float
) -> dict[str, Any]:
    steps = run.module.finished_steps
    return {
        "finished": steps >= plan.n_steps,  # not after trainer.max_time, or early stopping
        "steps": steps,
        "tokens": steps * plan.step_tokens,
        "seconds": round(seconds, 1),
        "train/loss": run.recorder.row.get("train/loss"),
        **metrics,
        "unigram_entropy": data.train.unigram_entropy(),
        "parameters": plan.parameters["total"],
        "config": config.run_id(),
        "amendments": [{"number": a.number, "step": a.step, "words": a.words} for a in run.amender.taken],
        "skipped_steps": run.module.skipped_steps,
        "corpus": data.description,
        "data": data.fingerprint,
        "devices": plan.devices,
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    }


def _module(config: RunConfig, data: PreparedData, plan: Plan, objective, start: int) -> LanguageModule:
    files = {"train_eval": data.train, "val": data.val, "test": data.test}
    module = LanguageModule(
        config,
        objective,
        config.schedule.build(n_steps=plan.n_steps, batch_tokens=plan.step_tokens),
        layout=plan.layout,
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
            raise UserError(
                f"{folder.path} holds a run and resume=null; use resume=auto to continue it, or name=... for a new one"
            )
        return None, None
    if config.resume == "auto":
        path, skipped = checkpoint.newest(folder.checkpoints)
        for reason in skipped if folder.writes else ():
            print(f"skipped: {reason}", file=sys.stderr)
        if path is None and skipped:
            raise UserError(
                f"none of the checkpoints in {folder.checkpoints} can be read ({skipped[0]}); "
                "mend them, or start another run with name=..."
            )
        if path is None:
            return None, None
        state = checkpoint.load(path)
        _refuse_changes(config, state["config"], path)
    else:
        path = Path(config.resume)
        if (path / "checkpoints").is_dir():  # a run stands for its newest
            path = checkpoint.linked(path / "checkpoints", "last") or path
        checkpoint.verify(path)
        state = checkpoint.load(path)
        own, _ = checkpoint.newest(folder.checkpoints)
        if own is not None and path.resolve().parent != folder.checkpoints.resolve():
            raise UserError(
                f"{folder.path} has gone on from resume={path} already; "
                "leave resume out to continue it, or start again elsewhere with name=..."
            )
        words = ("model", "finetune", "optimizer.type", "objective")
        differences = _differences(to_plain(config), state["config"], words)
        differences = differences or _differences(
            to_plain(config), state["config"], ("batch_tokens", "data.context_length")
        )
        if differences:
            raise UserError(f"{path} is a checkpoint of another model or batch: {differences}")
    if state["tokenizer"] != identity["tokenizer"]:
        raise UserError(
            f"{path} was trained with another tokenizer (fingerprint {state['tokenizer'][:16]}, "
            f"now {identity['tokenizer'][:16]}); use the data and tokenizer of that run"
        )
    if (
        config.resume == "auto" and state.get("arithmetic", identity["arithmetic"]) != identity["arithmetic"]
    ):  # another machine's default
        raise UserError(
            f"{path} was trained in {state['arithmetic']} and here it would go on in {identity['arithmetic']}; "
            "give the run another name with name=... and say trainer.precision=... from its start"
        )
    if config.resume == "auto" and state["data"] != identity["data"]:
        raise UserError(
            f"{path} was trained on other data (fingerprint {state['data'][:16]}, now {identity['data'][:16]}): "
            "the corpus has changed since; restore it, or start another run with name=..."
        )
    return path, state


def _last_rollback(folder: RunFolder, source: Path | None) -> Rollback:
    """Of this run: a checkpoint of another one has nothing to do with it."""
    own = source is not None and source.resolve().parent == folder.checkpoints.resolve()
    return last_rollback(folder.events()) if own else Rollback()


def _refuse_changes(config: RunConfig, saved: dict[str, Any], where: Path) -> None:
    plain = config.identity_fields()
    differences = _differences(plain, saved, tuple(plain))
    if saved and differences:
        raise UserError(
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

    then = {"finetune": to_plain(FinetuneConfig())} | then  # which older versions did not have
    found = [text for word in words or () for text in leaves(at(now, word), at(then, word), word)]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _open_folder(config, folder: RunFolder, data: PreparedData, source: Path | None, start: int, best, columns) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text(folder.path / "config.yaml", yaml.safe_dump(to_plain(config), sort_keys=False))
    data.tokenizer.save(folder.path / "tokenizer.json")
    cut_metrics(_metrics_source(folder, source), folder.path / "metrics.csv", start, columns)
    (folder.path / "summary.json").unlink(missing_ok=True)  # of before it was taken back
    for later in checkpoint.rollback(folder.checkpoints, start, best):  # those after it, or that cannot be read
        folder.event("set aside", checkpoint=later)


def _metrics_source(folder: RunFolder, source: Path | None) -> Path:
    """The metrics.csv whose rows lead up to the checkpoint `source`."""
    return (folder.path if source is None else source.parent.parent) / "metrics.csv"


def _columns(
    config: RunConfig, devices: Devices, plan: Plan, datamodule: ExamplesDataModule, earlier: Path
) -> list[str]:
    objective = datamodule.objective
    terms = (*objective.names, *config.model.auxiliary_terms)
    columns = ["step", "tokens", *(f"train/{name}" for name in terms)]
    columns += ["train/lr", "train/grad_norm"]
    if devices.precision == "16-mixed":
        columns.append("train/loss_scale")
    columns += ["perf/tokens_per_second", "perf/memory_gib"]
    if plan.peak_flops is not None:
        columns.append("perf/mfu")
    whole = is_whole(config.trainer.limit_val_batches)
    for split in datamodule.eval_splits:
        prefix = split if whole else f"{split}_part"
        columns += [f"{prefix}/{name}" for name in objective.measures(whole=whole)]
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


def _plot(config: RunConfig, folder: RunFolder, data: PreparedData, objective: Objective) -> None:
    if not (config.callbacks.plot and folder.writes):
        return
    plot_loss(
        folder.path / "metrics.csv",
        folder.path / "loss.png",
        title=folder.path.name,
        unigram_entropy=data.train.unigram_entropy() if objective.per_byte else None,
        perplexity=objective.perplexity_of == "loss",
    )


def _report(
    config: RunConfig, folder: RunFolder, objective: Objective, summary: dict, sample: str, loggers: list[Logger]
) -> str:
    lines = [""]
    if sample:
        lines += ["The model at work:", "", *(f"    {line}" for line in sample.strip("\n").splitlines()), ""]
    lines.append(
        f"{summary['steps']:,} steps, {summary['tokens']:,} tokens in {summary['seconds']:,.0f} s"
        + ("" if summary["finished"] else " (ended before the budget)")
    )
    if objective.per_byte:
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
    names = [name for name in summary if name.startswith("val/")]
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
