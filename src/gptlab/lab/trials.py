"""Trials of a sweep: each its own process from a frozen config, which may be killed and goes on where it stopped."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from gptlab.config import MAX_NAME_BYTES, config_from_plain, run_differences
from gptlab.distributed.signals import SIGNALS
from gptlab.errors import UserError
from gptlab.files import locked, write_text_atomic
from gptlab.lab.collect import higher_is_better
from gptlab.lab.trial_process import POLL_SECONDS, Process, Starter, StarterDied
from gptlab.runs.folder import is_running, read_events, read_summary
from gptlab.units import duration, grid, plural

if TYPE_CHECKING:
    from gptlab.config import RunConfig

CONFIG_FILE, LOG_FILE, OUTCOME_FILE, LOCK_FILE = "trial.yaml", "trial.log", "trial.json", ".trial.lock"
NOT_IN_KEY = (
    "name",
    "run_dir",
    "resume",
    "plugins",
    "model_tag",
    "data_tag",
)  # of a config: two may differ there alone
STOPPED = tuple(128 + signum for signum in SIGNALS)  # exit codes of a run that a signal ended
ERROR = "error: "  # how the line begins in which a command says what went wrong


class State(Enum):
    """How far a trial has come."""

    finished = "finished"
    repeated = "same"  # its config is that of another trial
    pruned = "pruned"
    failed = "failed"
    refused = "refused"  # its config cannot work
    stopped = "stopped"  # the next start of the sweep takes it up
    running = "running"
    waiting = "not begun"


@dataclass(kw_only=True)
class Trial:
    """A config to be trained, with its number in the sweep, and what has become of it."""

    number: int  # from 0
    label: str  # what differs, as overrides
    values: Mapping[str, Any]  # by swept key
    folder: Path  # its run folder
    config: dict[str, Any] | None = None  # all of it, plain; None where it is refused
    state: State = State.waiting
    reason: str = ""  # of a failure, a refusal or a stop
    same_as: int | None = None  # the number of the trial whose config this one has
    numbers: dict[str, Any] = field(default_factory=dict)  # its summary
    held: ExitStack = field(default_factory=ExitStack)  # the lock, while this process trains it

    @property
    def about_state(self) -> str:
        """The state with its reason, as a table shows it."""
        reason = self.reason if self.same_as is None else f"as trial {self.same_as}"
        return self.state.value + (f": {_short(reason)}" if reason else "")

    @property
    def log(self) -> Path:
        """What the trial's process printed."""
        return self.folder / LOG_FILE

    def hold(self) -> bool:
        """Take the trial's lock, so that no other process trains it; False where one does."""
        held = hold(self.folder)
        if held is None:
            return False
        self.held.enter_context(held)
        return True

    def record(self) -> None:
        """Write trial.json: how the trial ended."""
        content = {"number": self.number, "label": self.label, "state": self.state.value, "reason": self.reason}
        write_text_atomic(self.folder / OUTCOME_FILE, json.dumps(content, indent=2) + "\n")


def outcome(folder: Path) -> tuple[State, str, dict[str, Any]]:
    """How far the trial in a folder has come, as its files say: the state, its reason and its numbers."""
    if not folder.is_dir():
        return State.waiting, "", {}
    if (held := hold(folder)) is None:
        return State.running, "", {}
    held.close()
    summary, file = read_summary(folder), folder / OUTCOME_FILE
    if summary is not None:
        return State.finished, "", summary
    if file.is_file():
        content = json.loads(file.read_text())
        return State(content["state"]), content["reason"], {}
    return (State.stopped if (folder / "metrics.csv").is_file() else State.waiting), "", {}


class Source(Protocol):
    """Where trials come from, and who learns how they end."""

    def take(self) -> Trial | None:
        """The next trial to train, whose lock this process holds; None where nothing is left to do here."""
        ...

    def report(self, trial: Trial) -> bool:
        """Look at what the running trial has measured; returns whether it shall end early."""
        ...

    def settle(self, trial: Trial) -> None:
        """Record a trial that has ended, whatever its state."""
        ...


