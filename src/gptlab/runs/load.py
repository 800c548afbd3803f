"""A trained model to write with, from wherever it is."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.interop.external_folder import ExternalFolder
from gptlab.interop.special_tokens import end_ids
from gptlab.models.build import shape_model
from gptlab.models.config import model_from_plain
from gptlab.runs import checkpoint
from gptlab.runs.initial_weights import open_weights
from gptlab.runs.run_tokenizer import run_of, tokenizer_of
from gptlab.training.finetune import weights_of


class Trained(NamedTuple):
    """A model, its tokenizer, and the ids of the words that end its texts."""

    model: nn.Module
    tokenizer: Tokenizer
    ends: frozenset[int]


def load_model(name: str, word: str = "run") -> Trained:
    """The model at a path or of a hub name, in float32 on the CPU; `word` is what the user said it with.

    ValueError where there is no model, where its weights do not fit, and where it has no tokenizer.
    """
    return read_model(open_weights(name, word), name, word)


def read_model(source: ExternalFolder | tuple[Path, dict[str, Any]], name: str, word: str = "run") -> Trained:
    """The same of what `open_weights` found there."""
    if isinstance(source, ExternalFolder):
        tokenizer, special = source.tokenizer(), source.special_tokens
        if tokenizer is None:
            raise UserError(f"{word}={name} has no tokenizer that can be read; put the model's tokenizer.json there")
        model = shape_model(source.config, source.vocab_size).to_empty(device="cpu")
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(source.read(key))
    else:
        path, state = source
        tokenizer, special = tokenizer_of(path, state), state.get("special_tokens", {})
        if tokenizer is None:
            raise UserError(
                f"{path} has no tokenizer: there is no {run_of(path) / 'tokenizer.json'}; "
                "put the tokenizer.json there that it was trained with"
            )
        config, weights = model_from_plain(state["config"]["model"]), weights_of(state)
        n_class = len(weights["class_head.weight"]) if "class_head.weight" in weights else None
        model = shape_model(config, len(weights["tok_emb.weight"]), n_class).to_empty(device="cpu")
        checkpoint.restore_model(model, weights)
    said = end_ids(special)
    usual = frozenset() if tokenizer.eot is None else frozenset({tokenizer.eot})
    return Trained(model.eval(), tokenizer, said or usual)
