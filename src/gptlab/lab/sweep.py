"""A search of hyperparameters, or every point of a grid: `gptlab sweep`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptlab import composition, plugins, quoting
from gptlab.errors import UserError
from gptlab.lab.config import Direction, SamplerKind, SweepConfig
from gptlab.lab.space import Dimension, check_space, read_space, refuse_both
from gptlab.lab.study import ABOUT_FILE, Study
from gptlab.lab.trials import State, Trial, check_folder, counts, refuse_launched, run_trials, table
from gptlab.overrides import key_of


@dataclass(kw_only=True)
class SweepResult:
    """What a sweep has come to."""

    folder: Path
    trials: list[Trial]  # by number
    metrics: tuple[str, ...]
    descending: bool  # whether a higher value of the first metric is better
    storage: str
    exit_code: int
    front_numbers: set[int]  # of several metrics, the trials that no other one is better than in all
    n_failed_once: int  # trials that `retry_failed` would try again
    n_untried: int | None  # points of a grid of which there is no trial yet; None: points are proposed without end

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best value of the first metric."""
        finished = [t for t in self.trials if t.state is State.finished]
        sign = -1 if self.descending else 1
        return min(finished, key=lambda t: (sign * t.numbers[self.metrics[0]], t.number), default=None)

    @property
    def front(self) -> list[Trial]:
        """With several metrics, the finished trials that no other one is better than in all of them."""
        return [trial for trial in self.trials if trial.number in self.front_numbers]

    def table(self) -> str:
        """The trials, the best first."""
        return table(self.trials, self.metrics, descending=self.descending)


def sweep(
    space: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    settings: SweepConfig | None = None,
    *,
    config_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> SweepResult:
    """Search a space of config keys, or go on with the search; each trial is a run in a process of its own.

    `space` is a YAML file or a mapping: config keys, each with a range or choices. `overrides` are those of
    `gptlab train` that all trials share; `name=NAME` names the sweep's folder in `runs/`. UserError for a space,
    override or setting that cannot work, and for a study that was begun with others.
    """
    settings = settings or SweepConfig()
    settings.check()
    refuse_launched()
    _import_optuna(settings)
    plugins.load(plugins.named_in(overrides))
    presets = composition.preset_names(config_dir)
    dimensions = read_space(space, presets)
    refuse_both(dimensions, overrides)
    for override in overrides:
        if key_of(override) in ("run_dir", "resume"):
            raise UserError(f"{override} is for one run; name the sweep's folder with name=NAME")
    _check_sampler(settings, dimensions)
    base = composition.compose(*overrides, config_dir=config_dir)
    if not base.data.has_validation and any(m.removeprefix("best/").startswith("val") for m in settings.metric):
        raise UserError(
            f"metric={','.join(settings.metric)} needs a validation split, and data.val_fraction=0; set it above 0, or "
            "use metric=train/loss"
        )
    about = {
        "space": {d.key: d.plain() for d in dimensions},
        "config": _without(base.identity_fields(), [d.key for d in dimensions]),
    }
    folder = _folder_of(overrides, about, settings)
    check_folder(folder)

    def compose(more: Sequence[str]) -> Any:
        return composition.compose(*overrides, *more, config_dir=config_dir)

    if not (folder / ABOUT_FILE).is_file():  # a sweep that was begun has been checked
        check_space(dimensions, compose, "space" if isinstance(space, Mapping) else str(space))
    batches_differ = any(d.key in ("batch_tokens", "batch_warmup", *presets) for d in dimensions)
    unit = base.context_length if batches_differ else None
    study = Study(settings, dimensions, compose, folder, about, unit, say)
    done = counts(study.trials()) if study.n else ""
    say(f"sweep {folder}: {study.about}" + (f"; so far {done}" if done else ""))
    code = run_trials(study, plugins=[*base.plugins], say=say)
    return SweepResult(
        folder=folder,
        trials=study.trials(),
        metrics=settings.metric,
        descending=study.directions[0] is Direction.maximize,
        storage=study.shown_url,
        exit_code=code,
        front_numbers=study.front(),
        n_failed_once=len(study.failed_once()),
        n_untried=len(study.untried()) if study.grid else None,
    )


def _import_optuna(settings: SweepConfig) -> None:
    try:
        import optuna

        if settings.sampler is SamplerKind.cmaes:
            import cmaes  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"gptlab sweep needs {error.name}: pip install 'gptlab[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _check_sampler(settings: SweepConfig, dimensions: Sequence[Dimension]) -> None:
    sampler = settings.sampler
    if sampler is SamplerKind.grid:
        for d in dimensions:
            if d.listed() is None:
                raise UserError(
                    f"sampler=grid tries every point, and {d.key} has a range; give it a step, n: 5 for five values, "
                    "or choices"
                )
    if sampler is SamplerKind.cmaes:
        for d in dimensions:
            if not d.is_range:
                raise UserError(f"sampler=cmaes is for ranges of numbers, and {d.key} has choices; use sampler=tpe")
        if len(dimensions) < 2:
            raise UserError("sampler=cmaes needs two ranges or more; use sampler=tpe")
    if sampler in (SamplerKind.tpe, SamplerKind.cmaes) and any(d.key == "seed" for d in dimensions):
        raise UserError(
            f"sampler={sampler.value} would look for the luckiest seed; use sampler=grid, or sweep the seed afterwards "
            "with gptlab train -m seed=1,2,3"
        )


def _without(fields: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The fields but for those that the space sets."""
    for key in keys:
        node: dict[str, Any] = fields
        *groups, last = key.split(".")
        for group in groups:
            node = found if isinstance(found := node.get(group), dict) else {}
        node.pop(last, None)
    return fields


def _folder_of(overrides: Sequence[str], about: Mapping[str, Any], settings: SweepConfig) -> Path:
    names = [override.partition("=")[2] for override in overrides if key_of(override) == "name"]
    if names:
        return Path("runs") / quoting.unquote(names[-1])
    # The same space and overrides give the same folder, so that a sweep that was stopped is continued by its command.
    text = json.dumps([about, settings.metric, settings.storage], sort_keys=True)
    return Path("runs") / f"sweep-{sha256(text.encode()).hexdigest()[:8]}"
