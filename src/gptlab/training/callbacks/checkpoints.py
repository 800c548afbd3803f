"""Saving a run between two steps, and continuing it."""

import signal
import time
from dataclasses import replace
from functools import partial
from typing import NoReturn

import torch
from lightning.pytorch.callbacks import Callback, Timer

from gptlab.distributed.signals import REQUEUES, Failure, Stopped, requeue
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint import Checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.folder import RunFolder
from gptlab.runs.writer import CheckpointWriter, Save
from gptlab.steps import Steps
from gptlab.training.callbacks.metrics import Metrics
from gptlab.training.callbacks.pauses import Pauses
from gptlab.training.callbacks.signals import SignalListener
from gptlab.training.config import CheckpointConfig
from gptlab.training.spikes import Spike

SKIP_SAVES = "skip saves"  # the request to leave out saves that follow validations


class Checkpoints(Callback):
    """Saves the run between two steps, and continues it from where it was saved.

    `prototype` is the state that every checkpoint of the run has: its config and fingerprints. `source` is the
    checkpoint to continue from. `sharded`: each rank writes a file of its own.
    """

    def __init__(
        self,
        settings: CheckpointConfig | None,
        folder: RunFolder,
        metrics: Metrics,
        signals: SignalListener,
        pauses: Pauses,
        *,
        prototype: CheckpointState,
        source: Checkpoint | None,
        sharded: bool,
        steps: Steps,
        timeout_seconds: int,
    ):
        self.settings = settings  # None: nothing is saved
        self.folder = folder
        self.metrics = metrics
        self.signals = signals
        self.pauses = pauses
        self.agreement = metrics.agreement
        self.prototype = prototype
        self.sharded = sharded
        self.steps = steps
        self.timeout_seconds = timeout_seconds
        # Of other data the best loss means nothing.
        self.best = source.state.best if source is not None and source.state.data == prototype.data else None
        self.saved_step = source.state.step if source is not None else 0
        self._source = source
        self._writer: CheckpointWriter | None = None
        self._saved_at = time.monotonic()
        self.agreement.requests |= {
            "save": self._asks_to_save,
            "failed": self._has_failed,
            SKIP_SAVES: pauses.saving_takes_too_much,
        }

    def on_train_start(self, trainer, module) -> None:
        module.before_micro_batch.append(partial(self._within_step, trainer, module))
        module.stop = partial(self._stop, trainer, module)
        if self.settings is not None:
            self._writer = CheckpointWriter(
                asynchronous=self.settings.async_save,
                keep_last=self.settings.keep_last,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                timeout_seconds=self.timeout_seconds,
            )
        if self._source is None:
            return
        state = self._source.state
        checkpoint.restore_model(module.model, self._source.model)
        checkpoint.restore_optimizer(trainer.optimizers[0], self._source.optimizer)
        trainer.precision_plugin.load_state_dict(state.precision)
        if state.rng is not None:
            torch.set_rng_state(state.rng)  # each step seeds its own; this is for what draws between steps
        for callback in trainer.callbacks:
            if callback.state_key in state.callbacks:
                callback.load_state_dict(state.callbacks[callback.state_key])
        same_data = state.data == self.prototype.data
        if same_data and self.metrics.row.get("step") == state.step and self._improves():  # found after it was saved
            self._is_best(state.step)
        self._source = None

    def change(self, settings: CheckpointConfig | None) -> None:
        """Save by other settings from now on."""
        if self._writer is not None and settings is not None:
            self.settings = settings
            self._writer.wait()
            self._writer.asynchronous, self._writer.keep_last = settings.async_save, settings.keep_last

    def on_test_start(self, trainer, module) -> None:
        module.stop = partial(self._stop, trainer, module)
        if self._source is not None:  # nothing was left to train
            checkpoint.restore_model(module.model, self._source.model)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._between_steps(trainer, module)

    def on_train_end(self, trainer, module) -> None:
        if module.finished_steps > self.saved_step:
            self.save(trainer, module)
        self._between_steps(trainer, module)
        if self._writer is not None:
            self._writer.wait()

    def on_exception(self, trainer, module, exception) -> None:
        # Between two updates the state is consistent; with other ranks it cannot be gathered without them.
        alone = trainer.world_size == 1
        known = isinstance(exception, Stopped | Failure | Spike | OSError)
        if alone and not known and not module.updating and module.finished_steps > self.saved_step:
            self.save(trainer, module)
        together = alone or isinstance(exception, Spike)  # which all ranks find after the same step
        if together and self._writer is not None and not isinstance(exception, OSError):
            self._writer.wait()

    def _between_steps(self, trainer, module) -> None:
        step, signum = module.finished_steps, self.signals.agreed
        if self._writer is not None and "failed" in self.agreement.agreed:
            self._writer.wait()  # which raises on every rank
        if signum and step < self.metrics.n_steps:
            self._stop(trainer, module, signum)
        elif self._is_due(step) or (signum and step > self.saved_step):
            self.save(trainer, module)

    def _within_step(self, trainer, module, index: int, count: int) -> None:
        signum = self.signals.before_micro_batch(module.finished_steps, index, count)
        if signum:
            self._stop(trainer, module, signum)

    def on_validation_start(self, trainer, module) -> None:
        # What a signal interrupted is made up for, or a converted model is measured before its first step.
        if (trainer.state.fn != "fit" or trainer.sanity_checking) and self._source is not None:
            checkpoint.restore_model(module.model, self._source.model)

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit" and self._source is not None and self._improves():
            self._is_best(module.finished_steps)
            own = self._source.path.resolve().parent == self.folder.checkpoints.resolve()
            if own and self.folder.writes and self.settings is not None and self.settings.best:
                checkpoint.link(self._source.path, "best")

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        count = trainer.num_val_batches[dataloader_idx]
        self._within_evaluation(trainer, module, f"val {dataloader_idx}", batch_idx, count)

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        count = trainer.num_test_batches[dataloader_idx]
        self._within_evaluation(trainer, module, f"test {dataloader_idx}", batch_idx, count)

    def _within_evaluation(self, trainer, module, split: str, index: int, count: int) -> None:
        signum = self.signals.before_evaluation_batch(split, module.finished_steps, index, count)
        if signum:
            self._stop(trainer, module, signum)

    def _stop(self, trainer, module, signum: int) -> NoReturn:
        """Save the state of the last finished step and end the run; all ranks call it at the same point."""
        step, name = module.finished_steps, signal.Signals(signum).name
        module.model.zero_grad()  # of a step that is not finished
        if step > self.saved_step:
            self.save(trainer, module)
        if self._writer is not None:
            self._writer.wait()
        self.folder.event("stopped", step=step, signal=name)
        queued = requeue() if signum == REQUEUES and self.folder.writes else ""
        if self.settings is None:
            saved = f" at step {step}; nothing is saved, as checkpoints are off{queued}"
        elif step == 0:
            saved = f" before the first step{queued}; the same command starts it again:\n  {self.signals.command}"
        else:
            saved = f", saved at step {step}{queued}; the same command continues it:\n  {self.signals.command}"
        raise Stopped(signum, f"stopped by {name}{saved}")

    def _is_due(self, step: int) -> bool:
        if self.settings is None or step <= self.saved_step:
            return False
        if "save" in self.agreement.agreed or step == self.metrics.n_steps:
            return True
        improves = self.settings.best and self._improves()
        if self.settings.every_steps is not None:
            return improves or step % self.settings.every_steps == 0
        due = improves or self.metrics.validates_after(step)
        return due and SKIP_SAVES not in self.agreement.agreed

    def _improves(self) -> bool:
        loss = self.metrics.row.get("val/loss")  # of the newest step, if it was followed by an evaluation
        return loss is not None and (self.best is None or loss < self.best["val/loss"])

    def _is_best(self, step: int) -> None:
        self.best = {"val/loss": self.metrics.row["val/loss"], "step": step}

    def _asks_to_save(self) -> bool:
        minutes = self.settings.every_minutes if self.settings is not None else None
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _has_failed(self) -> bool:
        return self._writer is not None and self._writer.failed

    def save(self, trainer, module) -> None:
        """Write step_<n>, and let `last`, and `best` if it is the best, name it."""
        if self.settings is None or self._writer is None:
            return
        with self.pauses.saving():
            self._save(self.settings, self._writer, trainer, module)

    def _save(self, settings: CheckpointConfig, writer: CheckpointWriter, trainer, module) -> None:
        self.metrics.read(trainer, module)  # refuses to save what is not finite
        self.metrics.flush(trainer)
        chain = self.metrics.hash_chain
        if chain is not None:
            chain.measure(trainer, module)
            self.metrics.seal()
        started, step = time.perf_counter(), module.finished_steps
        improves = self._improves()
        if improves:
            self._is_best(step)
        # A limit on time is one on this start of the run, not on all of them.
        callbacks = {
            c.state_key: own for c in trainer.callbacks if not isinstance(c, Timer) and (own := c.state_dict())
        }
        state = replace(
            self.prototype,
            step=step,
            samples=self.steps.sequences_before(step),
            skipped_steps=module.skipped_steps,
            precision=trainer.precision_plugin.state_dict(),
            callbacks={key: own for key, own in callbacks.items() if own},
            rng=torch.get_rng_state(),
            best=self.best,
            chain=None if chain is None else chain.head,
        )
        optimizer, path = trainer.optimizers[0], self.folder.checkpoints / f"step_{step:08d}"
        if self.sharded:
            tensors = checkpoint.local_shards(module.model, optimizer)
        else:
            path = path.with_name(f"{path.name}.ckpt")
            tensors = checkpoint.by_key(checkpoint.model_state(module.model), checkpoint.optimizer_state(optimizer))
        links = ["last", "best"] if improves and settings.best else ["last"]

        def done(seconds: float, waited: float) -> None:
            self.folder.event("saved", step=step, seconds=round(seconds, 3), held=round(collected + waited, 3))
            if chain is not None:
                chain.saved(step, path)

        collected = time.perf_counter() - started
        writer.save(Save(path, state, tensors, self.sharded, links, done))
        self.saved_step, self._saved_at = step, time.monotonic()
        self.agreement.agreed -= {"save", "failed"}
        self.metrics.throughput.restart(step)
