"""What each step measured: read from the device, checked, and written to metrics.csv and the loggers."""

from collections.abc import Callable, Iterable, Mapping

import torch
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor

from gptlab.evaluation.probes import PREFIX, Probe
from gptlab.runs.folder import MetricsFile, RunFolder, cut_metrics
from gptlab.training.callbacks.agreement import SLOW_STEPS, Agreement
from gptlab.training.callbacks.evaluations import Evaluations
from gptlab.training.callbacks.hash_chain import HashChain
from gptlab.training.callbacks.pauses import Pauses
from gptlab.training.callbacks.throughput import Throughput
from gptlab.training.spikes import LossGuard


def is_logged(row: Mapping[str, float | int], *, log_every: int, n_steps: int) -> bool:
    """Whether loggers get this row of metrics.csv."""
    return (
        row["step"] % log_every == 0
        or row["step"] in (1, n_steps)
        or "val/loss" in row
        or any(name.startswith(PREFIX) for name in row)
    )


class Metrics(Callback):
    """Reads what each step measured, lets it be checked, and writes the rows of metrics.csv and the loggers.

    On a GPU the numbers of several steps are read at once, so that no step waits for the device.
    """

    def __init__(
        self,
        folder: RunFolder,
        guard: LossGuard,
        agreement: Agreement,
        throughput: Throughput,
        evaluations: Evaluations,
        pauses: Pauses,
        hash_chain: HashChain | None = None,
        *,
        columns: list[str],
        epochs: Callable[[int], Mapping[str, float]],
        devices: str,
        n_steps: int,
        val_every: int | None,
        log_every: int,
    ):
        self.folder = folder
        self.guard = guard
        self.agreement = agreement
        self.throughput = throughput
        self.evaluations = evaluations
        self.pauses = pauses
        self.hash_chain = hash_chain
        self.columns = columns
        self.epochs = epochs  # of each source of a mixture, by the steps whose samples were read
        self.devices = devices
        self.n_steps = n_steps
        self.val_every = val_every  # steps; None: no evaluations
        self.log_every = log_every
        self.window = log_every  # steps that are read at once
        self.row: dict[str, float | int] = {}  # of the newest step that was read
        self.validated: dict[str, float] = {}  # the newest validation
        self.evaluated: dict[str, float] = {}  # the newest of each evaluation
        self.observers: list[Callable[[Mapping[str, float | int]], None]] = []  # called with each step's numbers
        self._pending: list[tuple[int, dict]] = []
        self._held: dict[str, float | int] | None = None  # the newest row, which an evaluation may still add to
        self._first = True  # no step has begun since the run was started or continued
        self._file: MetricsFile | None = None
        agreement.requests[SLOW_STEPS] = lambda: throughput.is_slow(self.window)

    def recall(self, rows: Iterable[dict[str, float]]) -> None:
        """Take the newest numbers of a run that is continued from its metrics.csv."""
        self.row, self.validated, self.evaluated = {}, {}, {}
        for row in rows:
            self.row = row
            self.evaluated |= {name: value for name, value in row.items() if name.startswith(PREFIX)}
            if any(name.startswith("val") for name in row):
                self.validated = {
                    k: v for k, v in row.items() if k.split("/")[0] not in ("step", "tokens", "train", "perf", "eval")
                }

    def lacks_evaluation(self, step: int) -> bool:
        """Whether the run was stopped between step `step` and the end of the evaluation that follows it."""
        row = self.row
        return (
            step > 0
            and row.get("step") == step
            and self.validates_after(step)
            and "train/lr" in row
            and (not any(name.startswith("val") for name in row) or bool(self._lacking()))
        )

    def _lacking(self) -> list[Probe]:
        """The evaluations that the newest row lacks."""
        return self.evaluations.lacking(self.row, validated=self.validates_after(int(self.row["step"])))

    def validates_after(self, step: int) -> bool:
        return self.val_every is not None and (step % self.val_every == 0 or step == self.n_steps)

    def on_fit_start(self, trainer, module) -> None:
        if self.folder.writes:
            self._file = MetricsFile(self.folder.path / "metrics.csv", self.columns)
        if self.hash_chain is not None:
            self.hash_chain.read_rows()
        held = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
        self.folder.event(
            "continued" if module.finished_steps else "started",
            step=module.finished_steps,
            n_steps=self.n_steps,
            devices=self.devices,
            parameter_bytes=sum(p.numel() * p.element_size() for p in held),  # on this device
        )

    def on_train_start(self, trainer, module) -> None:
        self.window = 1 if module.device.type == "cpu" else self.log_every
        self.throughput.restart(module.finished_steps)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if self._first and self.row.get("step") == module.finished_steps and (lacking := self._lacking()):
            self.row |= self._evaluate(trainer, module, lacking)
            self._rewrite()
        if self._first and self.hash_chain is not None:  # by now the weights are those of the checkpoint
            self.hash_chain.measure(trainer, module)
        self._first = False
        self._release(trainer)
        self.seal()
        if module.finished_steps == self.n_steps - 1 and self.val_every is not None:
            trainer.val_check_batch = 1  # the last step is always followed by an evaluation

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = module.finished_steps
        self._pending.append((step, module.last_step))
        module.last_step = {}
        validates = self.validates_after(step)
        due = self.evaluations.due(step, validated=validates)
        if step % self.window == 0 or validates or due or step == self.n_steps:
            self.read(trainer, module)
        if due:
            self.row |= self._evaluate(trainer, module, due)
        if self.hash_chain is not None and self.hash_chain.is_due(step, validates=validates):
            self.hash_chain.measure(trainer, module)

    def _evaluate(self, trainer, module, probes: list[Probe]) -> dict[str, float]:
        with self.pauses.evaluating():
            found = self.evaluations.measure(trainer, module, probes)
        self.evaluated |= found
        self.folder.event("evaluated", step=self.row["step"], **found)
        self.throughput.restart(module.finished_steps)
        return found

    def on_validation_end(self, trainer, module) -> None:
        self.read(trainer, module)  # Lightning also evaluates when it ends early
        if trainer.sanity_checking:  # before the first step
            self.row = self._held = {"step": 0, "tokens": 0}
        self.validated = module.evaluation
        self.row |= self.validated
        self.folder.event("validated", step=self.row["step"], **self.validated)
        self.throughput.restart(module.finished_steps)
        if trainer.sanity_checking:
            self.row |= self._evaluate(trainer, module, due) if (due := self.evaluations.due(0, validated=True)) else {}
        elif trainer.state.fn != "fit":
            if lacking := self._lacking():
                self.row |= self._evaluate(trainer, module, lacking)
            self._rewrite()
            self.flush(trainer)
            self.close(trainer)

    def _rewrite(self) -> None:
        """Add an evaluation that was interrupted, and is made up for, to the last row of metrics.csv."""
        if self.folder.writes:
            path = self.folder.path / "metrics.csv"
            if self._file is not None:
                self._file.close()
            cut_metrics(path, path, int(self.row["step"]) - 1, self.columns)
            if self.hash_chain is not None:
                self.hash_chain.rewritten()
            self._file = MetricsFile(path, self.columns)
            self._held = self.row

    def on_train_end(self, trainer, module) -> None:
        self.read(trainer, module)
        if self.hash_chain is not None:  # its entry is written with the last row
            self.hash_chain.measure(trainer, module)

    def close(self, trainer) -> None:
        """Finish metrics.csv, however the run ended."""
        self._release(trainer)
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, trainer, module) -> None:
        """Read the pending steps' numbers; the last row waits for its evaluation."""
        if not self._pending:
            return
        if self.throughput.measure(module.finished_steps, module.device) and self._file is not None:
            self._file.flush()
        names = list(self._pending[0][1]["terms"])
        table = torch.stack(
            [torch.stack([*measured["terms"].values(), measured["grad_norm"]]).float() for _, measured in self._pending]
        )
        flags = self.agreement.flags()
        if trainer.world_size > 1:
            # One collective for both. Of the numbers only the loss differs over ranks.
            both = torch.cat([table, table.new_tensor(flags).expand(len(table), -1)], 1)
            both = trainer.strategy.reduce(both, reduce_op="mean")
            table, flags = both[:, : table.shape[1]], both[-1, table.shape[1] :].tolist()
        self.agreement.settle(flags)
        pending, self._pending = self._pending, []
        for (step, measured), (*terms, grad_norm) in zip(pending, table.tolist(), strict=True):
            self.row = {"step": step, "tokens": self.throughput.steps.tokens_before(step)}
            self.row |= {f"train/{name}": value for name, value in zip(names, terms, strict=True)}
            self.row |= {"train/lr": measured["lr"], "train/grad_norm": grad_norm, **self.throughput.newest}
            for name, value in self.epochs(step + module.skipped_steps).items():
                self.row[f"train/{name}/epochs"] = value
            if "loss_scale" in measured:
                self.row["train/loss_scale"] = measured["loss_scale"]
            problem = self.guard.problem(step, terms[0], grad_norm, measured)
            self._release(trainer)
            if problem is not None:
                self._write(trainer, self.row)
                raise problem
            self._held = self.row
            for observe in self.observers:
                observe(self.row)

    def state_dict(self) -> dict:
        return self.guard.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.guard.load_state_dict(state_dict)

    def _release(self, trainer) -> None:
        if self._held is not None:
            self._write(trainer, self._held)
            self._held = None

    def flush(self, trainer) -> None:
        """Put every row that was read onto the disk."""
        self._release(trainer)
        if self._file is not None:
            self._file.sync()

    def seal(self) -> None:
        """Write the entry of the hash chain that waits for the newest row."""
        if self.hash_chain is not None and self.hash_chain.waits:
            if self._file is not None:
                self._file.flush()  # an entry never seals a row that is not in the file
            self.hash_chain.write()

    def _write(self, trainer, row: dict[str, float | int]) -> None:
        if self._file is not None:
            self._file.write(row)
            if self.hash_chain is not None:
                self.hash_chain.add({name: row[name] for name in self.columns if name in row})
                self.seal()
        if is_logged(row, log_every=self.log_every, n_steps=self.n_steps):
            for logger in trainer.loggers:
                logger.log_metrics(row, step=row["step"])  # `step` is W&B's axis, and has to be in the row
