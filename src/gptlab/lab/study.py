"""The Optuna study of a sweep: what is proposed, recorded, adopted after a kill, and ended early."""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab import quoting
from gptlab.config import differences, to_plain
from gptlab.errors import UserError, first_line, without_password
from gptlab.files import locked, write_text_atomic
from gptlab.lab.collect import higher_is_better
from gptlab.lab.config import N_TRIALS, Direction, PrunerKind, SamplerKind, SweepConfig
from gptlab.lab.space import Dimension
from gptlab.lab.trials import State, Trial, hold, key_of_config, refuse_other_run, steps_of, validations, value_of
from gptlab.overrides import trial_name
from gptlab.steps import steps_of_config
from gptlab.units import plural

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STUDY_FILE, ABOUT_FILE, PLACE_FILE, LOCK_FILE = "study.db", "sweep.json", ".place", ".study.lock"
STUDY = "gptlab"  # the name of a study in a storage of its own
STORAGE_PASSWORD = "GPTLAB_STORAGE_PASSWORD"  # an environment variable
MOST_POINTS = 100_000  # of a grid
FOREIGN_SECONDS = 60  # after which a trial of another machine that was never described is taken to be left
# What a study says of its trials beside their values, as optuna-dashboard shows it.
PLACE, FOLDER, KEY, SAME, RETRY, REASON, NUMBERS = "place", "folder", "config", "same_as", "retry_of", "reason", "run"


