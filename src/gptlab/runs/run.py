"""A run folder as one value: its config, metrics, summary, events, checkpoints, tokenizer and model."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.config import RunConfig, config_from_plain, to_plain
from gptlab.data.tokenizers.config import TokenizerConfig
from gptlab.errors import UserError
from gptlab.models.config import ModelConfig
from gptlab.runs.folder import read_events, read_metrics, read_summary

if TYPE_CHECKING:
    from pandas import DataFrame

    from gptlab.data.tokenizers.tokenizer import Tokenizer
    from gptlab.models.base import LanguageModel


class Run:
    """A run on the disk, read when asked; the run may be going on meanwhile."""

    def __init__(self, path: Path):
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> RunConfig:
        """The config that the run was started with; UserError where it needs a plugin that was not named."""
        import yaml

        file = self.path / "config.yaml"
        try:
            plain = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise UserError(f"{file} is damaged: {' '.join(str(error).split())}; restore it") from None
        if not isinstance(plain, dict):
            raise UserError(f"{file} is damaged: it holds no mapping of config keys; restore it")
        return config_from_plain(plain, file)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The numbers at the end of the run; None while it has not ended."""
        return read_summary(self.path)

    def metrics(self) -> "DataFrame":
        """metrics.csv, a row per optimizer step; NaN where a column was not measured at that step."""
        import pandas

        file = self.path / "metrics.csv"
        with open(file) as lines:
            columns = lines.readline().strip().split(",")
        return pandas.DataFrame(read_metrics(file), columns=columns)

    def events(self) -> list[dict[str, Any]]:
        """What happened, oldest first: started, saved, validated, stopped, ..."""
        return read_events(self.path)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints on the disk by step, in ascending order."""
        from gptlab.runs import checkpoint

        return dict(checkpoint.kept(self.path / "checkpoints"))

    def checkpoint(self, which: int | str = "best") -> Path:
        """The checkpoint of a step, the "last" or the "best" one; UserError where there is none.

        Where a run keeps no best checkpoint, "best" is the last one.
        """
        from gptlab.runs import checkpoint

        folder, steps = self.path / "checkpoints", self.checkpoints
        names = {name: path for name in ("last", "best") if (path := checkpoint.linked(folder, name)) is not None}
        found = names.get(which) if isinstance(which, str) else steps.get(which)
        if found is None and which == "best":
            found = names.get("last")
        if found is None:
            known = ", ".join(map(str, [*steps, *names])) or "none"
            raise UserError(f"{self.path} has no checkpoint {which!r}; it has: {known}")
        return found

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that the run was trained with."""
        from gptlab.data.tokenizers.tokenizer import load_tokenizer

        return load_tokenizer(self.path / "tokenizer.json")

    def load(self, checkpoint: int | str = "best") -> "tuple[LanguageModel, Tokenizer]":
        """The model of a checkpoint, as `checkpoint` takes it, in eval mode on the CPU, and the tokenizer."""
        from gptlab.runs.load import load_model

        model, tokenizer, _ = load_model(str(self.checkpoint(checkpoint)))
        return model, tokenizer


def config_of_import(model: ModelConfig, tokenizer: TokenizerConfig, model_tag: str) -> dict[str, Any]:
    """The config of a run folder that holds imported weights, as plain values."""
    return to_plain(RunConfig(model=model, tokenizer=tokenizer, model_tag=model_tag))


def open_run(path: str | Path) -> Run:
    """The run in a folder; UserError where the folder holds none."""
    if isinstance(path, str) and not path.strip():  # which Path takes for this folder
        raise UserError("the run's folder is empty; name one such as runs/NAME")
    path = Path(path).expanduser()
    if not (path / "config.yaml").is_file():
        what = "holds no run: it has no config.yaml" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; name a run folder such as runs/NAME")
    return Run(path)
