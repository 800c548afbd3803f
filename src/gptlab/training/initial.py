"""Weights of another model to start from."""

from pathlib import Path
from typing import Any

from torch import nn

from gptlab.interop.architecture import differences
from gptlab.interop.transformers_folder import TransformersFolder, from_hub, is_transformers_folder
from gptlab.models.config import DecoderConfig, model_from_plain
from gptlab.training import checkpoint
from gptlab.training.shards import fill


def load_initial(model: nn.Module, config: DecoderConfig, vocab_size: int) -> None:
    """Give `model` the weights that `model.init_from` names, one tensor at a time.

    A model with a shorter context takes as many learned positions as it has. ValueError where the weights are of a
    model that computes something else, with the words that would make this one the same.
    """
    source = open_weights(config.init_from, "model.init_from")
    if isinstance(source, TransformersFolder):
        theirs, rows, read = source.config, source.vocab_size, source.read
    else:
        _, state = source
        theirs, read = model_from_plain(state["config"]["model"]), state["model"].__getitem__
        rows = len(read("tok_emb.weight"))
    words = differences(theirs, config)
    if vocab_size != rows:
        words.append(f"model.vocab_size={rows}")
    if config.context_length > theirs.context_length:
        words.append(f"model.context_length={theirs.context_length}")
    if words:
        raise ValueError(f"model.init_from={config.init_from} holds another model; add {' '.join(words)}")
    for name, parameter in model.named_parameters():
        value = read(name)
        fill(parameter, value[: len(parameter)] if name == "pos_emb.weight" else value)


def open_weights(name: str, word: str) -> TransformersFolder | tuple[Path, dict[str, Any]]:
    """What is at a path or of that name on the hub: a transformers folder, or a checkpoint's path and content.

    A run folder stands for its best checkpoint. `word` is what the user said it with.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path, checkpoint.load(path)
    if is_transformers_folder(path):
        return TransformersFolder(path)
    if path.is_dir():
        if (path / checkpoint.SUMS).is_file():
            return path, checkpoint.load(path)
        kept = path / "checkpoints"
        found = checkpoint.linked(kept, "best") or checkpoint.linked(kept, "last")
        if found is not None:
            return found, checkpoint.load(found)
        raise ValueError(
            f"{word}={name} is a folder that holds no model: neither config.json, as transformers writes it, "
            "nor checkpoints/ of a run"
        )
    fetched = from_hub(name)
    if fetched is None:
        raise ValueError(f"{word}={name} does not exist; name a run folder, a .ckpt file or a transformers folder")
    return TransformersFolder(fetched)
