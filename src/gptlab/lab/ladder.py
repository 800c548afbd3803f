"""A ladder of runs: sizes and budgets at one recipe, the law of them, and larger runs that it predicts beforehand."""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from gptlab import composition, plugins, quoting
from gptlab.config import to_plain
from gptlab.distributed.hardware import find
from gptlab.errors import UserError, did_you_mean
from gptlab.files import write_text_atomic
from gptlab.forecast import count_steps
from gptlab.lab.collect import collect
from gptlab.lab.grid import Grid, Point
from gptlab.lab.plan import Devices, Planner
from gptlab.lab.scaling import FitConfig, count_of, fit_observations, observe_runs
from gptlab.lab.scaling_law import Interval, LawForm, ScalingLaw
from gptlab.lab.space import load_texts
from gptlab.lab.trials import State, key_of_config, refuse_launched, run_trials
from gptlab.overrides import key_of
from gptlab.runs.folder import read_summary
from gptlab.units import count_text, grid, plural

LAW_FILE, PREDICTIONS_FILE, PICTURE = "law.json", "predictions.json", "scaling.png"
LADDER, HELD_OUT = "ladder", "held_out"  # folders of runs
BUDGET_KINDS = ("tokens", "flops", "tokens_per_parameter")
KEYS = ("overrides", "sizes", "budgets", "seeds", "held_out")
OF_LADDER = ("name", "run_dir", "resume", "budget_tokens", "budget_steps", "tokens_per_parameter")
FORM = (
    "sizes: {small: [model.d_model=32], large: [model.d_model=64]}, budgets: {tokens: [1e6, 4e6]}, held_out: {largest: "
    "{size: [model.d_model=256], tokens: 3e7}}, overrides: [...] of all runs, and seeds: [1, 2] to train each twice"
)


@dataclass(frozen=True, slots=True)
class Rung:
    """One run of a ladder before it is trained."""

    name: str
    folder: Path
    point: Point
    parameters: int
    tokens: int
    flops: float


