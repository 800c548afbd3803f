"""Loggers beside metrics.csv: W&B and TensorBoard."""

import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger

from gptlab.errors import UserError
from gptlab.files import write_text_atomic
from gptlab.training.config import LoggersConfig, TensorboardConfig, WandbConfig

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
REPLACED = "replaced"  # in wandb/: offline parts of a run whose rows a newer part has as well

Row = Mapping[str, float | int]


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


def build_loggers(
    config: LoggersConfig,
    folder: Path,
    *,
    group: str,
    tags: list[str],
    hyperparameters: dict[str, Any],
    rows: Sequence[Row] = (),
) -> list[Logger]:
    """The loggers that the config asks for, opened on rank 0.

    `group` and `tags` say what W&B shows the run under, beside what the config says; `rows` are those that loggers got
    of the steps before this start.
    """
    loggers: list[Logger] = []
    if config.tensorboard is not None:
        loggers.append(_tensorboard(config.tensorboard, folder))
    if config.wandb is not None and (mode := _mode(config.wandb)) != "disabled":  # last: whatever is opened is ended
        loggers.append(_wandb(config.wandb, folder, mode, group, tags, hyperparameters, rows))
    return loggers


class _WandbLogger(WandbLogger):
    """W&B's own step is the optimizer step, so that the parts of a continued run make one history."""

    _newest: int | None = None  # W&B's step of the last row

    def log_metrics(self, metrics: Row, step: int | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # After a rollback steps come again, and W&B takes no smaller one: then rows are appended.
        newest = self._newest if self._newest is not None else self.experiment.step - 1
        self._newest = newest + 1 if step is None else max(step, newest + 1)
        self.experiment.log(dict(metrics), step=self._newest)


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

    swept = folder.parent.name != "runs"
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
                group=settings.group or (folder.parent.name if swept else group)[:128],
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
    for row in rows if new or (not sent and not run.resumed) else ():
        logger.log_metrics(row, int(row["step"]))
    if mode == "offline":
        # An attribute of our own, for the summary.
        parts = shlex.join(str(part) for part in _unsent(folder))
        logger.hint = f"W&B has this run offline; send it with\n  wandb sync {parts}"  # pyright: ignore[reportAttributeAccessIssue]
    return logger


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

    try:
        logger = TensorBoardLogger(
            save_dir=str(folder), name="", version="tensorboard", flush_secs=settings.flush_seconds
        )
    except ModuleNotFoundError as error:
        raise UserError("logger=tensorboard needs the tensorboard package: pip install tensorboard") from error
    logger.hint = f"tensorboard --logdir {folder / 'tensorboard'}"  # pyright: ignore[reportAttributeAccessIssue]
    return logger
