"""One run from a checked config to its last line."""

import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from gptlab.config import RunConfig, check_vocabulary, to_plain
from gptlab.data.cache import cache_root
from gptlab.data.mixture.prepare import PreparedMixture, inputs_of_run, prepare_run
from gptlab.data.prepare import PreparedData
from gptlab.distributed import float8, internals
from gptlab.distributed.allocator import keep_freed_memory
from gptlab.distributed.compiling import compiling_seconds, keep_compiled
from gptlab.distributed.config import MEMORY_BUDGET, Layout, Recompute
from gptlab.distributed.devices import Devices, find_devices, free_memory_bytes
from gptlab.distributed.launch import check_program, end_together, find_launched, is_rank_0, restarted, watch
from gptlab.distributed.parallelize import build_strategy
from gptlab.distributed.signals import Failure, Stopped, end_with_starter, stopping_at_once
from gptlab.errors import UserError, without_password
from gptlab.evaluation.probes import Probe, open_probes
from gptlab.files import sha256_of, write_text_atomic
from gptlab.forecast import Plan, check_memory, explain_allocation, make_plan, with_packing, with_sources
from gptlab.models.base import LanguageModel
from gptlab.models.build import shape_model
from gptlab.models.config import Capability
from gptlab.objectives.base import Batch, Objective
from gptlab.runs import amendments, chain, checkpoint, environment
from gptlab.runs.amendments import AmendableConfig
from gptlab.runs.chain import Chain
from gptlab.runs.checkpoint import Checkpoint
from gptlab.runs.folder import RunFolder, cut_metrics, read_metrics
from gptlab.runs.initial_weights import content_of, open_initial
from gptlab.runs.run import Run
from gptlab.training.callbacks.agreement import Agreement
from gptlab.training.callbacks.amender import Amender
from gptlab.training.callbacks.checkpoints import Checkpoints
from gptlab.training.callbacks.evaluations import Evaluations
from gptlab.training.callbacks.extra import build_extra, check_extra, stopped_early
from gptlab.training.callbacks.forecast import Forecast
from gptlab.training.callbacks.hash_chain import HashChain
from gptlab.training.callbacks.layer_sizes import LayerSizes
from gptlab.training.callbacks.metrics import Metrics, is_logged
from gptlab.training.callbacks.pace import Pace
from gptlab.training.callbacks.pauses import Pauses
from gptlab.training.callbacks.preview import Preview
from gptlab.training.callbacks.progress_bar import ProgressBar
from gptlab.training.callbacks.same_start import SameStart
from gptlab.training.callbacks.signals import SignalListener
from gptlab.training.callbacks.throughput import Throughput
from gptlab.training.config import FLOAT8, SpikeAction, is_whole
from gptlab.training.datamodule import ExamplesDataModule, TrainBatches
from gptlab.training.finetune import prepare_finetuning
from gptlab.training.idle_hooks import skip_idle_hooks
from gptlab.training.loggers import build_loggers, check_installed, ended_with_run, publish_head
from gptlab.training.module import LanguageModule, Network, metric_name
from gptlab.training.resume import (
    INPUTS_FILE,
    Identity,
    find_checkpoint,
    metrics_before,
    refuse_changes_of_run,
    refuse_other_inputs,
    rollback_of,
)
from gptlab.training.spikes import ROLLED_BACK, LossGuard, Rollback, Spike, largest_jump
from gptlab.training.summary import draw, last_line, report, summarize

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def train(
    config: RunConfig,
    callbacks: Sequence[Callback] = (),
    *,
    command: str = "gptlab.train(config)",
    sweep: str | None = None,
    until_step: int | None = None,
) -> Run:
    """Carry out a run, or continue it, and return it; everything is left in the run folder.

    `callbacks` are Lightning callbacks beside those of gptlab and of `callbacks.extra`; `command` is what continues the
    run, as messages show it; `sweep` is the name of the sweep whose trial it is, under which loggers group it. After
    `until_step` steps it ends as one that was interrupted: what they learn is that of the whole run. Raises UserError
    for what a user can change, Failure for what nobody can, Stopped after a signal.
    """
    end_with_starter()
    internals.check()
    _quieten()
    callbacks = [*build_extra(config.callbacks.extra), *callbacks]
    check_installed(config.logger)
    devices = find_devices(config.trainer)
    if devices.precision == FLOAT8:
        float8.check_installed()
    check_program(per_node=devices.world_size // config.trainer.num_nodes)
    if devices.accelerator == "cpu":
        keep_freed_memory()
    if config.strategy.compile:
        keep_compiled(cache_root(None))
    config.check(devices.world_size)
    if config.strategy.cpu_offload and devices.accelerator == "cpu":
        raise UserError("strategy.cpu_offload=true needs a GPU, and this run is on the CPU; leave it out")
    folder = RunFolder(Path(config.folder()), writes=is_rank_0())
    if restarted() and checkpoint.newest(folder.checkpoints)[0] is not None:
        config = replace(config, resume="auto")  # what it begins from holds for the first start
    if _is_finished(config, folder):
        return Run(folder.path)
    data, objectives, vocab_size = _open_data(config, progress=folder.writes)
    objective = next(iter(objectives.values()))
    shape = shape_model(config.model, vocab_size, config.n_class)
    prepare_finetuning(shape, config.finetune)
    if devices.precision == FLOAT8:
        float8.check_layers(shape)
    budget_bytes = _budget_bytes(config, devices)
    plan = make_plan(config, data, devices, vocab_size, objective, shape, budget_bytes=budget_bytes)
    datamodule = _datamodule(config, data, objectives, plan.layout, plan.n_steps)
    plan = with_sources(plan, data, datamodule.shares, datamodule.epochs(plan.n_steps))
    plan = with_packing(plan, datamodule.packed)
    probes = _open_probes(config, data, plan, shape, speaks=folder.writes)
    preview = None
    if config.callbacks.sample is not None:
        preview = Preview(
            config.callbacks.sample,
            folder,
            objective,
            data.tokenizer,
            datamodule.preview_examples,
            context_length=config.context_length,
            seed=config.seed,
        )

    with folder.lock(), ended_with_run() as loggers:
        if _is_finished(config, folder):  # meanwhile, by the run that held the lock
            return Run(folder.path)
        identity = Identity(
            config=to_plain(config),
            fields=config.identity_fields(),
            data=data.fingerprint,
            tokenizer=data.tokenizer.fingerprint,
            inputs=data.inputs | _initial_weights(config) | {probe.key: probe.fingerprint() for probe in probes},
            arithmetic=devices.precision,
        )
        source = find_checkpoint(config.resume, identity, folder)
        step = source.state.step if source is not None else 0
        if folder.writes:
            if config.trainer.enable_model_summary:  # before a refusal that is about its figures
                print(plan.text(config, folder.path, step), flush=True)
            warning = check_memory(plan, config, free_memory_bytes(devices, config.trainer.num_nodes))
            if warning:
                print(f"warning: {warning}", file=sys.stderr, flush=True)
            if devices.precision == FLOAT8 and devices.accelerator == "cpu":
                emulated = f"trainer.precision={FLOAT8} is emulated on a CPU, for checks: slower than 32-true"
                print(f"warning: {emulated}", file=sys.stderr, flush=True)
        if source is not None and (step > plan.n_steps or (step == plan.n_steps and config.resume != "auto")):
            raise UserError(
                f"{source.path} is at step {step:,} and the budget is {plan.n_steps:,} steps; "
                "raise the budget to continue from it"
            )
        if config.model.init_from is not None and step == 0:  # whether it fits; it is read when the model is built
            open_initial(config.model, vocab_size, data.tokenizer)
            identity.inputs.update(_initial_weights(config))  # a model of the hub is in the cache only now
        run = _Training(
            config=config,
            folder=folder,
            data=data,
            identity=identity,
            devices=devices,
            plan=plan,
            datamodule=datamodule,
            callbacks=[*([preview] if preview is not None else []), *callbacks],
            probes=probes,
            command=command,
            columns=_columns(config, devices, plan, datamodule, probes, metrics_before(folder, source)),
            until_step=until_step,
        )
        check_extra(callbacks, run.columns)
        run.begin(source, rollback_of(folder, source))
        # Everything that was typed is accepted: from here on the folder changes.
        if folder.writes:
            _open_folder(identity, folder, data, source, run.columns)
            layout = {"devices": plan.devices, "world_size": devices.world_size, "num_nodes": config.trainer.num_nodes}
            layout |= {"strategy": to_plain(config.strategy), "micro_batch_size": config.micro_batch_size}
            found = environment.describe(layout | {"precision": devices.precision}, config.plugins)
            environment.record(folder.path, step, found, anew=source is None)
            run.open_chain(source)
            earlier = read_metrics(folder.path / "metrics.csv")
            log_every = config.trainer.log_every_n_steps
            loggers += build_loggers(
                config.logger,
                folder.path,
                group=f"{config.model_tag}-{config.data_tag}",
                tags=[config.model_tag, config.data_tag, config.optimizer.type],
                hyperparameters=identity.config,
                sweep=sweep,
                rows=[row for row in earlier if is_logged(row, log_every=log_every, n_steps=plan.n_steps)],
            )
            run.loggers = loggers
        del source
        started, compiled_before = time.perf_counter(), compiling_seconds()
        if run.forecast is not None:
            run.forecast.began = started
        try:
            run.fit()
            test_metrics = run.test()
        except Exception as error:
            shown = run.end_together(error)
            explained = explain_allocation(error, plan, config)
            if explained is not None:
                shown = Failure(f"{explained}; {checkpoint.where_saved(folder.checkpoints)}")
            with suppress(OSError):  # what ended the run is what has to be shown
                run.metrics.close(run.trainer)
                if not isinstance(error, Stopped):
                    text = without_password(f"{type(shown).__name__}: {shown}")
                    folder.event("failed", step=run.module.finished_steps, error=text)
                run.seal(chain.ENDED)
                if config.callbacks.plot and folder.writes:
                    draw(folder, objective, plan.epoch_tokens(config.sequences_per_step))
            if shown is error:
                raise
            raise shown from error
        finally:
            run.signals.restore()
        run.metrics.close(run.trainer)
        metrics = run.metrics.validated | run.metrics.evaluated | test_metrics
        if folder.writes:
            summary = summarize(
                data,
                plan,
                run_id=config.run_id(),
                steps=run.module.finished_steps,
                skipped_steps=run.module.skipped_steps,
                seconds=time.perf_counter() - started,
                evaluating_seconds=run.pauses.evaluating_seconds,
                saving_seconds=run.pauses.saving_seconds,
                compiling_seconds=compiling_seconds() - compiled_before,
                recomputed=run.module.recomputed,
                metrics=metrics,
                shares=datamodule.shares,
                epochs=datamodule.epochs(run.module.finished_steps + run.module.skipped_steps),
                train_loss=run.metrics.row.get("train/loss"),
                amendments=run.amender.taken,
                stopped_early=stopped_early(callbacks, _timers(run.trainer), asked=run.trainer.should_stop),
            )
            if config.callbacks.plot:
                draw(folder, objective, plan.epoch_tokens(config.sequences_per_step), summary["unigram_entropy"])
            if run.chain is not None:
                summary["chain"] = run.chain.head  # up to here: the last entry seals the summary itself
            folder.write_json("summary.json", summary)
            kind = "stopped early" if summary["stopped_early"] else "finished" if summary["finished"] else "ended early"
            folder.event(kind, step=summary["steps"], **metrics)
            run.seal(chain.FINISHED if summary["finished"] else chain.ENDED)
            whole = run.forecast is not None and summary["steps"] == plan.n_steps
            outcome = run.forecast.finish(summary["seconds"], metrics) if run.forecast is not None and whole else []
            text = report(
                summary,
                folder.path,
                objective,
                preview=preview.newest if preview is not None else "",
                plotted=config.callbacks.plot,
                profiled=config.trainer.profiler is not None,
                loggers=run.loggers,
                forecasts=outcome,
                generates=bool(config.model.capabilities & {Capability.causal, Capability.encoder_decoder})
                and config.n_class is None,
                elsewhere="name=NAME" if config.run_dir is None else "run_dir=FOLDER",
                spike=largest_jump(read_metrics(folder.path / "metrics.csv"), folder.events(), config.callbacks.spike),
            )
            print(text, flush=True)
        return Run(folder.path)


def _budget_bytes(config: RunConfig, devices: Devices) -> float | None:
    """What training may take of a device where activation checkpointing keeps to it; None where nobody knows."""
    if config.strategy.activation_checkpointing is not Recompute.budget:
        return None
    if config.strategy.memory_budget_gib is not None:
        return config.strategy.memory_budget_gib * 2**30
    free = free_memory_bytes(devices, config.trainer.num_nodes)
    return None if free is None else MEMORY_BUDGET * free


def batch(config: RunConfig, step: int, rank: int = 0, world_size: int = 1, *, skipped_steps: int = 0) -> Batch:
    """What a rank of a run of `world_size` devices reads for the update that follows `step` finished ones.

    So `batch(config, 0)` is the run's first batch. A pure function: the run need not exist. With loss spikes that were
    rolled back, `skipped_steps` is the checkpoint's. Tensors are (B, ...) with the rank's examples of a whole step.
    """
    return _train_batches(config, step, rank, world_size)[step + skipped_steps]


def sources(
    config: RunConfig, step: int, rank: int = 0, world_size: int = 1, *, skipped_steps: int = 0
) -> list[dict[str, Any]] | None:
    """Of a mixture the source of each example of `batch`: its `name`, which `example` of it, and in which `epoch`.

    None where the run reads one corpus.
    """
    return _train_batches(config, step, rank, world_size).sources(step + skipped_steps)


def _train_batches(config: RunConfig, step: int, rank: int, world_size: int) -> TrainBatches:
    if step < 0:
        raise UserError(f"step={step} must be at least 0")
    return open_batches(config, rank, world_size)[1]


def open_batches(
    config: RunConfig, rank: int = 0, world_size: int = 1
) -> tuple[PreparedData | PreparedMixture, TrainBatches]:
    """The data of a run and what a rank reads of it: item s is the batch of the update after s others."""
    config.check(world_size)
    if not 0 <= rank < world_size:
        raise UserError(f"rank={rank} must be at least 0, and below world_size={world_size}")
    data, objectives, _ = _open_data(config, progress=False)
    layout = config.strategy.layout(world_size, config.trainer.num_nodes)
    return data, _datamodule(config, data, objectives, layout, n_steps=0).train_batches(rank)


def _open_data(
    config: RunConfig, *, progress: bool
) -> tuple[PreparedData | PreparedMixture, dict[str, Objective], int]:
    """The prepared data, the objective of each corpus, and the model's vocabulary size."""
    with stopping_at_once("while the data was prepared; the cache holds whole files only"):
        data = prepare_run(config.data, config.tokenizer, progress=progress)
    vocab_size = config.model.vocab_size or data.tokenizer.vocab_size
    check_vocabulary(vocab_size, data.tokenizer.vocab_size, config.tokenizer.type)
    objectives = {
        name: config.objective.build(
            tokenizer=data.tokenizer,
            model=config.model,
            data=corpus,
            context_length=config.context_length,
            seed=config.seed,
        )
        for name, corpus in config.data.corpora.items()
    }
    objective = next(iter(objectives.values()))
    notes = list(data.notes)
    if data.lost_text is not None and objective.per_byte:
        objective.per_byte = False
        notes.append(f"no bits per byte: the tokenizer does not give the text back ({data.lost_text})")
    if progress:
        for note in notes:
            print(f"warning: {note}", file=sys.stderr, flush=True)
    return data, objectives, vocab_size


def _open_probes(
    config: RunConfig, data: PreparedData | PreparedMixture, plan: Plan, shape: LanguageModel, *, speaks: bool
) -> list[Probe]:
    """What `callbacks.evaluate` asks for; UserError where it cannot be measured in this run."""
    evaluate = config.callbacks.evaluate
    if not evaluate:
        return []
    name = next(iter(evaluate))
    if config.n_class is not None:
        raise UserError(f"callbacks.evaluate.{name} needs a model that predicts tokens, and this one has a class head")
    if config.strategy.cpu_offload:
        raise UserError(f"callbacks.evaluate.{name} needs the weights on the device; use strategy.cpu_offload=false")
    context = config.context_length
    by_document = config.data.by_document
    probes = open_probes(
        evaluate, data.tokenizer, shape, context_length=context, by_document=by_document, speaks=speaks
    )
    for probe in probes:
        if probe.every_steps is None and plan.val_every is None:
            raise UserError(
                f"callbacks.evaluate.{probe.name} follows validation, and this run has none; set "
                f"callbacks.evaluate.{probe.name}.every_steps=N"
            )
    return probes


def _datamodule(
    config: RunConfig,
    data: PreparedData | PreparedMixture,
    objectives: Mapping[str, Objective],
    layout: Layout,
    n_steps: int,
) -> ExamplesDataModule:
    return ExamplesDataModule(
        data,
        objectives,
        config.data,
        seed=config.seed,
        steps=config.steps,
        micro_batch_size=config.micro_batch_size,
        eval_train=config.eval_train,
        layout=layout,
        n_steps=n_steps,
    )


@dataclass(kw_only=True)
class _Training:
    """The steps of a run, which after a loss spike may begin again from a checkpoint."""

    config: RunConfig
    folder: RunFolder
    data: PreparedData | PreparedMixture
    identity: Identity
    devices: Devices
    plan: Plan
    datamodule: ExamplesDataModule
    callbacks: list[Callback]  # that keep their state over a rollback
    probes: list[Probe]
    columns: list[str]  # of metrics.csv
    command: str  # what continues the run
    until_step: int | None = None  # after which it ends, before the last
    loggers: list[Logger] = field(default_factory=list)
    rollback: Rollback = field(default_factory=Rollback)
    starter: lightning.Trainer | None = None  # the first trainer, which started the other processes

    module: LanguageModule = field(init=False)
    trainer: lightning.Trainer = field(init=False)
    metrics: Metrics = field(init=False)
    signals: SignalListener = field(init=False)
    pauses: Pauses = field(default_factory=Pauses)
    earlier: Path = field(init=False)  # the metrics.csv that leads up to the first of them
    amender: Amender = field(init=False)
    forecast: Forecast | None = field(init=False, default=None)
    chain: Chain | None = field(init=False, default=None)  # of rank 0
    hash_chain: HashChain | None = field(init=False, default=None)

    def begin(self, source: Checkpoint | None, rollback: Rollback) -> None:
        """Build what takes the steps that remain after a checkpoint, or all of them."""
        config, folder, plan = self.config, self.folder, self.plan
        step = source.state.step if source is not None else 0
        skipped = source.state.skipped_steps if source is not None else 0
        self.rollback = rollback
        self.earlier = metrics_before(folder, source)
        if rollback.step == step:  # the checkpoint, being from before it, does not know of it
            skipped = max(skipped, rollback.skipped_steps)
        self.datamodule.start_step, self.datamodule.skipped_steps = step, skipped
        self.module = self._build_module(step, skipped)
        clocks = [timer.state_dict() for timer in _timers(self.trainer)] if self.starter is not None else []
        callbacks = [*self._build_callbacks(source), *self.callbacks]
        self.trainer = _trainer(
            config, folder, plan, self.devices, callbacks, step=step, until_step=self.until_step or plan.n_steps
        )
        for timer, clock in zip(_timers(self.trainer), clocks, strict=False):
            timer.load_state_dict(clock)  # a limit on time goes on over a rollback
        internals.count_from(self.trainer, step)
        if self.starter is None:
            self.starter = self.trainer
            watch(
                self.trainer,
                lambda error: folder.event("failed", step=self.module.finished_steps, error=without_password(error)),
                self.remedy,
            )

    def _build_module(self, step: int, skipped: int) -> LanguageModule:
        config, plan, data = self.config, self.plan, self.data
        parts = {"train_eval": "train", "val": "val", "test": "test"}
        module = LanguageModule(
            Network(model=config.model, finetune=config.finetune, vocab_size=plan.vocab_size, n_class=config.n_class),
            self.datamodule.objective,
            config.optimizer,
            config.schedule.build(n_steps=plan.n_steps, batch_tokens=plan.step_tokens, steps=plan.steps),
            strategy=config.strategy,
            layout=plan.layout,
            recomputed=plan.recomputed,
            seed=config.seed,
            micro_batch_size=config.micro_batch_size,
            n_bytes={
                f"{split}/{name}" if name else split: file.n_bytes
                for split, part in parts.items()
                for name, corpus in data.corpora.items()
                if (file := corpus.part(part)) is not None
            },
            shares=self.datamodule.shares,
            whole_val=is_whole(config.trainer.limit_val_batches),
            whole_test=is_whole(config.trainer.limit_test_batches),
            float8=self.devices.precision == FLOAT8,
        )
        module.finished_steps, module.skipped_steps = step, skipped
        return module

    def _build_callbacks(self, source: Checkpoint | None) -> list[Callback]:
        """gptlab's own, in the order in which they act after a step."""
        config, folder, plan = self.config, self.folder, self.plan
        agreement = Agreement()
        if config.callbacks.chain is not None:
            self.hash_chain = HashChain(config.callbacks.chain, folder, self.chain)
        guard = LossGuard(config.callbacks.spike, folder)
        if config.callbacks.spike.action is SpikeAction.skip:
            self.module.spikes = guard.spikes
        earlier = self.signals if self.starter is not None else None
        self.signals = SignalListener(
            agreement, command=self.command, speaks=folder.writes, remedy=self.remedy, earlier=earlier
        )
        self.metrics = Metrics(
            folder,
            guard,
            agreement,
            Throughput(steps=plan.steps, flops_per_token=plan.flops_per_token, peak_flops=plan.peak_flops),
            Evaluations(self.probes, self.signals, n_steps=plan.n_steps),
            self.pauses,
            self.hash_chain,
            columns=self.columns,
            epochs=self.datamodule.epochs,
            devices=plan.devices,
            n_steps=plan.n_steps,
            val_every=plan.val_every,
            log_every=config.trainer.log_every_n_steps,
        )
        checkpoints = Checkpoints(
            config.callbacks.checkpoint if config.trainer.enable_checkpointing else None,
            folder,
            self.metrics,
            self.signals,
            self.pauses,
            prototype=self.identity.prototype(),
            source=source,
            sharded=config.strategy.shards_model,
            steps=plan.steps,
            timeout_seconds=config.strategy.timeout_seconds,
        )
        parts = AmendableConfig(config.optimizer, config.schedule, config.callbacks, config.batch_tokens, config.steps)
        self.amender = Amender(parts, folder, agreement, checkpoints, n_steps=plan.n_steps)
        same = SameStart(step=self.module.finished_steps, data=self.identity.data, tokenizer=self.identity.tokenizer)
        own: list[Callback] = [self.pauses, self.metrics, same, self.signals, checkpoints, self.amender]
        every = None if config.callbacks.inspect is None else config.callbacks.inspect.every_steps
        own.append(LayerSizes(every, folder, steps=plan.steps, n_steps=plan.n_steps, earlier=self.earlier))
        if folder.writes:
            own.append(Pace(plan, warm_up=config.strategy.compile))
        if config.callbacks.forecast and folder.writes:
            recipe, shapes = self._alike()
            module = self.module
            self.forecast = Forecast(
                plan,
                folder,
                self.metrics,
                recipe=recipe,
                shapes=shapes,
                factor=lambda step: module.schedule.factor(step),  # which an amendment may change
            )
            own.append(self.forecast)
        if config.trainer.enable_progress_bar and folder.writes:
            own.append(ProgressBar(self.metrics, plan.n_steps))
        skip_idle_hooks([*own, self.module])
        return own

    def _alike(self) -> tuple[str, str]:
        """What runs share that learn the same but for the seed, and what those share whose steps take equally long."""
        fields, config, data = self.identity.fields, self.identity.config, self.identity.data
        recipe = {"data": data, **{name: value for name, value in fields.items() if name != "seed"}}
        names = ("model", "objective", "finetune", "strategy", "batch_tokens", "micro_batch_size", "eval_train")
        shapes = {"data": data, "devices": self.plan.devices, **{name: config[name] for name in names}}
        shapes |= {name: config[name] for name in ("batch_warmup", "length_warmup") if config[name]}
        shapes |= {"optimizer": config["optimizer"]["type"], "context_length": config["data"]["context_length"]}
        shapes["callbacks"] = [config["callbacks"][name] for name in ("sample", "checkpoint", "plot")]
        recipe_id, shapes_id = (
            sha256(json.dumps(w, sort_keys=True).encode()).hexdigest()[:16] for w in (recipe, shapes)
        )
        return recipe_id, shapes_id

    def open_chain(self, source: Checkpoint | None) -> None:
        """Begin the hash chain of the run, or go on with it, on rank 0 and before the first step."""
        if self.hash_chain is None:
            return
        folder, config = self.folder, self.config
        self.chain = self.hash_chain.record = Chain(folder.path)
        own = source is not None and source.path.resolve().parent == folder.checkpoints.resolve()
        facts: dict[str, Any] = {"run_id": config.run_id(), "n_steps": self.plan.n_steps, "seed": config.seed}
        if source is not None and not own:
            facts["from"] = source.state.chain
        tokens = {
            f"{name}/{part}" if name else part: found.checksum
            for name, corpus in self.data.corpora.items()
            for part in ("train", "val", "test")
            if (found := corpus.part(part)) is not None
        }
        self._begin_rows(chain.CONTINUED if own else chain.STARTED, **facts, tokens=tokens, files=self.chain.seal())

    def _begin_rows(self, entry: str, **facts: Any) -> None:
        """Say in the chain that the rows after those of metrics.csv are yet to be written."""
        if self.chain is not None and self.hash_chain is not None:
            self.hash_chain.read_rows()
            rows = self.hash_chain.rows
            self.chain.append(entry, step=self.module.finished_steps, row=rows.step, rows=rows.head, **facts)

    def seal(self, entry: str) -> None:
        """Seal all rows and, of a run that has one, the summary."""
        if self.chain is not None and self.hash_chain is not None:
            # A run that has not finished may be amended while it stands still: what it took up is among the events.
            names = ("summary.json", amendments.FILE) if entry == chain.FINISHED else ("summary.json",)
            rows = self.hash_chain.rows
            files = {n: sha256_of(self.folder.path / n) for n in names if (self.folder.path / n).is_file()}
            facts = {"row": rows.step, "rows": rows.head, "tags": rows.take_tags(), "files": files}
            publish_head(self.loggers, self.chain.append(entry, step=self.module.finished_steps, **facts))

    def fit(self) -> None:
        """Take all steps that remain."""
        while True:
            step = self.module.finished_steps
            # Of what a run in another folder was begun from, rank 0 may not have made this run's own copy yet.
            self.metrics.recall(row for row in read_metrics(self.earlier) if row["step"] <= step)
            self.trainer.loggers = self.loggers
            if self.devices.world_size == 1:
                self.signals.listen()
            else:
                self.signals.end_at_once()
            if self.metrics.lacks_evaluation(step):
                self.trainer.validate(self.module, self.datamodule, verbose=False)
            if step >= (self.until_step or self.plan.n_steps):
                return  # killed after its last save, a run has only its summary left to write
            try:
                return self.trainer.fit(self.module, self.datamodule)
            except Spike as spike:
                found = spike.with_traceback(None)  # which would keep the model in memory
            self._roll_back(found)

    def end_together(self, error: Exception) -> Exception:
        """End what is left of the other ranks after `error`; returns the error that tells a person the cause."""
        return end_together(
            self.starter or self.trainer,
            error,
            step=self.module.finished_steps,
            timeout_seconds=self.config.strategy.timeout_seconds,
            remedy=self.remedy,
        )

    def remedy(self) -> str:
        """From where a run that ended at once goes on, and what to type."""
        return f"{checkpoint.where_saved(self.folder.checkpoints)}; the same command goes on:\n  {self.command}"

    def _roll_back(self, spike: Spike) -> None:
        """Begin again from a checkpoint before the spike, without the samples since."""
        settings, folder, skipped = self.config.callbacks.spike, self.folder, self.module.skipped_steps
        self.metrics.close(self.trainer)
        path, _ = checkpoint.newest(folder.checkpoints, until=spike.step - settings.rollback_steps)
        if path is None:
            raise Failure(
                f"{spike}; no checkpoint is of step {max(0, spike.step - settings.rollback_steps)} or before; "
                f"save more often with callbacks.checkpoint.every_steps=... and keep more with "
                "callbacks.checkpoint.keep_last=..., or use callbacks.spike.action=skip"
            )
        source = checkpoint.load(path)
        step = source.state.step
        in_a_row = self.rollback.in_a_row + 1 if step <= (self.rollback.step or 0) else 1
        if in_a_row > settings.max_rollbacks:
            raise Failure(
                f"{spike}; the run went back to step {self.rollback.step} {self.rollback.in_a_row} times already "
                f"(callbacks.spike.max_rollbacks); lower the learning rate with gptlab amend run={folder.path} "
                "optimizer.lr=..., or go further back with callbacks.spike.rollback_steps=..."
            )
        rollback = Rollback(step, skipped + spike.step - step, in_a_row)
        if folder.writes:
            checkpoint.rollback(folder.checkpoints, step, source.state.best)
            cut_metrics(folder.path / "metrics.csv", folder.path / "metrics.csv", step, self.columns)
            print(f"{spike}; back to step {step}, without the samples since", file=sys.stderr, flush=True)
        facts = {"from": spike.step, "to": step, "loss": spike.loss}
        folder.event(ROLLED_BACK, **facts, skipped_steps=rollback.skipped_steps, in_a_row=in_a_row)
        self.begin(source, rollback)
        self._begin_rows(chain.ROLLED_BACK, skipped_steps=rollback.skipped_steps)

    def test(self) -> dict[str, float]:
        """The trained model's metrics on the test split, where there is one."""
        if not self.datamodule.test_splits:
            return {}
        self.trainer.test(self.module, self.datamodule, verbose=False)
        return self.module.evaluation


def _timers(trainer: lightning.Trainer) -> list[Timer]:
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]: set where no checker sees it
    return [callback for callback in callbacks if isinstance(callback, Timer)]


