"""Runs side by side: what differs, what came out, and whether a difference is more than the seeds'."""

import hashlib
import math
import re
import statistics as python_statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gptlab.errors import UserError, did_you_mean
from gptlab.evaluation.config import EVALUATIONS, PREFIX
from gptlab.fields import shown
from gptlab.files import sha256_of
from gptlab.lab.collect import (
    RunRecord,
    collect,
    differing_keys,
    evaluation_options,
    groups,
    higher_is_better,
    told_apart,
)
from gptlab.lab.statistics import Comparison, Verdict, compare_all, refused
from gptlab.runs import forecasts
from gptlab.runs.forecasts import ForecastErrors
from gptlab.units import duration, flops_text, grid, plural

DEFAULT_EFFECT = 0.01  # nats, bits per byte or a part of an accuracy
MAX_WIDTH = 72  # characters of config keys in a table; more are told in one of their own
MAX_COLUMNS = 8  # groups in that one
MAX_IN_NAME = 2  # config keys in what a group is called; with more it has a letter
MAX_LETTERS = 26
MAX_METRICS = 4  # columns of them in a table, and as many of evaluations during training
MAX_SOURCES = 4  # of a mixture, whose losses a table shows
PER_TOKEN = ("loss", "perplexity")  # ends of the names of metrics whose unit depends on the tokenizer
# The main numbers of an evaluation during training: not those of its parts, and bits per byte instead of a loss.
OF_EVALUATION = re.compile(rf"{PREFIX}[^/]+/(?:\d+_shot/)?(?:bits_per_byte|loss|accuracy|exact_match)")
SPLIT_KEYS = ("split", "val_fraction", "test_fraction", "prompt", "response", "label_column", "class_names")


class At(Enum):
    """Which value of a metric stands for a run."""

    last = "last"
    best = "best"


@dataclass(frozen=True, slots=True)
class Summary:
    """A metric over the seeds of a group."""

    mean: float
    deviation: float | None  # of the sample; None of one value
    n: int

    def text(self) -> str:
        """As `1.8857 ± 0.0021`."""
        return f"{self.mean:.4f}" if self.deviation is None else f"{self.mean:.4f} ± {self.deviation:.4f}"


