"""Which losses are spikes: decided from the losses before them alone, so that a resumed run decides alike."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from gptlab.training.config import SpikeConfig


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


ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True)
class Rollback:
    """The last time that a run went back: a checkpoint from before it does not know of the samples to leave out."""

    step: int | None = None  # where it went on from
    skipped_steps: int = 0  # whose samples are left out since, in all
    in_a_row: int = 0  # times that it went to this step or an earlier one


def last_rollback(events: Iterable[dict[str, Any]]) -> Rollback:
    """The newest one on the record."""
    found = Rollback()
    for event in events:
        if event["event"] == ROLLED_BACK:
            found = Rollback(event["to"], event["skipped_steps"], event["in_a_row"])
        elif event["event"] == "failed":  # whoever goes on after that has seen to it
            found = replace(found, in_a_row=0)
    return found
