"""Saving a run between two steps, and continuing it."""

import signal
import time

import torch
from lightning.pytorch.callbacks import Callback, Timer

from gptlab.config import RunConfig, to_plain
from gptlab.distributed.signals import Failure, Stopped, requeue
from gptlab.runs import checkpoint
from gptlab.runs.folder import RunFolder
from gptlab.runs.writer import CheckpointWriter, Save
from gptlab.training.callbacks.recorder import Recorder
from gptlab.training.config import CheckpointConfig
from gptlab.training.spikes import Spike


class Checkpoints(Callback):
    """Saves the run between two steps, and continues it from where it was saved."""

    def __init__(self, config: RunConfig, folder: RunFolder, recorder: Recorder, *, identity: dict, state: dict | None):
        self.settings = config.callbacks.checkpoint if config.trainer.enable_checkpointing else None
        self.config = config
        self.folder = folder
        self.recorder = recorder
        self.identity = identity  # fingerprints that a continued run has to match
        self.best = state["best"] if state and state["data"] == identity["data"] else None
        self.saved_step = state["step"] if state else 0
        self._state = state
        self._saver: CheckpointWriter | None = None
        self._saved_at = time.monotonic()
        recorder.requests |= {"save": self._wants_save, "failed": self._has_failed}

    def setup(self, trainer, module, stage: str) -> None:
        if trainer.world_size == 1 or stage != "fit":
            return
        steps = [None] * trainer.world_size
        torch.distributed.all_gather_object(steps, module.finished_steps)
        for rank, step in enumerate(steps):
            if step != steps[0]:
                raise Failure(
                    f"rank {rank} would go on from step {step} and the first rank from step {steps[0]}: they do not "
                    f"see the same checkpoints in {self.folder.checkpoints}; the run folder has to be on a file system "
                    "that all nodes share"
                )

    def on_train_start(self, trainer, module) -> None:
        if self.settings is not None:
            self._saver = CheckpointWriter(
                asynchronous=self.settings.async_save,
                keep_last=self.settings.keep_last,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                timeout_seconds=self.config.strategy.timeout_seconds,
            )
        if self._state is None:
            return
        checkpoint.restore_model(module.model, self._state["model"])
        checkpoint.restore_optimizer(trainer.optimizers[0], self._state["optimizer"])
        trainer.precision_plugin.load_state_dict(self._state["precision"])
        torch.set_rng_state(self._state["random"])  # steps draw from their own; what is around them goes on
        for callback in trainer.callbacks:
            if callback.state_key in self._state["callbacks"]:
                callback.load_state_dict(self._state["callbacks"][callback.state_key])
        self._state = None

    def change(self, settings: CheckpointConfig) -> None:
        """Save by other words from now on."""
        if self.settings is not None:
            self.settings = settings
            self._saver.wait()  # for what is being written by the old ones
            self._saver.asynchronous, self._saver.keep_last = settings.async_save, settings.keep_last

    def on_test_start(self, trainer, module) -> None:
        if self._state is not None:  # nothing was left to train
            checkpoint.restore_model(module.model, self._state["model"])

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._between_steps(trainer, module)

    def on_train_end(self, trainer, module) -> None:
        if module.finished_steps > self.saved_step:
            self.save(trainer, module)
        self._between_steps(trainer, module)
        if self._saver is not None:
            self._saver.wait()

    def on_exception(self, trainer, module, exception) -> None:
        # Alone, and between two updates, the state is sound; with other ranks it cannot be gathered without them.
        alone = trainer.world_size == 1
        known = isinstance(exception, Stopped | Failure | Spike | OSError)
        if alone and not known and not module.updating and module.finished_steps > self.saved_step:
            self.save(trainer, module)
        together = alone or isinstance(exception, Spike)  # which all ranks find after the same step
        if together and self._saver is not None and not isinstance(exception, OSError):
            self._saver.wait()

    def _between_steps(self, trainer, module) -> None:
        step, stop = module.finished_steps, self.recorder.stop_signal
        if self._saver is not None and "failed" in self.recorder.agreed:
            self._saver.wait()  # which raises on every rank
        if stop and step:
            if step > self.saved_step:
                self.save(trainer, module)
            if self._saver is not None:
                self._saver.wait()
            if step < self.recorder.n_steps:
                name = signal.Signals(stop).name
                self.folder.event("stopped", step=step, signal=name)
                queued = requeue() if stop == signal.SIGUSR1 and self.folder.writes else ""
                if self.settings is None:
                    saved = f" at step {step}; nothing is saved, as checkpoints are off{queued}"
                else:
                    saved = f", saved at step {step}{queued}; the same command continues it:\n  {self.recorder.command}"
                raise Stopped(stop, f"stopped by {name}{saved}")
        elif self._is_due(step):
            self.save(trainer, module)

    def _is_due(self, step: int) -> bool:
        if self.settings is None or step <= self.saved_step:
            return False
        if "save" in self.recorder.agreed or (self.settings.best and self._improves()):
            return True
        if self.settings.every_steps is not None:
            return step % self.settings.every_steps == 0 or step == self.recorder.n_steps
        return self.recorder.validates_after(step) or step == self.recorder.n_steps

    def _improves(self) -> bool:
        loss = self.recorder.row.get("val/loss")  # of the newest step, if it was followed by an evaluation
        return loss is not None and (self.best is None or loss < self.best["val/loss"])

    def _wants_save(self) -> bool:
        minutes = self.settings.every_minutes if self.settings is not None else None
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _has_failed(self) -> bool:
        return self._saver is not None and self._saver.failed

    def save(self, trainer, module) -> None:
        """Write step_<n> and let `last`, and `best` where it is, be the same."""
        if self.settings is None:
            return
        self.recorder.read(trainer, module)  # refuses to save what is not finite
        self.recorder.flush(trainer)
        started, step = time.perf_counter(), module.finished_steps
        improves = self._improves()
        if improves:
            self.best = {"val/loss": self.recorder.row["val/loss"], "step": step}
        state = {
            "gptlab_format": checkpoint.FORMAT,
            "step": step,
            "samples": step * self.config.sequences_per_step,
            "skipped_steps": module.skipped_steps,  # whose samples were left out between those
            "precision": trainer.precision_plugin.state_dict(),
            # A limit on time is one on this start of the run, not on all of them.
            "callbacks": {
                c.state_key: s for c in trainer.callbacks if not isinstance(c, Timer) and (s := c.state_dict())
            },
            "random": torch.get_rng_state(),
            "config": to_plain(self.config),
            "best": self.best,
            **self.identity,
        }
        optimizer, path, parts = trainer.optimizers[0], self.folder.checkpoints / f"step_{step:08d}", None
        if self.config.strategy.shards_model:
            parts = checkpoint.local_shards(module.model, optimizer)
        else:
            path = path.with_name(f"{path.name}.ckpt")
            state |= {
                "model": checkpoint.model_state(module.model),
                "optimizer": checkpoint.optimizer_state(optimizer),
            }
        links = ["last", "best"] if improves and self.settings.best else ["last"]

        def done(seconds: float, held: float) -> None:
            self.folder.event("saved", step=step, seconds=round(seconds, 3), held=round(collected + held, 3))

        collected = time.perf_counter() - started
        self._saver.save(Save(path, state, parts, links, done))
        self.saved_step, self._saved_at = step, time.monotonic()
        self.recorder.agreed -= {"save", "failed"}
        self.recorder.pause(module)
