"""Weights of another model to start from."""

from collections.abc import Callable, Collection
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from torch import Tensor

from gptlab import plugins
from gptlab.data.sources.source import fingerprint_of
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.distributed.sharded_tensors import fill
from gptlab.errors import UserError
from gptlab.interop.architecture import differences, shapes
from gptlab.interop.external_folder import ExternalFolder
from gptlab.interop.hub import cached_revision, from_hub
from gptlab.interop.openai_checkpoint import OpenAIFolder, is_openai_folder
from gptlab.interop.transformers_folder import TransformersFolder, is_transformers_folder
from gptlab.models.base import CLASS_HEAD, LanguageModel
from gptlab.models.build import initial_values
from gptlab.models.config import Capability, ModelConfig, model_from_plain
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint import Checkpoint
from gptlab.runs.run_tokenizer import tokenizer_file, tokenizer_of

NO_WEIGHTS = {".md", ".txt", ".py"}  # files that a model folder may have beside its weights and their config


class Initial(NamedTuple):
    """Weights to start from: their names, and what reads one."""

    names: Collection[str]
    read: Callable[[str], Tensor]


def load_initial(model: LanguageModel, config: ModelConfig, vocab_size: int, *, seed: int) -> None:
    """Fill `model` with the weights that `model.init_from` names, one tensor at a time.

    A model with a shorter context takes as many learned positions as it has. Parameters that only this model has
    (adapters, heads, a class head for another number of classes) are drawn from the seed. UserError as `open_initial`
    raises it.
    """
    source, new = open_initial(config, vocab_size), set()
    for name, parameter in model.named_parameters():
        value = source.read(name) if name in source.names else None
        if value is None or (name.startswith(CLASS_HEAD) and value.shape != parameter.shape):
            new.add(name)
        else:
            fill(parameter, value[: len(parameter)] if name == "pos_emb.weight" else value)
    for _, parameter, value in initial_values(model, seed, new.__contains__):
        fill(parameter, value)


def open_initial(config: ModelConfig, vocab_size: int, tokenizer: Tokenizer | None = None) -> Initial:
    """The weights that `model.init_from` names, none of them read yet; an encoder may have other heads.

    UserError where there are none, or they are of a model that computes something else, with the overrides that make
    this one the same. `tokenizer` (None: not checked) must be the one they were trained with, as far as they tell.
    """
    name = config.init_from
    assert name is not None
    source = open_weights(name, "model.init_from")
    if isinstance(source, ExternalFolder):
        theirs, their_size = source.config, source.vocab_size
        initial = Initial(shapes(theirs, their_size, source.n_class), source.read)
    else:
        theirs, weights = model_from_plain(source.state.config["model"]), source.weights()
        their_size, initial = source.vocab_size, Initial(weights.keys(), weights.__getitem__)
    overrides = [override for override in differences(theirs, config) if not override.startswith("model.heads=")]
    longer = config.extends(theirs)
    if longer:
        overrides = [override for override in overrides if not override.startswith("model.rope_")]
    other = None if tokenizer is None else _other_tokenizer(source, name, tokenizer)
    if other:
        overrides.append(other)
    elif vocab_size != their_size and (tokenizer is None or tokenizer.vocab_size <= their_size):
        overrides.append(f"model.vocab_size={their_size}")
    elif vocab_size != their_size:
        overrides.append(f"model.vocab_size={their_size} and a tokenizer with a vocabulary no larger than that")
    too_long = config.context_length > theirs.context_length and not longer
    if too_long and Capability.encoder_decoder not in theirs.capabilities:
        overrides.append(f"model.context_length={theirs.context_length}")
    if overrides:
        scaled = config.longer_than(theirs) if too_long else ""
        hint = f"; to keep the longer context, add {scaled}" if scaled else ""
        what = "was trained with another tokenizer" if overrides == [other] else "holds another model"
        raise UserError(f"model.init_from={name} {what}; add {' '.join(overrides)}{hint}")
    return initial


def content_of(name: str, cache_dir: str | None = None) -> str | None:
    """A SHA-256 over the files that `model.init_from` names, or the commit of a model of the hub.

    None where there is nothing, and for a model of the hub that is not in the cache. The files are read only if they
    changed since the last call.
    """
    path = Path(name).expanduser()
    if (path / "checkpoints").is_dir():
        path = (
            checkpoint.linked(path / "checkpoints", "best") or checkpoint.linked(path / "checkpoints", "last") or path
        )
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix not in NO_WEIGHTS]
    else:
        files = [path] if path.is_file() else []
        if not files:
            return cached_revision(name)
    return fingerprint_of([(file.name, file.resolve()) for file in files], cache_dir) if files else None


def _other_tokenizer(source: ExternalFolder | Checkpoint, name: str, own: Tokenizer) -> str | None:
    """The overrides that name the tokenizer of the weights at `name` where it differs from `own`."""
    if isinstance(source, ExternalFolder):
        theirs = source.tokenizer()
        if theirs is None or own.agrees_with(theirs):
            return None
        file = source.tokenizer_file
        assert file is not None  # what it was read from
        return f"tokenizer=file tokenizer.path={file}" if file.name == "tokenizer.json" else "tokenizer=gpt2"
    if source.state.tokenizer in ("", own.fingerprint):
        return None
    theirs = tokenizer_of(source)
    if theirs is not None and own.agrees_with(theirs):  # GPT-2's, from a file there and by its name here
        return None
    file = tokenizer_file(source.path)
    if file is None:
        return f"the tokenizer.json of {name}, which is missing, as tokenizer=file tokenizer.path=FILE"
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    return f"tokenizer=file tokenizer.path={quote(str(file))}"


def open_weights(name: str, key: str) -> ExternalFolder | Checkpoint:
    """The weights at a path or of a name on the hub: a folder of another library, or a checkpoint.

    A run folder stands for its best checkpoint. `key` is what the user typed it with.
    """
    if not name.strip():  # which Path takes for this folder
        raise UserError(f"{key}= is empty; name a run folder, a .ckpt file or a transformers folder")
    path = Path(name).expanduser()
    if path.is_file():
        return _verified(path)
    if is_transformers_folder(path):
        return TransformersFolder(path)
    if path.is_dir():
        if (path / checkpoint.SUMS).is_file():
            return _verified(path)
        folder = path / "checkpoints"
        found = checkpoint.linked(folder, "best") or checkpoint.linked(folder, "last")
        if found is not None:
            return _verified(found)
        if is_openai_folder(path):
            return OpenAIFolder(path)
        raise UserError(
            f"{key}={name} is a folder that holds no model: neither config.json, as transformers writes it, "
            "nor checkpoints/ of a run, nor hparams.json, as OpenAI released it"
        )
    fetched = from_hub(name)
    if fetched is None:
        raise UserError(f"{key}={name} does not exist; name a run folder, a .ckpt file or a transformers folder")
    return TransformersFolder(fetched)


def _verified(path: Path) -> Checkpoint:
    checkpoint.verify(path)
    found = checkpoint.load(path)
    plugins.require(found.state.config.get("plugins") or (), path)
    return found
