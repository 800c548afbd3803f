"""Loss spikes, and whether a run can go on after a step.

Decided from the losses before alone, so that a resumed run decides alike.
"""

import math
import shlex
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptlab.distributed.signals import Failure
from gptlab.runs.folder import RunFolder
from gptlab.training.config import SpikeAction, SpikeConfig


class Spike(Exception):
    """A step after which the run is to go back to a checkpoint."""

    def __init__(self, step: int, loss: float, message: str):
        super().__init__(message)
        self.step = step
        self.loss = loss


class SpikeDetector:
    """Judges each step's loss by the mean and the deviation of those before it that were no spikes."""

    def __init__(self, config: SpikeConfig):
        self.config = config
        self.in_a_row = 0  # spikes that the newest steps were
        self._n_seen = 0
        self._losses: deque[float] = deque(maxlen=config.window_steps)

    def finds(self, loss: float, grad_norm: float = 0.0) -> bool:
        """Whether the next step is a spike; remembers its loss if it is none."""
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if self._n_seen >= self.config.warmup_steps and not (finite and loss <= self.usual()[1]):
            self.in_a_row += 1
            return True
        if finite:  # what is not, before the warmup is over, ends the run
            self._losses.append(loss)
            self._n_seen += 1
        self.in_a_row = 0
        return False

    def usual(self) -> tuple[float, float]:
        """The range outside of which a loss is unusual."""
        mean = math.fsum(self._losses) / len(self._losses)
        deviation = math.sqrt(math.fsum((loss - mean) ** 2 for loss in self._losses) / len(self._losses))
        return mean - self.config.threshold * deviation, mean + self.config.threshold * deviation

    def state_dict(self) -> dict[str, Any]:
        return {"n_seen": self._n_seen, "in_a_row": self.in_a_row, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._n_seen, self.in_a_row = state["n_seen"], state["in_a_row"]
        self._losses = deque(state["losses"], maxlen=self.config.window_steps)


def describe(step: int, loss: float, grad_norm: float, usual: tuple[float, float]) -> str:
    """A spike for a person."""
    low, high = usual
    return (
        f"step {step} is a spike: loss {loss:.4f} where {low:.4f} to {high:.4f} is usual, gradient norm {grad_norm:.4g}"
    )


class LossGuard:
    """Decides after each step whether the run can go on."""

    def __init__(self, config: SpikeConfig, folder: RunFolder):
        self.config = config
        self.folder = folder
        self.spikes = SpikeDetector(config) if config.action is not None else None

    def problem(self, step: int, loss: float, grad_norm: float, measured: dict[str, Any]) -> Exception | None:
        """What ends the run, or lets it go back, after a step that measured this; None: nothing.

        Where spikes are skipped, `measured["skipped"]` says that this step was one, judged before its update.
        """
        if "skipped" in measured:
            return self._skipped(step, loss, grad_norm, **measured["skipped"])
        scaled = "loss_scale" in measured  # then the gradient scaler deals with infinite gradients
        judge = self.spikes if self.config.action is not SpikeAction.skip else None
        if judge is not None and judge.finds(loss, 0.0 if scaled else grad_norm):
            message = describe(step, loss, grad_norm, judge.usual())
            if self.config.action is SpikeAction.rollback:
                return Spike(step, loss, message)
            return Failure(
                f"{message}; what is saved is from before. The same command continues from there with "
                "callbacks.spike.action=rollback or skip, with a higher callbacks.spike.threshold, or after "
                f"gptlab amend run={self.folder.path} optimizer.lr=...; what the step read: {self._inspect(step)}"
            )
        if math.isfinite(loss) and (math.isfinite(grad_norm) or scaled):
            return None
        return Failure(
            f"step {step} has loss {loss} and gradient norm {grad_norm}, and training on would only spoil the model; "
            "what is saved is from before. Lower optimizer.lr, lengthen schedule.warmup_steps or set "
            f"optimizer.grad_clip; what the step read: {self._inspect(step)}"
        )

    def _inspect(self, step: int) -> str:
        return f"gptlab inspect {shlex.quote(f'run={self.folder.path}')} step={step}"

    def _skipped(self, step: int, loss: float, grad_norm: float, *, usual, in_a_row: int) -> Exception | None:
        self.folder.event("skipped", step=step, loss=loss, grad_norm=grad_norm, usual=list(usual))
        if in_a_row <= self.config.max_skips:
            return None
        return Failure(
            f"{describe(step, loss, grad_norm, usual)}; it is number {in_a_row} in a row, and "
            f"callbacks.spike.max_skips={self.config.max_skips}; the same command continues with a higher max_skips, "
            "with a higher callbacks.spike.threshold, or with callbacks.spike.action=rollback"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"spikes": self.spikes.state_dict()} if self.spikes is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.spikes is not None:
            self.spikes.load_state_dict(state["spikes"])


ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True)
class Rollback:
    """The last time that a run went back: a checkpoint from before it does not know of the samples to leave out."""

    step: int | None = None  # where it went on from
    skipped_steps: int = 0  # whose samples are left out since, in all
    in_a_row: int = 0  # times that it went to this step or an earlier one


