"""What happens around the steps: recording, saving, sampling, showing."""

import math
import signal
import sys
import time
from collections.abc import Callable

import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch.distributed.tensor import DTensor

from gptlab.config import RunConfig, to_plain
from gptlab.data.prepare import PreparedData
from gptlab.generation.decode import generate
from gptlab.training import checkpoint
from gptlab.training.devices import memory_gib
from gptlab.training.folder import MetricsFile, RunFolder
from gptlab.training.plan import Plan
from gptlab.training.saving import Save, Saver
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
        self.wishes: list[Callable[[], bool]] = []  # what one rank may want and all have to do together ...
        self.granted: list[bool] = []  # ... and which of them some rank did
        self._pending: list[tuple[int, dict]] = []
        self._held: dict[str, float | int] | None = None  # the newest row, which an evaluation may still add to
        self._rate: dict[str, float] = {}
        self._file: MetricsFile | None = None

    def recall(self, rows: list[dict[str, float]]) -> None:
        """Take the newest numbers of a run that is continued from its metrics.csv."""
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
        wanted = [*signals, *(float(wish()) for wish in self.wishes)]
        if trainer.world_size > 1:
            flags = table.new_tensor(wanted).expand(len(table), -1)
            # Only the loss differs over ranks; the mean of what one rank wants is above 0.
            table = trainer.strategy.reduce(torch.cat([table, flags], 1), reduce_op="mean")
            wanted, table = table[-1, -len(wanted) :].tolist(), table[:, : -len(wanted)]
        for signum, got in zip(SIGNALS, wanted, strict=False):
            if got and not self.stop_signal:
                self.stop_signal = signum
        self.granted = [wish > 0 for wish in wanted[len(SIGNALS) :]]
        for (step, measured), (*terms, grad_norm) in zip(self._pending, table.tolist(), strict=True):
            self.row = {"step": step, "tokens": step * self.batch_tokens}
            self.row |= {f"train/{name}": value for name, value in zip(names, terms, strict=True)}
            self.row |= {"train/lr": measured["lr"], "train/grad_norm": grad_norm, **self._rate}
            if "loss_scale" in measured:
                self.row["train/loss_scale"] = measured["loss_scale"]
            if not math.isfinite(terms[0]) or not (math.isfinite(grad_norm) or "loss_scale" in measured):
                self._release(trainer)
                self._write(trainer, self.row)
                self._pending.clear()
                raise Failure(
                    f"step {step} has loss {terms[0]} and gradient norm {grad_norm}: training through it would only "
                    "spoil the model; what is saved is from before. Lower optimizer.lr, lengthen "
                    "schedule.warmup_steps or set optimizer.clip_norm"
                )
            self._release(trainer)
            self._held = self.row
        self._pending.clear()

    def _release(self, trainer) -> None:
        if self._held is not None:
            self._write(trainer, self._held)
            self._held = None

    def flush(self, trainer) -> None:
        """Put every row that was read into the file."""
        self._release(trainer)
        if self._file is not None:
            self._file.flush()

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
        recorder.wishes += [self._wants_save, self._has_failed]

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
        known = isinstance(exception, Stopped | Failure | OSError)
        if alone and not known and not module.updating and module.finished_steps > self.saved_step:
            self.save(trainer, module)
        if alone and self._saver is not None and not isinstance(exception, OSError):
            self._saver.wait()

    def _between_steps(self, trainer, module) -> None:
        step, stop = module.finished_steps, self.recorder.stop_signal
        if self._saver is not None and any(self.recorder.granted[1:]):
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
        if any(self.recorder.granted[:1]) or (self.settings.best and self._improves()):
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
        held = None

        def done(seconds: float) -> None:
            # `held` is the time that steps had to wait, all of it unless saving is asynchronous.
            times = {"seconds": round(seconds, 3), "held": round(seconds if held is None else held, 3)}
            self.folder.event("saved", step=step, **times)

        self._saver.save(Save(path, state, parts, links, done))
        held = time.perf_counter() - started
        self.saved_step, self._saved_at = step, time.monotonic()
        self.recorder.granted = []
        self.recorder.pause(module)


class Sampler(Callback):
    """Lets the model write at each evaluation: where people look before they read a loss."""

    def __init__(self, config: RunConfig, folder: RunFolder, data: PreparedData):
        self.config = config
        self.folder = folder
        self.tokenizer = data.tokenizer
        self.newest = ""
        settings = config.callbacks.sample
        # Before training, so that a prompt that cannot be spelt costs no work.
        prompt = self.tokenizer.encode(settings.prompt or "").tolist() or [int(data.train.tokens[0])]
        self.prompt = prompt[-config.context_length :]

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        settings = self.config.callbacks.sample
        tokens = torch.tensor([self.prompt], device=module.device)
        # Every rank writes the same text, since with a sharded model none can write alone.
        generator = torch.Generator(module.device).manual_seed(self.config.seed)
        # Compiled blocks would be compiled again for shapes that training never has.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.no_grad(), trainer.precision_plugin.forward_context():
            tokens = generate(
                module.model,
                tokens,
                settings.n_tokens,
                context_length=self.config.context_length,
                temperature=settings.temperature,
                n_words=self.tokenizer.vocab_size,
                generator=generator,
            )
        self.newest = self.tokenizer.decode(tokens[0].tolist())
        if self.folder.writes:
            with open(self.folder.path / "samples.txt", "a") as file:
                file.write(f"--- step {module.finished_steps}\n{self.newest}\n")


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