@dataclass(frozen=True)
class RunComparison:
    """Runs that were collected, and what the finished ones show of each other."""

    records: list[RunRecord]
    metric: str
    at: At
    baseline: str  # the label of the group that the others are compared with
    comparisons: dict[str, Comparison]  # by the label of each other group
    notes: list[str] = field(default_factory=list)

    @cached_property
    def groups(self) -> dict[str, list[RunRecord]]:
        """All runs by the label of their group."""
        return groups(self.records)

    @cached_property
    def keys(self) -> list[str]:
        """The config keys in which the groups differ."""
        return differing_keys(self.records)

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics of an evaluation that a table shows: the one that is compared first."""
        names = dict.fromkeys(name for record in self.records for name in (*record.rows, *record.summary))
        during = [
            n for n in names if OF_EVALUATION.fullmatch(n) and f"{n.removesuffix('loss')}bits_per_byte" not in names
        ]
        shown_too = [n for n in names if n.startswith(("val/", "test/")) and not n.endswith("perplexity")]
        # Of a mixture the loss of each source; of the whole all but losses, which are the metric or parts of it.
        of_sources = [n for n in shown_too if n.startswith("val/") and n.count("/") == 2 and n.endswith("/loss")]
        whole = [n for n in shown_too if n.count("/") == 1 and (not n.endswith("loss") or n == "test/loss")]
        found = list(dict.fromkeys([self.metric, *whole]))[:MAX_METRICS]
        sources = [name for name in of_sources if name != self.metric][:MAX_SOURCES]
        return list(dict.fromkeys([*found, *sources, *during[:MAX_METRICS]]))

    def over_seeds(self, label: str, metric: str, at: At = At.last) -> Summary | None:
        """A metric's mean and deviation over the finished runs of a group; None where it has none."""
        values = [v for r in self.groups[label] if r.is_finished and (v := value_of(r, metric, at)) is not None]
        if not values:
            return None
        deviation = python_statistics.stdev(values) if len(values) > 1 else None
        return Summary(python_statistics.fmean(values), deviation, len(values))

    @cached_property
    def names(self) -> dict[str, str]:
        """What each group is called on the screen: the values that differ, or a letter where these are many."""
        if self._has_letters:
            return {label: chr(ord("A") + i) for i, label in enumerate(self.groups)}
        if not self.keys:
            return {label: label for label in self.groups}
        short = _short(self.keys)
        return {
            label: ", ".join(f"{key}={value}" for key, value in zip(short, self._values(runs[0]), strict=True))
            for label, runs in self.groups.items()
        }

    @cached_property
    def _has_letters(self) -> bool:
        return 1 < len(self.groups) <= MAX_LETTERS and (len(self.keys) > MAX_IN_NAME or self._is_wide)

    @cached_property
    def _is_wide(self) -> bool:
        cells = [_short(self.keys), *(self._values(records[0]) for records in self.groups.values())]
        width = sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True))
        return 1 < len(self.groups) <= MAX_COLUMNS and width > MAX_WIDTH

    def _values(self, record: RunRecord) -> list[str]:
        return [shown(record.config[key]) if key in record.config else "-" for key in self.keys]

    def differences(self) -> str:
        """A line for each config key that differs, with its value in each group."""
        rows = zip(self.keys, *(self._values(records[0]) for records in self.groups.values()), strict=True)
        return grid(["", *self.names.values()], list(rows))

    def table(self, *, by_run: bool = False, best_first: bool = False) -> str:
        """A line for each group, or each run, with what differs, its metrics, tokens, time and FLOPs."""
        named = self._has_letters or not self.keys
        header = ["group"] if named else []
        what = {label: [name] if named else [] for label, name in self.names.items()}
        if self.keys and not self._is_wide:
            header += _short(self.keys)
            what = {label: [*cells, *self._values(self.groups[label][0])] for label, cells in what.items()}
        n_left = len(header) + by_run
        header = [*(["run"] * by_run), *header, "state" if by_run else "n"]
        header += [self.metric, f"best {self.metric}", *self.metrics[1:], "tokens", "time", "compute"]
        rows = []
        for label, records in self._ordered(best_first):
            if by_run:
                rows += [[r.name, *what[label], r.state, *self._cells([r])] for r in records]
            else:
                counted = [record for record in records if self._counts(record)]
                rows.append([*what[label], str(len(counted)), *self._cells(counted)])
        there = [i for i in range(len(header)) if i <= n_left or any(row[i] != "-" for row in rows)]
        return grid([header[i] for i in there], [[row[i] for i in there] for row in rows], n_left=n_left)

    def _counts(self, record: RunRecord) -> bool:
        """Whether a run enters the figures: it is finished, with a finite value of the metric."""
        return record.is_finished and value_of(record, self.metric, self.at) is not None

    def _ordered(self, best_first: bool) -> list[tuple[str, list[RunRecord]]]:
        found = list(self.groups.items())
        if best_first:
            sign = -1 if higher_is_better(self.metric) else 1
            means = {label: self.over_seeds(label, self.metric, self.at) for label in self.groups}
            found.sort(key=lambda item: math.inf if (mean := means[item[0]]) is None else sign * mean.mean)
        return found

    def _cells(self, records: list[RunRecord]) -> list[str]:
        cells = []
        for name, at in ((self.metric, At.last), (self.metric, At.best), *((m, At.last) for m in self.metrics[1:])):
            values = [v for record in records if (v := value_of(record, name, at)) is not None]
            deviation = python_statistics.stdev(values) if len(values) > 1 else None
            cells.append(Summary(python_statistics.fmean(values), deviation, len(values)).text() if values else "-")
        tokens = [record.tokens for record in records]
        seconds = [s for record in records if (s := record.summary.get("seconds")) is not None]
        flops = [f for record in records if (f := record.flops) is not None]
        cells.append(f"{python_statistics.fmean(tokens):,.0f}" if tokens else "-")
        cells.append(duration(python_statistics.fmean(seconds)) if seconds else "-")
        cells.append(flops_text(python_statistics.fmean(flops)) if flops else "-")
        return cells

    def sentences(self) -> list[str]:
        """What the groups show of the baseline, a line for each."""
        if not self.comparisons:
            return []
        found = self.comparisons
        if len(found) > 2 and all(one.verdict is Verdict.too_few for one in found.values()):
            return [
                "one seed of each or fewer: nothing says how much of a difference is the seed; train what matters with "
                "seed=1,2,3,4,5,6 or more"
            ]
        width = max(len(self.names[label]) for label in found)
        return [f"{self.names[label]:<{width}}  {comparison.sentence}" for label, comparison in found.items()]

    @cached_property
    def forecast_errors(self) -> dict[str, ForecastErrors]:
        """How far the forecasts of each run that finished were off, by its name; relative."""
        found = {record.name: forecasts.read(record.folder) for record in self.records if record.is_finished}
        return {name: forecasts.errors_of(one) for name, one in found.items() if one is not None and "outcome" in one}

    def forecast_lines(self) -> list[str]:
        """The errors of forecasts over all runs, a line for each quantity."""
        errors, lines = list(self.forecast_errors.values()), []
        for name, what in (
            ("loss", "final loss, after a fifth of the run"),
            ("seconds", "time, after a fifth of the run"),
            ("seconds_before", "time, before the first step"),
            ("memory", "memory, before the first step"),
        ):
            off = [abs(error) for one in errors if (error := getattr(one, name)) is not None]
            if off:
                lines.append(
                    f"{what}: off by {python_statistics.median(off):.1%} at the median of {plural(len(off), 'run')}"
                )
        held = [one.held for one in errors if one.held is not None]
        if held:
            lines.append(f"80% intervals of the final loss: {sum(held)} of {len(held)} held it")
        return lines

    def text(self, *, by_run: bool = False, best_first: bool = False) -> str:
        """All of it for a person."""
        lines = [self.differences(), ""] if self._is_wide else []
        lines.append(self.table(by_run=by_run, best_first=best_first))
        outside = [record for record in self.records if not self._counts(record)]
        if outside and not by_run:
            lines += [
                "",
                "not in these figures:",
                *(f"    {record.name}: {self._standing(record)}" for record in outside),
            ]
        sentences = self.sentences()
        if sentences:
            better = "higher" if higher_is_better(self.metric) else "lower"
            which = "last" if self.at is At.last else "best"
            lines += ["", f"{self.metric} against {self.names[self.baseline]} ({which} values, {better} is better):"]
            lines += [f"    {sentence}" for sentence in sentences]
        if self.forecast_lines():
            lines += ["", "forecasts:", *(f"    {line}" for line in self.forecast_lines())]
        lines += [""] * bool(self.notes) + [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _standing(self, record: RunRecord) -> str:
        """Why a run is not in the figures."""
        return f"{record.standing()}, {_lacks(record, self.metric)}" if record.is_finished else record.standing()

    def plain(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        found = {
            "metric": self.metric,
            "at": self.at.value,
            "baseline": self.baseline,
            "differs": self.keys,
            "groups": [self._group(label, records) for label, records in self.groups.items()],
            "comparisons": [{"group": label, **one.plain()} for label, one in self.comparisons.items()],
            "forecast_errors": {name: asdict(one) for name, one in self.forecast_errors.items()},
            "notes": self.notes,
        }
        return _finite(found)

    def _group(self, label: str, records: list[RunRecord]) -> dict[str, Any]:
        metrics = {}
        for name in self.metrics:
            last, best = self.over_seeds(label, name), self.over_seeds(label, name, At.best)
            if last is not None and best is not None:
                metrics[name] = {"mean": last.mean, "deviation": last.deviation, "n": last.n, "best_mean": best.mean}
        return {
            "group": label,
            "differs": {key: records[0].config[key] for key in self.keys if key in records[0].config},
            "metrics": metrics,
            "runs": [self._run(record) for record in records],
        }

    def _run(self, record: RunRecord) -> dict[str, Any]:
        return {
            "name": record.name,
            "folder": str(record.folder),
            "state": record.state,
            "error": record.error,
            "seed": record.seed,
            "steps": record.steps,
            "tokens": record.tokens,
            "seconds": record.summary.get("seconds"),
            "flops": record.flops,
            "last": {name: record.last(name) for name in self.metrics},
            "best": {name: record.best(name) for name in self.metrics},
        }


def compare(
    runs: str | Path | Iterable[str | Path],
    *,
    metric: str | None = None,
    at: str | At = At.last,
    baseline: str | None = None,
    effect: float = DEFAULT_EFFECT,
) -> RunComparison:
    """Compare the runs in folders, globs and sweeps; a group of seeds is what differs in nothing else.

    `metric` is val/loss unless given, or val/bits_per_byte where tokenizers differ; `at` says whether a run's last or
    best value counts; `baseline` is a group, by its label or by what a table calls it, or the name of one of its runs,
    or the folder of one or several, the first group unless given; `effect` is the smallest difference that matters.
    UserError for what holds no run, where no run is finished, and for a metric that no run has.
    """
    return compare_records(
        collect([runs] if isinstance(runs, str | Path) else runs),
        metric=metric,
        at=at,
        baseline=baseline,
        effect=effect,
    )


def compare_records(
    records: list[RunRecord],
    *,
    metric: str | None = None,
    at: str | At = At.last,
    baseline: str | None = None,
    effect: float = DEFAULT_EFFECT,
) -> RunComparison:
    """The same of runs that were collected."""
    at = At(at)
    finished = [record for record in records if record.is_finished]
    if not finished:
        what = "the run is not" if len(records) == 1 else f"none of {plural(len(records), 'run')} is"
        raise UserError(
            f"{what} finished: "
            + "; ".join(f"{record.name} is {record.standing()}" for record in records[:5])
            + (f" and {len(records) - 5} more" if len(records) > 5 else "")
            + "; the command that started a run continues it"
        )
    known = list(dict.fromkeys(name for record in finished for name in _metrics_of(record)))
    notes: list[str] = []
    chosen = metric or _choose(finished, known, notes)
    if chosen not in known:
        raise UserError(f"metric={chosen} is a metric of none of these runs{did_you_mean(chosen, known)}")
    evaluation = _evaluation(chosen)
    if evaluation is not None:
        records = told_apart(records, evaluation)
        finished = [record for record in records if record.is_finished]
    by_label = groups(finished)
    result = RunComparison(records, chosen, at, "", {}, notes)
    if baseline is None:
        measured = (label for label, runs in by_label.items() if any(value_of(r, chosen, at) is not None for r in runs))
        first = next(measured, next(iter(by_label)))
    else:
        first = _group_named(baseline, result, list(by_label))
    result = replace(result, baseline=first)
    notes += [
        f"{record.name} is left out: {_lacks(record, chosen)}"
        for record in finished
        if value_of(record, chosen, at) is None and len(by_label) > 1
    ]
    if len(by_label) > 1:
        n_failed = {label: _n_failed(runs, chosen, at) for label, runs in groups(records).items()}
        result.comparisons.update(_compare_groups(by_label, first, chosen, at, effect, notes, n_failed))
    return result


def value_of(record: RunRecord, metric: str, at: At) -> float | None:
    """The value of a metric that stands for a run; None where there is none that is finite."""
    value = record.last(metric) if at is At.last else record.best(metric)
    return value if value is not None and math.isfinite(value) else None


def unit_of(metric: str) -> str:
    """What a metric is measured in; empty for parts and ratios."""
    if metric.endswith("loss"):
        return "nats"
    return "bits per byte" if metric.endswith("bits_per_byte") else ""


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of config keys, where they are unique."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return [last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)]


def _lacks(record: RunRecord, metric: str) -> str:
    """Why a finished run does not count."""
    value = record.last(metric)
    return f"it has no {metric}" if value is None else f"its {metric} is not finite"


def _n_failed(records: Sequence[RunRecord], metric: str, at: At) -> int:
    """The seeds of a group that no run brought to a finite value, since it failed or ended with none."""
    values = {record.seed for record in records if record.is_finished and value_of(record, metric, at) is not None}
    failed = {r.seed for r in records if r.state == "failed" or (r.is_finished and r.last(metric) is not None)}
    return len(failed - values)


def _compare_groups(
    by_label: dict[str, list[RunRecord]],
    baseline: str,
    metric: str,
    at: At,
    effect: float,
    notes: list[str],
    n_failed: Mapping[str, int],
) -> dict[str, Comparison]:
    learned = {record.folder: _learned(record) for records in by_label.values() for record in records}
    distinct = {label: _distinct(records, learned) for label, records in by_label.items()}
    repeated = sum(len(by_label[label]) - len(distinct[label]) for label in by_label)
    if repeated:
        notes.append(f"{plural(repeated, 'run')} bit-identical to another of the same group counted once")
    found: dict[str, Comparison] = {}
    values = {}
    for label, records in distinct.items():
        if label == baseline:
            continue
        reason = _incomparable(distinct[baseline], records, metric)
        if reason is not None:
            found[label] = refused(reason)
        elif _are_identical(by_label[baseline], by_label[label], learned):
            sentence = "no difference: the runs are bit-identical, so what differs in their configs changed nothing"
            found[label] = Comparison(Verdict.identical, sentence, difference=0.0)
        else:
            values[label] = _by_seed(records, metric, at, notes)
    tested = compare_all(
        _by_seed(distinct[baseline], metric, at, notes),
        values,
        effect=effect,
        unit=unit_of(metric),
        higher_is_better=higher_is_better(metric),
        n_failed={label: (n_failed[label], n_failed[baseline]) for label in values},
    )
    return {label: tested.get(label) or found[label] for label in by_label if label != baseline}


def _choose(records: list[RunRecord], known: list[str], notes: list[str]) -> str:
    """The metric that is compared unless the user names one."""
    if "val/loss" not in known:
        others = [name for name in known if name.endswith("/loss")]
        return others[0] if others else known[0] if known else "val/loss"
    has_bytes = all(record.last("val/bits_per_byte") is not None for record in records)
    if has_bytes and len({_tokenizer(record) for record in records}) > 1:
        notes.append("tokenizers differ, so bits per byte are compared, and not losses per token")
        return "val/bits_per_byte"
    return "val/loss"


def _incomparable(a: Sequence[RunRecord], b: Sequence[RunRecord], metric: str) -> str | None:
    """Why a metric of two groups may not be compared; None where it may."""
    measured = [[record for record in records if record.last(metric) is not None] for records in (a, b)]
    for there, records in zip(measured, (a, b), strict=True):
        if not there:
            has = [name for name in _metrics_of(records[0]) if name.startswith(("val", "test", PREFIX))]
            return f"{records[0].name} has no {metric}; it has {', '.join(has) or 'no validation metrics'}"
    one, other = (there[0] for there in measured)
    evaluation = _evaluation(metric)
    # What an evaluation during training measures has its own texts, whatever the run learns, and from what.
    reason = _other_task(one, other, metric) if evaluation is None else _other_evaluation(one, other, evaluation)
    if reason is not None:
        return reason
    if metric.endswith(PER_TOKEN) and None not in (of := [_tokenizer(one), _tokenizer(other)]) and of[0] != of[1]:
        return f"tokenizers differ, and {metric} is per token{_per_byte(one, other, metric)}"
    return None


def _other_task(one: RunRecord, other: RunRecord, metric: str) -> str | None:
    """Why a metric of the run's own objective means something else in another run; None where it does not."""
    kinds = [record.config.get("objective.type") for record in (one, other)]
    if kinds[0] != kinds[1]:
        return f"objectives differ ({kinds[0]} and {kinds[1]}), and {metric} means something else in each"
    if metric.endswith(PER_TOKEN):
        keys = {key for r in (one, other) for key in r.config if key.startswith("objective.")}
        changed = sorted(key for key in keys if one.config.get(key) != other.config.get(key))
        if changed:
            return f"{', '.join(changed)} differ, and {metric} means something else in each"
    if not metric.startswith("train/"):
        reason = _other_text(one, other, _source_of(metric)) or _other_shares(one, other, metric)
        if reason is not None:
            return reason
    limits = [record.config.get("trainer.limit_val_batches") for record in (one, other)]
    if metric.startswith("val_part/") and limits[0] != limits[1]:
        return f"trainer.limit_val_batches differs ({shown(limits[0])} and {shown(limits[1])})"
    return None


def _source_of(metric: str) -> str | None:
    """The source of a mixture that a metric is of, as in val/SOURCE/loss."""
    parts = metric.split("/")
    return parts[1] if len(parts) == 3 else None


def _other_shares(a: RunRecord, b: RunRecord, metric: str) -> str | None:
    """Why the mean over the sources of a mixture is another one in another run; None where it is not."""
    if _source_of(metric) is not None:
        return None
    instead = " or ".join(f"metric=val/{name}/loss" for name in _sources(a, b)[:2])
    start = f"{metric} is a mean by the shares of sources, which differ"
    shares: list[dict[str, float]] = [record.summary.get("shares") or {} for record in (a, b)]
    if all(shares):  # as they came out: with a schedule they depend on the budget
        if shares[0] == shares[1]:
            return None
        values = " and ".join(", ".join(f"{name} {share:.3g}" for name, share in one.items()) for one in shares)
        return f"{start} ({values}); use {instead}"
    keys = [f"data.{key}.{name}" for key in ("weights", "schedule") for name in _sources(a, b)]
    changed = [key for key in keys if a.config.get(key) != b.config.get(key)]
    if not changed:
        return None
    values = " and ".join(shown(record.config.get(changed[0])) for record in (a, b))
    return f"{start} ({changed[0]} is {values}); use {instead}"


def _sources(a: RunRecord, b: RunRecord) -> list[str]:
    """The sources of two runs on mixtures."""
    keys = [key.split(".") for record in (a, b) for key in record.config if key.startswith("data.sources.")]
    return list(dict.fromkeys(key[2] for key in keys))


def _other_text(a: RunRecord, b: RunRecord, source: str | None) -> str | None:
    """How the validation texts of two runs, or of one source, differ; None where they are the same, as far as can be
    told."""
    inputs = "data" if source is None else f"data.sources.{source}"
    for of_a, of_b in (
        (a.inputs.get(inputs), b.inputs.get(inputs)),
        (a.summary.get("corpus"), b.summary.get("corpus")),
    ):
        if of_a is not None and of_b is not None:
            if of_a != of_b:
                return f"validation texts differ ({_corpus(a)} and {_corpus(b)})"
            break
    owners = ["data", *(f"data.sources.{name}" for name in _sources(a, b) if source in (None, name))]
    for key in (f"{owner}.{key}" for owner in owners for key in SPLIT_KEYS):
        values = [record.config.get(key) for record in (a, b)]
        if values[0] != values[1]:
            return f"validation texts differ ({key} is {shown(values[0])} and {shown(values[1])})"
    return None


def _evaluation(metric: str) -> str | None:
    """The name of the evaluation during training that a metric is of; None for other metrics."""
    return metric.split("/")[1] if metric.startswith(PREFIX) else None


def _other_evaluation(a: RunRecord, b: RunRecord, name: str) -> str | None:
    """How an evaluation during training of this name differs between two runs; None where it is the same."""
    key = f"{EVALUATIONS}{name}"
    contents = [record.inputs.get(key) for record in (a, b)]
    if None not in contents and contents[0] == contents[1]:
        return None
    options = [evaluation_options(record, name) for record in (a, b)]
    changed = [option for option in dict.fromkeys((*options[0], *options[1])) if _differs(option, options)]
    if changed:
        said = "; ".join(
            f"{key}.{option} is {' and '.join(shown(of.get(option)) for of in options)}" for option in changed[:3]
        )
        return f"the evaluations of this name differ ({said})"
    if None in contents:
        return None  # of an older version, and the same as far as can be told
    return f"the texts of {key} differ (content {' and '.join(str(content)[:16] for content in contents)})"


def _differs(option: str, options: Sequence[Mapping[str, Any]]) -> bool:
    return options[0].get(option) != options[1].get(option)


def _per_byte(one: RunRecord, other: RunRecord, metric: str) -> str:
    """What to compare instead of a loss per token."""
    names = dict.fromkeys((f"{metric.rpartition('/')[0]}/bits_per_byte", "val/bits_per_byte"))
    there = [name for name in names if one.last(name) is not None and other.last(name) is not None]
    return f"; use metric={there[0]}" if there else ", and not both runs have bits per byte"


def _corpus(record: RunRecord) -> str:
    return record.summary.get("corpus") or f"content {record.inputs.get('data', '')[:16]}"


def _tokenizer(record: RunRecord) -> str | None:
    """What identifies a run's tokenizer; None where it is not known."""
    file = record.folder / "tokenizer.json"
    return sha256_of(file) if file.is_file() else record.inputs.get("tokenizer")


def _metrics_of(record: RunRecord) -> list[str]:
    return [
        name for name in dict.fromkeys((*record.rows, *record.summary)) if "/" in name and record.last(name) is not None
    ]


def _group_named(name: str, found: RunComparison, finished: Sequence[str]) -> str:
    """The label of the group that a baseline means; UserError where it is none of those with a `finished` run."""
    folder = Path(name).expanduser().resolve()
    inside = {record.group for record in found.records if folder in (record.folder, *record.folder.parents)}
    labels = {label: label for label in found.groups} | {short: label for label, short in found.names.items()}
    named = labels | {record.name: record.group for record in found.records if record.name not in labels}
    label = named.get(name, next(iter(inside)) if len(inside) == 1 else None)
    if label is None or label not in finished:
        what = "is no group of these runs, and no run or folder of them"
        if label is not None or inside:
            what = "has no finished run" if label is not None else f"holds runs of {len(inside)} groups"
        there = {label: short for label, short in found.names.items() if label in finished}
        known = [f"{short} ({label})" if found._has_letters else short for label, short in there.items()]
        raise UserError(f"baseline={name} {what}; groups: {'; '.join(known)}")
    return label


def _learned(record: RunRecord) -> str:
    """A hash of all that a run measured of its training, which two runs share only where they are bit-identical."""
    names = [name for name in record.rows if name.startswith("train/")] or [
        name for name in record.rows if not name.startswith("perf/")
    ]
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + np.array(record.rows[name], dtype=float).tobytes())  # None is NaN
    return digest.hexdigest()


def _distinct(records: Sequence[RunRecord], learned: Mapping[Path, str]) -> list[RunRecord]:
    return list({learned[record.folder]: record for record in reversed(records)}.values())[::-1]


def _are_identical(a: Sequence[RunRecord], b: Sequence[RunRecord], learned: Mapping[Path, str]) -> bool:
    of_a, of_b = ({record.seed: learned[record.folder] for record in records} for records in (a, b))
    shared = of_a.keys() & of_b.keys()
    return bool(shared) and all(of_a[seed] == of_b[seed] for seed in shared)


def _by_seed(records: Sequence[RunRecord], metric: str, at: At, notes: list[str]) -> dict[int, float]:
    """The value of each seed; of several runs with one seed, which are no more than one seed, their mean."""
    found: dict[int, list[float]] = {}
    for record in records:
        value = value_of(record, metric, at)
        if value is not None:
            found.setdefault(record.seed, []).append(value)
    several = [seed for seed, values in found.items() if len(values) > 1]
    if several:
        notes.append(f"of several runs of {records[0].group} with seed {several[0]} the mean counts")
    return {seed: python_statistics.fmean(values) for seed, values in found.items()}


def _finite(value: Any) -> Any:
    """NaN and infinities, which JSON has not, as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
