"""A run carried out once more from its config, here, and how closely it came out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gptlab.distributed.launch import is_rank_0
from gptlab.errors import UserError
from gptlab.files import write_text_atomic
from gptlab.lab.agreement import Difference, first_beyond, first_difference, is_loss, largest, tolerance_at
from gptlab.lab.recompute import config_again, copy_record
from gptlab.runs import amendments, chain, environment
from gptlab.runs.chain import read_chain
from gptlab.runs.folder import read_events, read_metrics
from gptlab.runs.run import Run, open_run

ORIGINAL = "reproduces.yaml"  # in the new folder: which run it repeats


@dataclass(slots=True)
class Reproduction:
    """Two runs of one config, and how far apart they are."""

    run: Path
    folder: Path
    bits: list[str]  # what differs here that decides about the last bit
    others: list[str]  # what else differs
    tolerance: float  # of the last step, relative to the loss
    n_steps: int = 0  # that both have
    expected_steps: int = 0
    equal_weights: int = 0  # checksums of the weights that are equal, of `n_weights`
    n_weights: int = 0
    first: Difference | None = None  # the first number that is not equal to the last bit
    beyond: Difference | None = None  # the first loss beyond the tolerance of its step
    largest: dict[str, Difference] = field(default_factory=dict)  # of each loss
    last: dict[str, Difference] = field(default_factory=dict)  # the last value of each loss

    @property
    def agrees(self) -> bool:
        """Whether all steps were taken, and no loss is beyond its tolerance."""
        return self.n_steps == self.expected_steps and self.beyond is None

    def text(self) -> str:
        """The differences, and the verdict in the last line."""
        lines = []
        if self.first is None:
            lines.append(f"{self.n_steps:,} steps, all metrics equal bit for bit")
        else:
            lines.append(f"equal bit for bit before {self.first}")
        if self.n_weights:
            lines.append(f"{self.equal_weights} of {self.n_weights} checksums of the weights are equal")
        for name, most in self.largest.items():
            end = self.last[name]
            lines.append(
                f"{name:<14} largest difference {_apart(most):.2g} at step {most.step:,}; at the end {end.recorded!r} "
                f"there, {end.again!r} here ({_apart(end):.2g})"
            )
        if self.n_steps != self.expected_steps:
            verdict = f"NOT reproduced: {self.n_steps:,} of {self.expected_steps:,} steps were taken"
        elif self.beyond is not None:
            verdict = f"NOT reproduced: {self.beyond}, more than the tolerance of its step"
        else:
            how = (
                "bit for bit"
                if self.first is None
                else f"within the tolerance, {self.tolerance:.1g} of the loss at the end"
            )
            verdict = f"reproduced {how}"
        return "\n".join([*lines, f"{self.run}: {verdict}; the new run is {self.folder}"])

    def plain(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "run": str(self.run),
            "folder": str(self.folder),
            "reproduced": self.agrees,
            "bit_for_bit": self.agrees and self.first is None,
            "differs": [*self.bits, *self.others],
            "tolerance": self.tolerance,
            "steps": self.n_steps,
            "equal_weights": self.equal_weights,
            "weights": self.n_weights,
            "largest_difference": {name: _apart(most) for name, most in self.largest.items()},
            "last": {name: [end.recorded, end.again] for name, end in self.last.items()},
        }


def _apart(one: Difference) -> float:
    return abs((one.recorded or 0.0) - (one.again or 0.0))


def reproduce(
    run: str | Path,
    to: str | Path | None = None,
    *,
    tolerance: float = 1.0,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Reproduction:
    """Train a run again from its config in another folder, and compare the two; the same call goes on after an end.

    `to` is the new folder, runs/NAME-again beside the run by default. `tolerance` is a factor on the difference that is
    allowed where other things compute than did. `say` gets what differs here and what to expect, before the first step.
    UserError where the folder holds no run or `to` another one, and where it cannot be trained here.
    """
    from gptlab.training.loop import train

    if isinstance(to, str) and not to.strip():  # which Path takes for this folder
        raise UserError("to= is empty; name a folder for the new run, or leave it out")
    opened = open_run(run)
    whole = opened.path.resolve()  # of `.` too
    folder = Path(to).expanduser() if to is not None else whole.with_name(f"{whole.name}-again")
    environments = environment.read(opened.path)
    first = environments[0] if environments else None
    recorded = {int(row["step"]): row for row in read_metrics(opened.path / "metrics.csv")}
    if not recorded or max(recorded) == 0:
        raise UserError(f"{opened.path} has taken no step yet: there is nothing to compare with")
    _open(opened, folder)
    config = config_again(opened, folder, first)
    config.trainer.enable_progress_bar, config.trainer.enable_model_summary = progress, False
    began = next((e for e in read_chain(opened.path).entries if e["entry"] == chain.STARTED), None)
    if began is not None and began["step"] and not any((folder / "checkpoints").glob("*")):
        config.resume = opened.config.resume  # the weights that it began from
    bits, others = _differs(opened, first)
    other = next((one for one in environments[1:] if environment.differences(environments[0], one)[0]), None)
    if other is not None:
        bits.append(f"the run went on in another environment after step {other['step']:,}")
    stop = max(recorded)
    found = Reproduction(
        opened.path,
        folder,
        bits,
        others,
        tolerance=tolerance_at(stop, ((first or {}).get("layout") or {}).get("precision"), factor=tolerance),
        expected_steps=stop,
    )
    if is_rank_0():
        say(_announced(opened, found, first))
    train(config, command=f"gptlab reproduce {opened.path} to={folder}", until_step=stop)
    _compare(found, recorded, first, tolerance)
    return found


def _open(run: Run, folder: Path) -> None:
    """Make the new folder, or find in it what was begun before."""
    named = folder / ORIGINAL
    if folder.resolve() == run.path.resolve():
        raise UserError(f"to={folder} is the run itself; name another folder")
    if named.is_file():
        known = yaml.safe_load(named.read_text(encoding="utf-8"))
        if known != {"run_id": run.config.run_id(), "path": str(run.path.resolve())}:
            raise UserError(f"to={folder} repeats another run, {known.get('path')}; name another folder with to=FOLDER")
        return
    if not is_rank_0():
        return
    if (folder / "config.yaml").is_file() or (folder / "metrics.csv").is_file():
        raise UserError(f"to={folder} holds a run that is no repetition; name another folder with to=FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"to={folder} cannot be made ({error.strerror or error}); name another folder with to=FOLDER"
        ) from None
    copy_record(run.path, folder, None)
    content = {"run_id": run.config.run_id(), "path": str(run.path.resolve())}
    write_text_atomic(named, yaml.safe_dump(content))


def _differs(run: Run, there: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    if there is None:
        return ["where the run was made is not on its record"], []
    here = environment.describe(there.get("layout") or {}, run.config.plugins)
    trainer = run.config.trainer
    here["flags"] = environment.flags_in_training(here["flags"], trainer.deterministic, trainer.benchmark)
    bits, others = environment.differences(there, here)
    varying = environment.varies(there)
    return [*bits, *([varying] if varying is not None else [])], others


def _announced(run: Run, found: Reproduction, there: dict[str, Any] | None) -> str:
    lines = [f"differs here: {line}" for line in (*found.bits, *found.others)] or ["nothing differs here"]
    if there is not None:
        for one in (there.get("code") or {}).get("repositories", ()):
            changed = " with uncommitted changes" if one.get("diff") or not one.get("diff_is_whole") else ""
            lines.append(f"code: {one.get('name')} at commit {(one.get('commit') or 'none')[:12]}{changed}")
    if run.config.callbacks.extra:
        lines.append("callbacks.extra is left out: gptlab runs no code because a run folder names it")
    if any(event["event"] == amendments.TAKEN for event in read_events(run.path)):
        lines.append("its amendments are applied at the same steps")
    if found.bits:
        lines.append(
            f"to be expected: losses that agree to {found.tolerance:.1g} of themselves at the end, not every bit"
        )
    else:
        lines.append("to be expected: every number equal bit for bit, times and memory aside")
    return "\n".join(lines)


def _compare(
    found: Reproduction, recorded: dict[int, dict[str, float]], there: dict[str, Any] | None, factor: float
) -> None:
    again = {int(row["step"]): row for row in read_metrics(found.folder / "metrics.csv")}
    found.n_steps = max((step for step in again if step in recorded), default=0)
    precision = ((there or {}).get("layout") or {}).get("precision")
    found.first = first_difference(recorded, again)
    found.beyond = first_beyond(recorded, again, 0, precision, factor=factor)
    for name in dict.fromkeys(name for row in recorded.values() for name in row):
        most = largest(recorded, again, name) if is_loss(name) else None
        if most is not None:
            found.largest[name] = most
            end = max(step for step in recorded.keys() & again.keys() if name in recorded[step] and name in again[step])
            found.last[name] = Difference(end, name, recorded[end][name], again[end][name])
    sums = [
        {entry["step"]: entry["weights"] for entry in read_chain(folder).entries if entry["entry"] == chain.WEIGHTS}
        for folder in (found.run, found.folder)
    ]
    both = sums[0].keys() & sums[1].keys()
    found.n_weights, found.equal_weights = len(both), sum(sums[0][step] == sums[1][step] for step in both)
