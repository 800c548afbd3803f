"""Loggers beside metrics.csv: W&B, TensorBoard, MLflow and Trackio."""

import importlib.util
import io
import logging
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from gptlab.errors import UserError, first_line, without_password
from gptlab.files import write_text_atomic
from gptlab.training.config import LoggersConfig, MlflowConfig, TensorboardConfig, TrackioConfig, WandbConfig

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
REPLACED = "replaced"  # in wandb/: offline parts of a run whose rows a newer part has as well

MLFLOW_URI = "MLFLOW_TRACKING_URI"
PACKAGES = ("tensorboard", "mlflow", "trackio")  # extras of gptlab by the logger that needs them
HEAD = "chain_head"  # of W&B's summary
BEST = "best/val_loss"  # beside val/loss, which is the last one, where W&B shows one number for a run

Row = Mapping[str, float | int]


def check_installed(config: LoggersConfig) -> None:
    """Refuse a logger whose package is not here, before any work."""
    for name in PACKAGES:
        if getattr(config, name) is not None and importlib.util.find_spec(name) is None:
            raise UserError(f'logger={name} needs the {name} package; type: pip install "gptlab[{name}]"')


@contextmanager
def ended_with_run() -> Iterator[list[Logger]]:
    """A list for the run's loggers, which are ended with its exit code when the block is left."""
    loggers: list[Logger] = []
    try:
        yield loggers
    except BaseException as error:
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        with suppress(Exception):  # what ended the run is what has to be shown
            _end(loggers, code)
        raise
    _end(loggers, 0)


def _end(loggers: Sequence[Logger], exit_code: int) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=exit_code)
        elif isinstance(logger, _MlflowLogger | _TrackioLogger):
            logger.end(exit_code)


def build_loggers(
    config: LoggersConfig,
    folder: Path,
    *,
    group: str,
    tags: list[str],
    hyperparameters: dict[str, Any],
    sweep: str | None = None,
    rows: Sequence[Row] = (),
) -> list[Logger]:
    """The loggers that the config asks for, opened on rank 0.

    `group` and `tags` say what loggers show the run under, beside what the config says; trials of a `sweep` are a group
    of its name instead. `rows` are those that loggers got of the steps before this start.
    """
    loggers: list[Logger] = []
    folder = folder.resolve()
    group = sweep or group
    if config.tensorboard is not None:
        loggers.append(_tensorboard(config.tensorboard, folder))
    if config.mlflow is not None:
        loggers.append(_mlflow(config.mlflow, folder, group, tags, hyperparameters, rows))
    if config.trackio is not None:
        loggers.append(_trackio(config.trackio, folder, group, sweep, hyperparameters))
    if config.wandb is not None and (mode := _mode(config.wandb)) != "disabled":  # last: whatever is opened is ended
        loggers.append(_wandb(config.wandb, folder, mode, group, tags, hyperparameters, rows))
    return loggers