class Study:
    """The study of a sweep's folder, as the source of its trials."""

    def __init__(
        self,
        settings: SweepConfig,
        dimensions: Sequence[Dimension],
        compose: Callable[[Sequence[str]], Any],
        folder: Path,
        about: dict[str, Any],
        unit: int | None,
        say: Callable[[str], None],
    ):
        import optuna

        self.settings = settings
        self.dimensions = sorted(dimensions, key=lambda d: d.key)  # in another order a file means the same
        self.compose = compose
        self.folder = folder
        self.say = say
        self.directions = settings.direction or tuple(
            Direction.maximize if higher_is_better(metric) else Direction.minimize for metric in settings.metric
        )
        listed = [d.listed() or () for d in self.dimensions] if settings.sampler is SamplerKind.grid else []
        if (n_points := math.prod(map(len, listed))) > MOST_POINTS:
            raise UserError(
                f"sampler=grid has {n_points:,} points, and {MOST_POINTS:,} are the most; give ranges a larger step, "
                "or use sampler=random"
            )
        grid = list(product(*listed)) if listed else []
        self.grid = [dict(zip((d.key for d in self.dimensions), point, strict=True)) for point in grid]
        wanted = settings.n_trials or (len(grid) if grid else N_TRIALS)
        self.wanted = min(wanted, len(grid)) if grid else wanted
        self.pruner = _pruner(settings)
        self.url, exclusive = _storage_url(settings.storage, folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = exclusive or folder / LOCK_FILE
        self._shared = exclusive is None  # with machines that may not see this lock
        with self._exclusive():
            self.place = self._place()
            try:
                self.study = optuna.create_study(
                    study_name=STUDY if settings.storage is None else folder.name,
                    storage=_open_storage(self.url),
                    directions=[d.value for d in self.directions],
                    load_if_exists=True,
                    pruner=self.pruner or optuna.pruners.NopPruner(),
                )
            except Exception as error:
                raise UserError(
                    without_password(f"the study cannot be opened: storage={self.url}: {first_line(error)}")
                ) from error
            self._refuse_other(about)
        self._reports: dict[int, int] = {}  # by trial, the size of its events when they were looked at
        self._unit = unit  # target tokens that count as a step where batches differ; None: a step is a step

    @property
    def shown_url(self) -> str:
        """Where the study is, as it may be shown and written."""
        return without_password(self.url)

    @property
    def about(self) -> str:
        """The sweep in a line."""
        s = self.settings
        goals = ", ".join(f"{d.value} {m}" for d, m in zip(self.directions, s.metric, strict=True))
        pruned = "" if s.pruner is PrunerKind.none else f", pruner={s.pruner.value}"
        return f"{plural(self.wanted, 'trial')} over {', '.join(d.key for d in self.dimensions)}; {goals}; " + (
            f"sampler={s.sampler.value}{pruned}"
        )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let no other process of this study ask, report or tell meanwhile: SQLite takes one writer at a time."""
        with locked(self._lock):
            yield

    def _place(self) -> str:
        """A name of this folder, which no other one has, wherever the study is."""
        file = self.folder / PLACE_FILE
        if not file.is_file():
            write_text_atomic(file, f"{platform.node()}-{os.urandom(6).hex()}")
        return file.read_text()

    def _refuse_other(self, about: dict[str, Any]) -> None:
        """Refuse a study of another space, of other overrides or of other metrics."""
        known = self.study.user_attrs.get("gptlab")
        mine = json.loads(json.dumps(about | {"metric": list(self.settings.metric)}))
        mine["direction"] = [d.value for d in self.directions]
        if known is None and self.n:
            raise UserError(
                f"{self.shown_url} holds a study that gptlab sweep did not make; give another storage= or name="
            )
        if known is not None:
            told = any(trial.state.is_finished() for trial in self._all())
            now, then = mine["space"], known["space"]
            found = [f"the space had {key}" for key in then if key not in now]
            found += [f"the space had no {key}" for key in now if key not in then]
            changed = {key: differences(now[key], then[key], tuple(now[key])) for key in now if key in then}
            found += [f"{key}: {text}" for key, text in changed.items() if text]
            found.append(
                differences(mine, known, tuple(key for key in mine if key != "space" and (told or key == "config")))
            )
            if text := "; ".join(filter(None, found)):
                raise UserError(
                    f"{self.folder} is another sweep: {text}; restore it, or give this sweep another name=NAME"
                )
            directions = [d.name.lower() for d in self.study.directions]
            if directions != mine["direction"]:
                raise UserError(
                    f"{self.folder} is a study with direction=[{','.join(directions)}]; restore metric= and "
                    "direction=, or give this sweep another name=NAME"
                )
        self.study.set_user_attr("gptlab", mine)
        write_text_atomic(self.folder / ABOUT_FILE, json.dumps(mine | {"storage": self.shown_url}, indent=2) + "\n")

    # What the loop over trials asks.

    def take(self) -> Trial | None:
        """The trial that this process trains next: one that was left running, one to try again, or a new one."""
        while True:
            with self._exclusive():
                self._settle_repeated()
                for found in self._all("RUNNING"):
                    trial = self._adopt(found)
                    if trial is not None:
                        return trial
                trial = self._ask()
            if trial is None or trial.state is not State.repeated:
                return trial

    def _adopt(self, found: "FrozenTrial") -> Trial | None:
        """A running trial of this folder whose process is gone."""
        attrs = found.user_attrs
        if SAME in attrs or attrs.get(PLACE, self.place) != self.place:
            return None
        if PLACE not in attrs and self._shared:  # another machine may be about to describe it
            begun = found.datetime_start
            if begun is not None and time.time() - begun.timestamp() < FOREIGN_SECONDS:
                return None
        held = hold(self.folder / attrs[FOLDER]) if FOLDER in attrs else ExitStack()
        if held is None:
            return None
        trial = self._describe(self._open(found))
        trial.held.enter_context(held)
        if FOLDER not in attrs and trial.state is State.waiting and not trial.hold():
            return None
        if trial.state is State.repeated:
            trial.held.close()
            return None
        self.say(f"trial {trial.number} goes on: {trial.label}")
        return trial

    def _open(self, found: "FrozenTrial") -> "optuna.trial.Trial":
        """A trial of the study, to be described or reported on; what it lacks of its point is proposed as it was."""
        import optuna

        # Opening a trial samples: CMA-ES would fit its distribution again, and record it, for a point that is known.
        lacks = any(d.key not in found.params for d in self.dimensions)
        self.study.sampler = _sampler(self.settings, found.number) if lacks else optuna.samplers.RandomSampler(seed=0)
        return optuna.trial.Trial(self.study, found._trial_id)

    def _ask(self) -> Trial | None:
        found = self._all()
        if self.settings.retry_failed and (failed := self.failed_once()):
            self.study.enqueue_trial(failed[0].params, user_attrs={RETRY: failed[0].number})
        waiting = any(t.state.name == "WAITING" for t in self._all())
        n = sum(RETRY not in t.user_attrs for t in found)
        if not waiting and n >= self.wanted:
            return None
        if self.grid and not waiting:
            if not (missing := self.untried()):
                return None
            self.study.enqueue_trial(missing[0])
        self.study.sampler = _sampler(self.settings, len(found))
        trial = self._describe(self.study.ask())
        if trial.state is State.waiting:
            trial.hold()
        again = "" if trial.state is not State.repeated else "; its config is one that was tried"
        self.say(f"trial {trial.number} of {self.wanted}: {trial.label}{again}")
        return trial

    def _describe(self, asked: "optuna.trial.Trial") -> Trial:
        """The trial with its point, its config and its folder, which the study records too."""
        values = {d.key: _suggest(asked, d) for d in self.dimensions}
        overrides = [d.override(values[d.key]) for d in self.dimensions]
        short = [f"{d.key}={_short(values[d.key])}" for d in self.dimensions]
        attrs = asked.user_attrs
        first = attrs.get(RETRY)
        name = attrs.get(FOLDER) or (
            self._frozen(first).user_attrs[FOLDER] if first is not None else trial_name([f"{asked.number:03d}", *short])
        )
        trial = Trial(number=asked.number, label=" ".join(short), values=values, folder=self.folder / name)
        try:
            config = self.compose([*overrides, f"run_dir={quoting.quote(str(trial.folder))}"])
        except UserError as error:
            trial.state, trial.reason = State.refused, str(error)
        else:
            refuse_other_run(trial, config.identity_fields())
            trial.config = to_plain(config)
        key = "" if trial.config is None else key_of_config(trial.config)
        for attr, value in ((FOLDER, name), (KEY, key), (PLACE, self.place)):
            if attrs.get(attr) != value:
                asked.set_user_attr(attr, value)
        if SAME not in attrs and first is None and key:
            same = [t for t in self._all() if t.user_attrs.get(KEY) == key and t.number < asked.number]
            if same:
                asked.set_user_attr(SAME, same[0].number)
                trial.state, trial.same_as = State.repeated, same[0].number
        return trial

    def report(self, trial: Trial) -> bool:
        """Tell the study of each new evaluation; returns whether the pruner ends the trial."""
        if self.pruner is None or trial.state is State.refused:
            return False
        events = trial.folder / "events.jsonl"
        size = events.stat().st_size if events.is_file() else 0
        if self._reports.get(trial.number) == size:
            return False
        self._reports[trial.number] = size
        found = validations(trial.folder, self.settings.metric[0].removeprefix("best/"))
        n_steps = steps_of(trial.folder)
        with self._exclusive():
            frozen = self._frozen(trial.number)
            known = frozen.intermediate_values
            asked = self._open(frozen)
            # A decision that was made before a kill is made again.
            if known and max(known) != self._scaled(n_steps, trial) and asked.should_prune():
                return True
            for step, value in found:
                at = self._scaled(step, trial)
                if at in known or not math.isfinite(value):
                    continue
                asked.report(value, at)
                if step != n_steps and asked.should_prune():
                    trial.reason = f"at step {step}, {self.settings.metric[0]} {value:.4f}"
                    return True
        return False

    def _scaled(self, step: int | None, trial: Trial) -> int:
        """A step as the study counts it: trials are compared at equal tokens where their batches differ."""
        if step is None or self._unit is None or trial.config is None:
            return step or 0
        return steps_of_config(trial.config).tokens_before(step) // self._unit

    def settle(self, trial: Trial) -> None:
        """Tell the study how a trial ended; one that was stopped stays running, to be taken up again."""
        from optuna.trial import TrialState

        if trial.state in (State.stopped, State.repeated):
            return
        values = None
        if trial.state is State.finished:
            try:
                values = [value_of(trial, metric) for metric in self.settings.metric]
            except UserError as error:
                if not self._all("COMPLETE"):  # a name that no trial has measured
                    raise
                trial.state, trial.reason = State.failed, str(error)
                trial.record()
            else:
                if not all(map(math.isfinite, values)):
                    trial.state, trial.reason = State.failed, f"{self.settings.metric[0]} is not finite"
                    trial.record()
        with self._exclusive():
            frozen = self._frozen(trial.number)
            if frozen.state.is_finished():  # by another machine
                return
            storage, number = self.study._storage, frozen._trial_id
            if trial.reason:
                storage.set_trial_user_attr(number, REASON, trial.reason)
            kept = {k: v for k, v in trial.numbers.items() if isinstance(v, int | float | bool | str)}
            storage.set_trial_user_attr(number, NUMBERS, {k: v for k, v in kept.items() if v == v})
            if trial.state is State.finished:
                self.study.tell(trial.number, values)
            else:
                state = TrialState.PRUNED if trial.state is State.pruned else TrialState.FAIL
                self.study.tell(trial.number, state=state)
            self._settle_repeated()

    def _settle_repeated(self) -> None:
        """Give trials with the config of another one its outcome: equal configs are not trained twice."""
        for found in self._all("RUNNING"):
            if SAME not in found.user_attrs:
                continue
            first = self._frozen(found.user_attrs[SAME])
            if first.state.is_finished():
                values = first.values if first.state.name == "COMPLETE" else None
                self.study.tell(found.number, values, state=None if values else first.state)

    # What is left.

    @property
    def n(self) -> int:
        """Trials that were begun, in all."""
        return len(self._all())

    def failed_once(self) -> "list[FrozenTrial]":
        """The failed trials that `retry_failed` has not tried again, and not those that it has begun."""
        found = self._all()
        tried = {t.user_attrs[RETRY] for t in found if RETRY in t.user_attrs}
        return [
            t
            for t in found
            if t.state.name == "FAIL" and t.number not in tried and t.user_attrs.get(KEY)
            if not {RETRY, SAME} & set(t.user_attrs)
        ]

    def untried(self) -> list[dict[str, Any]]:
        """The points of the grid of which there is no trial yet."""
        tried = [t.system_attrs.get("fixed_params") or t.params for t in self._all()]
        return [point for point in self.grid if point not in tried]

    def _all(self, *states: str) -> "list[FrozenTrial]":
        return [t for t in self.study.get_trials(deepcopy=False) if not states or t.state.name in states]

    def _frozen(self, number: int) -> "FrozenTrial":
        return self._all()[number]

    def trials(self) -> list[Trial]:
        """All trials of the study as they are now."""
        return [self._shown(found) for found in self._all()]

    def _shown(self, found: "FrozenTrial") -> Trial:
        attrs = found.user_attrs
        trial = Trial(
            number=found.number,
            label=" ".join(f"{key}={_short(value)}" for key, value in found.params.items()),
            values=found.params,
            folder=self.folder / attrs.get(FOLDER, ""),
            reason=attrs.get(REASON, ""),
            numbers=dict(attrs.get(NUMBERS, {})),
        )
        match found.state.name:
            case "COMPLETE":
                trial.state = State.finished
                trial.numbers |= dict(zip(self.settings.metric, found.values, strict=True))
            case "PRUNED":
                trial.state = State.pruned
                trial.numbers[self.settings.metric[0]] = found.value
            case "FAIL":
                trial.state = State.failed if attrs.get(KEY) else State.refused
            case "RUNNING":
                trial.state = self._unfinished(trial, attrs)
        if SAME in attrs:
            trial.state, trial.same_as = State.repeated, attrs[SAME]
        return trial

    def _unfinished(self, trial: Trial, attrs: Mapping[str, Any]) -> State:
        if attrs.get(PLACE) != self.place:
            trial.reason = f"on {str(attrs.get(PLACE)).rpartition('-')[0]}"
            return State.running
        held = hold(trial.folder) if trial.folder.is_dir() else ExitStack()
        if held is None:
            return State.running
        held.close()
        return State.stopped

    def front(self) -> set[int]:
        """With several metrics, the trials that no other one is better than in all of them."""
        return {trial.number for trial in self.study.best_trials} if len(self.settings.metric) > 1 else set()


def _short(value: Any) -> str:
    """A value as the name of a trial's folder shows it."""
    return f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)


