"""The words that begin, end and fill up texts, as the files of transformers say them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptlab.errors import UserError
from gptlab.interop.architecture import shown
from gptlab.interop.external_folder import read_json

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
WORDS = ("bos_token", "eos_token", "pad_token", "unk_token")
FILES = {"config.json": IDS, "generation_config.json": IDS, "tokenizer_config.json": WORDS}

SpecialWords = Mapping[str, Mapping[str, Any]]  # of each file what it says


def read_special_words(folder: Path) -> SpecialWords:
    """What each of the folder's files says; ValueError where that is neither a word nor ids."""
    said = {}
    for name, words in FILES.items():
        if (folder / name).is_file():
            content = read_json(folder / name)
            said[name] = {word: _checked(folder / name, word, content[word]) for word in words if word in content}
    return said


def end_ids(special: SpecialWords) -> frozenset[int]:
    """The ids that end a text; none where nothing is said of them."""
    for name in ("generation_config.json", "config.json"):
        ids = special.get(name, {}).get("eos_token_id")
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()


def end_of_text(special: SpecialWords) -> str | None:
    """How the tokenizer's end-of-text word is spelled, None where that is not said."""
    return special.get("tokenizer_config.json", {}).get("eos_token")


def _checked(path: Path, word: str, value: Any) -> Any:
    if word in WORDS and isinstance(value, dict) and isinstance(value.get("content"), str):
        return value["content"]  # with how it is told apart from other text, which tokenizer.json says too
    several = value if word == "eos_token_id" and isinstance(value, list) else [value]
    kind, name = (str, "a word") if word in WORDS else (int, "a whole number")
    if value is None or all(type(one) is kind for one in several):
        return value
    raise UserError(f"{path}: {word}={shown(value)} must be {name}")
