"""Whether a run is what it claims to be: its record against its hash chain, and steps of it taken again."""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from gptlab.data.mixture.prepare import inputs_of_run, prepare_run
from gptlab.errors import UserError
from gptlab.files import sha256_of
from gptlab.lab.agreement import first_beyond, first_difference, largest, tolerance_at
from gptlab.lab.recompute import Retaken, checkpoints_of, retake
from gptlab.runs import amendments, chain, checkpoint, environment
from gptlab.runs.chain import BEGINNING, TAG_DIGITS, ChainRecord, RowChain, read_chain
from gptlab.runs.folder import is_running, read_events, read_metrics, read_summary
from gptlab.runs.run import Run, open_run
from gptlab.runs.weight_sums import weights_sum

DEFAULT_SEGMENTS = 3


class Outcome(Enum):
    """What a check came to."""

    ok = "ok"
    failed = "FAILED"
    unknown = "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    what: str
    outcome: Outcome
    text: str


@dataclass(slots=True)
class Verification:
    """What was checked of a run, and what came out."""

    run: Path
    checks: list[Check] = field(default_factory=list)
    n_steps: int = 0  # that metrics.csv records
    exact_steps: int = 0  # of them, taken again and equal to the last bit
    close_steps: int = 0  # likewise, and equal within the tolerance
    head: str | None = None  # of the chain

    @property
    def is_confirmed(self) -> bool:
        """Whether nothing that was checked contradicts the record, and something was."""
        outcomes = {check.outcome for check in self.checks}
        return Outcome.failed not in outcomes and Outcome.ok in outcomes

    def add(self, what: str, problem: str | None, otherwise: str) -> None:
        """A check that failed with a problem, or else came to this."""
        failed = problem is not None
        self.checks.append(Check(what, Outcome.failed if failed else Outcome.ok, problem if failed else otherwise))

    def skip(self, what: str, reason: str) -> None:
        """A check that could not be made."""
        self.checks.append(Check(what, Outcome.unknown, reason))

    @property
    def fraction(self) -> float:
        """How much of the run was taken again."""
        return (self.exact_steps + self.close_steps) / self.n_steps if self.n_steps else 0.0

    def verdict(self) -> str:
        """All of it in one line."""
        failed = [check for check in self.checks if check.outcome is Outcome.failed]
        n_ok = sum(check.outcome is Outcome.ok for check in self.checks)
        skipped = [check.what for check in self.checks if check.outcome is Outcome.unknown]
        how = "bit for bit" if not self.close_steps else "within the tolerance" if not self.exact_steps else "in part"
        again = self.exact_steps + self.close_steps
        taken = f"{again:,} of {self.n_steps:,} steps ({self.fraction:.1%}) taken again"
        if again:
            taken += f", equal {how}" + (" bit for bit" if how == "in part" else "")
        left = f"; not checked: {', '.join(skipped)}" if skipped else ""
        if failed:
            return f"NOT what it claims to be: {failed[0].what}: {failed[0].text}; {taken}{left}"
        if not n_ok:
            return f"nothing could be checked{left}"
        return f"what it claims to be, as far as was checked: {n_ok} checks, {taken}{left}"

    def text(self) -> str:
        """The checks, a line each, the head of the chain, and the verdict."""
        width = max((len(check.what) for check in self.checks), default=0)
        lines = [f"{check.outcome.value:<12} {check.what:<{width}}  {check.text}" for check in self.checks]
        if self.head is not None:
            lines.append(f"chain head {self.head}")
        return "\n".join([*lines, f"{self.run}: {self.verdict()}"])

    def plain(self) -> dict[str, Any]:
        """The same for JSON."""
        checks = [{"what": c.what, "outcome": c.outcome.name, "text": c.text} for c in self.checks]
        found = {"run": str(self.run), "confirmed": self.is_confirmed, "verdict": self.verdict(), "checks": checks}
        return found | {
            "steps": self.n_steps,
            "exact_steps": self.exact_steps,
            "close_steps": self.close_steps,
            "fraction": self.fraction,
            "head": self.head,
        }


