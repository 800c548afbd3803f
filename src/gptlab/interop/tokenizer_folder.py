"""A tokenizer as a folder that transformers, the `tokenizers` library and tiktoken open."""

import json
import shutil
from pathlib import Path

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.files import replace_folder
from gptlab.interop.tokenizer_files import tokenizer_files

RANKS = "ranks.tiktoken"
_FILES = ("tokenizer.json", "tokenizer_config.json", RANKS)
_ANY_LENGTH = 10**30  # what transformers writes where a tokenizer has no limit


def check_target(folder: Path, key: str, *, overwrite: bool) -> None:
    """UserError where `write_tokenizer` would destroy something; `key` is what the user typed."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{key}={folder} is a file; name a folder")
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if name not in _FILES]
    if others:
        raise UserError(f"{key}={folder} holds {others[0]}, which is no tokenizer's; name another folder")
    if found and not overwrite:
        raise UserError(f"{key}={folder} holds a tokenizer; name another folder, or replace it with overwrite=true")


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Write the files of a tokenizer, all or none, and return their names.

    Of a byte-pair encoding there are its ranks, too, a line of the token in base64 and its rank, as tiktoken's
    `load_tiktoken_bpe` reads them.
    """
    content = {
        name: json.dumps(value, ensure_ascii=False) for name, value in tokenizer_files(tokenizer, _ANY_LENGTH).items()
    }
    state = tokenizer.portable()
    if "vocabulary" in state:
        content[RANKS] = "".join(f"{token} {rank}\n" for rank, token in enumerate(state["vocabulary"]))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, text in content.items():
            (partial / name).write_text(text, encoding="utf-8", newline="")
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return list(content)
