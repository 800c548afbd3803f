"""Which checkpoint a run continues from, and why a checkpoint may be refused."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlab.config import run_differences
from gptlab.distributed.launch import restarted
from gptlab.errors import UserError
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint import Checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.folder import RunFolder
from gptlab.training.spikes import Rollback, last_rollback

INPUTS_FILE = "inputs.json"
INPUTS = {
    "data": "the corpus has changed since",
    "tokenizer": "the tokenizer has changed since",
    "data.chat_template": "the template of data.chat_template has changed since",
    "model.init_from": "model.init_from names other weights now",
}
SOURCES = "data.sources."  # how the keys of a mixture's sources begin
# What weights and optimizer state of another run must agree on, to be continued by this one.
NEEDED = (("model", "finetune", "optimizer.type", "objective"), ("batch_tokens", "batch_warmup", "data.context_length"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a run that is continued must share with its checkpoint."""

    config: dict[str, Any]  # all of it, plain
    fields: dict[str, Any]  # those of it that decide what is learned
    data: str  # fingerprint
    tokenizer: str  # fingerprint
    inputs: dict[str, str]  # a SHA-256 of each thing that is read, by config key
    arithmetic: str  # precision

    def prototype(self) -> CheckpointState:
        """The state that every checkpoint of the run has."""
        return CheckpointState(config=self.config, data=self.data, tokenizer=self.tokenizer, arithmetic=self.arithmetic)


def find_checkpoint(resume: str | None, identity: Identity, folder: RunFolder) -> Checkpoint | None:
    """The checkpoint to continue from; None for a new run.

    `resume` is "auto" for the newest of the run folder, None for none, or a path. UserError for a checkpoint that does
    not belong to this run, or that a run at that path cannot be continued from.
    """
    if resume is None:
        # What is there when another rank comes to look may be of this very start.
        if folder.writes and (folder.path / "metrics.csv").is_file() and not restarted():
            raise UserError(
                f"{folder.path} holds a run and resume=null; use resume=auto to continue it, or name=... for a new one"
            )
        return None
    found = _newest(folder, identity) if resume == "auto" else _at(Path(resume).expanduser(), identity, folder)
    if found is None:
        return None
    state, path = found.state, found.path
    if state.tokenizer != identity.tokenizer:
        raise UserError(
            f"{path} was trained with another tokenizer (fingerprint {state.tokenizer[:16]}, "
            f"now {identity.tokenizer[:16]}); use the data and tokenizer of that run"
        )
    if resume != "auto":
        return found
    if state.arithmetic not in (None, identity.arithmetic):  # another machine's default
        raise UserError(
            f"{path} was trained in {state.arithmetic} and would continue in {identity.arithmetic} here; "
            f"add trainer.precision={state.arithmetic} run_dir={folder.path}, or start another run with name=..."
        )
    if state.data != identity.data:
        raise UserError(
            f"{path} was trained on other data (fingerprint {state.data[:16]}, now {identity.data[:16]}): "
            "the corpus has changed since, or this version of gptlab prepares it in another way; restore it, or start "
            "another run with name=..."
        )
    return found


def _newest(folder: RunFolder, identity: Identity) -> Checkpoint | None:
    path, skipped = checkpoint.newest(folder.checkpoints)
    for reason in skipped if folder.writes else ():
        print(f"skipped: {reason}", file=sys.stderr)
    if path is None and skipped:
        raise UserError(
            f"none of the checkpoints in {folder.checkpoints} can be read ({skipped[0]}); "
            "restore them, or start another run with name=..."
        )
    if path is None:
        return None
    found = checkpoint.load(path)
    fields = identity.fields
    if found.state.arithmetic == identity.arithmetic:  # whether it was named or the device's default
        fields = fields | {"trainer": {"precision": found.state.config.get("trainer", {}).get("precision")}}
    refuse_changes(fields, found.state.config, path)
    refuse_other_inputs(identity.inputs, folder.path)
    return found


def _at(path: Path, identity: Identity, folder: RunFolder) -> Checkpoint:
    if (path / "checkpoints").is_dir():  # a run stands for its newest checkpoint
        path = checkpoint.linked(path / "checkpoints", "last") or path
    checkpoint.verify(path)
    found = checkpoint.load(path)
    own, _ = checkpoint.newest(folder.checkpoints)
    if own is not None and path.resolve().parent != folder.checkpoints.resolve():
        raise UserError(
            f"{folder.path} has already continued from resume={path}; "
            "leave resume out to continue it, or start again elsewhere with name=..."
        )
    for keys in NEEDED:
        differing = run_differences(identity.config, found.state.config, keys)
        if differing:
            raise UserError(f"{path} is a checkpoint of another model or batch: {differing}")
    return found


def refuse_changes(identity_fields: dict[str, Any], saved: dict[str, Any], where: Path) -> None:
    """Refuse a config that learns something else than the saved one."""
    differing = run_differences(identity_fields, saved)
    if saved and differing:
        raise UserError(
            f"{where} has another config: {differing}; restore these values, or start another run with name=..."
        )


def refuse_changes_of_run(identity_fields: dict[str, Any], folder: RunFolder) -> None:
    """The same for a run folder, whose config.yaml is compared."""
    path = folder.path / "config.yaml"
    if path.is_file():
        saved = yaml.safe_load(path.read_text())
        precisions = [fields.get("trainer", {}).get("precision") for fields in (identity_fields, saved)]
        if None in precisions:  # the device's default may be what the other names
            identity_fields = identity_fields | {"trainer": {"precision": precisions[1]}}
        refuse_changes(identity_fields, saved, folder.path)


def refuse_other_inputs(
    inputs: dict[str, str], folder: Path, then: str = "restore it, or start another run with name=..."
) -> None:
    """Refuse data, a tokenizer, a template, initial weights or evaluations during training that are others than those
    of the run in the folder; `then` is what to do about the first four."""
    saved = folder / INPUTS_FILE
    before = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    changed = [key for key, value in inputs.items() if before.get(key, value) != value]
    measured = next((key for key in changed if key not in INPUTS and not key.startswith(SOURCES)), None)
    if measured is not None:
        raise UserError(
            f"{measured} measures something else than before in {folder} (content {before[measured][:16]}, now "
            f"{inputs[measured][:16]}), and a column would hold both; restore its text and options, or give the "
            "evaluation another name"
        )
    if len(changed) > 1 and any(key.startswith(SOURCES) for key in changed):
        changed.remove("data")  # which stands for all sources of a mixture
    if changed:
        reasons = {key: INPUTS.get(key, f"{key} has changed since") for key in changed}
        what = "; ".join(f"{why} (content {before[k][:16]}, now {inputs[k][:16]})" for k, why in reasons.items())
        raise UserError(f"{folder} was trained on something else: {what}; {then}")


def rollback_of(folder: RunFolder, source: Checkpoint | None) -> Rollback:
    """The last rollback of this run, where it continues from a checkpoint of its own."""
    own = source is not None and source.path.resolve().parent == folder.checkpoints.resolve()
    return last_rollback(folder.events()) if own else Rollback()


def metrics_before(folder: RunFolder, source: Checkpoint | None) -> Path:
    """The metrics.csv whose rows lead up to the checkpoint `source`."""
    return (folder.path if source is None else source.path.parent.parent) / "metrics.csv"
