"""GPT-2 as OpenAI released it: a TensorFlow checkpoint, which TensorFlow reads."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError, first_line
from gptlab.interop.external_folder import ExternalFolder, Weights, read_json
from gptlab.interop.gpt2 import GPT2
from gptlab.interop.tokenizer_files import byte_pair_tokenizer
from gptlab.models.decoder.config import DecoderConfig

FILES = ("hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001")
# The keys of hparams.json, and those of transformers.
HPARAMS = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}


class OpenAIFolder(ExternalFolder):
    """The folder that download_model.py of openai/gpt-2 downloads; TensorFlow is imported when one is opened."""

    config_file = "hparams.json"

    def __init__(self, path: str | Path):
        path = Path(path)
        lacking = [name for name in FILES if not (path / name).is_file()]
        if lacking:
            raise UserError(
                f"{path} is not a checkpoint of GPT-2 as OpenAI released it: it lacks {', '.join(lacking)}; "
                "name the folder that download_model.py of openai/gpt-2 downloads"
            )
        super().__init__(path, ARCHITECTURE, _options(path / self.config_file), _open_weights(path))

    @property
    def tokenizer_file(self) -> Path | None:
        both = all((self.path / name).is_file() for name in ("encoder.json", "vocab.bpe"))
        return self.path / "encoder.json" if both else None

    def _tokenizer(self) -> Tokenizer | None:
        file = self.tokenizer_file
        return None if file is None else byte_pair_tokenizer(file, self.path / "vocab.bpe")


def is_openai_folder(path: Path) -> bool:
    """Whether the folder has a file of OpenAI's GPT-2."""
    return any((path / name).is_file() for name in FILES[:2])


def _locations(config: DecoderConfig) -> dict[str, Any]:
    return {ours: replace(location, name=_renamed(location.name)) for ours, location in GPT2.locations(config).items()}


def _renamed(name: str) -> str:
    """OpenAI's name of a tensor, from that of transformers: model/h0/ln_1/g of transformer.h.0.ln_1.weight."""
    *path, layer, kind = name.replace("transformer.h.", "model.h").replace("transformer.", "model.").split(".")
    if layer in ("wte", "wpe"):
        return "/".join([*path, layer])
    gain = "g" if layer.startswith("ln_") else "w"
    return "/".join([*path, layer, gain if kind == "weight" else "b"])


# The same model; what hparams.json leaves out is fixed in OpenAI's code, and equals transformers' defaults.
ARCHITECTURE = replace(GPT2, prefix="model/", locations=_locations, buffers=())


def _options(file: Path) -> dict[str, int]:
    """The content of hparams.json with the keys of transformers."""
    given = read_json(file)
    for key in sorted(given.keys() ^ HPARAMS.keys()):
        state = "missing" if key in HPARAMS else "unknown"
        raise UserError(f"{file}: {key} is {state}; OpenAI's files have {', '.join(HPARAMS)}")
    for key, value in given.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{file}: {key}={value} must be a whole number of at least 1")
    return {HPARAMS[key]: value for key, value in given.items()}


class _Checkpoint(Weights):
    """One tensor at a time: TensorFlow reads it from the file and verifies its checksum."""

    def __init__(self, prefix: Path):
        self._prefix = prefix
        try:
            self._reader = _tensorflow().train.load_checkpoint(str(prefix))
        except ValueError:
            raise
        except Exception as error:  # which kind depends on what its message says
            raise UserError(f"{prefix}.index is damaged or no TensorFlow checkpoint ({first_line(error)})") from error
        self.shapes = {name: _unwrapped(shape) for name, shape in self._reader.get_variable_to_shape_map().items()}

    def read(self, name: str) -> Tensor:
        try:
            values = self._reader.get_tensor(name)
        except Exception as error:
            raise UserError(
                f"{name} cannot be read from {self._prefix}, which is damaged ({first_line(error)}); download it again"
            ) from error
        if values.dtype.kind != "f":
            raise UserError(f"{name} in {self._prefix} holds {values.dtype}, and weights are floating-point numbers")
        return torch.from_numpy(values.reshape(self.shapes[name]))


def _unwrapped(shape: list[int]) -> tuple[int, ...]:
    # Matrices are kept as convolutions of width one, (1, in, out).
    return tuple(shape[1:] if len(shape) == 3 and shape[0] == 1 else shape)


def _open_weights(path: Path) -> Iterator[Weights]:
    yield _Checkpoint(path / "model.ckpt")


def _tensorflow():
    # It would print on standard error how it was compiled, and with oneDNN keep the memory of what was read.
    for name, value in {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}.items():
        os.environ.setdefault(name, value)
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"OpenAI's checkpoints are read with TensorFlow, which cannot be imported here ({error}); "
            'type pip install "gptlab[openai]"'
        ) from error
    return tensorflow
