"""Reading what each step measured: metrics.csv, the loggers, signals, spikes."""

import math
import signal
import sys
import time
from collections.abc import Callable

import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor

from gptlab.config import RunConfig
from gptlab.distributed.devices import memory_gib
from gptlab.distributed.signals import SIGNALS, Failure, Stopped
from gptlab.forecast import Plan
from gptlab.runs.folder import MetricsFile, RunFolder
from gptlab.training.config import SpikeAction
from gptlab.training.spikes import Spike, SpikeDetector, describe

METER_SECONDS = 0.5  # over which tokens per second are measured
ECHO_SECONDS = 1  # in which a launcher passes on a signal that the whole group has got already


class Recorder(Callback):
    """Reads what each step measured, checks it, and writes metrics.csv and the loggers' rows.

    On a GPU the numbers of several steps are read at once, so that no step waits for the device.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, plan: Plan, *, columns: list[str], command: str):
        self.folder = folder
        self.devices = plan.devices
        self.columns = columns
        self.command = command  # what continues the run
        self.command = command  # what continues the run
        self.batch_tokens = config.sequences_per_step * config.context_length
        self.log_every = config.trainer.log_every_n_steps
        self.n_steps = plan.n_steps
        self.val_every = plan.val_every
        self.flops_per_token = plan.flops_per_token
        self.peak_flops = plan.peak_flops
        self.row: dict[str, float | int] = {}  # of the newest step that was read
        self.validated: dict[str, float] = {}  # the newest evaluation
        self.received_signal = 0  # by this process
        self.stop_signal = 0  # that all ranks know of, and act on after the same step
        self.requests: dict[str, Callable[[], bool]] = {}  # what one rank may want and all have to do together ...
        self.agreed: set[str] = set()  # ... and which of them some rank did
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
        wanted = [*signals, *(float(wish()) for wish in self.requests.values())]
        if trainer.world_size > 1:
            flags = table.new_tensor(wanted).expand(len(table), -1)
            # Only the loss differs over ranks; the mean of what one rank wants is above 0.
            table = trainer.strategy.reduce(torch.cat([table, flags], 1), reduce_op="mean")
            wanted, table = table[-1, -len(wanted) :].tolist(), table[:, : -len(wanted)]
        for signum, got in zip(SIGNALS, wanted, strict=False):
            if got and not self.stop_signal:
                self.stop_signal = signum
        self.agreed = {name for name, wish in zip(self.requests, wanted[len(SIGNALS) :], strict=True) if wish > 0}
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
            "schedule.warmup_steps or set optimizer.grad_clip"
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
                raise Stopped(signum, f"stopped at once; this continues it from its last checkpoint:\n  {self.command}")
            self.received_signal, self._received_at = signum, time.monotonic()
            if self.folder.writes and sys.stderr is not None:
                print("\nstopping after this step; once more stops at once", file=sys.stderr)

        for signum in SIGNALS:
            signal.signal(signum, note)
