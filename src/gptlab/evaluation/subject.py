"""A model to evaluate, and what is known of the run that it comes from."""

from dataclasses import dataclass
from pathlib import Path

from gptlab.data.config import DataConfig
from gptlab.data.prepare import prepare
from gptlab.errors import UserError
from gptlab.evaluation.perplexity import EncodedText
from gptlab.generation.prompt import check_generates
from gptlab.interop.external_folder import ExternalFolder
from gptlab.models.config import Capability
from gptlab.runs.initial_weights import open_weights
from gptlab.runs.load import Trained, read_model
from gptlab.runs.run import Run
from gptlab.runs.run_tokenizer import run_of


@dataclass(slots=True)
class Subject:
    """A model under evaluation; what is None is unknown."""

    name: str  # as the user typed it
    trained: Trained
    folder: Path | None = None  # of the run
    run: Run | None = None  # where its config is known
    checkpoint: Path | None = None
    step: int | None = None
    data: str = ""  # fingerprint of what it was trained on


def open_subject(name: str) -> Subject:
    """The model at a path or of a hub name; UserError where it generates no text."""
    subject = open_trained(name)
    check_generates(subject.trained.model.config, f"run={name}")
    return subject


def open_trained(name: str) -> Subject:
    """The model at a path or of a hub name, whatever it does; a run stands for its best checkpoint."""
    source = open_weights(name, "run")
    subject = Subject(name, read_model(source, name))
    if isinstance(source, ExternalFolder):
        return subject
    path = source.path
    subject.checkpoint, subject.step, subject.data = path, source.state.step, source.state.data
    if path.resolve().parent.name == "checkpoints":
        subject.folder = run_of(path)
        if (subject.folder / "config.yaml").is_file():
            subject.run = Run(subject.folder)
    return subject


def check_exists(name: str) -> None:
    """Refuse a name that is neither a path nor on the hub, before any work."""
    if not Path(name).expanduser().exists():
        open_weights(name, "run")


def check_causal(subject: Subject) -> None:
    """Refuse a model that does not predict the next token of a text."""
    config = subject.trained.model.config
    if Capability.causal not in config.capabilities:
        raise UserError(
            f"run={subject.name} is a model of type {config.type}, which does not predict the next token of a text; "
            "name one with the capability causal, or add data=FILE prompt=... answer=..."
        )


def validation_split(subject: Subject, *, show: bool = False) -> EncodedText:
    """The validation split of the run that a model comes from; UserError where it is not a text, or has changed."""
    name = subject.name
    if subject.run is None or not subject.data:
        raise UserError(f"run={name} has no record of what it was trained on; name a text with corpus=FILE")
    config = subject.run.config
    if not config.objective.continues or config.objective.target_kinds:
        raise UserError(
            f"run={name} was trained with objective={config.objective.type}, whose validation split is not plain text "
            "to predict; name a text with corpus=FILE"
        )
    if not config.data.has_validation:
        raise UserError(f"run={name} has no validation split (data.val_fraction=0); name a text with corpus=FILE")
    if not isinstance(config.data, DataConfig):
        raise UserError(
            f"run={name} was trained on a mixture, whose sources have a validation split each; name a text with "
            "corpus=FILE (summary.json and metrics.csv have the run's own losses, as val/SOURCE/loss)"
        )
    data = prepare(config.data, config.tokenizer, progress=show)
    if data.fingerprint != subject.data:
        raise UserError(
            f"run={name} was trained on other data than {data.description} now holds; name a text with corpus=FILE"
        )
    assert data.val is not None
    return EncodedText(
        tokens=data.val.tokens[:],  # of shards a copy
        n_bytes=data.val.n_bytes,
        description=f"validation split of {data.description}",
        lost_text=data.lost_text,
    )