def publish_head(loggers: Sequence[Logger], head: str) -> None:
    """Show the head of the run's hash chain where W&B keeps it, for `gptlab verify RUN head=...`."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary[HEAD] = head


class _WandbLogger(WandbLogger):
    """W&B's own step is the optimizer step, so that the parts of a continued run make one history."""

    _newest: int | None = None  # W&B's step of the last row
    best: float | None = None  # the lowest val/loss

    def log_metrics(self, metrics: Row, step: int | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # After a rollback steps come again, and W&B takes no smaller one: then rows are appended.
        newest = self._newest if self._newest is not None else self.experiment.step - 1
        self._newest = newest + 1 if step is None else max(step, newest + 1)
        self.experiment.log(dict(metrics), step=self._newest)
        loss = metrics.get("val/loss")
        if loss is not None and (self.best is None or loss < self.best):
            self.best = loss
            self.experiment.summary[BEST] = loss


def _wandb(
    settings: WandbConfig,
    folder: Path,
    mode: str,
    group: str,
    tags: list[str],
    hyperparameters: dict[str, Any],
    rows: Sequence[Row],
) -> Logger:
    import wandb
    from wandb.errors import Error as WandbError

    # The id is kept in the run folder, so that a continued run is the same one in W&B.
    identity = folder / "wandb_id"
    known = identity.read_text() if identity.is_file() else ""
    new = re.fullmatch(r"[\w.-]{1,64}", known, re.ASCII) is None
    if new:
        readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name[:40]).strip("-.")
        write_text_atomic(identity, f"{readable or 'run'}-{os.urandom(4).hex()}")
    sent = not new and _is_sent(folder)
    if not sent:
        _replace_parts(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group or group[:128],
                name=settings.name or folder.name[:128],
                tags=[*(tag[:64] for tag in tags if tag), *settings.tags],
                id=identity.read_text(),
                resume="allow",
                dir=str(folder),
                mode="offline" if mode == "offline" else "online",
                config=hyperparameters,
                settings=wandb.Settings(silent=True),  # the last line on the screen is gptlab's
                reinit="finish_previous",  # of a sweep or a script; the default goes on with it
            )
            logger = _WandbLogger(experiment=run, save_dir=str(folder))
    except WandbError as error:  # no key, no network, no such entity
        raise UserError(
            f"logger=wandb: {error}; with logger.wandb.offline=true the run is kept in its folder, to be sent later"
        ) from error
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    logger.best = min((row["val/loss"] for row in rows if "val/loss" in row), default=None)
    if logger.best is not None:
        run.summary[BEST] = logger.best
    for row in rows if new or (not sent and not run.resumed) else ():
        logger.log_metrics(row, int(row["step"]))
    logger.hint = _wandb_hint(run, mode, folder)  # an attribute of our own, for the summary  # pyright: ignore[reportAttributeAccessIssue]
    if mode == "online":
        print(logger.hint, flush=True)  # pyright: ignore[reportAttributeAccessIssue]
    return logger


def _wandb_hint(run: Any, mode: str, folder: Path) -> str:
    """Where the run can be seen, or what sends it there."""
    if mode == "online":
        return f"W&B has this run at {run.url}"
    return f"W&B has this run offline; send it with\n  wandb sync {shlex.join(str(part) for part in _unsent(folder))}"


def _unsent(folder: Path) -> list[Path]:
    """The offline parts of a run that have not been sent, oldest first."""
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    return [part for part in parts if not any(part.glob("*.synced"))]


def _is_sent(folder: Path) -> bool:
    """Whether W&B has a part of the run."""
    parts = [part for pattern in ("run-*", "offline-run-*") for part in (folder / "wandb").glob(pattern)]
    return len(parts) > len(_unsent(folder))


def _replace_parts(folder: Path) -> None:
    """Set the offline parts of a run aside, whose rows are written again: so one part has the whole history."""
    for part in _unsent(folder):
        aside = folder / "wandb" / REPLACED / part.name
        aside.parent.mkdir(exist_ok=True)
        part.rename(aside.with_name(f"{part.name}-{os.urandom(2).hex()}") if aside.exists() else aside)


def _mode(settings: WandbConfig) -> str:
    """online, offline or disabled: by the config, else as W&B is set up here, else by whether it has a key."""
    import wandb

    given = os.environ.get("WANDB_MODE") or None
    if given is not None and given not in MODES:
        raise UserError(f"WANDB_MODE={given} is unknown; use online, offline or disabled")
    found = MODES[given or wandb.setup().settings.mode]  # which W&B has of the environment, or of `wandb offline`
    if found == "disabled" or (settings.offline is None and (found == "offline" or given is not None)):
        return found
    offline = settings.offline if settings.offline is not None else not _has_wandb_key(wandb.setup().settings.base_url)
    return "offline" if offline else "online"


