"""Model folders of the transformers library, read and written without importing it."""

import json
import math
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.interop.architecture import Architecture, TensorLocation, class_head_locations, joined, shown, typed
from gptlab.interop.bert import BERT
from gptlab.interop.external_folder import ExternalFolder, Weights, read_json
from gptlab.interop.gpt2 import GPT1, GPT2
from gptlab.interop.gptlab_model import GPTLAB, MODEL_CODE
from gptlab.interop.llama import LLAMA, MISTRAL, MIXTRAL, QWEN2
from gptlab.interop.special_tokens import SpecialTokens, end_of_text, read_special_tokens
from gptlab.interop.t5 import T5
from gptlab.interop.tokenizer_files import byte_pair_tokenizer, tokenizer_files
from gptlab.models.config import Capability, ModelConfig

# The first that can hold a model is the one that it is written as.
ARCHITECTURES = {a.model_type: a for a in (GPT1, GPT2, LLAMA, MISTRAL, QWEN2, MIXTRAL, BERT, T5, GPTLAB)}

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OLDER_TOKENIZER = ("vocab.json", "merges.txt")
GPT2_TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast")
# The names of types in safetensors.
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


class TransformersFolder(ExternalFolder):
    """A model as transformers saves it; pickled weights are read only as far as `weights_only=True` allows."""

    config_file = "config.json"

    def __init__(self, path: str | Path):
        path = Path(path)
        if not is_transformers_folder(path):
            raise UserError(
                f"{path} is not a transformers model: it has no config.json; name the folder that save_pretrained wrote"
            )
        architecture, options = read_architecture(path)
        super().__init__(path, architecture, options, _open_weights(path))

    @property
    def tokenizer_file(self) -> Path | None:
        if (self.path / "tokenizer.json").is_file():
            return self.path / "tokenizer.json"
        # Others keep their vocabularies in files of these names too, and split text in another way.
        usual = GPT2_TOKENIZERS[0] if self.architecture is GPT2 else None
        known = self._tokenizer_settings().get("tokenizer_class", usual) in GPT2_TOKENIZERS
        older = known and all((self.path / name).is_file() for name in OLDER_TOKENIZER)
        return self.path / OLDER_TOKENIZER[0] if older else None

    @property
    def special_tokens(self) -> SpecialTokens:
        return read_special_tokens(self.path)

    def _tokenizer(self) -> Tokenizer | None:
        path, settings = self.tokenizer_file, self._tokenizer_settings()
        if path is None:
            return None
        eot = end_of_text(self.special_tokens)
        if path.name in OLDER_TOKENIZER:
            added = self.path / "added_tokens.json"
            return byte_pair_tokenizer(
                *(self.path / name for name in OLDER_TOKENIZER),
                added=added if added.is_file() else None,
                add_prefix_space=settings.get("add_prefix_space", False),
                eot=eot,
            )
        return FileTokenizer.read(path, eot)

    def _tokenizer_settings(self) -> dict[str, Any]:
        path = self.path / "tokenizer_config.json"
        return read_json(path) if path.is_file() else {}

    def _check(self) -> None:
        prefix = self.architecture.prefix
        if not any(name.startswith(prefix) for name in self._home):  # saved without its head
            self._locations = {
                name: replace(location, name=location.name.removeprefix(prefix))
                for name, location in self._locations.items()
            }
        for ours, location in self._locations.items():
            for now, before in self.architecture.older.items():
                old = location.name.removesuffix(now) + before
                if location.name.endswith(now) and location.name not in self._home and old in self._home:
                    self._locations[ours] = replace(location, name=old)
        self._drop_copies()
        super()._check()

    def _drop_copies(self) -> None:
        """Drop tensors that the files hold twice, where both are equal."""
        known = {location.name for location in self._locations.values()}
        for copy, ours in self.architecture.copies.items():
            if copy not in self._home or copy in known or self._locations[ours].name not in self._home:
                continue
            name = self._locations[ours].name
            if not torch.equal(self._home[copy].read(copy), self._home[name].read(name)):
                raise UserError(
                    f"{self.path}: {copy} differs from {name}, and config.json has tie_word_embeddings=true; "
                    "set it to false there"
                )
            del self._home[copy]