def _suggest(asked: "optuna.trial.Trial", dimension: Dimension) -> Any:
    d = dimension
    if not d.is_range:
        return asked.suggest_categorical(d.key, d.choices)
    if d.whole:
        return asked.suggest_int(d.key, int(d.low), int(d.high), log=d.log, step=int(d.step or 1))
    return asked.suggest_float(d.key, d.low, d.high, log=d.log, step=d.step)


def _sampler(settings: SweepConfig, number: int) -> Any:
    """The sampler of a trial: what it proposes follows from the seed, the trial's number and the trials before it.

    So a sweep that was stopped proposes what it would have proposed, and nothing twice.
    """
    from optuna import samplers

    seed = int.from_bytes(sha256(f"{settings.sampler_seed}/{number}".encode()).digest()[:4]) % 2**31
    match settings.sampler:
        case SamplerKind.tpe:
            return samplers.TPESampler(seed=seed)
        case SamplerKind.cmaes:
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=seed)


def _pruner(settings: SweepConfig) -> Any:
    from optuna import pruners

    startup, warmup = settings.pruner_startup_trials, settings.pruner_warmup_steps
    match settings.pruner:
        case PrunerKind.median:
            return pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
        case PrunerKind.halving:
            return pruners.SuccessiveHalvingPruner()
        case PrunerKind.hyperband:
            return pruners.HyperbandPruner()
    return None