class Ladder:
    """The runs that a ladder's file describes, all of them composed and counted; UserError for one that cannot work."""

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        overrides: Sequence[str] = (),
        settings: FitConfig | None = None,
        *,
        config_dir: str | Path | None = None,
    ):
        self.settings = settings or FitConfig()
        self.where = "ladder" if isinstance(source, Mapping) else str(source)
        found = source if isinstance(source, Mapping) else load_texts(Path(source), "ladder", "sizes and budgets")
        if not isinstance(found, Mapping):
            raise UserError(f"{self.where} has to be a mapping: {FORM}")
        if unknown := [key for key in found if key not in KEYS]:
            raise UserError(f"{self.where}: {unknown[0]} is not a key of a ladder{did_you_mean(unknown[0], KEYS)}")
        self._config_dir = config_dir
        names = [o.partition("=")[2] for o in overrides if key_of(o) == "name"]
        default = "ladder" if isinstance(source, Mapping) else Path(source).stem
        self.folder = Path("runs") / (quoting.unquote(names[-1]) if names else default)
        self._common = [*_overrides(found, "overrides", self.where), *(o for o in overrides if key_of(o) != "name")]
        self._refuse(self._common, "overrides")
        self.plugins: list[str] = []
        plugins.load(plugins.named_in(self._common))
        sizes = _mapping(found, "sizes", self.where)
        budgets = _mapping(found, "budgets", self.where)
        if len(budgets) != 1 or next(iter(budgets)) not in BUDGET_KINDS:
            raise UserError(f"{self.where}: budgets has to have one of {', '.join(BUDGET_KINDS)}, each a list: {FORM}")
        ((kind, values),) = budgets.items()
        if not isinstance(values, list) or not values:
            raise UserError(f"{self.where}: budgets.{kind} has to be a list of numbers: {FORM}")
        own = {name: _overrides(sizes, name, f"{self.where}: sizes") for name in sizes}
        seeds = _seeds(found, self.where)
        if seeds and any(key_of(o) == "seed" for o in (*self._common, *chain.from_iterable(own.values()))):
            raise UserError(f"{self.where}: seeds are set by its list of seeds; leave out seed= or the list")
        self.rungs = [
            self._rung(LADDER, name, own[name], kind, value, seed)
            for name in own
            for value in map(str, values)
            for seed in seeds or [None]
        ]
        self.held_out = [
            self._held_out(str(name), about)
            for name, about in (_mapping(found, "held_out", self.where) if "held_out" in found else {}).items()
        ]
        self._refuse_same()

    def _refuse_same(self) -> None:
        """UserError for two runs of one config, which would be trained once, and for a held-out one that is fitted."""
        first: dict[str, Rung] = {}
        for rung in (*self.rungs, *self.held_out):
            assert rung.point.config is not None
            same = first.setdefault(key_of_config(rung.point.config), rung)
            if same is not rung:
                raise UserError(
                    f"{self.where}: {same.name} and {rung.name} are the same run, by size and by tokens; leave one "
                    "out, or change its size or its budget"
                )

    def _refuse(self, overrides: Sequence[str], where: str) -> None:
        for override in overrides:
            if key_of(override) in OF_LADDER:
                raise UserError(
                    f"{self.where}: {where} has {override}; the ladder sets budgets and folders itself, by budgets and "
                    "name=NAME"
                )

    def _held_out(self, name: str, about: Any) -> Rung:
        where = f"{self.where}: held_out.{name}"
        kinds = [kind for kind in BUDGET_KINDS if isinstance(about, Mapping) and kind in about]
        if len(kinds) != 1 or set(about) != {"size", *kinds}:
            raise UserError(f"{where} has to have a size, which is a list of overrides, and one budget: {FORM}")
        return self._rung(HELD_OUT, name, _overrides(about, "size", where), kinds[0], str(about[kinds[0]]))

    def _rung(
        self, group: str, size_name: str, size: Sequence[str], kind: str, value: str, seed: str | None = None
    ) -> Rung:
        name = size_name
        if group == LADDER:
            name += f",{kind}={value}" + ("" if seed is None else f",seed={seed}")
        where = f"{self.where}: {group} {name}"
        self._refuse(size, "a size")
        try:
            budget = float(value)
        except ValueError:
            budget = math.nan
        if not (math.isfinite(budget) and budget > 0):
            raise UserError(f"{where}: {kind}={value} is no budget; give a number above 0")
        folder = self.folder / group / name
        try:
            seeded = [] if seed is None else [f"seed={seed}"]
            # Any budget counts parameters; the one that is meant may follow from them.
            planner = self._planner([*self._common, *size, *seeded, "budget_steps=1"])
            tokens = {
                "tokens": lambda: budget,
                "flops": lambda: budget / planner.training_pass().flops_per_token,
                "tokens_per_parameter": lambda: budget * planner.parameters["total"],
            }[kind]()
            config = replace(planner.config, budget_steps=None, budget_tokens=round(tokens), run_dir=str(folder))
            config.check()
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if not config.data.has_validation and self.settings.metric.startswith("val"):
            raise UserError(f"{where}: data.val_fraction=0 leaves no {self.settings.metric} to fit; set it above 0")
        self.plugins = [*config.plugins]
        trained = config.steps.tokens_before(count_steps(config, planner.parameters["total"]))
        return Rung(
            name=name,
            folder=folder,
            point=Point(
                {"size": size_name, kind: value} | ({} if seed is None else {"seed": seed}),
                to_plain(config),
                config.identity_fields(),
                str(folder),
            ),
            parameters=count_of(planner.parameters, self.settings.parameters),
            tokens=trained,
            flops=trained * planner.training_pass().flops_per_token,
        )

    def _planner(self, overrides: Sequence[str]) -> Planner:
        """Counts a size; sizes with several budgets are counted once."""
        key = tuple(overrides)
        if key not in self._planners:
            self._planners[key] = Planner(
                composition.compose(*overrides, config_dir=self._config_dir), Devices(find("cpu"))
            )
        return self._planners[key]

    @cached_property
    def _planners(self) -> dict[tuple[str, ...], Planner]:
        return {}

    @property
    def largest_flops(self) -> float:
        """Training FLOPs of the ladder's largest run."""
        return max(rung.flops for rung in self.rungs)

    def table(self) -> str:
        """The runs before they are trained, and what they cost together."""
        rows = [
            [
                rung.name,
                count_text(rung.parameters),
                count_text(rung.tokens),
                f"{rung.flops:.3g}",
                f"{rung.flops / self.largest_flops:.3g}" if rung in self.held_out else "",
            ]
            for rung in (*self.rungs, *self.held_out)
        ]
        head = ["run", "N", "tokens", "FLOPs", "times the largest"]
        total = sum(rung.flops for rung in (*self.rungs, *self.held_out))
        return f"{grid(head, rows)}\n{plural(len(rows), 'run')}, {total:.3g} FLOPs together"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A run that was predicted, and what it came to."""

    name: str
    parameters: int
    tokens: int
    times_the_largest: float  # its FLOPs as a multiple of those of the ladder's largest run
    predicted: Interval  # of a single run
    predicted_at: str | None  # None: the run had begun before anything was predicted
    measured: float | None  # None: not trained yet

    @property
    def error(self) -> float | None:
        """Measured over predicted loss, less 1."""
        return None if self.measured is None else self.measured / self.predicted.value - 1


@dataclass(frozen=True, kw_only=True)
class LadderResult:
    """What a ladder has come to."""

    folder: Path
    exit_code: int
    law: ScalingLaw | None  # None: runs are still missing
    held_out: tuple[HeldOut, ...] = ()

    def held_out_text(self) -> str:
        """The predictions beside what came out."""
        rows = []
        for one in self.held_out:
            error, inside = "", ""
            if one.measured is not None and one.error is not None:
                error = f"{one.error:+.2%}"
                inside = "inside" if one.predicted.low <= one.measured <= one.predicted.high else "outside"
            rows.append(
                [
                    one.name,
                    f"{one.times_the_largest:.3g}",
                    f"{one.predicted.value:.4f}",
                    f"{one.predicted.low:.4f} to {one.predicted.high:.4f}",
                    one.predicted_at or "after the run began",
                    "" if one.measured is None else f"{one.measured:.4f}",
                    error,
                    inside,
                ]
            )
        head = ["held out", "FLOPs / largest", "predicted", "95% of one run", "written", "measured", "error", ""]
        return grid(head, rows)


def train_ladder(
    ladder: Ladder | str | Path, *, progress: bool = False, say: Callable[[str], None] = print
) -> LadderResult:
    """Train what is missing of a ladder, fit the law, write predictions of the held-out runs, and then train those.

    Each run is a process of its own, as in a sweep. A prediction is written before its run takes a step, and never
    after that. Writes law.json, predictions.json and scaling.png into the ladder's folder.
    """
    refuse_launched()
    ladder = ladder if isinstance(ladder, Ladder) else Ladder(ladder)
    written = _written(ladder)
    say(ladder.table())
    code = _train(ladder.rungs, ladder, say)
    if code >= 128 or any(read_summary(rung.folder) is None for rung in ladder.rungs):
        return LadderResult(folder=ladder.folder, exit_code=code or 1, law=None)
    law = fit_ladder(ladder, progress=progress)
    law.write(ladder.folder / LAW_FILE)
    predictions = _predict(ladder, law, written)
    if ladder.held_out:
        for one in predictions.values():
            low, high = one["loss"]["low"], one["loss"]["high"]
            say(
                f"predicted on {one['written']}: {one['name']} ends at {one['loss']['value']:.4f}, 95% of such runs "
                f"between {low:.4f} and {high:.4f}; written to {ladder.folder / PREDICTIONS_FILE}"
            )
        code = max(code, _train(ladder.held_out, ladder, say))
    return LadderResult(
        folder=ladder.folder, exit_code=code, law=law, held_out=tuple(_outcomes(ladder, law, predictions))
    )


def fit_ladder(ladder: Ladder, *, progress: bool = False) -> ScalingLaw:
    """The law of a ladder's finished runs, without those held out."""
    records = collect([rung.folder for rung in ladder.rungs])
    return fit_observations(*_with_settings(observe_runs(records, ladder.settings), ladder), progress=progress)