class _Safetensors(Weights):
    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        # Opened again for each tensor: pages of a mapped file count as memory until it is closed.
        self._open = lambda: safe_open(path, framework="pt")
        try:
            with self._open() as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                kinds = {name: part.get_dtype() for name, part in slices.items()}
                self.integers = frozenset(name for name, kind in kinds.items() if kind[0] in "IUB" and kind != "BF16")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or not safetensors ({error})") from error

    def read(self, name: str) -> Tensor:
        with self._open() as file:
            return file.get_tensor(name)


class _Pickled(Weights):
    def __init__(self, path: Path):
        self._path = path
        with open(path, "rb") as file:
            head = file.read(2)
        if head != b"PK" and head[:1] != b"\x80":  # an archive, or a pickle
            raise UserError(f"{path} is damaged or not a file of PyTorch; download it again")
        tensors = self._load()
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise UserError(f"{path} holds no named tensors; use the weights as safetensors")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.integers = frozenset(name for name, tensor in tensors.items() if not tensor.is_floating_point())
        # An archive is mapped, and opened again for each tensor; what PyTorch wrote before 1.6 cannot be.
        self._tensors = None if head == b"PK" else tensors

    def read(self, name: str) -> Tensor:
        return (self._load() if self._tensors is None else self._tensors)[name]

    def _load(self) -> Any:
        mapped = zipfile.is_zipfile(self._path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about how the file was pickled
                return torch.load(self._path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self._path} is refused: it holds more than tensors, and reading it would run code that came with "
                "it; use the weights as safetensors"
            ) from error
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self._path} is damaged or holds no weights ({reason}); download it again") from error


