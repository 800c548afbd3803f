"""What a run prints and writes at its end: summary.json, the report, loss.png."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger

from gptlab.data.mixture.prepare import PreparedMixture
from gptlab.data.prepare import PreparedData
from gptlab.evaluation.probes import PREFIX
from gptlab.forecast import Plan
from gptlab.objectives.base import Objective
from gptlab.runs.amendments import Amendment
from gptlab.runs.folder import RunFolder
from gptlab.training.plot import plot_loss
from gptlab.training.spikes import LossJump
from gptlab.units import plural

SPLITS = (("val", "validation"), ("train_eval", "training, in eval mode"), ("test", "test"))


def summarize(
    data: PreparedData | PreparedMixture,
    plan: Plan,
    *,
    run_id: str,
    steps: int,
    skipped_steps: int,
    seconds: float,
    evaluating_seconds: float,
    saving_seconds: float,
    compiling_seconds: float,
    recomputed: Sequence[int] | None,
    metrics: dict[str, float],
    shares: Mapping[str, float],
    epochs: Mapping[str, float],
    train_loss: float | None,
    amendments: list[Amendment],
    stopped_early: bool,
) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "finished": steps >= plan.n_steps or stopped_early,  # not after trainer.max_time
        "stopped_early": stopped_early and steps < plan.n_steps,
        "steps": steps,
        "tokens": plan.steps.tokens_before(steps),
        "seconds": round(seconds, 1),
        "evaluating_seconds": round(evaluating_seconds, 1),
        "saving_seconds": round(saving_seconds, 1),
        "compiling_seconds": round(compiling_seconds, 1),
        **({} if recomputed is None else {"recomputed_blocks": len(recomputed)}),
        "train/loss": train_loss,
        **metrics,
        # Reads up to 50M tokens of each corpus: here alone, once a run.
        "unigram_entropy": sum(
            shares.get(name, 1.0) * corpus.train.unigram_entropy() for name, corpus in data.corpora.items()
        ),
        **({"shares": dict(shares), "epochs": dict(epochs)} if shares else {}),
        **({"packing": {name: found._asdict() for name, found in plan.packed.items()}} if plan.packed else {}),
        "parameters": plan.parameters["total"],
        "flops_per_token": plan.flops_per_token,
        "run_id": run_id,
        "amendments": [{"number": a.number, "step": a.step, "overrides": a.overrides} for a in amendments],
        "skipped_steps": skipped_steps,
        "corpus": data.description,
        "data": data.fingerprint,
        "devices": plan.devices,
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    }


def report(
    summary: dict[str, Any],
    folder: Path,
    objective: Objective,
    *,
    preview: str = "",
    plotted: bool = False,
    profiled: bool = False,
    loggers: list[Logger] | None = None,
    forecasts: Sequence[str] = (),
    generates: bool = True,
    elsewhere: str = "name=NAME",
    spike: LossJump | None = None,
) -> str:
    """The summary for a person; `generates`: the model can continue a text; `elsewhere` names another run folder."""
    lines = [""]
    if preview:
        lines += ["The model at work:", "", *(f"    {line}" for line in preview.strip("\n").splitlines()), ""]
    early = (
        " (stopped early)" if summary["stopped_early"] else "" if summary["finished"] else " (ended before the budget)"
    )
    read = f"{plural(summary['steps'], 'step')}, {summary['tokens']:,} tokens"
    lines.append(f"{read} in {summary['seconds']:,.0f} s{_pauses(summary)}{early}")
    if objective.per_byte:
        lines.append(f"unigram entropy of the training text {summary['unigram_entropy']:.4f} nats per token")
    for split, label in SPLITS:
        for prefix, part in ((split, ""), (f"{split}_part", " of a part")):
            if f"{prefix}/loss" in summary:
                lines.append(f"{label} loss{part} {summary[f'{prefix}/loss']:.4f}")
            lines += [_of_source(name, label, part, summary) for name in summary if _is_of_source(name, prefix)]
    lines += [f"{name} {value:.4f}" for name, value in summary.items() if name.count("/") == 2 and _is_shown(name)]
    lines += forecasts
    if plotted:
        lines.append(f"curves in {folder / 'loss.png'}")
    if spike is not None:
        lines.append(_spike_line(spike, folder))
    if profiled:
        lines.append(f"profile in {folder / 'fit-profile.txt'}")
    lines += [hint for logger in loggers or () if (hint := getattr(logger, "hint", None))]
    lines.append(f"next: {_next(summary, folder, generates=generates, elsewhere=elsewhere)}")
    lines.append(last_line(summary, folder))
    return "\n".join(lines)


def _pauses(summary: dict[str, Any]) -> str:
    """Which parts of the time were no training."""
    names = {"evaluating_seconds": "evaluating", "saving_seconds": "saving"}
    parts = {name: summary[key] / max(summary["seconds"], 1e-9) for key, name in names.items()}
    found = [f"{part:.0%} {name}" for name, part in parts.items() if part >= 0.005]
    text = f", {' and '.join(found)}" if found else ""
    if summary["compiling_seconds"]:  # for steps and for evaluations
        text += f"; compiling took {summary['compiling_seconds']:,.1f} s of it"
    return text


def _is_of_source(name: str, prefix: str) -> bool:
    """Whether it is the loss of a source of a mixture, in a split."""
    return name.startswith(f"{prefix}/") and name.endswith("/loss") and name.count("/") == 2


def _of_source(name: str, label: str, part: str, summary: dict[str, Any]) -> str:
    source = name.split("/")[1]
    share, epochs = summary["shares"].get(source, 0.0), summary["epochs"].get(source, 0.0)
    return f"  {source}: {label} loss{part} {summary[name]:.4f}, {share:.4g} of the run, {epochs:,.2f} epochs read"


def _is_shown(name: str) -> bool:
    """Whether it is the main number of one of `callbacks.evaluate`."""
    return name.startswith(PREFIX) and name.endswith(("/loss", "/accuracy", "/exact_match"))


def _spike_line(spike: LossJump, folder: Path) -> str:
    low, high = spike.usual
    again = f" attempt={spike.attempt}" if spike.rolled_back else ""
    return (
        f"largest loss spike at step {spike.step:,}, {spike.loss:.4f} where {low:.4f} to {high:.4f} is usual; what it "
        f"read: gptlab inspect {shlex.quote(f'run={folder}')} step={spike.step}{again}"
    )


def _next(summary: dict[str, Any], folder: Path, *, generates: bool, elsewhere: str) -> str:
    """What to type now."""
    use = f"gptlab generate {shlex.quote(f'run={folder}')} prompt='...'; " if generates else ""
    more = f"budget_steps={2 * summary['steps']} {shlex.quote(f'resume={folder}')} {elsewhere}"
    return f"{use}to train on, the same command with {more}"


def last_line(summary: dict[str, Any], path: Path) -> str:
    """The last line of a run's output: its validation metrics and its folder."""
    names = [name for name in summary if name.startswith("val/") and (name.count("/") == 1 or name.endswith("/loss"))]
    digits = {"val/perplexity": 2}
    numbers = [f"{name} {summary[name]:.{digits.get(name, 4)}f}" for name in names]
    if not numbers:
        numbers = [f"train/loss {summary['train/loss']:.4f}"]
    return f"{' '.join(numbers)} run {path}"


def draw(
    folder: RunFolder, objective: Objective, epoch_tokens: float | None, unigram_entropy: float | None = None
) -> None:
    """Draw loss.png from metrics.csv; `unigram_entropy` is drawn where the loss is one of text."""
    plot_loss(
        folder.path / "metrics.csv",
        folder.path / "loss.png",
        title=folder.path.name,
        unigram_entropy=unigram_entropy if objective.per_byte else None,
        perplexity=objective.perplexity_of == "loss",
        epoch_tokens=epoch_tokens,
    )
