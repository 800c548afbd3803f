"""Conversion of models: external weights in, and out to a folder for transformers."""

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

from gptlab.data.tokenizers.config import TokenizerFileConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.distributed.allocator import return_freed_memory
from gptlab.distributed.signals import stopping_at_once
from gptlab.errors import UserError
from gptlab.files import replace_folder
from gptlab.interop.architecture import shapes
from gptlab.interop.config import Format
from gptlab.interop.external_folder import ExternalFolder
from gptlab.interop.gptlab_model import GPTLAB, MODEL_CODE
from gptlab.interop.hub import UPLOAD, check_upload, upload
from gptlab.interop.openai_checkpoint import OpenAIFolder
from gptlab.interop.special_tokens import SpecialTokens
from gptlab.interop.transformers_folder import architecture_for, write_folder
from gptlab.models.base import CLASS_HEAD
from gptlab.models.build import shape_model
from gptlab.models.config import ModelConfig, Parametrization, model_from_plain
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint import Checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.initial_weights import open_weights
from gptlab.runs.model_card import model_card
from gptlab.runs.run import config_of_import
from gptlab.runs.run_tokenizer import run_of, tokenizer_file, tokenizer_of

# The files that a conversion writes, for transformers and for gptlab: required, and optional.
FOR_TRANSFORMERS = (
    {"config.json", "model.safetensors", "README.md"},
    {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "modeling_gptlab.py"},
)
WRITTEN = (
    FOR_TRANSFORMERS,
    ({"config.yaml", "checkpoints", "checkpoints/last.ckpt"}, {"tokenizer.json", "checkpoints/SHA256SUMS"}),
)


class Converted(NamedTuple):
    """The format that was written, and notes on what could not be converted."""

    format: Format
    notes: list[str]


class _Job(NamedTuple):
    write: Callable[[Path], None]  # fills an empty folder
    notes: list[str]


def convert(
    source: str, to: str, format: Format | None = None, *, overwrite: bool = False, private: bool | None = None
) -> Converted:
    """Write the model at `source` into the folder `to`, for transformers or for gptlab.

    `source` is a run folder, a checkpoint, an external folder or a hub name; `format` is what to write (None: the other
    one than the source's), or `Format.openai` for how to read it. The folder appears whole or not at all. UserError
    where it is not empty, unless `overwrite` is set and it holds nothing but the files of an earlier conversion.
    `to` may be hub:USER/NAME, which uploads what is written for transformers; `private` says whether others see it.
    """
    return_freed_memory()
    if to.startswith(UPLOAD):
        return _to_hub(source, to, format, private=private, overwrite=overwrite)
    if private is not None:
        raise UserError(f"private={str(private).lower()} is about the hub; name a repository with to={UPLOAD}USER/NAME")
    target = Path(to).expanduser().resolve()  # behind a link the folder is replaced, not the link
    _refuse_target(target, to, source, overwrite)
    if format is Format.openai:  # how to read; detected where it is not given, too
        opened, format = OpenAIFolder(Path(source).expanduser()), Format.gptlab
    else:
        opened = open_weights(source, "from")
    if isinstance(opened, OpenAIFolder) and format is Format.transformers:
        raise UserError(
            f"from={source} is OpenAI's checkpoint, which is converted to gptlab first; type "
            f"gptlab convert from={source} to=runs/gpt2 and gptlab convert from=runs/gpt2 to={to}"
        )
    same = (
        f"from={source} has format={format.value if format else None} already; give another format, or copy the folder"
    )
    if isinstance(opened, ExternalFolder):
        if format is Format.transformers:
            raise UserError(same)
        format, job = Format.gptlab, _for_gptlab(opened)
    elif format is Format.gptlab:
        if not opened.path.is_dir():
            raise UserError(same)
        job = _joined(opened)
    else:
        format, job = Format.transformers, _for_transformers(opened)
    with appearing(target) as folder:
        job.write(folder)
    return Converted(format, job.notes)


def _to_hub(source: str, to: str, format: Format | None, *, private: bool | None, overwrite: bool) -> Converted:
    name = check_upload(to)
    if format not in (None, Format.transformers):
        raise UserError(f"format={format.value} cannot be uploaded; leave it out: to={to} is written for transformers")
    with tempfile.TemporaryDirectory(prefix="gptlab-") as folder:
        done = convert(source, f"{folder}/{name.repository.split('/')[1]}", Format.transformers)
        address = upload(
            Path(folder) / name.repository.split("/")[1],
            name,
            private=private,
            overwrite=overwrite,
            replaced=FOR_TRANSFORMERS[0] | FOR_TRANSFORMERS[1],
        )
    return Converted(done.format, [*done.notes, f"uploaded to {address}"])


class _Multiplied(Mapping[str, Tensor]):
    """Weights of which some are multiplied, one tensor at a time as it is read."""

    def __init__(self, weights: Mapping[str, Tensor], factors: Mapping[str, float]):
        self._weights, self._factors = weights, factors

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, name: str) -> Tensor:
        value, factor = self._weights[name], self._factors.get(name, 1.0)
        return value if factor == 1.0 else (value.float() * factor).to(value.dtype)