@dataclass(frozen=True, slots=True)
class Attempt:
    """One of the times that a run took a step: all but the last were rolled back."""

    skipped_steps: int  # whose samples were left out before it
    loss: float | None = None  # of the spike, where this very step was one that the run went back from
    went_back_to: int | None = None  # the checkpoint's step; None: the run went on


def attempts(events: Iterable[dict[str, Any]], step: int, skipped_steps: int = 0) -> list[Attempt]:
    """The times that a run took its update number `step` (from 1), oldest first; the last is in metrics.csv.

    The samples of an attempt are those that a run without rollbacks reads at `step + skipped_steps`. `skipped_steps`
    are those of a run without rollbacks of its own, which began from a checkpoint of another run.
    """
    found, skipped, is_first = [], skipped_steps, True
    for event in events:
        if event["event"] != ROLLED_BACK:
            continue
        if is_first:
            skipped, is_first = event["skipped_steps"] - (event["from"] - event["to"]), False
        if event["to"] < step <= event["from"]:
            loss = event["loss"] if event["from"] == step else None
            found.append(Attempt(skipped, loss, event["to"]))
        if event["to"] < step:
            skipped = event["skipped_steps"]
    return [*found, Attempt(skipped)]


@dataclass(frozen=True, slots=True)
class LossJump:
    """The step whose loss was most unusual, by the losses before it."""

    step: int
    attempt: int  # of `attempts`, from 1
    loss: float
    usual: tuple[float, float]
    rolled_back: bool = False


def largest_jump(
    rows: Iterable[Mapping[str, float]], events: Iterable[dict[str, Any]], config: SpikeConfig
) -> LossJump | None:
    """The largest spike of a run, by the rows of metrics.csv and what was rolled back; None where it had none.

    What a spike is follows from `config`, also where its action is null. The warmup is at most a fifth of the run.
    """
    losses = [(int(row["step"]), row["train/loss"]) for row in rows if row.get("train/loss") is not None]
    if not losses:
        return None
    judge = SpikeDetector(replace(config, warmup_steps=min(config.warmup_steps, max(20, len(losses) // 5))))
    rolled_back = [event for event in events if event["event"] == ROLLED_BACK]
    found: list[LossJump] = []
    for step, loss in losses:
        if judge.finds(loss):
            found.append(LossJump(step, len(attempts(rolled_back, step)), loss, judge.usual()))
    for n, event in enumerate(rolled_back):
        step = event["from"]
        before = [loss for at, loss in losses if event["to"] - config.window_steps < at <= event["to"]]
        if len(before) > 1:
            known = SpikeDetector(config)
            known.load_state_dict({"n_seen": len(before), "in_a_row": 0, "losses": before})
            number = 1 + sum(one["to"] < step <= one["from"] for one in rolled_back[:n])
            found.append(LossJump(step, number, event["loss"], known.usual(), rolled_back=True))
    return max(found, key=_unusual, default=None)


def _unusual(jump: LossJump) -> float:
    """How far a loss is above the usual ones, by their range."""
    low, high = jump.usual
    return math.inf if not math.isfinite(jump.loss) else (jump.loss - high) / max(high - low, 1e-12)


def last_rollback(events: Iterable[dict[str, Any]]) -> Rollback:
    """The newest one on the record."""
    found = Rollback()
    for event in events:
        if event["event"] == ROLLED_BACK:
            found = Rollback(event["to"], event["skipped_steps"], event["in_a_row"])
        elif event["event"] == "failed":  # whoever goes on after that has seen to it
            found = replace(found, in_a_row=0)
    return found
