"""A model folder of the transformers library, read and written without importing it."""

import json
import math
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlab.data.tokenizer import FileTokenizer, Tokenizer
from gptlab.interop.architecture import Architecture, Place, joined
from gptlab.interop.foreign_folder import ForeignFolder, Weights, read_json
from gptlab.interop.gpt2 import GPT1, GPT2
from gptlab.interop.llama import LLAMA, MISTRAL, QWEN2
from gptlab.interop.tokenizer_files import byte_pair_tokenizer, tokenizer_files
from gptlab.models.config import DecoderConfig

# The first that can hold a model is the one it is written for.
ARCHITECTURES = {a.model_type: a for a in (GPT1, GPT2, LLAMA, MISTRAL, QWEN2)}

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OLDER_TOKENIZER = ("vocab.json", "merges.txt")
GPT2_TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast")
HEAD = "lm_head.weight"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "merges.txt"]
# How safetensors calls the types of numbers.
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


class TransformersFolder(ForeignFolder):
    """A model as transformers saves it; pickled weights are read only as far as `weights_only=True` allows."""

    config_file = "config.json"

    def __init__(self, path: str | Path):
        path = Path(path)
        if not is_transformers_folder(path):
            raise ValueError(
                f"{path} is no transformers model: it has no config.json; name the folder that save_pretrained wrote"
            )
        options = read_json(path / "config.json")
        kind = options.get("model_type")
        if kind not in ARCHITECTURES:
            raise ValueError(
                f"{path / 'config.json'}: model_type={kind} is not known here; known: {', '.join(ARCHITECTURES)}"
            )
        super().__init__(path, ARCHITECTURES[kind], options, _open_weights(path))

    @property
    def tokenizer_file(self) -> Path | None:
        if (self.path / "tokenizer.json").is_file():
            return self.path / "tokenizer.json"
        # Others keep their words in files of these names too, and split text in another way.
        usual = GPT2_TOKENIZERS[0] if self.architecture is GPT2 else None
        known = self._tokenizer_settings().get("tokenizer_class", usual) in GPT2_TOKENIZERS
        older = known and all((self.path / name).is_file() for name in OLDER_TOKENIZER)
        return self.path / OLDER_TOKENIZER[0] if older else None

    def tokenizer(self) -> Tokenizer | None:
        path, settings = self.tokenizer_file, self._tokenizer_settings()
        if path is None:
            return None
        eot = settings.get("eos_token")
        eot = eot["content"] if isinstance(eot, dict) else eot
        if path.name in OLDER_TOKENIZER:
            added = self.path / "added_tokens.json"
            return byte_pair_tokenizer(
                *(self.path / name for name in OLDER_TOKENIZER),
                added=added if added.is_file() else None,
                add_prefix_space=settings.get("add_prefix_space", False),
                eot=eot,
            )
        try:
            return FileTokenizer(path.read_text(encoding="utf-8"), eot)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library ({error})") from error

    def _tokenizer_settings(self) -> dict[str, Any]:
        path = self.path / "tokenizer_config.json"
        return read_json(path) if path.is_file() else {}

    def _check(self) -> None:
        prefix = self.architecture.prefix
        if not any(name.startswith(prefix) for name in self._home):  # saved without its head
            self._places = {
                name: replace(place, name=place.name.removeprefix(prefix)) for name, place in self._places.items()
            }
        embedding = self._places["tok_emb.weight"].name
        if self.config.tied_head and {HEAD, embedding} <= self._home.keys():  # old files hold it twice
            if not torch.equal(self._home[HEAD].read(HEAD), self._home[embedding].read(embedding)):
                raise ValueError(
                    f"{self.path}: {HEAD} differs from {embedding}, and config.json says tie_word_embeddings=true; "
                    "set it to false there"
                )
            del self._home[HEAD]
        super()._check()


class _Safetensors(Weights):
    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        # Opened anew for each tensor: pages of a mapped file count as memory until it is closed.
        self._open = lambda: safe_open(path, framework="pt")
        try:
            with self._open() as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or not safetensors ({error})") from error

    def read(self, name: str) -> Tensor:
        with self._open() as file:
            return file.get_tensor(name)