def _as_standard(config: ModelConfig, weights: Mapping[str, Tensor]) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """The same model without the multipliers of its parametrization, which its weights contain then."""
    if config.parametrization is Parametrization.standard:
        return config, weights
    standard, factors = shape_model(config, 1).as_standard()
    return standard, _Multiplied(weights, factors)


def _for_transformers(source: Checkpoint) -> _Job:
    """How to write a checkpoint for transformers; UserError where that cannot be done."""
    notes: list[str] = []
    config, weights = _as_standard(model_from_plain(source.state.config["model"]), source.weights())
    class_names = _class_names(source.state.config, weights)
    architecture = architecture_for(config, classifies=bool(class_names))
    kept = architecture.without_heads(config) if class_names else config
    if kept != config:
        notes.append(f"heads that score tokens are left out: {architecture.classifier} of transformers has none")
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        notes.append(f"there is no {run_of(source.path) / 'tokenizer.json'}: the folder gets no tokenizer")
    names = shapes(kept, 1, len(class_names) or None)
    write = partial(
        write_folder,
        config=config,
        tensor=weights.__getitem__,
        tokenizer=tokenizer,
        card=model_card(
            source,
            n_parameters=sum(weights[name].numel() for name in names),
            task="text-classification" if class_names else architecture.task_of(config),
            own_code=MODEL_CODE.name if architecture is GPTLAB else None,
        ),
        special_tokens=source.state.special_tokens,
        class_names=class_names,
    )
    return _Job(write, notes)


def _class_names(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """The names of the classes that a model has a head for; none where it has no such head."""
    head = f"{CLASS_HEAD}weight"
    if head not in weights:
        return []
    names = config.get("data", {}).get("class_names") or []
    return names if len(names) == len(weights[head]) else [f"LABEL_{i}" for i in range(len(weights[head]))]


def _joined(source: Checkpoint) -> _Job:
    """How to write a sharded checkpoint as one file, from which a run can be resumed."""

    def write(folder: Path) -> None:
        (folder / "config.yaml").write_text(yaml.safe_dump(source.state.config, sort_keys=False))
        if (tokenizer := tokenizer_file(source.path)) is not None:
            shutil.copyfile(tokenizer, folder / "tokenizer.json")
        checkpoint.save(folder / "checkpoints" / "last.ckpt", source.state, source.model, source.optimizer)

    return _Job(write, [])


def _for_gptlab(external: ExternalFolder) -> _Job:
    """How to write an external folder for gptlab; UserError where that cannot be done."""
    tokenizer, special = external.tokenizer(), external.special_tokens
    notes = []
    if tokenizer is None:
        notes.append(f"{external.path} has no tokenizer that can be read: the checkpoint gets no tokenizer")
    return _Job(partial(_write_gptlab, external=external, tokenizer=tokenizer, special=special), notes)


def _write_gptlab(
    folder: Path, *, external: ExternalFolder, tokenizer: Tokenizer | None, special: SpecialTokens
) -> None:
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    external.config.vocab_size = external.vocab_size
    file = TokenizerFileConfig(path=None if tokenizer is None else str(external.tokenizer_file))
    config = config_of_import(external.config, file, external.architecture.model_type)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    state = CheckpointState(
        config=config, tokenizer="" if tokenizer is None else tokenizer.fingerprint, special_tokens=dict(special)
    )
    checkpoint.save(folder / "checkpoints" / "last.ckpt", state, dict(external.tensors()))


def _refuse_target(target: Path, to: str, source: str, overwrite: bool) -> None:
    above = next(folder for folder in (target, *target.parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"to={to} is {'' if above == target else 'within '}a file; name a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"to={to} is not empty; name another folder, or add overwrite=true to replace it")
    if Path(source).expanduser().resolve().is_relative_to(target):
        raise UserError(f"to={to} holds from={source}; name another folder")
    present = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    kinds = [(sorted(required - present), sorted(present - required - optional)) for required, optional in WRITTEN]
    if not any(missing == unknown == [] for missing, unknown in kinds):
        missing, unknown = min(kinds, key=lambda kind: (len(kind[0]), len(kind[1])))
        what = f"holds {unknown[0]}, which gptlab convert does not write" if unknown else f"lacks {missing[0]}"
        raise UserError(
            f"to={to} {what}: it was not written by an earlier conversion, and overwrite=true replaces nothing else; "
            "name another folder"
        )


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `target` when the block ends, whole or not at all."""
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_interrupted(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        with stopping_at_once("during the conversion, which leaves nothing behind"):
            yield temporary
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():
            for folder in made:
                with suppress(OSError):  # something else is in it by now
                    folder.rmdir()


def clear_interrupted(target: Path) -> None:
    """Remove what killed conversions to the same folder left, and restore a folder that one had moved away."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.*"):
        process, kind = path.name.removeprefix(f".{target.name}.").split(".", 1)
        if kind not in ("tmp", "old") or not process.isdecimal() or _is_running(int(process)):
            continue
        if kind == "old" and not target.exists():
            os.replace(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)  # sends no signal
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
