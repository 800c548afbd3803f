"""Loggers beside metrics.csv: W&B and TensorBoard."""

import os
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from gptlab.errors import UserError
from gptlab.training.config import LoggersConfig, TensorboardConfig, WandbConfig


def build_loggers(
    config: LoggersConfig, folder: Path, *, group: str, tags: list[str], hyperparameters: dict[str, Any]
) -> list[Logger]:
    """The loggers that the config asks for, opened on rank 0.

    `group` and `tags` say what W&B shows the run under, beside what the config says.
    """
    loggers: list[Logger] = []
    if config.wandb is not None:
        loggers.append(_wandb(config.wandb, folder, group, tags, hyperparameters))
    if config.tensorboard is not None:
        loggers.append(_tensorboard(config.tensorboard, folder))
    return loggers


def _wandb(settings: WandbConfig, folder: Path, group: str, tags: list[str], hyperparameters: dict[str, Any]) -> Logger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    swept = folder.parent.name != "runs"
    offline = settings.offline if settings.offline is not None else not _has_wandb_key()
    # The id is kept in the run folder, so that a continued run is the same one in W&B.
    identity = folder / "wandb_id"
    if not identity.is_file():
        identity.write_text(f"{folder.name[:40]}-{os.urandom(4).hex()}".replace("=", "-").replace(",", "-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or (folder.parent.name if swept else group),
            name=settings.name or folder.name,
            tags=[*tags, *settings.tags],
            id=identity.read_text(),
            resume="allow",
            dir=str(folder),
            mode="offline" if offline else None,
            config=hyperparameters,
            settings=wandb.Settings(silent=True),  # the last line on the screen is gptlab's
            reinit="finish_previous",  # of a sweep or a script; the default goes on with it
        )
        logger = WandbLogger(experiment=run, save_dir=str(folder))
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    if offline:
        # An attribute of our own, for the summary.
        logger.hint = f"W&B has this run offline; send it with\n  wandb sync {Path(run.dir).parent}"  # pyright: ignore[reportAttributeAccessIssue]
    return logger


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    from netrc import NetrcParseError, netrc

    try:
        return any("wandb" in host for host in netrc().hosts)
    except (OSError, NetrcParseError):
        return False


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
