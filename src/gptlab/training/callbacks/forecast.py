"""What a run will need and come to, forecast before its first step and on the way, and compared with what came out."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from gptlab.distributed.devices import memory_gib
from gptlab.forecast import Plan
from gptlab.loss_curve import Curve, forecast_final
from gptlab.runs import forecasts
from gptlab.runs.folder import RunFolder, read_metrics
from gptlab.training.callbacks.metrics import Metrics

FIRST = 0.1  # of the run, after which its final loss is forecast
MAX_FORECASTS = 20  # of a run's final loss
MIN_LOSSES = 20  # that a forecast needs
LOSS_PART = 0.05  # of the run at its end, over which the training loss is averaged where nothing is validated


class Forecast(Callback):
    """Writes forecast.json on rank 0: the plan and the time before the first step, then the final loss and the time.

    Nothing of it enters the training: it reads what the steps measured, and draws nothing at random. Of other runs it
    takes those that were finished beside it when it began: `recipe` is what runs share that differ in their seeds,
    `shapes` what those share whose steps take equally long.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        metrics: Metrics,
        *,
        recipe: str,
        shapes: str,
        factor: Callable[[int], float],
    ):
        self.plan = plan
        self.folder = folder
        self.recipe = recipe
        self.shapes = shapes
        self.factor = factor  # of the peak learning rate, by finished steps
        self.forecasts: dict[str, Any] = {}
        self.losses: dict[int, float] = {}  # of the training, by step
        self.validations: dict[int, float] = {}
        self.metric = "val/loss" if plan.val_every is not None else "train/loss"
        self._earlier: list[Curve] = []
        self._memory = 0.0  # GiB at most
        self.began = time.perf_counter()  # of the run: before other processes are started
        self._step_began: float | None = None  # None before the first step
        self._paused: float | None = None  # since when it evaluates
        self._n_timed, self._timed_tokens, self._steps_seconds = (
            0,
            0,
            0.0,
        )  # all steps but the first, which takes longer
        self._pause_seconds: list[float] = []
        self._first_step = 0
        metrics.observers.append(self._observe)

    def on_train_start(self, trainer, module) -> None:
        step = self._first_step = module.finished_steps
        for row in read_metrics(self.folder.path / "metrics.csv") if step else ():
            if row["step"] <= step:
                self._observe(row)
        found = forecasts.read(self.folder.path) if step else None
        if found is None or found.get("recipe") != self.recipe:
            found = {"recipe": self.recipe, "shapes": self.shapes, "before": self._before(step), "loss": []}
        found.pop("outcome", None)
        found["loss"] = [one for one in found["loss"] if one["step"] <= step]
        self.forecasts = found
        forecasts.write(self.folder.path, found)
        beside = self.folder.path.parent
        curves = (curve_of(beside / name, self.plan.n_steps) for name in found["before"]["earlier_runs"])
        self._earlier = [curve for curve in curves if curve is not None]

    def _before(self, step: int) -> dict[str, Any]:
        plan, part = self.plan, 1 - step / self.plan.n_steps
        seconds, source = None, None
        for run in reversed(forecasts.finished_beside(self.folder.path, shapes=self.shapes)):
            seconds, source = self._as_long_as(run), run.name
            if seconds is not None:
                break
        earlier = forecasts.finished_beside(self.folder.path, recipe=self.recipe)
        return {
            "steps": plan.n_steps,
            "tokens": plan.total_tokens,
            "parameters": plan.parameters["total"],
            "flops": plan.flops_per_token * plan.total_tokens,
            "memory_bytes": plan.memory["total"],
            "seconds": None if seconds is None else round(seconds * part, 1),
            "seconds_from": source if seconds is not None else None,
            "earlier_runs": [run.name for run in earlier],
        }

    def _as_long_as(self, run: Path) -> float | None:
        """How long this run takes by the times of another with the same shapes."""
        times = ((forecasts.read(run) or {}).get("outcome") or {}).get("times")
        if not times:
            return None
        return times["other"] + self.plan.n_steps * times["step"] + self._n_pauses(0) * times["pause"]

    def _n_pauses(self, since: int) -> int:
        """Evaluations after a step, the last one included."""
        every, n_steps = self.plan.val_every, self.plan.n_steps
        return 0 if every is None else -(-n_steps // every) - since // every

    def _observe(self, row: Mapping[str, float]) -> None:
        step = int(row["step"])
        if "train/loss" in row and math.isfinite(row["train/loss"]):
            self.losses[step] = row["train/loss"]
        if "val/loss" in row and math.isfinite(row["val/loss"]):
            self.validations[step] = row["val/loss"]
        self._memory = max(self._memory, row.get("perf/memory_gib", 0.0))

    def on_validation_start(self, trainer, module) -> None:
        if trainer.sanity_checking:  # before the first step
            return
        self._paused = time.perf_counter()
        self._end_step(module.finished_steps, self._paused)

    def on_validation_end(self, trainer, module) -> None:
        if np.isfinite(module.evaluation.get("val/loss", np.nan)):
            self.validations[module.finished_steps] = module.evaluation["val/loss"]

    def on_train_end(self, trainer, module) -> None:
        self._memory = max(self._memory, memory_gib(module.device))

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        now, step = time.perf_counter(), module.finished_steps
        if self._paused is not None:  # the text that the model writes and a checkpoint are of the same pause
            self._pause_seconds.append(now - self._paused)
            self._paused = None
        else:
            self._end_step(step, now)
        if self._is_due(step):
            self._forecast(step)
        self._step_began = time.perf_counter()

    def _end_step(self, step: int, now: float) -> None:
        # From start to start, as steps on a GPU are not waited for one by one.
        if self._step_began is not None and step > self._first_step + 1:
            self._n_timed += 1
            self._timed_tokens += self.plan.steps.tokens(step - 1)
            self._steps_seconds += now - self._step_began
        self._step_began = None

    @property
    def _seconds_a_step(self) -> float:
        return self._steps_seconds / max(1, self._n_timed)

    @property
    def _seconds_a_token(self) -> float:
        return self._steps_seconds / max(1, self._timed_tokens)

    def _is_due(self, step: int) -> bool:
        n_steps, every = self.plan.n_steps, self.plan.val_every
        if not FIRST * n_steps < step < n_steps or len(self.losses) < MIN_LOSSES:
            return False
        before = self.forecasts["loss"][-1]["step"] if self.forecasts["loss"] else 0
        if step <= before:
            return False
        if every is not None and every <= n_steps / 5:  # with news of the evaluation
            return step % every == 0 and step - before >= n_steps / MAX_FORECASTS
        return step * 10 // n_steps > max(1, before * 10 // n_steps)

    def _forecast(self, step: int) -> None:
        curve = self._curve(step)
        try:
            found = forecast_final(curve, [one for one in self._earlier if one.metric == curve.metric])
        except np.linalg.LinAlgError:  # a forecast ends no run
            return
        if not np.isfinite([found.loss, found.low, found.high]).all() or found.loss <= 0:  # no cross-entropy is below 0
            return
        entry: dict[str, Any] = {"step": step, "metric": curve.metric}
        entry |= {"loss": found.loss, "low": max(0.0, found.low), "high": found.high}
        self.forecasts["loss"].append(entry | {"seconds": self._seconds(step)})
        forecasts.write(self.folder.path, self.forecasts)

    def _curve(self, step: int) -> Curve:
        steps = np.array(sorted(self.losses), dtype=int)
        validations = self.validations if any(at > 0 for at in self.validations) else {}
        factors = np.array([self.factor(i) for i in range(self.plan.n_steps)])
        losses = np.array([self.losses[i] for i in steps.tolist()])
        return Curve(steps, losses, {at: v for at, v in validations.items() if at <= step}, factors, self.plan.n_steps)

    def _seconds(self, step: int) -> float | None:
        """How long the whole run takes by what it took so far; None for one that was continued."""
        if self._first_step or not self._n_timed:
            return None
        sizes = self.plan.steps
        left = (sizes.tokens_before(self.plan.n_steps) - sizes.tokens_before(step)) * self._seconds_a_token
        if self._pause_seconds:
            left += self._n_pauses(step) * median(self._pause_seconds)
        return round(time.perf_counter() - self.began + left, 1)

    def finish(self, seconds: float, metrics: Mapping[str, float]) -> list[str]:
        """Write what came out beside what was forecast; returns lines for a person. `seconds` are of this process."""
        if not self.forecasts:
            return []
        n_steps, outcome = self.plan.n_steps, {}
        loss = metrics.get(self.metric)
        if self.metric == "train/loss":
            final = [v for step, v in self.losses.items() if step > n_steps * (1 - LOSS_PART)]
            loss = float(np.mean(final)) if final else None
        outcome = {"metric": self.metric, "loss": loss, "parameters": self.plan.parameters["total"]}
        outcome["memory_bytes"] = round(self._memory * 2**30) or None
        whole = self._first_step == 0 and self._n_timed > 0
        outcome["seconds"] = round(seconds, 1) if whole else None
        if whole:
            step, pause = self._seconds_a_step, median(self._pause_seconds or [0.0])
            other = max(0.0, seconds - n_steps * step - self._n_pauses(0) * pause)
            outcome["times"] = {"step": step, "pause": pause, "other": other}
        self.forecasts["outcome"] = outcome
        forecasts.write(self.folder.path, self.forecasts)
        return describe(self.forecasts)


def curve_of(run: Path, n_steps: int) -> Curve | None:
    """The curve of a finished run of `n_steps` as it is on the disk; None where it cannot be used."""
    rows = [row for row in read_metrics(run / "metrics.csv") if "train/loss" in row]
    if not rows or rows[-1]["step"] != n_steps or "train/lr" not in rows[-1]:
        return None
    peak = max(row["train/lr"] for row in rows)
    factors = np.interp(np.arange(n_steps) + 1, [r["step"] for r in rows], [r["train/lr"] / (peak or 1) for r in rows])
    return Curve(
        np.array([int(row["step"]) for row in rows]),
        np.array([row["train/loss"] for row in rows]),
        {int(row["step"]): row["val/loss"] for row in rows if "val/loss" in row},
        factors,
        n_steps,
    )


def describe(found: dict[str, Any]) -> list[str]:
    """Forecasts and what came out, a line for each quantity."""
    from gptlab.units import bytes_text, duration

    lines, outcome, before, errors = [], found["outcome"], found["before"], forecasts.errors_of(found)
    fifth = forecasts.after_a_fifth(found)
    if fifth is not None and outcome["loss"] is not None and fifth["metric"] == outcome["metric"]:
        lines.append(
            f"{outcome['metric']} forecast at step {fifth['step']:,}: {fifth['loss']:.4f} (80%: {fifth['low']:.4f} to "
            f"{fifth['high']:.4f}); it is {outcome['loss']:.4f}, the forecast {_off(errors.loss)}"
        )
    if outcome["seconds"] is not None:
        said = [(before["seconds"], f"before the first step (as {before['seconds_from']})")]
        said += [(fifth["seconds"], f"at step {fifth['step']:,}")] if fifth is not None else []
        texts = [f"{duration(seconds)} {when}" for seconds, when in said if seconds is not None]
        if texts:
            lines.append(f"time forecast: {', '.join(texts)}; it took {duration(outcome['seconds'])}")
    if outcome["memory_bytes"]:
        planned, measured = bytes_text(before["memory_bytes"]), bytes_text(outcome["memory_bytes"])
        lines.append(f"memory planned: {planned}; measured: {measured}")
    return lines


def _off(error: float | None) -> str:
    return "" if error is None else f"{abs(error):.1%} too {'high' if error > 0 else 'low'}"