def hold(folder: Path) -> ExitStack | None:
    """The lock of a trial's folder, until it is closed; None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    held = ExitStack()
    try:
        held.enter_context(locked(folder / LOCK_FILE, wait=False))
    except BlockingIOError:
        return None
    return held


def key_of_config(plain: Mapping[str, Any]) -> str:
    """A hash of all of a config but its names: trials that share it train the same in the same way."""
    rest = {name: value for name, value in plain.items() if name not in NOT_IN_KEY}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def freeze(trial: Trial) -> None:
    """Write trial.yaml, from which the trial's process reads its config."""
    content = {"number": trial.number, "label": trial.label, "config": trial.config}
    write_text_atomic(trial.folder / CONFIG_FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def is_trial(folder: Path) -> bool:
    """Whether a sweep started the run in a folder."""
    return (folder / CONFIG_FILE).is_file()


def read_frozen(folder: Path) -> "RunConfig":
    """The config of a trial's trial.yaml, checked; it continues where the trial has saved something already."""
    file = folder / CONFIG_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        plain = content["config"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        raise UserError(f"{file} is missing or damaged; the sweep's own command writes it again") from None
    config = config_from_plain(plain, file)
    if any((folder / "checkpoints").glob("*")):
        config.resume = "auto"  # what it was to begin from holds for the first start
    config.check()
    return config


def refuse_other_run(trial: Trial, identity: Mapping[str, Any]) -> None:
    """Refuse a trial whose folder holds a run of another config; `identity` is what decides what is learned."""
    saved = trial.folder / "config.yaml"
    if not saved.is_file():
        return
    found = yaml.safe_load(saved.read_text())
    if differing := run_differences(identity, found):
        raise UserError(f"{trial.folder} holds a run of another config: {differing}; give the sweep another name=NAME")


def check_folder(folder: Path) -> None:
    """Refuse a sweep's folder that cannot be one."""
    if len(os.fsencode(folder.name)) > MAX_NAME_BYTES or not folder.name:
        raise UserError(f"name={folder.name} cannot be a folder's name; use 1 to {MAX_NAME_BYTES} bytes")
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds a run, not a sweep; give the sweep another name=NAME")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give the sweep another name=NAME")


def refuse_launched() -> None:
    """Refuse a sweep that torchrun or srun has started in several processes, which would share out its trials."""
    env = os.environ
    name = "WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in env else "SLURM_STEP_NUM_TASKS"
    if env.get(name, "1") != "1":
        raise UserError(
            f"a launcher started {env[name]} processes ({name}), and a sweep starts those of its trials itself; leave "
            "torchrun or srun out, and set trainer.devices=N"
        )


def run_trials(source: Source, *, plugins: Sequence[str] = (), say: Callable[[str], None] = print) -> int:
    """Train what `source` gives, one process after another; returns an exit code.

    0 done, 1 where a trial failed, 128 + a signal that ended the sweep. `say` gets a line for
    a person now and then, `plugins` are the modules that trials need.
    """
    codes = [0]
    with _Signals() as signals, Starter(lambda: signals.received) as starter:
        while not signals.received and (trial := source.take()) is not None:
            with trial.held:
                _carry_out(trial, source, signals, starter, plugins, say)
                source.settle(trial)
            say(_end_line(trial))
            if trial.state is State.failed:
                codes.append(1)
            elif trial.state is State.stopped and not signals.received:
                signals.received = trial.numbers.get("signal", signal.SIGTERM)  # meant for the whole sweep
        if signals.received:
            return 128 + signals.received
    return max(codes)


def _carry_out(
    trial: Trial,
    source: Source,
    signals: "_Signals",
    starter: Starter,
    plugins: Sequence[str],
    say: Callable[[str], None],
    *,
    first: bool = True,
) -> None:
    if trial.state is State.refused:
        return
    if source.report(trial):  # it was to be ended when the sweep was killed
        trial.state = State.pruned
        return trial.record()
    if _finish(trial):
        return
    if not _await_writer(trial, signals, say):
        trial.state, trial.reason = State.stopped, "before its first step"
        return
    freeze(trial)
    (trial.folder / OUTCOME_FILE).unlink(missing_ok=True)
    begun = trial.log.stat().st_size if trial.log.is_file() else 0
    process = starter.start(trial.folder, trial.log, plugins)
    if process is None:
        trial.state, trial.reason = State.stopped, "before its first step"
        return
    trial.state = State.running
    try:
        code, pruned = _attend(trial, process, source, signals)
    except StarterDied:
        if not signals.received and first:
            say(f"trial {trial.number} goes on: the process that starts trials was killed, and is started again")
            return _carry_out(trial, source, signals, starter, plugins, say, first=False)
        if not signals.received:
            trial.state, trial.reason = State.failed, "killed twice, with the process that had started it"
            return trial.record()
        code, pruned = 128 + signals.received, False
    if not pruned and not signals.received:
        pruned = source.report(trial)  # by what it measured at its end: a decision does not depend on the moment
    if pruned:
        trial.state = State.pruned
    elif code == 0 and _finish(trial):
        return
    elif _positive(code) in STOPPED:
        # Its own line says how to go on as well.
        trial.state, trial.reason = State.stopped, _reason(trial.log, begun).partition(";")[0] or "nothing is lost"
        trial.numbers["signal"] = _positive(code) - 128
    else:
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
        trial.state = State.failed
        trial.reason = killed or _reason(trial.log, begun) or f"exit code {code}"
    trial.record()


def _finish(trial: Trial) -> bool:
    """Take the numbers of a trial whose run has ended."""
    summary = read_summary(trial.folder)
    if summary is None:
        return False
    trial.state, trial.reason, trial.numbers = State.finished, "", summary
    return True


def _await_writer(trial: Trial, signals: "_Signals", say: Callable[[str], None]) -> bool:
    """Wait for a process that still writes the run folder, as of a sweep that was killed; False after a signal."""
    said = False
    while is_running(trial.folder):
        if not said:
            say(f"trial {trial.number} is still being saved by the process of a sweep that was killed; waiting for it")
        said = True
        if signals.received:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _reason(log: Path, begun: int) -> str:
    """What the process said last about its end: its error in a line, which may be a traceback's last."""
    with open(log, "rb") as file:
        file.seek(begun)
        lines = file.read().decode(errors="replace").splitlines()
    lines = [line.rstrip() for line in lines if line.strip()]
    for line in reversed(lines):
        if line.startswith(ERROR.strip()):
            return line.removeprefix(ERROR.strip()).strip() or lines[-1].strip()
    return lines[-1].strip() if lines else ""


def _attend(trial: Trial, process: Process, source: Source, signals: "_Signals") -> tuple[int, bool]:
    """Wait for the trial's process; returns its exit code and whether the pruner has ended it."""
    pruned = False
    with signals.passed_on_to(process), _Line(trial) as line:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            line.show()
            if not pruned and not signals.received and source.report(trial):
                pruned = True
                process.send_signal(signal.SIGTERM)
    return process.returncode or 0, pruned


def _positive(code: int) -> int:
    return code if code >= 0 else 128 - code


class _Signals:
    """Signals to the sweep: the running trial gets each, and no other trial is begun."""

    def __init__(self) -> None:
        self.received = 0
        self._process: Process | None = None
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes none
            self._replaced = {signum: signal.signal(signum, self._take) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, before in self._replaced.items():
            signal.signal(signum, before if before is not None else signal.SIG_DFL)

    def passed_on_to(self, process: Process) -> ExitStack:
        """Within this context the process gets what arrives, and what has arrived while it was started."""
        stack = ExitStack()
        stack.callback(setattr, self, "_process", None)
        self._process = process
        if self.received:
            process.send_signal(self.received)
        return stack

    def _take(self, signum: int, frame: object) -> None:
        self.received = self.received or signum
        if self._process is not None:
            with suppress(OSError):
                self._process.send_signal(signum)


class _Line:
    """One line on a terminal about the running trial."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._shown = 0.0
        self._on = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> "_Line":
        return self

    def show(self) -> None:
        now = time.monotonic()
        if not self._on or now - self._shown < 1:
            return
        self._shown = now
        row = _newest_row(self._trial.folder / "metrics.csv")
        found = [f"{name} {row[name]}" for name in ("step", "train/loss", "val/loss") if row.get(name)]
        sys.stderr.write(f"\r\x1b[K  trial {self._trial.number}: {', '.join(found) or 'starting'}")
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self._on and self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _newest_row(path: Path) -> dict[str, str]:
    """The last whole row of a metrics.csv, without reading all of it."""
    with suppress(OSError, ValueError), open(path, "rb") as file:
        names = file.readline().decode().strip().split(",")
        file.seek(max(file.tell(), path.stat().st_size - 4096))
        rows = [line.split(",") for line in file.read().decode().split("\n")[:-1]]
        if rows and len(rows[-1]) == len(names):
            return {n: f"{float(v):.4f}" if "." in v else v for n, v in zip(names, rows[-1], strict=True)}
    return {}


def validations(folder: Path, metric: str) -> list[tuple[int, float]]:
    """The values of a metric of each evaluation by step, in order; each step once, and not before the first one."""
    found: dict[int, float] = {}
    for event in read_events(folder):
        step = event.get("step")
        if event.get("event") == "validated" and step and metric in event:
            found.setdefault(int(step), float(event[metric]))
    return sorted(found.items())


def steps_of(folder: Path) -> int | None:
    """The steps that a run is to take, once it has begun."""
    return next((event["n_steps"] for event in reversed(read_events(folder)) if "n_steps" in event), None)


def value_of(trial: Trial, metric: str) -> float:
    """The value of a metric of a finished trial; `best/NAME` is the best one of its evaluations.

    UserError where the trial has not measured it.
    """
    summary, name = trial.numbers, metric.removeprefix("best/")
    if "flops_per_token" in summary:
        summary["flops"] = summary["tokens"] * summary["flops_per_token"]
    if name != metric:
        found = [value for _, value in validations(trial.folder, name)]
        value = (max if higher_is_better(name) else min)(found) if found else None
    else:
        value = summary.get(metric)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    known = [key for key, v in summary.items() if "/" in key and isinstance(v, float)]
    raise UserError(f"metric={metric} is not measured by these trials, which have {', '.join(known)}")


def _end_line(trial: Trial) -> str:
    match trial.state:
        case State.finished:
            return f"{_results(trial.numbers)} run {trial.folder}"
        case State.failed:
            return f"  failed: {trial.reason}; see {trial.log}"
        case State.refused:
            return f"  refused: {trial.reason}"
        case State.stopped:
            return f"  stopped: {trial.reason}"
    return f"  {trial.about_state}"


def _results(summary: Mapping[str, Any]) -> str:
    # Of a mixture's sources the losses alone, as in the last line of a run.
    names = [n for n in summary if n.startswith("val") and (n.count("/") == 1 or n.endswith("/loss"))] or ["train/loss"]
    return " ".join(f"{name} {summary[name]:.4f}" for name in names if isinstance(summary.get(name), float))


ORDER = [*State]


def table(trials: Iterable[Trial], metrics: Sequence[str], *, descending: bool = False) -> str:
    """The trials as a table, the best by the first metric first, then those without a result."""
    trials = list(trials)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))

    def rank(trial: Trial) -> tuple:
        value = trial.numbers.get(metrics[0])
        if not isinstance(value, int | float) or not math.isfinite(value):
            value = -math.inf if descending else math.inf
        return ORDER.index(trial.state), -value if descending else value, trial.number

    rows, states = [], ["state"]
    for trial in sorted(trials, key=rank):
        state = trial.about_state
        if trial.state is State.failed:
            state += f"; {trial.log}"
        steps, seconds = trial.numbers.get("steps"), trial.numbers.get("seconds")
        states.append(state)
        rows.append(
            [
                str(trial.number),
                *(_shown(trial.values.get(key)) for key in keys),
                *(_shown(trial.numbers.get(metric), 4) for metric in metrics),
                "" if steps is None else f"{steps:,}",
                "" if seconds is None else duration(seconds),
            ]
        )
    lines = grid(["trial", *keys, *metrics, "steps", "time"], rows).split("\n")
    width = max(map(len, lines))  # what is said of a state may be long, and begins at one place
    return "\n".join(f"{line:<{width}}  {state}" for line, state in zip(lines, states, strict=True))


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 160 else f"{line[:157]}..."


def _shown(value: Any, digits: int | None = None) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}" if digits and 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"
    return "" if value is None and digits else "null" if value is None else str(value)


def counts(trials: Iterable[Trial]) -> str:
    """How many trials are in which state, as a text."""
    states = [trial.state for trial in trials]
    found = [(state, states.count(state)) for state in ORDER if state in states]
    return f"{plural(len(states), 'trial')}: {', '.join(f'{n} {state.value}' for state, n in found)}"
