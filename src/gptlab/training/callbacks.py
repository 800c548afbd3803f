"""What happens around the steps: recording, saving, amending, showing."""

import math
import signal
import sys
import time
from collections.abc import Callable

import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch.distributed.tensor import DTensor

from gptlab.config import RunConfig, to_plain
from gptlab.training import amendments, checkpoint
from gptlab.training.amendments import Amendment
from gptlab.training.config import CheckpointConfig, SpikeAction
from gptlab.training.devices import memory_gib
from gptlab.training.folder import MetricsFile, RunFolder
from gptlab.training.optim import retune
from gptlab.training.plan import Plan
from gptlab.training.saving import Save, Saver
from gptlab.training.schedule import build_schedule
from gptlab.training.spikes import Spike, SpikeDetector, describe
from gptlab.training.stopping import SIGNALS, Failure, Stopped, command, requeue
from gptlab.training.strategy import divides_model

METER_SECONDS = 0.5  # over which tokens per second are measured
SHOW_SECONDS = 0.25  # between two pictures of the progress bar
LINE_SECONDS = 10  # between two lines where there is no terminal
ECHO_SECONDS = 1  # in which a launcher passes on a signal that the whole group has got already


class Recorder(Callback):
    """Reads what each step measured, checks it, and writes metrics.csv and the loggers' rows.

    On a GPU the numbers of several steps are read at once, so that no step waits for the device.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, plan: Plan, *, columns: list[str]):
        self.folder = folder
        self.devices = plan.devices
        self.columns = columns
        self.batch_tokens = config.windows_per_step * config.context_length
        self.log_every = config.trainer.log_every_n_steps
        self.n_steps = plan.n_steps
        self.val_every = plan.val_every
        self.flops_per_token = plan.flops_per_token
        self.peak_flops = plan.peak_flops
        self.row: dict[str, float | int] = {}  # of the newest step that was read
        self.validated: dict[str, float] = {}  # the newest evaluation
        self.received_signal = 0  # by this process
        self.stop_signal = 0  # that all ranks know of, and act on after the same step
        self.wishes: dict[str, Callable[[], bool]] = {}  # what one rank may want and all have to do together ...
        self.granted: set[str] = set()  # ... and which of them some rank did
        self.spike = config.callbacks.spike
        self.spikes = SpikeDetector(self.spike) if self.spike.action is not None else None
        self._pending: list[tuple[int, dict]] = []
        self._held: dict[str, float | int] | None = None  # the newest row, which an evaluation may still add to
        self._rate: dict[str, float] = {}
        self._file: MetricsFile | None = None

    def recall(self, rows: list[dict[str, float]]) -> None:
        """Take the newest numbers of a run that is continued from its metrics.csv."""
        self.row, self.validated = {}, {}
        for row in rows:
            self.row = row
            if any(name.startswith("val") for name in row):
                self.validated = {
                    k: v for k, v in row.items() if k.split("/")[0] not in ("step", "tokens", "train", "perf")
                }

    def validates_after(self, step: int) -> bool:
        return self.val_every is not None and (step % self.val_every == 0 or step == self.n_steps)

    def on_train_start(self, trainer, module) -> None:
        self.window = 1 if module.device.type == "cpu" else self.log_every
        if self.folder.writes:
            self._file = MetricsFile(self.folder.path / "metrics.csv", self.columns)
        held = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
        self.folder.event(
            "continued" if module.finished_steps else "started",
            step=module.finished_steps,
            n_steps=self.n_steps,
            devices=self.devices,
            parameter_bytes=sum(p.numel() * p.element_size() for p in held),  # on this device
        )
        self._listen()
        self._restart_meter(module)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._release(trainer)
        if module.finished_steps == self.n_steps - 1 and self.val_every is not None:
            trainer.val_check_batch = 1  # the last step is always followed by an evaluation

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = module.finished_steps
        self._pending.append((step, module.last_step))
        module.last_step = {}
        validates = self.validates_after(step)
        if step % self.window == 0 or validates or step == self.n_steps:
            self.read(trainer, module)

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        self.read(trainer, module)  # Lightning also evaluates when it ends early
        self.validated = module.evaluation
        self.row |= self.validated
        self.folder.event("validated", step=self.row["step"], **self.validated)
        self._restart_meter(module)

    def on_train_end(self, trainer, module) -> None:
        self.read(trainer, module)

    def close(self, trainer) -> None:
        """Finish metrics.csv, however the run ended."""
        self._release(trainer)
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, trainer, module) -> None:
        """Fetch the pending steps' numbers; the last row waits for its evaluation."""
        if not self._pending:
            return
        self._measure(module)
        names = list(self._pending[0][1]["terms"])
        table = torch.stack(
            [torch.stack([*measured["terms"].values(), measured["grad_norm"]]).float() for _, measured in self._pending]
        )
        signals = [float(signum == self.received_signal) for signum in SIGNALS]
        wanted = [*signals, *(float(wish()) for wish in self.wishes.values())]
        if trainer.world_size > 1:
            flags = table.new_tensor(wanted).expand(len(table), -1)
            # Only the loss differs over ranks; the mean of what one rank wants is above 0.
            table = trainer.strategy.reduce(torch.cat([table, flags], 1), reduce_op="mean")
            wanted, table = table[-1, -len(wanted) :].tolist(), table[:, : -len(wanted)]
        for signum, got in zip(SIGNALS, wanted, strict=False):
            if got and not self.stop_signal:
                self.stop_signal = signum
        self.granted = {name for name, wish in zip(self.wishes, wanted[len(SIGNALS) :], strict=True) if wish > 0}
        for (step, measured), (*terms, grad_norm) in zip(self._pending, table.tolist(), strict=True):
            self.row = {"step": step, "tokens": step * self.batch_tokens}
            self.row |= {f"train/{name}": value for name, value in zip(names, terms, strict=True)}
            self.row |= {"train/lr": measured["lr"], "train/grad_norm": grad_norm, **self._rate}
            if "loss_scale" in measured:
                self.row["train/loss_scale"] = measured["loss_scale"]
            problem = self._problem(step, terms[0], grad_norm, measured)
            if problem is not None:
                self._release(trainer)
                self._write(trainer, self.row)
                self._pending.clear()
                raise problem
            self._release(trainer)
            self._held = self.row
        self._pending.clear()

    def _problem(self, step: int, loss: float, grad_norm: float, measured: dict) -> Exception | None:
        """Why the run cannot go on after a step that measured this, if it cannot."""
        if "skipped" in measured:  # judged before its update
            return self._skipped(step, loss, grad_norm, **measured["skipped"])
        scaled = "loss_scale" in measured  # then an infinite gradient is the scaler's affair
        judges = self.spikes is not None and self.spike.action is not SpikeAction.skip
        if judges and self.spikes.finds(loss, 0.0 if scaled else grad_norm):
            message = describe(step, loss, grad_norm, self.spikes.usual())
            if self.spike.action is SpikeAction.rollback:
                return Spike(step, loss, message)
            return Failure(
                f"{message}; what is saved is from before. The same command continues from there with "
                "callbacks.spike.action=rollback or skip, with a higher callbacks.spike.threshold, or after "
                f"gptlab amend run={self.folder.path} optimizer.lr=..."
            )
        if math.isfinite(loss) and (math.isfinite(grad_norm) or scaled):
            return None
        return Failure(
            f"step {step} has loss {loss} and gradient norm {grad_norm}: training through it would only "
            "spoil the model; what is saved is from before. Lower optimizer.lr, lengthen "
            "schedule.warmup_steps or set optimizer.clip_norm"
        )

    def _skipped(self, step: int, loss: float, grad_norm: float, *, usual, in_a_row: int) -> Exception | None:
        self.folder.event("skipped", step=step, loss=loss, grad_norm=grad_norm, usual=list(usual))
        if in_a_row <= self.spike.max_skips:
            return None
        return Failure(
            f"{describe(step, loss, grad_norm, usual)}; it is number {in_a_row} in a row, and "
            f"callbacks.spike.max_skips={self.spike.max_skips}; the same command continues with more of them, with a "
            "higher callbacks.spike.threshold, or with callbacks.spike.action=rollback"
        )

    def state_dict(self) -> dict:
        return {"spikes": self.spikes.state_dict()} if self.spikes is not None else {}

    def load_state_dict(self, state: dict) -> None:
        if self.spikes is not None:
            self.spikes.load_state_dict(state["spikes"])

    def _release(self, trainer) -> None:
        if self._held is not None:
            self._write(trainer, self._held)
            self._held = None

    def flush(self, trainer) -> None:
        """Put every row that was read onto the disk."""
        self._release(trainer)
        if self._file is not None:
            self._file.sync()

    def _write(self, trainer, row: dict[str, float | int]) -> None:
        if self._file is not None:
            self._file.write(row)
        if trainer.loggers and (
            row["step"] % self.log_every == 0 or row["step"] in (1, self.n_steps) or "val/loss" in row
        ):
            for logger in trainer.loggers:
                logger.log_metrics(row, step=row["step"])  # `step` is W&B's axis, and has to be in the row

    def _restart_meter(self, module) -> None:
        self._since, self._since_step = time.perf_counter(), module.finished_steps

    def _measure(self, module) -> None:
        now = time.perf_counter()
        if now - self._since < METER_SECONDS or module.finished_steps == self._since_step:
            return
        rate = (module.finished_steps - self._since_step) * self.batch_tokens / (now - self._since)
        self._rate = {"perf/tokens_per_second": round(rate, 1), "perf/memory_gib": round(memory_gib(module.device), 3)}
        if self.peak_flops is not None:
            self._rate["perf/mfu"] = round(rate * self.flops_per_token / self.peak_flops, 4)
        self._restart_meter(module)
        if self._file is not None:
            self._file.flush()

    def pause(self, module) -> None:
        """Leave the time since the last step out of the rate."""
        self._restart_meter(module)

    def _listen(self) -> None:
        # Lightning's own handlers are replaced: they end a run without saving it.
        def note(signum: int, frame) -> None:
            if self.received_signal:
                if time.monotonic() - self._received_at < ECHO_SECONDS:
                    return
                raise Stopped(signum, f"stopped at once; this continues it from its last checkpoint:\n  {command()}")
            self.received_signal, self._received_at = signum, time.monotonic()
            if self.folder.writes and sys.stderr is not None:
                print("\nstopping after this step; once more stops at once", file=sys.stderr)

        for signum in SIGNALS:
            signal.signal(signum, note)


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
        self._saver: Saver | None = None
        self._saved_at = time.monotonic()
        recorder.wishes |= {"save": self._wants_save, "failed": self._has_failed}

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
            self._saver = Saver(
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
        if self._saver is not None and "failed" in self.recorder.granted:
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
                    saved = f", saved at step {step}{queued}; the same command continues it:\n  {command()}"
                raise Stopped(stop, f"stopped by {name}{saved}")
        elif self._is_due(step):
            self.save(trainer, module)

    def _is_due(self, step: int) -> bool:
        if self.settings is None or step <= self.saved_step:
            return False
        if "save" in self.recorder.granted or (self.settings.best and self._improves()):
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
            "samples": step * self.config.windows_per_step,
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
        if divides_model(self.config.strategy):
            parts = checkpoint.own_parts(module.model, optimizer)
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
        self.recorder.granted -= {"save", "failed"}
        self.recorder.pause(module)


class Amender(Callback):
    """Takes amendments up between two steps, and those on the record again at the same steps."""

    def __init__(self, config: RunConfig, folder: RunFolder, recorder: Recorder, checkpoints: Checkpoints):
        self.config = config  # as it was composed: what the run's identity and its checkpoints are made of
        self.folder = folder
        self.recorder = recorder
        self.checkpoints = checkpoints
        self.taken, self._refused = amendments.on_record(folder)
        self._seen: tuple[int, int] | None = None  # size and time of the file that was read
        self._complaints: set[str] = set()
        recorder.wishes["amend"] = self._has_news

    def on_train_start(self, trainer, module) -> None:
        self._take_up(trainer, module.finished_steps)
        if self.taken:
            self._apply(trainer, module)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if "amend" in self.recorder.granted:
            self.recorder.granted -= {"amend"}
            self._take_up(trainer, module.finished_steps)
        if any(amendment.step == module.finished_steps for amendment in self.taken):
            self._apply(trainer, module)

    def _has_news(self) -> bool:
        return self.folder.writes and self._stamp() != self._seen

    def _stamp(self) -> tuple[int, int] | None:
        try:
            about = (self.folder.path / amendments.FILE).stat()
        except OSError:
            return None
        return about.st_size, about.st_mtime_ns

    def _take_up(self, trainer, step: int) -> None:
        # The first rank reads, so that all have read the same.
        new = trainer.strategy.broadcast(self._read(step) if self.folder.writes else None)
        self.taken += [Amendment(number, words, step) for number, words in new]

    def _read(self, step: int) -> list[tuple[int, dict]]:
        self._seen = self._stamp()  # first: what is written meanwhile is news
        found, damaged = amendments.read(self.folder.path)
        for complaint in damaged:
            if complaint not in self._complaints:
                self._complaints.add(complaint)
                self._say("amendment unreadable", complaint, step=step, reason=complaint)
        decided = self._refused | {amendment.number for amendment in self.taken}
        config, new = amendments.at_step(self.config, self.taken, step), []
        for waiting in found:
            if waiting.number in decided:
                continue
            facts = {"step": step, "number": waiting.number, "words": waiting.words}
            try:
                config = amendments.amended(config, waiting.words, n_steps=self.recorder.n_steps)
            except ValueError as error:
                self._refused.add(waiting.number)
                message = f"amendment {waiting.number} ({waiting}) is refused: {error}"
                self._say(amendments.REFUSED, message, **facts, reason=str(error))
            else:
                new.append((waiting.number, waiting.words))
                self._say(amendments.TAKEN, f"amendment {waiting.number} from step {step + 1} on: {waiting}", **facts)
        return new

    def _say(self, event: str, message: str, **facts) -> None:
        self.folder.event(event, **facts)
        print(message, file=sys.stderr, flush=True)

    def _apply(self, trainer, module) -> None:
        config = amendments.at_step(self.config, self.taken, module.finished_steps)
        module.config = config
        module.schedule = build_schedule(
            config.schedule, n_steps=self.recorder.n_steps, batch_tokens=self.config.batch_tokens
        )
        retune(trainer.optimizers[0], config.optimizer)
        self.checkpoints.change(config.callbacks.checkpoint)


class ProgressBar(Callback):
    """One line that moves: step, loss, tokens per second, time left."""

    def __init__(self, recorder: Recorder, n_steps: int):
        self.recorder = recorder
        self.n_steps = n_steps
        self._bar = None
        self._shown = 0.0

    def on_train_start(self, trainer, module) -> None:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                auto_refresh=False,  # a thread that draws would take its time from the steps
            )
            self._task = self._bar.add_task("", total=self.n_steps, completed=module.finished_steps, numbers="")
            self._bar.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        now = time.monotonic()
        if now - self._shown >= (SHOW_SECONDS if self._bar else LINE_SECONDS):
            self._show(now)

    def on_validation_start(self, trainer, module) -> None:
        if self._bar:
            self._bar.update(self._task, numbers="evaluating ...", refresh=True)

    def on_validation_end(self, trainer, module) -> None:
        self._show(time.monotonic())

    def on_train_end(self, trainer, module) -> None:
        self._close()

    def on_exception(self, trainer, module, exception) -> None:
        self._close()

    def _show(self, now: float) -> None:
        self._shown = now
        row = self.recorder.row
        if not row:
            return
        numbers = f"loss {row['train/loss']:.4f}"
        if "val/loss" in self.recorder.validated:
            numbers += f"  val {self.recorder.validated['val/loss']:.4f}"
        if "perf/tokens_per_second" in row:
            numbers += f"  {row['perf/tokens_per_second']:,.0f} tokens/s"
        if "perf/mfu" in row:
            numbers += f"  MFU {row['perf/mfu']:.1%}"
        if self._bar:
            self._bar.update(self._task, completed=row["step"], numbers=numbers, refresh=True)
        else:
            print(f"step {row['step']}/{self.n_steps}  {numbers}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar:
            self._show(time.monotonic())
            self._bar.stop()
            self._bar = None