def _has_wandb_key(base_url: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    from netrc import NetrcParseError, netrc

    try:
        hosts = netrc(os.environ.get("NETRC")).hosts
    except (OSError, NetrcParseError):
        return False
    return any("wandb" in host or host == urlparse(base_url).hostname for host in hosts)


def _tensorboard(settings: TensorboardConfig, folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(save_dir=str(folder), name="", version="tensorboard", flush_secs=settings.flush_seconds)
    logger.hint = f"tensorboard --logdir {folder / 'tensorboard'}"  # pyright: ignore[reportAttributeAccessIssue]
    return logger


class _MlflowLogger(MLFlowLogger):
    """One MLflow run for a run folder, however often the run is continued."""

    def end(self, exit_code: int) -> None:
        """Say how the run ended."""
        self.finalize("FINISHED" if exit_code == 0 else "KILLED" if exit_code > 128 else "FAILED")


def _mlflow(
    settings: MlflowConfig,
    folder: Path,
    group: str,
    tags: list[str],
    hyperparameters: dict[str, Any],
    rows: Sequence[Row],
) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent that nobody asked for
    for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):  # which tell how they make a database
        logging.getLogger(name).setLevel(logging.ERROR)
    parent = folder.parent.resolve()
    variable = os.environ.get(MLFLOW_URI)
    uri = settings.tracking_uri or variable
    if uri is None and set(str(parent)) & set("#?%"):
        raise UserError(
            f"logger=mlflow: its database cannot lie in {parent}, which has a # ? or % in it; name another place with "
            "logger.mlflow.tracking_uri=sqlite:////PLACE/mlflow.db"
        )
    identity = folder / "mlflow_run_id"
    known = identity.read_text().strip() if identity.is_file() else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # pyright: ignore[reportMissingImports]  # an extra
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        place = {
            "tracking_uri": uri or f"sqlite:///{parent}/mlflow.db",
            "artifact_location": None if uri is not None else (parent / "mlflow_artifacts").as_uri(),
        }
        experiment = settings.experiment or group
        try:
            if known is not None:
                try:
                    mlflow.MlflowClient(place["tracking_uri"]).get_run(known)
                except MlflowException:  # of another database
                    known = None
            logger = _MlflowLogger(
                experiment_name=experiment,
                run_name=folder.name,
                tags={"group": group, "folder": str(folder.resolve()), **{tag: "" for tag in tags if tag}},
                run_id=known,
                **place,
            )
            if known is None:
                write_text_atomic(identity, str(logger.run_id))
                logger.log_hyperparams(hyperparameters)
                for row in rows:
                    logger.log_metrics(row, int(row["step"]))
            else:
                logger.experiment.set_terminated(known, "RUNNING")
            # The library sets it to what it uses, which another run in this process must not take for the user's.
            os.environ.pop(MLFLOW_URI, None) if variable is None else os.environ.update({MLFLOW_URI: variable})
        except (MlflowException, OSError) as error:
            raise UserError(
                without_password(f"logger=mlflow: {place['tracking_uri']} cannot be used: {first_line(error)}")
            ) from error
    if uri is None:
        shown = shlex.quote(f"sqlite:///{parent}/mlflow.db")
        logger.hint = f"mlflow ui --backend-store-uri {shown}"  # pyright: ignore[reportAttributeAccessIssue]
    return logger


class _TrackioLogger(Logger):
    """A run of Trackio's, in its own folder on this machine unless its environment variables name another place."""

    def __init__(self, run: Any, project: str):
        super().__init__()
        self.experiment = run
        self.project = project
        self.hint = f"trackio show --project {shlex.quote(project)}"

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.experiment.name

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # they are the run's config already
        pass

    def log_metrics(self, metrics: Row, step: int | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # `step` is Trackio's own name for the axis.
        self.experiment.log({name: value for name, value in metrics.items() if name != "step"}, step=step)

    def end(self, exit_code: int) -> None:
        """Write what is still waiting."""
        import trackio

        with redirect_stdout(io.StringIO()):  # the last line on the screen is gptlab's
            trackio.finish()


def _trackio(
    settings: TrackioConfig, folder: Path, group: str, sweep: str | None, hyperparameters: dict[str, Any]
) -> Logger:
    import trackio

    name = folder.name if sweep is None else f"{sweep}/{folder.name}"
    # Another folder's run may have had that name: only what this folder began is gone on with.
    identity = folder / "trackio_name"
    continues = identity.is_file() and identity.read_text().strip() == name
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            run = trackio.init(
                project=settings.project,
                name=name,
                group=group,
                config=hyperparameters,
                resume="allow" if continues else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
    except (ValueError, OSError) as error:
        raise UserError(f"logger.trackio.project={settings.project}: {first_line(error)}") from error
    write_text_atomic(identity, name)
    return _TrackioLogger(run, settings.project)
