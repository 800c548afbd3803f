"""The page of `gptlab compare`: curves, table, configs, hyperparameters, samples and forecasts of runs, in one file."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.lab import html
from gptlab.lab.collect import RunRecord, differing_keys, higher_is_better
from gptlab.lab.curves import Curve, budgeted, curve, packed, without_straight
from gptlab.lab.importance import are_numbers, importances, spans_decades
from gptlab.runs import forecasts
from gptlab.runs.samples import Sample, read_samples

CURVES_BYTES = 1_800_000  # of a page, however many runs it shows
SAMPLES_BYTES = 250_000
SAMPLE_CHARACTERS = 4000  # that are shown of one sample
MAIN_WEIGHT = 5.0  # a training loss keeps so many times the points of, say, a gradient norm
PARTS = ("runs", "curves", "list", "table", "hyperparameters", "configs", "samples", "forecasts", "start")
SCRIPTS = [f"compare/{part}.js" for part in PARTS]
# These come first, where they were measured.
FIRST_METRICS = ("val/loss", "train/loss", "val/bits_per_byte", "val/perplexity")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What groups of runs show of a baseline: a sentence by the label of each group, and notes on all of them."""

    metric: str
    values: str  # which ones, as "last values, lower is better"
    baseline: str
    sentences: Mapping[str, str]
    notes: Sequence[str] = ()


def write_page(
    records: Sequence[RunRecord],
    path: str | Path,
    *,
    title: str = "Runs compared",
    verdicts: Verdicts | None = None,
    reload_seconds: float | None = None,
) -> Path:
    """Write the page of these runs to `path`, atomically; returns the path.

    With `reload_seconds` an open page reads its file again and again, and keeps what was chosen on it.
    """
    path = Path(path)
    data = page_data(records, path)
    data |= {"title": title, "verdicts": asdict(verdicts) if verdicts else None, "reloadSeconds": reload_seconds}
    text = html.document(title, '<div id="app"></div>', data=data, scripts=SCRIPTS, styles=["compare/compare.css"])
    html.write_document(path, text)
    return path


def page_data(records: Sequence[RunRecord], path: Path) -> dict[str, Any]:
    """What the page at `path` shows, as plain values; numbers are those of the runs' files."""
    labels = list(dict.fromkeys(record.group for record in records))
    metrics = metric_names(records)
    keys = differing_keys(records)
    shared = shared_config(records)
    curves = _curves(records, metrics)
    samples = _samples(records)
    seconds = [record.seconds() for record in records]
    foreseen = [_forecast(record.folder) for record in records]
    flops = [_flops_per_token(record, forecast) for record, forecast in zip(records, foreseen, strict=True)]
    judged = [name for name in metrics if not name.startswith(("train/", "perf/"))]
    main = next((name for name in (*FIRST_METRICS, *judged, *metrics) if name in metrics), None)
    found = {}
    for metric in [name for name in (*judged, *(["train/loss"] if not judged else [])) if name in metrics][:12]:
        values, reason = importances(records, keys, metric)
        found[metric] = {"values": values, "reason": reason}
    return {
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "groups": labels,
        "metrics": metrics,
        "judged": judged,  # measured in an evaluation
        "mainMetric": main,
        "higherIsBetter": [name for name in metrics if higher_is_better(name)],
        "keys": [key_facts(records, key) for key in keys],
        "config": shared,
        "importance": found,
        "runs": [
            {
                "name": record.name,
                "href": html.link(record.folder, path) + "/",
                "folder": str(record.folder),
                "state": record.state,
                "seed": record.seed,
                "group": labels.index(record.group),
                "steps": record.steps,
                "tokens": record.tokens,
                "seconds": record.summary.get("seconds", seconds[i][-1] if seconds[i] else None),
                "flops": None if (per_token := flops[i]) is None else per_token * record.tokens,
                "flopsPerToken": flops[i],
                "parameters": record.summary.get("parameters"),
                "clock": _clock(record, seconds[i]),
                "config": {key: value for key, value in record.config.items() if key not in shared},
                "last": {name: value for name in metrics if (value := record.last(name)) is not None},
                "best": {name: value for name in judged if (value := record.best(name)) is not None},
                "bestStep": {name: step for name in judged if (step := _best_step(record, name)) is not None},
                "curves": {name: packed(curves[i, name]) for name in metrics if (i, name) in curves},
                "samples": [[one.step, one.losses, one.text] for one in samples[i]],
                "forecast": foreseen[i],
            }
            for i, record in enumerate(records)
        ],
    }