def read_architecture(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that a folder's config.json names, and its content; UserError where it is not supported."""
    options = read_json(folder / "config.json")
    kind = options.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(
            f"{folder / 'config.json'}: model_type={shown(kind)} is not supported; supported: "
            + ", ".join(ARCHITECTURES)
        )
    return ARCHITECTURES[kind], options


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a config.json and every file of the weights."""
    try:
        return is_transformers_folder(folder) and bool(_weight_files(folder))
    except UserError:
        return False


def _open_weights(folder: Path) -> Iterator[Weights]:
    for name in _weight_files(folder):
        yield (_Safetensors if name.endswith(".safetensors") else _Pickled)(folder / name)


def _weight_files(folder: Path) -> list[str]:
    """The names of the files with weights; UserError where there is none, or one is missing."""
    found = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has a config.json and no weights; it needs one of {', '.join(WEIGHT_FILES)}")
    names = [found]
    if found.endswith(".index.json"):
        try:
            locations = typed("weight_map", read_json(folder / found).get("weight_map"), dict)
            names = sorted({typed(f"weight_map.{name}", file, str) for name, file in locations.items()})
        except ValueError as error:
            raise UserError(f"{folder / found}: {error}") from error
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{folder / found} names {name}, which is outside the folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which {found} names")
    return names


def is_transformers_folder(path: Path) -> bool:
    """Whether the folder holds a model of transformers, by its config.json."""
    return (path / "config.json").is_file()


def architecture_for(config: ModelConfig, *, classifies: bool = False) -> Architecture:
    """The architecture that a model is written as: the first of transformers' own that holds it, else ours.

    A class head must fit as well if the model `classifies`. UserError for a plugin's model, which none holds.
    """
    kinds = [architecture for architecture in ARCHITECTURES.values() if architecture.holds(config)]
    if not kinds:
        raise UserError(
            f"model.type={config.type} comes from a plugin: neither transformers nor the code that gptlab writes "
            "beside its own models computes it; use it with gptlab alone"
        )
    refusals: dict[str, str] = {}
    for architecture in kinds:
        if classifies and architecture.class_head is None:
            continue
        refusals = architecture.refusals(config)
        if not refusals:
            return architecture
    if not refusals:
        raise UserError(
            f"no architecture of transformers has a class head on model.type={config.type}, which "
            "objective=classification trains; use it with gptlab alone"
        )
    raise UserError(
        f"no architecture of transformers has {', '.join(refusals)}; train with {' '.join(refusals.values())}, or use "
        "it with gptlab alone"
    )


def write_folder(
    path: Path,
    config: ModelConfig,
    tensor: Callable[[str], Tensor],
    tokenizer: Tokenizer | None,
    *,
    card: str,
    special_tokens: SpecialTokens = MappingProxyType({}),
    class_names: Sequence[str] = (),
) -> None:
    """Write a model into the empty folder `path`, so that transformers' Auto classes open it.

    `tensor` returns our tensors by name; one at a time is in memory. `card` is the README.md. `special_tokens` are
    those of the folder that the model was imported from; without them, a text begins and ends with the tokenizer's.
    `class_names` are those of its class head, if any.
    """
    architecture = architecture_for(config, classifies=bool(class_names))
    vocab_size = len(tensor("tok_emb.weight"))
    special = special_tokens or _default_special_tokens(tokenizer)
    dtype = {"dtype": str(tensor("tok_emb.weight").dtype).removeprefix("torch.")}
    if class_names:
        config = architecture.without_heads(config)
    theirs, locations = architecture.write_config(config, vocab_size), architecture.locations(config)
    if class_names:
        theirs |= _classifier(architecture.classifier, class_names)
        locations |= class_head_locations(architecture)
    _write_json(path / "config.json", theirs | dtype | dict(special["config.json"]))
    if architecture is GPTLAB:
        shutil.copyfile(MODEL_CODE, path / MODEL_CODE.name)
    if Capability.bidirectional not in config.capabilities:
        usual = {"_from_model_config": True, **special["config.json"]}
        start = {key: theirs[key] for key in ("decoder_start_token_id",) if key in theirs}
        generation = {**special.get("generation_config.json", usual), **start}
        _write_json(path / "generation_config.json", _suppressing(generation, tokenizer, vocab_size))
    if tokenizer is not None:
        files = tokenizer_files(tokenizer, config.context_length)
        files["tokenizer_config.json"] |= special.get("tokenizer_config.json", {})
        for name, value in files.items():
            _write_json(path / name, value)
    (path / "README.md").write_text(card, encoding="utf-8")
    _write_safetensors(path / "model.safetensors", locations, tensor)


def _classifier(class_name: str, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "architectures": [class_name],
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
        "problem_type": "single_label_classification",
    }


def _default_special_tokens(tokenizer: Tokenizer | None) -> SpecialTokens:
    """The special tokens of config.json for a model trained here."""
    first = last = None if tokenizer is None else tokenizer.eot
    if tokenizer is not None and len(tokenizer.beginning) == 1:
        (first,) = tokenizer.beginning
    # transformers fills in missing keys with ids of its own, which are other tokens here.
    return {"config.json": {"bos_token_id": first, "eos_token_id": last}}


def _suppressing(generation: dict[str, Any], tokenizer: Tokenizer | None, n_embeddings: int) -> dict[str, Any]:
    """generation_config.json where embeddings beyond the tokenizer's vocabulary are never drawn, as here.

    They stay in the model, since losses include them.
    """
    beyond = range(n_embeddings if tokenizer is None else tokenizer.vocab_size, n_embeddings)
    suppressed = sorted({*(generation.get("suppress_tokens") or ()), *beyond})
    if not suppressed:
        return generation
    # Which says that there is nothing here but what config.json names, too.
    generation = {key: value for key, value in generation.items() if key != "_from_model_config"}
    return generation | {"suppress_tokens": suppressed}


def _write_safetensors(path: Path, locations: dict[str, TensorLocation], tensor: Callable[[str], Tensor]) -> None:
    """Tensor after tensor: the library's own writer wants all of them in memory."""
    theirs: dict[tuple[str, ...], list[str]] = {}
    for ours, location in locations.items():  # q, k and v come in order
        theirs.setdefault(location.names, []).append(ours)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for names, ours in theirs.items():
        first = tensor(ours[0])
        if first.dtype not in DTYPES:
            raise UserError(f"{ours[0]} is {first.dtype}, and weights are written as {', '.join(DTYPES.values())}")
        shape = locations[ours[0]].shape(first.shape)
        for name in names:
            start, end = end, end + math.prod(shape) * first.element_size()
            header[name] = {"dtype": DTYPES[first.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for names, ours in theirs.items():
            values = joined([locations[own] for own in ours], [tensor(own) for own in ours])
            for name, value in zip(names, values, strict=True):
                data: Any = value.cpu().flatten().view(torch.uint8).numpy()  # typed as a buffer from Python 3.12 on
                written = file.write(data)
                start, end = header[name]["data_offsets"]
                assert written == end - start, name


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
