"""Config schema: `gptlab sweep`."""

from dataclasses import dataclass
from enum import Enum

from gptlab.errors import UserError, refuse_password
from gptlab.fields import bounded, check_bounds

N_TRIALS = 30
MEASURED = ("train/", "val/", "val_part/", "train_eval/", "test/", "eval/")  # how the names of metrics begin
COUNTED = ("tokens", "seconds", "flops", "parameters", "steps")  # of a run, as its summary has them


class SamplerKind(Enum):
    """How the next point of the space is chosen."""

    tpe = "tpe"
    random = "random"
    grid = "grid"
    cmaes = "cmaes"


class PrunerKind(Enum):
    """Which trials are ended early, by their evaluations."""

    none = "none"
    median = "median"
    halving = "halving"
    hyperband = "hyperband"


class Direction(Enum):
    """Which values of a metric are better."""

    minimize = "minimize"
    maximize = "maximize"


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """What `gptlab sweep` takes beside the overrides of a run."""

    n_trials: int | None = bounded(None, ge=1)  # of the study in all; null: 30, or every point of a grid
    sampler: SamplerKind = SamplerKind.tpe
    sampler_seed: int = bounded(0, ge=0, le=2**31 - 1)
    metric: tuple[str, ...] = ("val/loss",)  # two or more: several objectives
    direction: tuple[Direction, ...] | None = None  # of each metric; null: as its name says
    pruner: PrunerKind = PrunerKind.none
    pruner_startup_trials: int = bounded(5, ge=0)  # that are not pruned
    pruner_warmup_steps: int = bounded(0, ge=0)  # of each trial, in which it is not pruned
    storage: str | None = None  # null: SQLite in the sweep's folder; FILE.journal; the URL of a database
    retry_failed: bool = False  # try the points of failed trials again

    def check(self) -> None:
        """Refuse what cannot work, before any trial."""
        check_bounds(self)
        if self.storage is not None:
            refuse_password("storage", self.storage)
        if not self.metric or len(set(self.metric)) < len(self.metric):
            raise UserError(f"metric=[{','.join(self.metric)}] has to name one metric or more, each once")
        for name in self.metric:
            if not name.removeprefix("best/").startswith(MEASURED) and name not in COUNTED:
                raise UserError(
                    f"metric={name} is no metric of a run; use val/loss, best/val/loss, another column of metrics.csv, "
                    f"or one of {', '.join(COUNTED)}"
                )
        if self.direction is not None and len(self.direction) != len(self.metric):
            raise UserError(
                f"direction= has {len(self.direction)} values and metric= {len(self.metric)}; give one for each metric"
            )
        if len(self.metric) == 1:
            return
        if self.pruner is not PrunerKind.none:
            raise UserError(
                f"pruner={self.pruner.value} ends trials by one metric, and metric=[{','.join(self.metric)}] has "
                f"{len(self.metric)}; use pruner=none, or one metric"
            )
        if self.sampler is SamplerKind.cmaes:
            raise UserError("sampler=cmaes is for one metric; use sampler=tpe, or one metric")
