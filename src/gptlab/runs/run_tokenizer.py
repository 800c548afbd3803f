"""Which tokenizer goes with a checkpoint."""

from pathlib import Path
from typing import Any

from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from gptlab.errors import UserError
from gptlab.interop.external_folder import check_vocab_size, read_json
from gptlab.interop.special_tokens import end_of_text


def run_of(path: Path) -> Path:
    """The folder whose files belong to a checkpoint: the run's where it lies in checkpoints/, else its own."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def tokenizer_file(path: Path) -> Path | None:
    """The tokenizer.json of a checkpoint's run, or beside the checkpoint; None where there is none."""
    places = (folder / "tokenizer.json" for folder in (run_of(path), path.resolve().parent))
    return next((place for place in places if place.is_file()), None)


def tokenizer_of(path: Path, state: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer of the checkpoint at `path` with the content `state`; None where there is none.

    A file of the tokenizers library is taken too. ValueError where the weights were trained with another tokenizer, as
    far as they tell, and where it has more words than they have rows.
    """
    found = tokenizer_file(path)
    if found is None:
        return None
    special = state.get("special_tokens", {})
    ours = "fingerprint" in read_json(found)
    tokenizer = load_tokenizer(found) if ours else FileTokenizer.read(found, end_of_text(special))
    if state["tokenizer"] not in ("", tokenizer.fingerprint):
        raise UserError(f"{found} is not the tokenizer that {path} was trained with; restore that run's")
    check_vocab_size(tokenizer, len(state["model"]["tok_emb.weight"]), found)
    # What training puts before a text is the end-of-text word: a model that began here knows no other beginning.
    began_here = not special and state["config"]["model"]["init_from"] is None
    return tokenizer.without_beginning() if began_here else tokenizer