def _storage_url(storage: str | None, folder: Path) -> tuple[str, Path | None]:
    """The study's address, and the lock of all processes that use it; None where other machines may not see one."""
    if storage is None:
        if found := set(str(folder)) & set("?%#"):
            raise UserError(
                f"name={folder.name} has {min(found)}, which an address of SQLite cannot have; leave it out"
            )
        return f"sqlite:///{folder / STUDY_FILE}", folder / LOCK_FILE
    if storage.endswith(".journal") and "://" not in storage:
        path = Path(storage).expanduser()
        return str(path), path.with_name(f".{path.name}.sweep.lock")
    if storage.startswith("sqlite:///"):
        path = Path(storage.removeprefix("sqlite:///"))
        return storage, path.with_name(f".{path.name}.sweep.lock")
    if "://" not in storage:
        raise UserError(
            f"storage={storage} is no storage of studies; use FILE.journal, which several machines may share, or a "
            "database's URL such as postgresql://USER@HOST/DATABASE"
        )
    return storage, None


def _open_storage(url: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" not in url:
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(url))
    if url.startswith("sqlite"):
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})  # to wait for another process's write
    return RDBStorage(_with_password(url))


def _with_password(url: str) -> str:
    """The address of a database with the password that the environment has for it, if it has one."""
    password = os.environ.get(STORAGE_PASSWORD)
    if password is None:
        return url
    from sqlalchemy import make_url

    return make_url(url).set(password=password).render_as_string(hide_password=False)