def _is_finished(config: RunConfig, folder: RunFolder) -> bool:
    summary = folder.summary()
    if config.resume != "auto" or summary is None or not summary["finished"]:
        return False
    refuse_changes_of_run(config.identity_fields(), folder)
    try:
        inputs = inputs_of_run(config.data, config.tokenizer) | _initial_weights(config)
    except UserError as error:  # it may be gone, or far away: that changes nothing about a run that is finished
        if folder.writes:
            print(f"not checked against the run's data: {error}", file=sys.stderr)
    else:
        refuse_other_inputs(inputs, folder.path)
    if folder.writes:
        early = f" (stopped early; resume={folder.path} goes on)" if summary.get("stopped_early") else ""
        print(f"{folder.path} is finished after {summary['steps']:,} steps{early}; name=... starts another run")
        print(last_line(summary, folder.path))
    return True


def _initial_weights(config: RunConfig) -> dict[str, str]:
    name = config.model.init_from
    content = None if name is None else content_of(name, config.data.cache_dir)
    return {} if content is None else {"model.init_from": content}


def _open_folder(
    identity: Identity,
    folder: RunFolder,
    data: PreparedData | PreparedMixture,
    source: Checkpoint | None,
    columns: list[str],
) -> None:
    step, best = (source.state.step, source.state.best) if source is not None else (0, None)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder.path / "config.yaml", yaml.safe_dump(identity.config, sort_keys=False))
    inputs = folder.path / INPUTS_FILE
    # What a run that goes on does not need may be gone, as a model of the hub out of the cache; its record stays.
    before = json.loads(inputs.read_text(encoding="utf-8")) if source is not None and inputs.is_file() else {}
    write_text_atomic(inputs, json.dumps(before | identity.inputs, indent=2) + "\n")
    data.tokenizer.save(folder.path / "tokenizer.json")
    # The evaluation before the first step is made again with it.
    cut_metrics(metrics_before(folder, source), folder.path / "metrics.csv", step or -1, columns)
    (folder.path / "summary.json").unlink(missing_ok=True)  # from before the run went back
    for later in checkpoint.rollback(folder.checkpoints, step, best):  # those after it, or that cannot be read
        folder.event("set aside", checkpoint=later)


