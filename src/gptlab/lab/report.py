"""What is left behind when runs are compared: the page, followed while they go on; a sweep's table and picture."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from gptlab.errors import UserError
from gptlab.lab.collect import RunRecord, collect, higher_is_better
from gptlab.lab.compare import RunComparison, compare_records
from gptlab.lab.page import Verdicts, metric_names, write_page
from gptlab.training.plot import OverlaidRun, plot_overlaid
from gptlab.units import plural

PAGE = "compare.html"
PICTURE = "loss.png"
BETWEEN_RUNS_SECONDS = 90  # a sweep may take to start its next trial


def page_path(path: str | Path, name: str = PAGE) -> Path:
    """Where a page is written: a file that ends in .html, or one called `name` in a folder; UserError otherwise."""
    if isinstance(path, str) and not path.strip():  # which Path takes for this folder
        raise UserError(f"html= is empty; name a file that ends in .html or a folder, such as html={name}")
    path = Path(path).expanduser()
    found = path / name if path.is_dir() else path
    if found.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"html={path} is no folder and does not end in .html; write html={path.with_suffix('.html')}")
    if not found.parent.is_dir():
        raise UserError(f"html={path} is in a folder that does not exist; create {found.parent}")
    return found


def verdicts(found: RunComparison) -> Verdicts:
    """What the page says of each group's difference from the baseline."""
    which = "higher" if higher_is_better(found.metric) else "lower"
    sentences = {label: one.sentence for label, one in found.comparisons.items()}
    notes = [f"note: {note}" for note in found.notes]
    if len(found.sentences()) != len(sentences):  # one for all of them
        sentences, notes = {}, [*found.sentences(), *notes]
    return Verdicts(found.metric, f"{found.at.value} values, {which} is better", found.baseline, sentences, notes)


def write_comparison(
    records: Sequence[RunRecord], path: Path, *, found: RunComparison | None = None, reload_seconds: float | None = None
) -> Path:
    """Write the page of these runs, with what `found` says of their differences; UserError where it cannot be."""
    records = records if found is None else found.records  # in the groups of that comparison
    names = sorted({record.folder.parent.name for record in records})
    title = plural(len(records), "run")
    title = title if len(names) != 1 else f"{names[0]}: {title}"
    said = verdicts(found) if found is not None else None
    try:
        return write_page(records, path, title=title, verdicts=said, reload_seconds=reload_seconds)
    except OSError as error:
        raise UserError(f"html={path} cannot be written ({error.strerror or error}); name another file") from error


def follow(
    read: Callable[[], list[RunRecord]],
    path: Path,
    *,
    every_seconds: float,
    waits: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Write the page again and again while runs go on, and once more when none does, or on Ctrl-C.

    `read` gives the runs as they are now, those that began meanwhile too. Where it finds none, as in the folder of a
    sweep that has just been started, it is asked again if `waits`; otherwise its UserError is raised.
    """
    seen_running = None
    said = ""
    try:
        while True:
            began = time.monotonic()
            try:
                records = read()
            except UserError:
                if not waits or said.endswith(f": {path}"):  # what was there is gone
                    raise
                if not said:
                    say(said := "no run yet; Ctrl-C ends the waiting")
                time.sleep(every_seconds)
                continue
            states = Counter(record.state for record in records)
            if states["running"]:
                seen_running = time.monotonic()
            goes_on = seen_running is not None and time.monotonic() - seen_running < BETWEEN_RUNS_SECONDS
            write_comparison(
                records, path, found=_comparison(records), reload_seconds=every_seconds if goes_on else None
            )
            line = f"{', '.join(f'{n} {state}' for state, n in states.items())}: {path}"
            if goes_on and not states["running"]:
                line = f"waiting {BETWEEN_RUNS_SECONDS} s for another run; {line}"
            if line != said:
                say(said := line)
            if not goes_on:
                return
            # Reading many long runs takes a while: it shall not fill the time.
            time.sleep(max(every_seconds, 2 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        if said.endswith(f": {path}"):
            records = read()
            write_comparison(records, path, found=_comparison(records))
        raise


def report_sweep(folder: str | Path, *, table: bool = True) -> str:
    """Write the page and the overlaid curves of a sweep's trials into its folder; returns its table and their paths.

    Without `table` only the paths, for a caller that has printed a table of its own.
    Text that says why there is nothing, where no trial took a step: a sweep's end is no place for an error.
    """
    folder = Path(folder)
    try:
        records = collect([folder])
    except UserError as error:
        return f"no report of the sweep: {error}"
    lines = []
    try:
        found = compare_records(records)
        lines += [found.text(best_first=True), ""] if table else []
    except UserError as error:
        found = None
        lines += [f"nothing to compare: {error}", ""]
    metric = "val/loss" if "val/loss" in metric_names(records) else "train/loss"
    overlaid = [OverlaidRun(record.group, record.rows) for record in records]
    try:
        if plot_overlaid(overlaid, folder / PICTURE, title=folder.name, metric=metric):
            lines.append(f"curves of all trials in {folder / PICTURE}")
        lines.append(f"all trials on one page in {write_comparison(records, folder / PAGE, found=found)}")
    except (OSError, UserError) as error:
        lines.append(f"no page of the trials: {error}")
    return "\n".join(lines)


def _comparison(records: list[RunRecord]) -> RunComparison | None:
    """What the finished runs show of each other; None while there is none."""
    try:
        return compare_records(records)
    except UserError:
        return None
