"""Special tokens and the chat template that the files of transformers name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptlab.errors import UserError
from gptlab.interop.architecture import shown
from gptlab.interop.external_folder import read_json

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
CHAT_TEMPLATE = "chat_template"  # Jinja, or a list of named ones
CHAT_TEMPLATE_FILE = "chat_template.jinja"  # where newer versions of transformers keep it
FILES = {
    "config.json": IDS,
    "generation_config.json": (*IDS, *SUPPRESSED),
    "tokenizer_config.json": (*TOKENS, CHAT_TEMPLATE),
}

SpecialTokens = Mapping[str, Mapping[str, Any]]  # by file


def read_special_tokens(folder: Path) -> SpecialTokens:
    """The special tokens that each of the folder's files names, and the chat template among those of
    tokenizer_config.json; UserError where a value is neither a token nor ids."""
    found: dict[str, dict[str, Any]] = {}
    for name, keys in FILES.items():
        if (folder / name).is_file():
            content = read_json(folder / name)
            found[name] = {key: _checked(folder / name, key, content[key]) for key in keys if key in content}
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        template = (folder / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8")
        found.setdefault("tokenizer_config.json", {})[CHAT_TEMPLATE] = template
    return found


def end_ids(special: SpecialTokens) -> frozenset[int]:
    """The ids that end a text; none where no file names them."""
    for name in ("generation_config.json", "config.json"):
        ids = special.get(name, {}).get("eos_token_id")
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()


def end_of_text(special: SpecialTokens) -> str | None:
    """The tokenizer's end-of-text token, None where no file names it."""
    return special.get("tokenizer_config.json", {}).get("eos_token")


def chat_template(special: SpecialTokens) -> Any:
    """The chat template as transformers has it, None where there is none."""
    return special.get("tokenizer_config.json", {}).get(CHAT_TEMPLATE)


def _checked(path: Path, key: str, value: Any) -> Any:
    if key == CHAT_TEMPLATE:
        if value is None or isinstance(value, str | list):
            return value
        raise UserError(f"{path}: {key}={shown(value)} must be a Jinja template or a list of them")
    if key in TOKENS and isinstance(value, dict) and isinstance(value.get("content"), str):
        return value["content"]  # the other entries are those of the AddedToken, which tokenizer.json has too
    several = value if key in ("eos_token_id", *SUPPRESSED) and isinstance(value, list) else [value]
    kind, name = (str, "a token") if key in TOKENS else (int, "a whole number")
    if value is None or all(type(one) is kind for one in several):
        return value
    raise UserError(f"{path}: {key}={shown(value)} must be {name}")