def _columns(
    config: RunConfig,
    devices: Devices,
    plan: Plan,
    datamodule: ExamplesDataModule,
    probes: list[Probe],
    earlier: Path,
) -> list[str]:
    objective = datamodule.objective
    terms = (*objective.names, *config.model.auxiliary_terms)
    columns = ["step", "tokens", *(f"train/{name}" for name in terms)]
    columns += ["train/lr", "train/grad_norm", *(f"train/{name}/epochs" for name in datamodule.shares)]
    if devices.precision == "16-mixed":
        columns.append("train/loss_scale")
    columns += ["perf/tokens_per_second", "perf/memory_gib"]
    if plan.peak_flops is not None:
        columns.append("perf/mfu")
    whole = is_whole(config.trainer.limit_val_batches)
    splits = datamodule.eval_splits
    for split in dict.fromkeys([*(split.partition("/")[0] for split in splits), *splits]):
        columns += [metric_name(split, name, whole=whole) for name in objective.measures(whole=whole)]
    columns += [column for probe in probes for column in probe.columns]
    recorded = {name: None for row in read_metrics(earlier) for name in row}
    return list(dict.fromkeys([*columns, *recorded]))  # what an earlier part of the run measured is kept


def _trainer(
    config: RunConfig,
    folder: RunFolder,
    plan: Plan,
    devices: Devices,
    callbacks: list[Callback],
    *,
    step: int,
    until_step: int,
) -> lightning.Trainer:
    given = config.trainer
    own = {
        "accelerator": devices.accelerator,
        "devices": devices.per_node,
        "precision": "bf16-mixed" if devices.precision == FLOAT8 else devices.precision,
        "strategy": build_strategy(config.strategy, world_size=devices.world_size, accelerator=devices.accelerator),
        "logger": False,
        "callbacks": callbacks,
        "max_steps": until_step,
        "max_epochs": 1,
        "val_check_interval": plan.val_every or plan.n_steps,
        "check_val_every_n_epoch": None,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0 if step else -1,  # before the first step the whole split, which is recorded
    }
    launched = find_launched()
    if launched is not None and launched.by == "SLURM":  # which Lightning does not see in a shell of an allocation
        own["plugins"] = [SLURMEnvironment(auto_requeue=False)]
    if plan.val_every is None:
        own["limit_val_batches"] = 0
    if given.profiler is not None:
        own["profiler"] = PROFILERS[given.profiler](dirpath=folder.path, filename="profile")
    asked = {name: value for name, value in to_plain(given).items() if name not in own}
    return lightning.Trainer(**own, **asked)


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
