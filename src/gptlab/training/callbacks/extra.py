"""Other people's Lightning callbacks: which of them a run can have, and what it has instead of the others."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch.callbacks as of_lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer

from gptlab.errors import UserError, did_you_mean

# Lightning's callbacks that cannot work here, or would work without effect, and what does their work.
REFUSED: dict[type[Callback], str] = {
    of_lightning.Checkpoint: "gptlab saves the run itself; see callbacks.checkpoint.every_steps and keep_last",
    of_lightning.ProgressBar: "gptlab has a progress line of its own; trainer.enable_progress_bar=false turns it off",
    of_lightning.GradientAccumulationScheduler: "accumulation follows from batch_tokens= and micro_batch_size=",
    of_lightning.BatchSizeFinder: "the plan shows the memory that a run needs; set micro_batch_size=",
    of_lightning.LearningRateFinder: "try rates with -m optimizer.lr=1e-4,3e-4,1e-3",
    of_lightning.LearningRateMonitor: "train/lr is in metrics.csv and in every logger",
    of_lightning.DeviceStatsMonitor: "perf/memory_gib is in metrics.csv and in every logger",
    of_lightning.ThroughputMonitor: "perf/tokens_per_second and perf/mfu are in metrics.csv and in every logger",
    of_lightning.SpikeDetection: "use callbacks.spike.action=skip, rollback or stop",
    of_lightning.StochasticWeightAveraging: "averaged weights would not be in the run's checkpoints; use schedule=wsd",
    of_lightning.WeightAveraging: "averaged weights would not be in the run's checkpoints; use schedule=wsd",
    of_lightning.BaseFinetuning: "use finetune=last_layers or finetune=lora",
    of_lightning.ModelPruning: "a run's checkpoints hold the model's own parameters alone",
    of_lightning.BasePredictionWriter: "training predicts nothing",
}


def build_extra(extra: Mapping[str, Any]) -> list[Callback]:
    """The callbacks of `callbacks.extra`, each `{_target_: module.Class, ...arguments}`; UserError where one is not
    there, does not take its arguments or cannot work in a run."""
    found = []
    for name, options in extra.items():
        key = f"callbacks.extra.{name}"
        if not isinstance(options, Mapping) or not options.get("_target_"):
            raise UserError(f"{key} has no class; set {key}._target_=module.Class")
        arguments = {argument: value for argument, value in options.items() if argument != "_target_"}
        kind = _locate(str(options["_target_"]), key)
        if isinstance(kind, type):
            _refuse(kind, f"{key}._target_={options['_target_']}")
        try:
            callback = kind(**arguments)
        except Exception as error:  # each library has its own for an argument that cannot work
            raise UserError(f"{key}: {options['_target_']} does not take these arguments: {error}") from error
        if not isinstance(callback, Callback):
            raise UserError(f"{key}._target_={options['_target_']} is no Lightning callback")
        found.append(callback)
    return found


def check_extra(callbacks: Iterable[Callback], columns: Iterable[str]) -> None:
    """Refuse a callback that cannot work in a run, or that waits for what is never measured.

    `columns` are those of metrics.csv.
    """
    # What an evaluation measures; the numbers of a step are read later than callbacks look at them.
    measured = [name for name in columns if "/" in name and name.split("/")[0] not in ("train", "perf", "test")]
    for callback in callbacks:
        name = type(callback).__name__
        _refuse(type(callback), name)
        if not isinstance(callback, EarlyStopping):
            continue
        if callback.monitor not in measured:
            hint = did_you_mean(callback.monitor, measured) if measured else "; set data.val_fraction above 0"
            raise UserError(f"{name}: monitor={callback.monitor} is not measured at a validation of this run{hint}")
        if callback._check_on_train_epoch_end:
            raise UserError(f"{name}: check_on_train_epoch_end=true never comes, as a run has no epochs; leave it out")


def stopped_early(callbacks: Iterable[Callback], timers: Iterable[Timer], *, asked: bool) -> bool:
    """Whether one of the user's own callbacks ended the run that was `asked` to stop, rather than a limit on its time.

    `timers` are all of the run's, of which `trainer.max_time` is one.
    """
    own = [callback for callback in callbacks if not isinstance(callback, Timer)]
    left = [timer.time_remaining() for timer in timers]
    return asked and bool(own) and not any(seconds is not None and seconds <= 0 for seconds in left)


def _refuse(kind: type, name: str) -> None:
    for refused, instead in REFUSED.items():
        if issubclass(kind, refused):
            raise UserError(f"{name} does not work in a run of gptlab: {instead}")


def _locate(target: str, key: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            f"{key}._target_={target} does not exist; write it as in an import, module and class, such as "
            "lightning.pytorch.callbacks.Timer"
        ) from None