def metric_names(records: Iterable[RunRecord]) -> list[str]:
    """The metrics that any run measured, those by which runs are judged first."""
    seen = dict.fromkeys(
        name for record in records for name, values in record.rows.items() if any(v is not None for v in values)
    )
    there = [name for name in seen if name not in ("step", "tokens")]
    order = {"val": 0, "val_part": 0, "test": 1, "train": 4, "perf": 5}
    rest = sorted(there, key=lambda name: order.get(name.split("/")[0], 2))
    return [name for name in FIRST_METRICS if name in seen] + [name for name in rest if name not in FIRST_METRICS]


def shared_config(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The config keys that all runs have with one value."""
    if not records:
        return {}
    first, *others = (record.config for record in records)
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def key_facts(records: Sequence[RunRecord], key: str) -> dict[str, Any]:
    """How a config key is drawn: as a number, on a logarithmic axis where it spans decades, or by its values."""
    values = [record.config[key] for record in records if record.config.get(key) is not None]
    numeric = len(values) > 0 and are_numbers(values)
    return {"key": key, "numeric": numeric, "log": numeric and spans_decades(values)}


def _curves(records: Sequence[RunRecord], metrics: Sequence[str]) -> dict[tuple[int, str], Curve]:
    full: dict[tuple[int, str], Curve] = {}
    for i, record in enumerate(records):
        for name in metrics:
            found = curve(record.rows["step"], record.rows[name]) if name in record.rows else None
            if found is not None and found.n_measured:
                # Of what barely changes, such as a learning rate, few points draw the same line.
                short = without_straight(found)
                full[i, name] = short if len(short.steps) < 0.7 * found.n_measured else found
    weights = {key: MAIN_WEIGHT if key[1].endswith("/loss") else 1.0 for key in full}
    return budgeted(full, weights, CURVES_BYTES)


def _flops_per_token(record: RunRecord, forecast: Mapping[str, Any] | None) -> float | None:
    """Training FLOPs of a target token; of a run that has not ended as its forecast has them."""
    if record.flops_per_token is not None or forecast is None:
        return record.flops_per_token
    planned, tokens = forecast["before"].get("flops"), forecast["before"].get("tokens")
    return planned / tokens if planned and tokens else None


def _clock(record: RunRecord, seconds: Sequence[float | None]) -> dict[str, Any] | None:
    """Tokens and seconds at a few steps, between which both grow evenly; None for a run without steps."""
    steps = record.rows["step"]
    if not steps:
        return None
    clock = {"tokens": _knots(steps, record.rows["tokens"])}
    if seconds[-1] is not None:
        clock["seconds"] = _knots(steps, seconds)
    return clock


def _knots(steps: Sequence[int], values: Sequence[Any]) -> list[list[float]]:
    """A rising line as the steps and values at its bends, beginning at zero."""
    line = Curve(np.array([0, *steps], dtype=np.int64), np.array([0.0, *values], dtype=np.float64), len(steps) + 1)
    line = without_straight(line, tolerance=1e-3)
    while len(line.steps) > 60:
        line = Curve(np.append(line.steps[:-1:2], line.steps[-1]), np.append(line.values[:-1:2], line.values[-1]), 0)
    return [line.steps.tolist(), [float(f"{value:.7g}") for value in line.values.tolist()]]


def _best_step(record: RunRecord, metric: str) -> int | None:
    best, values = record.best(metric), record.rows.get(metric, [])
    return record.rows["step"][values.index(best)] if best in values else None


def _samples(records: Sequence[RunRecord]) -> list[list[Sample]]:
    """The samples that the page shows: of each run the last, and as many before, evenly, as there is room for."""
    room = SAMPLES_BYTES // max(1, len(records))
    found = []
    for record in records:
        there = [_shortened(sample, min(SAMPLE_CHARACTERS, max(200, room))) for sample in read_samples(record.folder)]
        size = sum(len(sample.text.encode("utf-8", "replace")) + 60 for sample in there) or 1
        n = max(1, int(len(there) * min(1.0, room / size)))
        places = {len(there) - 1 - round(i * (len(there) - 1) / max(1, n - 1)) for i in range(n)} if there else set()
        found.append([there[place] for place in sorted(places)])
    return found


def _shortened(sample: Sample, n: int) -> Sample:
    if len(sample.text) <= n:
        return sample
    return Sample(sample.step, sample.losses, f"{sample.text[:n]}\n[{len(sample.text) - n:,} more characters]")


def _forecast(folder: Path) -> dict[str, Any] | None:
    """What the run forecast and what came out; None where it wrote no forecast, or is writing it just now."""
    found = forecasts.read(folder)
    if found is None:
        return None
    return {
        "before": found["before"],
        "loss": found["loss"],
        "outcome": found.get("outcome"),
        "fifth": forecasts.after_a_fifth(found),
        "errors": asdict(forecasts.errors_of(found)),
    }