def _with_settings(found: tuple, ladder: Ladder) -> tuple:
    observations, notes = found
    return observations, ladder.settings, notes


def _train(rungs: Sequence[Rung], ladder: Ladder, say: Callable[[str], None]) -> int:
    trials = Grid([rung.point for rung in rungs], say=say)
    code = run_trials(trials, plugins=ladder.plugins, say=say)
    if code or any(trial.state is State.failed for trial in trials.trials):
        say(trials.text("the same command goes on with what is left"))
    return code


def _written(ladder: Ladder) -> dict[str, dict[str, Any]]:
    """The predictions in the ladder's folder; UserError where one of a run that has begun is of something else."""
    file = ladder.folder / PREDICTIONS_FILE
    if not file.is_file():
        return {}
    try:
        found = {one["name"]: one for one in json.loads(file.read_text(encoding="utf-8"))["held_out"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; restore it: it proves what was predicted, and is not made again") from None
    for rung in ladder.held_out:
        if rung.name in found and _has_begun(rung):
            _refuse_other(found[rung.name], rung, ladder)
    return found


def _refuse_other(one: Mapping[str, Any], rung: Rung, ladder: Ladder) -> None:
    settings = ladder.settings
    for name, was, now in (
        ("metric", one.get("metric", FitConfig().metric), settings.metric),
        ("form", one.get("form", LawForm.sum.value), settings.form.value),
        ("parameters", one.get("counted", settings.parameters.value), settings.parameters.value),
        ("N", one.get("parameters"), rung.parameters),
        ("D", one.get("tokens"), rung.tokens),
    ):
        if was != now:
            raise UserError(
                f"{ladder.folder / PREDICTIONS_FILE} has a prediction of {rung.name} for {name}={was}, and this ladder "
                f"has {name}={now}, not to be compared; go on with {name}={was}, or fit these runs by themselves: "
                f"gptlab scaling fit {shlex.quote(str(ladder.folder / LADDER))}"
            )


def _has_begun(rung: Rung) -> bool:
    return (rung.folder / "metrics.csv").is_file()


def _predict(ladder: Ladder, law: ScalingLaw, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Write what the law says of each held-out run that has not begun; returns all that was written."""
    file = ladder.folder / PREDICTIONS_FILE
    for rung in ladder.held_out:
        if _has_begun(rung):
            continue  # nothing that is written now would be a prediction
        one_run, curve = (law.predict(rung.parameters, rung.tokens, one_run=kind) for kind in (True, False))
        found[rung.name] = {
            "name": rung.name,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "metric": ladder.settings.metric,
            "form": law.form.value,
            "counted": ladder.settings.parameters.value,
            "parameters": rung.parameters,
            "tokens": rung.tokens,
            "flops": rung.flops,
            "largest_of_ladder": ladder.largest_flops,
            "loss": one_run.plain(),
            "law": curve.plain(),
            "constants": {name: one.plain() for name, one in law.constants.items()},
        }
    if ladder.held_out:
        write_text_atomic(file, json.dumps({"held_out": list(found.values())}, indent=2) + "\n")
    return {rung.name: found[rung.name] for rung in ladder.held_out if rung.name in found}


def _outcomes(ladder: Ladder, law: ScalingLaw, predictions: Mapping[str, Mapping[str, Any]]) -> list[HeldOut]:
    found = []
    for rung in ladder.held_out:
        one = predictions.get(rung.name)
        said = Interval(**one["loss"]) if one else law.predict(rung.parameters, rung.tokens, one_run=True)
        found.append(
            HeldOut(
                name=rung.name,
                parameters=rung.parameters,
                tokens=rung.tokens,
                times_the_largest=rung.flops / ladder.largest_flops,
                predicted=said,
                predicted_at=str(one["written"]) if one else None,
                measured=_measured(rung, ladder.settings.metric),
            )
        )
    return found


def _measured(rung: Rung, metric: str) -> float | None:
    """The metric at the end of a run, read as those of the fit; None of a run that has not finished."""
    if read_summary(rung.folder) is None:
        return None
    (record,) = collect([rung.folder])
    return record.last(metric) if record.state == "finished" else None


def _mapping(found: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = found.get(key)
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{where}: {key} has to be a mapping: {FORM}")
    return value


def _seeds(found: Mapping[str, Any], where: str) -> list[str]:
    """A ladder's list of seeds; empty where it has none."""
    seeds = found.get("seeds", [])
    if not isinstance(seeds, list) or ("seeds" in found and not seeds):
        raise UserError(f"{where}: seeds has to be a list of numbers, such as [1, 2, 3]: {FORM}")
    return [str(seed) for seed in seeds]


def _overrides(found: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = found.get(key, [])
    if not isinstance(value, list) or any(not isinstance(item, str) or "=" not in item for item in value):
        raise UserError(f"{where}: {key} has to be a list of overrides, as [model.d_model=32, optimizer.lr=8e-3]")
    return value
