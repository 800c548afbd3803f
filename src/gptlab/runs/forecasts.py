"""forecast.json of a run folder: what was forecast of a run, and what came out; and that of the runs beside it."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.files import write_text_atomic

FILE = "forecast.json"
MAX_EARLIER = 200  # forecasts of other runs that are looked at, the newest first


@dataclass(frozen=True, slots=True)
class ForecastErrors:
    """How far a run's forecasts were off; None where there was none, or nothing came out."""

    loss: float | None  # relative, of the forecast after a fifth of the run
    held: bool | None  # whether its 80% interval held the loss
    seconds: float | None  # relative, of the same forecast
    seconds_before: float | None  # relative, of the forecast before the first step
    memory: float | None  # relative


def read(folder: Path) -> dict[str, Any] | None:
    """The forecasts of a run: `before` its first step, of its final `loss` on the way, and the `outcome` if it ended.

    None where there are none, or they cannot be read.
    """
    with suppress(OSError, ValueError):
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"before", "loss"} <= found.keys():
            return found
    return None


def write(folder: Path, forecasts: dict[str, Any]) -> None:
    """Replace forecast.json."""
    write_text_atomic(folder / FILE, json.dumps(forecasts, indent=2) + "\n")


def finished_beside(folder: Path, **values: str) -> list[Path]:
    """The runs beside a run that finished and whose forecast has these values, the oldest first."""
    found = []
    own = folder.resolve()
    with suppress(OSError):
        files = [file for file in own.parent.glob(f"*/{FILE}") if file.parent.resolve() != own]
        files = sorted(files, key=lambda file: file.stat().st_mtime_ns)[-MAX_EARLIER:]
        for file in files:
            there = read(file.parent)
            if there is not None and "outcome" in there and all(there.get(k) == v for k, v in values.items()):
                found.append(file.parent)
    return found


def after_a_fifth(forecasts: dict[str, Any]) -> dict[str, Any] | None:
    """The forecast of the final loss after the first fifth of the run, or soon after that; None where there is none."""
    n_steps = forecasts["before"].get("steps") or 0
    return next((one for one in forecasts["loss"] if 0.2 * n_steps <= one["step"] <= 0.3 * n_steps), None)


def errors_of(forecasts: dict[str, Any]) -> ForecastErrors:
    """How far forecasts were off from what came out."""
    outcome, before = forecasts.get("outcome") or {}, forecasts["before"]
    fifth = after_a_fifth(forecasts) or {}
    same = fifth.get("metric") == outcome.get("metric")
    loss, held = None, None
    if same and fifth.get("loss") is not None and outcome.get("loss") is not None:
        loss = _relative(fifth["loss"], outcome["loss"])
        held = fifth["low"] <= outcome["loss"] <= fifth["high"]
    return ForecastErrors(
        loss=loss,
        held=held,
        seconds=_relative(fifth.get("seconds"), outcome.get("seconds")),
        seconds_before=_relative(before.get("seconds"), outcome.get("seconds")),
        memory=_relative(before.get("memory_bytes"), outcome.get("memory_bytes")),
    )


def _relative(forecast: float | None, outcome: float | None) -> float | None:
    return None if forecast is None or not outcome else forecast / outcome - 1