def verify(
    run: str | Path,
    segments: int = DEFAULT_SEGMENTS,
    *,
    full: bool = False,
    head: str | None = None,
    tolerance: float = 1.0,
    plugins: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Check a run against its hash chain, and take steps of it again; nothing is written into its folder.

    `segments` is how many stretches between two checksums of the weights are taken again, the first from step 0 and one
    from each checkpoint that is kept; `full` takes all steps again. `head` is one that was published, of any time of
    the run. `tolerance` is a factor on the difference that is allowed on another machine. `say` gets a line before each
    stretch. UserError where the folder holds no run, or one that is going on.
    """
    opened = open_run(run)
    if head is not None and not re.fullmatch(rf"[0-9a-fA-F]{{{TAG_DIGITS},}}", head):
        raise UserError(
            f"head={head} is no head of a hash chain; give the {TAG_DIGITS} hexadecimal digits or more that "
            "gptlab verify printed or W&B's summary shows"
        )
    if is_running(opened.path):
        raise UserError(f"{opened.path} is being trained; verify it when it has ended, or stop it first")
    config = opened.config
    record = _Record(opened.path)
    found = Verification(opened.path, n_steps=max((int(row["step"]) for row in record.rows), default=0))
    line = _check_chain(found, record, expected=_keeps_chain(opened.path), published=head)
    _check_files(found, record)
    _check_config(found, record, config)
    _check_amendments(found, record)
    _check_checkpoints(found, record, line, config)
    data = _check_data(found, record, config)
    if not data:
        found.skip("recomputation", "it needs the data of the run")
    elif segments or full:
        _recompute(
            found,
            record,
            line,
            opened,
            segments=None if full else segments,
            tolerance=tolerance,
            plugins=plugins,
            say=say,
        )
    return found


class _Record:
    """What lies in the run folder, read once."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = read_metrics(path / "metrics.csv")
        self.chain: ChainRecord = read_chain(path)
        self.entries = self.chain.entries
        self.summary = read_summary(path)

    def last(self, *kinds: str) -> dict[str, Any] | None:
        """The newest entry of these kinds."""
        return next((entry for entry in reversed(self.entries) if entry["entry"] in kinds), None)

    @property
    def began(self) -> dict[str, Any] | None:
        """The entry of the newest start."""
        return self.last(chain.STARTED, chain.CONTINUED)


def _keeps_chain(run: Path) -> bool:
    """Whether config.yaml says that the run keeps a chain: one of before there were any does not name it."""
    plain = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return (plain.get("callbacks") or {}).get("chain") is not None


@dataclass(slots=True)
class _Line:
    """Of the chain what holds for the run as it is: what was written before it went back is left out."""

    anchors: list[dict[str, Any]] = field(default_factory=list)  # entries that seal rows, in their order
    weights: dict[int, str] = field(default_factory=dict)  # checksums by step
    saves: dict[int, dict[str, str]] = field(default_factory=dict)  # checksums of files by step
    turns: list[int] = field(default_factory=list)  # steps that the run went back to, leaving out samples
    first_step: int = 0  # where the chain begins


def _line_of(entries: list[dict[str, Any]]) -> _Line:
    line = _Line(first_step=entries[0].get("step", 0) if entries else 0)
    for entry in entries:
        kind, step = entry["entry"], entry["step"]
        if kind in chain.AGAIN:
            line.anchors = [one for one in line.anchors if _row_of(one) <= step]
            if kind != chain.REWRITTEN:
                line.weights = {at: found for at, found in line.weights.items() if at <= step}
            if kind == chain.STARTED:
                line.turns, line.first_step = [], step
                line.weights, line.anchors = {}, []
            if kind == chain.ROLLED_BACK:
                line.turns = [turn for turn in line.turns if turn <= step] + [step]
        if "rows" in entry:
            line.anchors.append(entry)
        if kind == chain.WEIGHTS:
            line.weights[step] = entry["weights"]
        if kind == chain.SAVED:
            line.saves[step] = entry["files"]
    return line


def _row_of(entry: dict[str, Any]) -> int:
    return -1 if entry["row"] is None else entry["row"]


def _check_chain(found: Verification, record: _Record, *, expected: bool, published: str | None) -> _Line:
    path = record.path / chain.FILE
    line = _line_of(record.entries)
    if not record.entries and record.chain.broken is None:
        if expected:
            found.add("chain", f"{path} is missing or empty, and config.yaml says that the run keeps one", "")
        else:
            found.skip("chain", "the run keeps none (it is from before there were any, or callbacks.chain=null)")
        if published is not None:
            found.add("published head", "the run has no chain", "")
        return line
    problem = None
    if record.chain.broken is not None:
        problem = f"line {record.chain.broken} of {path} does not follow from those before it"
    elif (
        record.summary is not None and record.summary.get("finished") and record.entries[-1]["entry"] != chain.FINISHED
    ):
        problem = f"the run has finished, and {path} does not end with that"
    torn = ", the last of which a kill cut off" if record.chain.torn else ""
    found.head = record.entries[-1]["head"] if record.entries else None
    found.add("chain", problem, f"{len(record.entries):,} entries follow from each other{torn}")
    if published is not None:
        at = next((i for i, e in enumerate(record.entries) if e["head"].startswith(published.lower())), None)
        before = (
            "" if at is None else f"entry {at + 1} of {len(record.entries)}, of step {record.entries[at]['step']:,}"
        )
        found.add(
            "published head", f"head={published} is that of no entry" if at is None else None, f"it is that of {before}"
        )
    _check_rows(found, record, line)
    _check_events(found, record)
    return line


def _check_rows(found: Verification, record: _Record, line: _Line) -> None:
    rows, hashes = RowChain(), {-1: BEGINNING}
    order, step = [-1], None
    problem = _unreadable(record)
    for row in record.rows:
        if step is not None and row["step"] != step + 1 and problem is None:
            problem = f"step {step + 1:,} of metrics.csv is missing: after step {step:,} comes {row['step']:,}"
        step = int(row["step"])
        hashes[step] = rows.add(row)
        order.append(step)
    sealed = -1
    for anchor in line.anchors:
        at = _row_of(anchor)
        if hashes.get(at) == anchor["rows"]:
            sealed = at
            continue
        changed = _first_changed(anchor.get("tags", ""), at, order, hashes)
        if at not in hashes:
            between = f"metrics.csv has no row of step {at:,}, which the chain has"
        elif changed is not None:
            between = f"step {changed:,} of metrics.csv is not what was written"
        else:
            between = f"a row of metrics.csv of steps {sealed + 1:,} to {at:,} is not what was written"
        problem = problem or between
        break
    left = [at for at in order if at > sealed]
    if problem is None and left and record.entries[-1]["entry"] == chain.FINISHED:
        problem = f"step {left[0]:,} of metrics.csv was added after the run had finished"
    text = f"{len(record.rows):,} rows of metrics.csv are as they were written"
    if left:
        text += f" up to step {sealed:,}; {len(left):,} after it are not sealed yet"
    if line.first_step and record.entries[0]["entry"] == chain.CONTINUED:
        text += f"; those up to step {line.first_step:,} as they were when the chain began"
    found.add("metrics.csv", problem, text)


def _unreadable(record: _Record) -> str | None:
    path = record.path / "metrics.csv"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.splitlines()
    if not path.is_file() and record.entries:
        return "metrics.csv is missing"
    if len(lines) - 1 != len(record.rows) and lines and text.endswith("\n"):
        return f"{len(lines) - 1 - len(record.rows):,} lines of metrics.csv are no rows"
    return None


def _first_changed(tags: str, at: int, order: list[int], hashes: dict[int, str]) -> int | None:
    """The first step whose row's hash is another than the entry of step `at` names; None where it names none."""
    expected = [tags[i : i + TAG_DIGITS] for i in range(0, len(tags), TAG_DIGITS)]
    steps = [step for step in order if step <= at][-len(expected) :] if expected else []
    if len(steps) < len(expected):
        return None
    return next((s for s, tag in zip(steps, expected, strict=True) if hashes[s][:TAG_DIGITS] != tag), None)


def _check_events(found: Verification, record: _Record) -> None:
    path = record.path / chain.EVENTS
    content = path.read_bytes() if path.is_file() else b""
    checksum, at, problem = hashlib.sha256(), 0, None
    for entry in record.entries:
        end, expected = entry["events"]
        checksum.update(content[at:end])
        if len(content) < end or checksum.hexdigest() != expected:
            first, last = content[:at].count(b"\n") + 1, content[:end].count(b"\n")
            where = f"line {first:,}" if last <= first else f"lines {first:,} to {last:,}"
            problem = f"{where} of events.jsonl are not what was written, or one is missing"
            break
        at = max(at, end)
    left = content[at:].count(b"\n")
    if problem is None and left and record.entries[-1]["entry"] == chain.FINISHED:
        problem = f"{left:,} lines of events.jsonl were added after the run had finished"
    more = f"; {left:,} after them are not sealed yet" if left else ""
    n_sealed = content[:at].count(b"\n")
    found.add("events.jsonl", problem, f"{n_sealed:,} lines are as they were written{more}")


def _check_files(found: Verification, record: _Record) -> None:
    began = record.began
    for name, checksum in began["files"].items() if began else ():
        path = record.path / name
        problem = None
        if not path.is_file():
            problem = f"{path} is missing"
        elif sha256_of(path) != checksum:
            problem = f"{path} is not what was written"
        found.add(name, problem, "as it was written")
    ended = record.last(chain.FINISHED, chain.ENDED)
    if ended is None or ended is not record.entries[-1]:
        return
    for name, checksum in ended["files"].items():
        if name == amendments.FILE and ended["entry"] == chain.ENDED:
            continue  # it may be amended until it goes on; what it took up is compared with the events
        path = record.path / name
        there = path.is_file()
        problem = f"{path} is {'not what was written' if there else 'missing'}"
        found.add(name, None if there and sha256_of(path) == checksum else problem, "as it was written")


def _check_config(found: Verification, record: _Record, config: Any) -> None:
    run_id, began, problem = config.run_id(), record.began, None
    for where, other in (("chain.jsonl", began), ("summary.json", record.summary)):
        if other is not None and other.get("run_id") not in (None, run_id):
            problem = f"config.yaml has run id {run_id}, and {where} says {other['run_id']}"
    if began is None and record.summary is None:
        return found.skip("run id", "no record of it but config.yaml")
    found.add("run id", problem, f"{run_id}, of all that decides what is learned, seed {config.seed} included")


def _check_amendments(found: Verification, record: _Record) -> None:
    written, damaged = amendments.read(record.path)
    events = read_events(record.path)
    decided = {e["number"]: e for e in events if e["event"] in (amendments.TAKEN, amendments.REFUSED)}
    taken = [e for e in events if e["event"] == amendments.TAKEN]
    if not written and not decided and not damaged:
        return
    problem, by_number = damaged[0] if damaged else None, {a.number: a for a in written}
    for number, event in decided.items():
        if number not in by_number:
            problem = problem or f"amendment {number}, which the run took up, is not in {amendments.FILE}"
        elif by_number[number].overrides != event["overrides"]:
            problem = (
                problem or f"amendment {number} is {by_number[number]} in {amendments.FILE}, another than in events"
            )
    if record.summary is not None and "amendments" in record.summary:
        listed = [(a["number"], a["step"], a["overrides"]) for a in record.summary["amendments"]]
        if sorted(n for n, _, _ in listed) != sorted({e["number"] for e in taken}):
            problem = problem or "summary.json lists other amendments than events.jsonl"
    waiting = len(by_number.keys() - decided.keys())
    text = f"{len(taken)} applied, as on the record" + (f", {waiting} waiting" if waiting else "")
    found.add("amendments", problem, text)


def _check_checkpoints(found: Verification, record: _Record, line: _Line, config: Any) -> None:
    kept = checkpoints_of(record.path)
    if not kept:
        return found.skip("checkpoints", "none is kept")
    heads = {entry["head"] for entry in record.entries}
    for step, path in kept.items():
        problem = _problem_of_checkpoint(step, path, line, heads, config)
        sealed = "weights and optimizer state as they were saved" if step in line.saves else "its checksums hold"
        found.add(path.name, problem, sealed)


def _problem_of_checkpoint(step: int, path: Path, line: _Line, heads: set[str], config: Any) -> str | None:
    try:
        checkpoint.verify(path)
        opened = checkpoint.load(path)
    except UserError as error:
        return str(error)
    state = opened.state
    sums = checkpoint.sums_of(path)
    if path.is_file():  # `best` may be the only name left
        sums = dict(zip(line.saves.get(step, ()), sums.values(), strict=False))
    if step in line.saves and sums != line.saves[step]:
        return f"{path} is not the file that was saved after step {step:,}"
    if state.step != step:
        return f"{path} is of step {state.step:,}"
    if step in line.weights and weights_sum(opened.model) != line.weights[step]:
        return f"the weights in {path} are not those after step {step:,}"
    if state.chain is not None and heads and state.chain not in heads:
        return f"{path} is of another chain"
    if state.config and state.config.get("seed") != config.seed:
        return f"{path} is of a run with seed {state.config.get('seed')}"
    return None


def _check_data(found: Verification, record: _Record, config: Any) -> bool:
    """Whether the data of the run are here, unchanged."""
    file, began = record.path / "inputs.json", record.began
    try:
        recorded = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        here = inputs_of_run(config.data, config.tokenizer)
    except (UserError, OSError) as error:
        found.skip("data", f"they are not here ({error})")
        return False
    except ValueError as error:
        found.add("data", f"{file} is damaged ({error})", "")
        return False
    changed = [key for key, value in here.items() if recorded.get(key, value) != value]
    if changed:
        key = changed[0]
        problem = f"{key} is another one here: content {here[key][:16]}, in the run {recorded[key][:16]}"
        found.add("data", problem, "")
        return False
    try:
        prepared = prepare_run(config.data, config.tokenizer, progress=False, verify=True)
    except UserError as error:
        found.add("data", str(error), "")
        return False
    files = [
        (f"{name}/{part}" if name else part, token_file)
        for name, corpus in prepared.corpora.items()
        for part in ("train", "val", "test")
        if (token_file := corpus.part(part)) is not None
    ]
    problem = None
    for name, token_file in files:
        if began is not None and began["tokens"].get(name) != token_file.checksum:
            problem = problem or f"the tokens of {token_file.path} are not those that the run read as {name}"
    if record.summary is not None and record.summary.get("data") not in (None, prepared.fingerprint):
        problem = problem or "the data have another fingerprint than summary.json names"
    n_tokens = sum(token_file.n_tokens for _, token_file in files)
    found.add("data", problem, f"{n_tokens:,} tokens, read again, are those of the run; content {here['data'][:16]}")
    return problem is None


def _stretches(record: _Record, line: _Line, segments: int | None) -> list[tuple[int, int, int]]:
    """Which steps to take again: a start, an end, and in how many stretches between checksums."""
    last = int(record.rows[-1]["step"]) if record.rows else 0
    ends = sorted(step for step in line.weights if 0 < step <= last) or ([last] if last else [])
    saved = list(checkpoints_of(record.path))
    starts = [step for step in [*([0] if line.first_step == 0 else []), *saved] if any(end > step for end in ends)]
    if segments is None:
        return _all_stretches(starts, ends, line.turns)
    found: dict[int, list[int]] = {start: [] for start in starts}
    limits = dict(zip(starts, [*starts[1:], last + 1], strict=True))
    for _ in range(segments or 0):  # the next one goes where the fewest are, and never over another start
        free = {
            start: after[0]
            for start in starts
            if (
                after := [
                    e for e in ends if e > max([start, *found[start]]) and (e <= limits[start] or not found[start])
                ]
            )
        }
        if not free:
            break
        start = min(free, key=lambda start: (len(found[start]), start))
        found[start].append(free[start])
    return [(start, ends[-1], len(ends)) for start, ends in found.items() if ends]


def _all_stretches(starts: list[int], ends: list[int], turns: list[int]) -> list[tuple[int, int, int]]:
    """All steps, in one stretch but where the run went back: a stretch of none up to where it can be taken up again.

    Not at every checkpoint: the optimizer state that one holds is found only by training up to it.
    """
    found, at = [], min(starts, default=None)
    while at is not None:
        turn = min((turn for turn in turns if turn > at), default=ends[-1])
        within = [end for end in ends if at < end <= turn]
        found += [(at, within[-1], len(within))] if within else []
        reached = within[-1] if within else at
        at = min((start for start in starts if start >= turn and start > at), default=None)
        if reached < (ends[-1] if at is None else at):
            found.append((reached, ends[-1] if at is None else at, 0))
    return found


def _recompute(
    found: Verification,
    record: _Record,
    line: _Line,
    run: Run,
    *,
    segments: int | None,
    tolerance: float,
    plugins: Sequence[str],
    say: Callable[[str], None],
) -> None:
    environments: list[dict[str, Any]] = []
    with suppress(UserError):  # said already
        environments = environment.read(record.path)
    stretches = _stretches(record, line, segments)
    if not stretches:
        return found.skip("recomputation", "no kept checkpoint or step 0 has a checksum of the weights after it")
    if run.config.callbacks.extra:
        found.skip("callbacks.extra", "gptlab runs no code because a run folder names it; they are left out")
    taken: set[int] = set()
    for start, stop, count in stretches:
        what = f"steps {start + 1:,} to {stop:,}"
        turn = next((turn for turn in line.turns if start < turn < stop), start if not count else None)
        if turn is not None:
            found.skip(what, f"the run went back to step {turn:,}, and no checkpoint of it is kept")
            continue
        there = environment.at_step(environments, start)
        exact, why, differs = _expects_bits(run, there, environments, start, stop)
        parts = f" ({count} stretches between checksums)" if count > 1 else ""
        say(f"taking {what} again{parts}, to be equal {'bit for bit' if exact else why}")
        settings = run.config.callbacks.chain
        every = None if settings is None else settings.every_steps
        with tempfile.TemporaryDirectory(prefix="gptlab-verify-") as folder:
            try:
                again = retake(run, Path(folder), start, stop, there, every_steps=every, plugins=plugins)
            except UserError as error:
                found.skip(what, f"they cannot be taken here: {error}")
                continue
        precision = ((there or {}).get("layout") or {}).get("precision")
        _compare(
            found,
            record,
            line,
            again,
            start,
            stop,
            exact=exact,
            why=why,
            differs=differs,
            precision=precision,
            factor=tolerance,
        )
        steps = set(range(start + 1, stop + 1)) - taken
        taken |= steps
        if found.checks[-1].outcome is Outcome.ok:
            found.exact_steps += len(steps) if exact else 0
            found.close_steps += len(steps) if not exact else 0


def _expects_bits(
    run: Run, there: dict[str, Any] | None, environments: list[dict[str, Any]], start: int, stop: int
) -> tuple[bool, str, list[str]]:
    """Whether steps come out here as they did there to the last bit, why not, and what else differs."""
    if there is None:
        return False, "within the tolerance: where it was made is not on the record", []
    layout, trainer = there.get("layout") or {}, run.config.trainer
    here = environment.describe(layout, run.config.plugins)
    here["flags"] = environment.flags_in_training(here["flags"], trainer.deterministic, trainer.benchmark)
    here["threads"] = there.get("threads")  # as many are used
    bits, others = environment.differences(there, here)
    if bits:
        return False, f"within the tolerance, as other things compute here ({'; '.join(bits)})", others
    varying = environment.varies(there)
    if varying is not None:
        return False, f"within the tolerance, as {varying}", others
    if any(start < e["step"] < stop and environment.differences(there, e)[0] for e in environments):
        return False, "within the tolerance, as the run went on in another environment in between", others
    return True, "", others


def _compare(
    found: Verification,
    record: _Record,
    line: _Line,
    again: Retaken,
    start: int,
    stop: int,
    *,
    exact: bool,
    why: str,
    differs: list[str],
    precision: str | None,
    factor: float,
) -> None:
    what = f"steps {start + 1:,} to {stop:,}"
    first = start if start else -1
    recorded = {int(row["step"]): row for row in record.rows if first < row["step"] <= stop}
    # Before the first step there is only validation, which a later start may have turned off.
    missing = next((step for step in recorded if step and step not in again.rows), None)
    if missing is not None:
        return found.add(what, f"taken again, the run has no step {missing:,}", "")
    n_sums = sum(step in again.weights for step in line.weights if start < step <= stop)
    if exact:
        other = first_difference(recorded, again.rows)
        wrong = next(
            (s for s in _steps(line, start, stop) if again.weights.get(s, line.weights[s]) != line.weights[s]), None
        )
        problem = None if other is None else str(other)
        if problem is None and wrong is not None:
            problem = f"after step {wrong:,} the weights are others than recorded"
        if problem is not None and differs:
            problem += f" (here differ also {'; '.join(differs)})"
        return found.add(
            what, problem, f"taken again, and equal bit for bit: all metrics, {n_sums} checksums of the weights"
        )
    beyond = first_beyond(recorded, again.rows, start, precision, factor=factor)
    limit = tolerance_at(stop - start, precision, factor=factor)
    most = largest(recorded, again.rows, "train/loss")
    apart = 0.0 if most is None else abs((most.recorded or 0.0) - (most.again or 0.0))
    problem = None if beyond is None else f"{beyond}, more than the tolerance of {limit:.1g}"
    if problem is not None and differs:
        problem += f" (here differ also {'; '.join(differs)})"
    found.add(what, problem, f"taken again, {why}: losses differ by {apart:.1g} at most, allowed {limit:.1g} of each")


def _steps(line: _Line, start: int, stop: int) -> Iterator[int]:
    return (step for step in sorted(line.weights) if start < step <= stop)
