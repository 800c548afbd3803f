"""The tokenizer that a person names: a run's, a file, or one of the presets."""

import json
from pathlib import Path

from gptlab.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from gptlab.errors import UserError, did_you_mean
from gptlab.registry import variants


def tokenizer_of_model(name: str, key: str = "run") -> Tokenizer:
    """The tokenizer of a run folder, a checkpoint, a transformers folder or a hub name; `key` is what the user typed.

    UserError where there is none. A run that has not saved a checkpoint yet has one already.
    """
    if not name.strip():  # which Path takes for this folder
        raise UserError(f"{key}= is empty; name a run folder, a .ckpt file or a transformers folder")
    file = Path(name).expanduser() / "tokenizer.json"
    if file.is_file() and _is_ours(file):
        return load_tokenizer(file)
    # torch takes seconds to import, which a run's own file does not need.
    from gptlab.interop.external_folder import ExternalFolder
    from gptlab.runs.initial_weights import open_weights
    from gptlab.runs.run_tokenizer import tokenizer_of

    source = open_weights(name, key)
    found = source.tokenizer() if isinstance(source, ExternalFolder) else tokenizer_of(source)
    if found is None:
        raise UserError(f"{key}={name} has no tokenizer that can be read; put the model's tokenizer.json there")
    return found


def tokenizer_named(name: str, key: str = "tokenizer") -> Tokenizer:
    """The tokenizer in a file or a folder with a tokenizer.json, or a preset that needs no training, such as gpt2."""
    if not name.strip():
        raise UserError(f"{key}= is empty; name a tokenizer.json or a preset, such as gpt2")
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        if _is_ours(path):
            return load_tokenizer(path)
        from gptlab.data.tokenizers.file import FileTokenizer

        return FileTokenizer.read(path)
    known = variants("tokenizer")
    ready = [kind for kind, config in known.items() if not config.trained and kind != "file"]
    if name in known and name not in ready:
        raise UserError(
            f"{key}={name} is made of a corpus when a run is trained; name that run with run=PATH, or a tokenizer.json"
        )
    if name not in ready:
        raise UserError(f"{key}={name} is neither a tokenizer.json nor a preset{did_you_mean(name, ready)}")
    return known[name]().build(lambda: iter(()))


def _is_ours(path: Path) -> bool:
    try:
        return "fingerprint" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False  # what reads it says why
