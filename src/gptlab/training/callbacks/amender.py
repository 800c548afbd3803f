"""Applying amendments while a run is going."""

import os
import sys

from lightning.pytorch.callbacks import Callback

from gptlab.errors import UserError
from gptlab.runs import amendments
from gptlab.runs.amendments import Amendable, Amendment
from gptlab.runs.folder import RunFolder
from gptlab.training.callbacks.agreement import Agreement
from gptlab.training.callbacks.checkpoints import Checkpoints
from gptlab.training.optimizers import retune


class Amender(Callback):
    """Applies amendments between two steps, and those in events.jsonl again at the same steps."""

    def __init__(
        self, config: Amendable, folder: RunFolder, agreement: Agreement, checkpoints: Checkpoints, *, n_steps: int
    ):
        self.config = config  # as it was composed: the run's identity and its checkpoints are made of it
        self.folder = folder
        self._file = str(folder.path / amendments.FILE)  # looked at after every step
        self.agreement = agreement
        self.checkpoints = checkpoints
        self.n_steps = n_steps
        self.taken, self._refused = amendments.on_record(folder)
        self._seen: tuple[int, int] | None = None  # size and time of the file that was read
        self._complaints: set[str] = set()
        agreement.requests["amend"] = self._has_news

    def on_train_start(self, trainer, module) -> None:
        self._read_all(trainer, module.finished_steps)
        if self.taken:
            self._apply(trainer, module)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if self.agreement.take("amend"):
            self._read_all(trainer, module.finished_steps)
        if any(amendment.step == module.finished_steps for amendment in self.taken):
            self._apply(trainer, module)

    def _has_news(self) -> bool:
        return self.folder.writes and self._stamp() != self._seen

    def _stamp(self) -> tuple[int, int] | None:
        try:
            about = os.stat(self._file)
        except OSError:
            return None
        return about.st_size, about.st_mtime_ns

    def _read_all(self, trainer, step: int) -> None:
        # Rank 0 reads, so that all have read the same.
        new = trainer.strategy.broadcast(self._read(step) if self.folder.writes else None)
        self.taken += [Amendment(number, overrides, step) for number, overrides in new]

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
            facts = {"step": step, "number": waiting.number, "overrides": waiting.overrides}
            try:
                config = amendments.amended(config, waiting.overrides, n_steps=self.n_steps)
            except UserError as error:
                self._refused.add(waiting.number)
                message = f"amendment {waiting.number} ({waiting}) is refused: {error}"
                self._say(amendments.REFUSED, message, **facts, reason=str(error))
            else:
                new.append((waiting.number, waiting.overrides))
                self._say(amendments.TAKEN, f"amendment {waiting.number} from step {step + 1} on: {waiting}", **facts)
        return new

    def _say(self, event: str, message: str, **facts) -> None:
        self.folder.event(event, **facts)
        print(message, file=sys.stderr, flush=True)

    def _apply(self, trainer, module) -> None:
        config = amendments.at_step(self.config, self.taken, module.finished_steps)
        module.optimizer_config = config.optimizer
        module.schedule = config.schedule.build(
            n_steps=self.n_steps, batch_tokens=self.config.batch_tokens, steps=self.config.steps
        )
        retune(trainer.optimizers[0], config.optimizer)
        self.checkpoints.change(config.callbacks.checkpoint)
