"""Runs and tables as the observations that a scaling law is fitted to, and what a fit says of them as text."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.errors import UserError
from gptlab.fields import bounded
from gptlab.lab.collect import RunRecord, collect, differing_keys, identity
from gptlab.lab.scaling_law import (
    BIAS_SOURCE,
    Interval,
    IsoFlops,
    LawForm,
    Observations,
    ParameterCount,
    ScalingLaw,
    check_values,
    fit_law,
)
from gptlab.units import count_text, grid, plural

# Names by which the columns of a table are found, in any case.
COLUMN_NAMES = {
    "parameters": ("parameters", "params", "n", "model size", "n_params", "num_params"),
    "tokens": ("tokens", "d", "training tokens", "n_tokens", "train_tokens"),
    "flops": ("flops", "c", "training flop", "training flops", "compute"),
    "loss": ("loss", "val/loss", "val_loss", "l"),
}
OF_VOCABULARY = ("embedding", "position", "head")  # parts that non_embedding leaves out, as arXiv:2001.08361 does


def count_of(counts: Mapping[str, int], which: ParameterCount) -> int:
    """The count N among those of `costs.parameter_counts`."""
    if which is ParameterCount.non_embedding:
        return counts["total"] - sum(counts.get(part, 0) for part in OF_VOCABULARY)
    return counts[which.value]


@dataclass(kw_only=True, slots=True)
class FitConfig:
    """How a law is fitted to runs or to a table."""

    form: LawForm = LawForm.sum
    parameters: ParameterCount = ParameterCount.total
    metric: str = "val/loss"
    min_tokens_per_parameter: float = bounded(0.0, ge=0, lt=math.inf)
    delta: float = bounded(1e-3, gt=0, lt=math.inf)
    bootstrap: int = bounded(1000, ge=2)
    seed: int = 0
    parameters_column: str | None = None
    tokens_column: str | None = None
    flops_column: str | None = None
    loss_column: str | None = None


def observe(sources: Sequence[str | Path], settings: FitConfig) -> tuple[Observations, list[str]]:
    """The runs of folders and globs, or the rows of one CSV file, and what was left out of them and why.

    UserError where they cannot be compared by one law.
    """
    tables = [source for source in map(_path, sources) if source.is_file()]
    if tables and len(sources) > 1:
        raise UserError(f"{tables[0]} is a table, which is fitted alone; leave out the others, or put them in it")
    if tables:
        if settings.metric != "val/loss":
            raise UserError(f"metric={settings.metric} is of runs; name a column of {tables[0]} with loss_column=NAME")
        return _with_tokens_enough(_of_table(tables[0], settings), settings, [])
    for option in ("parameters_column", "tokens_column", "flops_column", "loss_column"):
        if getattr(settings, option) is not None:
            raise UserError(f"{option}= is of a CSV file, and {sources[0]} holds runs; leave it out")
    return observe_runs(collect(sources), settings)


def _with_tokens_enough(found: Observations, settings: FitConfig, notes: list[str]) -> tuple[Observations, list[str]]:
    """Those of at least `min_tokens_per_parameter`, and a note of the others; UserError for what is no number."""
    check_values(found)  # before the filter, which would drop NaN for another reason
    kept = found.tokens >= settings.min_tokens_per_parameter * found.parameters
    if kept.all():
        return found, notes
    said = (
        f"{plural(int((~kept).sum()), 'run')} of fewer than min_tokens_per_parameter="
        f"{settings.min_tokens_per_parameter:g} left out"
    )
    return found.only(kept), [*notes, said]


def fit_scaling_law(
    sources: str | Path | Sequence[str | Path], settings: FitConfig | None = None, *, progress: bool = False
) -> ScalingLaw:
    """Fit a law to run folders and globs, or to a CSV file with columns for parameters, tokens or FLOPs, and loss.

    UserError where they cannot be compared by one law or do not determine it.
    """
    settings = settings or FitConfig()
    sources = [sources] if isinstance(sources, str | Path) else sources
    found, notes = observe(sources, settings)
    return fit_observations(found, settings, notes, progress=progress)


def fit_observations(
    found: Observations, settings: FitConfig, notes: Sequence[str] = (), *, progress: bool = False
) -> ScalingLaw:
    """Fit a law to what was observed; `notes` come before those of the fit."""
    law = fit_law(
        found.parameters,
        found.tokens,
        found.losses,
        flops=found.flops,
        names=found.names,
        counted=settings.parameters.value,
        form=settings.form,
        delta=settings.delta,
        n_bootstrap=settings.bootstrap,
        seed=settings.seed,
        progress=progress,
    )
    object.__setattr__(law, "notes", (*notes, *law.notes))
    return law


def observe_runs(records: Sequence[RunRecord], settings: FitConfig) -> tuple[Observations, list[str]]:
    """What finished runs show, and which were left out; UserError where the runs learned different texts."""
    notes = []
    finished = [record for record in records if record.state == "finished"]
    if left := [record for record in records if record.state != "finished"]:
        notes.append(f"left out: {', '.join(f'{record.name} ({record.standing()})' for record in left)}")
    if not finished:
        raise UserError("none of these runs has finished; a law is fitted to finished runs")
    finished, again = _without_repeats(finished)
    if again:
        notes.append(f"left out: {', '.join(f'{name} (the same run as {first})' for name, first in again.items())}")
    texts = [key for key in differing_keys(finished) if key.startswith(("data.", "tokenizer.", "objective."))]
    of_text = [key for key in texts if not key.startswith("tokenizer.")] if "per_byte" in settings.metric else texts
    if of_text:
        raise UserError(
            f"the runs differ in {', '.join(of_text[:3])}, so that their losses do not lie on one law; name those of "
            "one text, tokenizer and objective"
        )
    rows = []
    for record in finished:
        loss = record.last(settings.metric)
        if loss is None:
            known = sorted(name for name in record.rows if name.endswith("loss"))
            raise UserError(f"{record.name} has no {settings.metric}; use metric= with one of {', '.join(known)}")
        rows.append((_count(record, settings.parameters), record.tokens, loss, record.flops))
    parameters, tokens, losses, flops = zip(*rows, strict=True)
    counted = all(value is not None for value in flops)
    found = Observations(
        *(np.array(values, float) for values in (parameters, tokens, losses)),
        names=tuple(record.name for record in finished),
        flops=np.array(flops, float) if counted else None,
    )
    return _with_tokens_enough(found, settings, notes)


def _without_repeats(records: Sequence[RunRecord]) -> tuple[list[RunRecord], dict[str, str]]:
    """Each run once, and of the others, as a reproduction, the name by that of the run that it repeats."""
    first: dict[tuple, RunRecord] = {}
    again = {}
    for record in records:
        same = first.setdefault(identity(record), record)
        if same is not record:
            again[record.name] = same.name
    return list(first.values()), again


def _count(record: RunRecord, which: ParameterCount) -> int:
    total = record.summary["parameters"]
    if which is ParameterCount.total:
        return total
    from gptlab.costs import parameter_counts
    from gptlab.models.build import shape_model
    from gptlab.runs.run import Run

    run = Run(record.folder)
    vocab_size = run.config.model.vocab_size or run.tokenizer.vocab_size
    return count_of(parameter_counts(shape_model(run.config.model, vocab_size, run.config.n_class)), which)


def _path(source: str | Path) -> Path:
    return Path(source).expanduser()


def _of_table(path: Path, settings: FitConfig) -> Observations:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a CSV file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: the byte at {error.start:,}; name a CSV file") from None
    # Lines of comment may come first; a row is named by its line in the file.
    lines = text.splitlines(keepends=True)
    n_comment = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    reader = csv.DictReader(io.StringIO("".join(lines[n_comment:])))
    numbered = [(n_comment + reader.line_num, row) for row in reader]
    rows, places = [row for _, row in numbered], [place for place, _ in numbered]
    for place, row in numbered:
        if None in row:  # where DictReader puts the cells that no column has
            raise UserError(
                f"{path}: line {place} has more cells than the line that names the columns; delete the rest"
            )
    if not rows:
        raise UserError(f"{path} has no rows below its first line, which names the columns")
    names = list(reader.fieldnames or ())
    if twice := [name for name in names if name.strip() and names.count(name) > 1]:
        raise UserError(f"{path} has several columns {twice[0]}; rename all but one")
    chosen = {kind: _column(names, kind, getattr(settings, f"{kind}_column"), path) for kind in COLUMN_NAMES}
    if chosen["loss"] is None or [chosen[kind] for kind in ("parameters", "tokens", "flops")].count(None) > 1:
        needed = "loss and two of parameters, tokens and flops"
        found = ", ".join(f"{kind}: {name}" for kind, name in chosen.items() if name is not None) or "none of them"
        raise UserError(
            f"{path} needs columns for {needed}; found {found} among {', '.join(map(str, names))}; name the others, as "
            "tokens_column=NAME"
        )
    values = {kind: _numbers(rows, places, name, path) for kind, name in chosen.items() if name is not None}
    if "tokens" not in values:
        values["tokens"] = values["flops"] / (6 * values["parameters"])
        del values["flops"]
    if "parameters" not in values:
        values["parameters"] = values["flops"] / (6 * values["tokens"])
        del values["flops"]
    return Observations(
        values["parameters"],
        values["tokens"],
        values["loss"],
        tuple(f"line {place}" for place in places),
        values.get("flops"),
    )


def _column(names: Sequence[str], kind: str, asked: str | None, path: Path) -> str | None:
    if asked is not None:
        if asked not in names:
            raise UserError(f"{path} has no column {asked}; {kind}_column= has to be one of {', '.join(names)}")
        return asked
    found = [name for name in names if name and name.strip().lower() in COLUMN_NAMES[kind]]
    if len(found) > 1:
        raise UserError(f"{path} has {' and '.join(found)}; say which it is with {kind}_column={found[0]}")
    return found[0] if found else None


def _numbers(rows: Sequence[Mapping[str, str]], places: Sequence[int], name: str, path: Path) -> np.ndarray:
    found = []
    for place, row in zip(places, rows, strict=True):
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = math.nan
        if not 0 < value < math.inf:
            said = "nothing" if row[name] is None else repr(row[name])
            raise UserError(f"{path}: line {place} has {said} as {name}; give a number above 0, or delete the line")
        found.append(value)
    return np.array(found)


def text(law: ScalingLaw, iso: IsoFlops, budgets: Sequence[float]) -> str:
    """The law as a person reads it: constants, frontier, the optimum of each budget in FLOPs, isoFLOP profiles."""
    errors = law.standard_errors
    rows = [
        [name, _digits(one.value), f"{_digits(one.low)} to {_digits(one.high)}", _digits(errors[name])]
        for name, one in law.constants.items()
    ]
    runs = law.observations
    lines = [
        f"{law.form.formula}, fitted to {plural(len(runs), 'run')}: N {_range(runs.parameters)} "
        f"({law.counted} parameters), D {_range(runs.tokens)} tokens",
        "",
        grid(["", "value", "95% interval", "standard error"], rows),
        "",
        f"the runs scatter about the law by {law.spread:.2%}",
    ]
    n, d = law.exponents["parameters"], law.exponents["tokens"]
    lines.append(f"compute-optimal N grows as C^{_interval(n)}, D as C^{_interval(d)} by C = 6 N D")
    lines += ["", optima(law, budgets), "", _isoflops(law, iso)]
    lines += [f"note: {note}" for note in law.notes]
    return "\n".join(lines)


def optima(law: ScalingLaw, budgets: Sequence[float], flops_per_token: tuple[float, float] | None = None) -> str:
    """A table of the compute-optimal size, tokens and loss of each budget in FLOPs."""
    rows = []
    for budget in budgets:
        best = law.optimum(budget, flops_per_token)
        ends = [f"{count_text(one.low)} to {count_text(one.high)}" for one in (best.parameters, best.tokens)]
        n, d, loss = best.parameters.value, best.tokens.value, best.loss
        rows.append(
            [
                f"{budget:.3g}",
                *(count_text(n), ends[0], count_text(d), ends[1], f"{d / n:.3g}"),
                *(f"{loss.value:.4f}", f"{loss.low:.4f} to {loss.high:.4f}"),
            ]
        )
    head = ["FLOPs", "optimal N", "95% interval", "optimal D", "95% interval", "D / N", "loss", "95% interval"]
    factor, exponent = flops_per_token or law.flops_per_token
    cost = "C = 6 N D" if (factor, exponent) == (6, 1) else f"FLOPs per token = {factor:.3g} N^{exponent:.3f}"
    return f"{grid(head, rows)}\nby {cost}"


def bias_text(iso: IsoFlops) -> str:
    """What is known of the bias of isoFLOP parabolas, with its size at these runs."""
    said = f"isoFLOP parabolas are biased even without noise ({BIAS_SOURCE})"
    if iso.bias is None:
        return said
    slope = "" if iso.exponent_bias is None else f", and of the exponent by {iso.exponent_bias:+.3f}"
    return f"{said}: of this law's own losses at these runs they miss the optimal size by up to {iso.bias:+.0%}{slope}"


def _isoflops(law: ScalingLaw, iso: IsoFlops) -> str:
    if not iso.profiles:
        return "no isoFLOP profiles: no budget was trained with four sizes or more at the same FLOPs"
    rows = [
        [
            f"{one.flops:.3g}",
            str(len(one.runs)),
            count_text(one.parameters) if one.inside else "beyond the sizes",
            count_text(law.optimum(one.flops).parameters.value),
        ]
        for one in iso.profiles
    ]
    lines = [grid(["isoFLOP profile", "runs", "N at the parabola's minimum", "N by the law"], rows)]
    if iso.exponent is not None:
        lines.append(f"through the minima: N grows as C^{iso.exponent:.3f}")
    return "\n".join([*lines, bias_text(iso)])


def _interval(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _digits(value: float) -> str:
    return f"{value:,.4g}" if value < 1e5 else f"{value:.3g}"


def _range(values: np.ndarray) -> str:
    return f"{count_text(values.min())} to {count_text(values.max())}"


def default_budgets(law: ScalingLaw) -> list[float]:
    """The largest budget of the runs, and ten and a hundred times it."""
    largest = float(law.observations.compute.max())
    return [largest, 10 * largest, 100 * largest]