class _Pickled(Weights):
    def __init__(self, path: Path):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of how the file was pickled
                try:
                    self._tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
                    self._tensors = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} is refused: it holds more than tensors, and reading it would run code that came with it; "
                "ask for the weights as safetensors"
            ) from error
        except Exception as error:
            raise ValueError(f"{path} is damaged or holds no weights ({str(error).splitlines()[0]})") from error
        if not isinstance(self._tensors, dict) or not all(isinstance(t, Tensor) for t in self._tensors.values()):
            raise ValueError(f"{path} holds no tensors by name; ask for the weights as safetensors")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _open_weights(folder: Path) -> Iterator[Weights]:
    found = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} has a config.json and no weights; it needs one of {', '.join(WEIGHT_FILES)}")
    names = [found]
    if found.endswith(".index.json"):
        names = sorted(set(read_json(folder / found).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{folder / found} names {name}, which is outside the folder")
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}, which {found} names")
        yield (_Safetensors if name.endswith(".safetensors") else _Pickled)(folder / name)


def is_transformers_folder(path: Path) -> bool:
    """Whether the folder says that it holds a model of transformers."""
    return (path / "config.json").is_file()


def from_hub(name: str) -> Path | None:
    """Fetch a model of the Hugging Face hub; None where `name` is not spelt like one.

    Only files without code are asked for. ValueError where it is not to be had.
    """
    if not HUB_NAME.fullmatch(name) or name.startswith((".", "runs/")) or name.endswith(".ckpt"):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # of the network, of the hub, of the cache: each library has its own
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{name} is neither a path here nor a model to be had from the hub ({type(error).__name__}: {reason})"
        ) from error


def architecture_for(config: DecoderConfig) -> Architecture:
    """The architecture of transformers that can hold a model; ValueError with the options that none can."""
    refusals = {architecture: architecture.refusals(config) for architecture in ARCHITECTURES.values()}
    nearest = min(refusals, key=lambda architecture: len(refusals[architecture]))
    if refusals[nearest]:
        raise ValueError(
            f"no architecture of transformers known here holds this model; the nearest, {nearest.model_type}, "
            f"has no {', '.join(refusals[nearest])}"
        )
    return nearest


def write_folder(
    path: Path,
    config: DecoderConfig,
    tensor: Callable[[str], Tensor],
    tokenizer: Tokenizer | None,
    *,
    card: str,
) -> None:
    """Write a model into the empty folder `path`, so that transformers' Auto classes open it.

    `tensor` gives our tensors by name; one at a time is in memory. `card` is the README.md.
    """
    architecture = architecture_for(config)
    vocab_size = len(tensor("tok_emb.weight"))
    ids = (
        {}
        if tokenizer is None or tokenizer.eot is None
        else dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eot)
    )
    # What is not said is filled in by transformers with ids of its own, which stand for other words here.
    ids = ids or dict.fromkeys(("bos_token_id", "eos_token_id"))
    dtype = tensor("tok_emb.weight").dtype
    content = architecture.write_config(config, vocab_size) | ids | {"dtype": str(dtype).removeprefix("torch.")}
    _write_json(path / "config.json", content)
    _write_json(path / "generation_config.json", {"_from_model_config": True, **ids})
    if tokenizer is not None:
        for name, value in tokenizer_files(tokenizer, config.context_length).items():
            _write_json(path / name, value)
    (path / "README.md").write_text(card, encoding="utf-8")
    _write_safetensors(path / "model.safetensors", architecture.places(config), tensor)


def _write_safetensors(path: Path, places: dict[str, Place], tensor: Callable[[str], Tensor]) -> None:
    """Tensor after tensor: the library's own writer wants all of them in memory."""
    theirs: dict[str, list[str]] = {}
    for ours, place in places.items():  # q, k and v come in order
        theirs.setdefault(place.name, []).append(ours)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, ours in theirs.items():
        first = tensor(ours[0])
        if first.dtype not in DTYPES:
            raise ValueError(f"{ours[0]} is {first.dtype}, and weights are written as {', '.join(DTYPES.values())}")
        shape = places[ours[0]].shape(first.shape)
        start, end = end, end + math.prod(shape) * first.element_size()
        header[name] = {"dtype": DTYPES[first.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, ours in theirs.items():
            value = joined([places[own] for own in ours], [tensor(own) for own in ours]).cpu()
            written = file.write(value.flatten().view(torch.uint8).numpy())
            start, end = header[name]["data_offsets"]
            assert written == end - start, name


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
