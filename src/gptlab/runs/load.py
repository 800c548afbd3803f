"""A trained model with its tokenizer, from a run, a checkpoint or a folder of another library."""

from pathlib import Path
from typing import NamedTuple

import torch

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.interop.external_folder import ExternalFolder
from gptlab.interop.special_tokens import end_ids
from gptlab.models.base import CLASS_HEAD, LanguageModel
from gptlab.models.build import shape_model
from gptlab.models.config import model_from_plain
from gptlab.runs.checkpoint import Checkpoint, restore_model
from gptlab.runs.initial_weights import open_weights
from gptlab.runs.run_tokenizer import run_of, tokenizer_of

CLASS_WEIGHT = f"{CLASS_HEAD}weight"


class Trained(NamedTuple):
    """A model, its tokenizer, and the ids of the tokens that end its texts."""

    model: LanguageModel
    tokenizer: Tokenizer
    ends: frozenset[int]


def load(source: str | Path) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a run folder, a checkpoint, a transformers folder or a hub name.

    In float32 on the CPU and in eval mode. A run stands for its best checkpoint. UserError where there is no model or
    no tokenizer, where the weights do not fit, and where the run needs a plugin that was not named.
    """
    model, tokenizer, _ = load_model(str(source), "source")
    return model, tokenizer


def load_model(name: str, key: str = "run") -> Trained:
    """The model at a path or of a hub name, in float32 on the CPU and in eval mode; `key` is what the user typed.

    UserError where there is no model, where its weights do not fit, and where it has no tokenizer.
    """
    return read_model(open_weights(name, key), name, key)


def read_model(source: ExternalFolder | Checkpoint, name: str, key: str = "run") -> Trained:
    """The same from what `open_weights` found."""
    if isinstance(source, ExternalFolder):
        tokenizer, special = source.tokenizer(), source.special_tokens
        if tokenizer is None:
            raise UserError(f"{key}={name} has no tokenizer that can be read; put the model's tokenizer.json there")
        model = shape_model(source.config, source.vocab_size, source.n_class).to_empty(device="cpu")
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.copy_(source.read(parameter_name))
    else:
        tokenizer, special = tokenizer_of(source), source.state.special_tokens
        if tokenizer is None:
            raise UserError(
                f"{source.path} has no tokenizer: there is no {run_of(source.path) / 'tokenizer.json'}; "
                "put the tokenizer.json there that it was trained with"
            )
        config, weights = model_from_plain(source.state.config["model"]), source.weights()
        n_class = len(weights[CLASS_WEIGHT]) if CLASS_WEIGHT in weights else None
        model = shape_model(config, source.vocab_size, n_class).to_empty(device="cpu")
        restore_model(model, weights)
    given = end_ids(special)
    usual = frozenset() if tokenizer.eot is None else frozenset({tokenizer.eot})
    model.end_ids = given or usual
    return Trained(model.eval(), tokenizer, model.end_ids)
