"""Which tokenizer goes with a checkpoint."""

from pathlib import Path

from gptlab.data.tokenizers.file import FileTokenizer
from gptlab.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from gptlab.errors import UserError
from gptlab.interop.external_folder import check_vocab_size, read_json
from gptlab.interop.special_tokens import end_of_text
from gptlab.runs.checkpoint import Checkpoint


def run_of(path: Path) -> Path:
    """The folder whose files belong to a checkpoint: the run's where it lies in checkpoints/, else its own."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def tokenizer_file(path: Path) -> Path | None:
    """The tokenizer.json of a checkpoint's run, or beside the checkpoint; None where there is none."""
    candidates = (folder / "tokenizer.json" for folder in (run_of(path), path.resolve().parent))
    return next((file for file in candidates if file.is_file()), None)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a checkpoint; None where there is none.

    A file of the tokenizers library is read too. UserError where the weights were trained with another tokenizer, as
    far as they tell, and where its vocabulary is larger than theirs.
    """
    found, state = tokenizer_file(checkpoint.path), checkpoint.state
    if found is None:
        return None
    ours = "fingerprint" in read_json(found)
    tokenizer = load_tokenizer(found) if ours else FileTokenizer.read(found, end_of_text(state.special_tokens))
    if state.tokenizer not in ("", tokenizer.fingerprint):
        raise UserError(f"{found} is not the tokenizer that {checkpoint.path} was trained with; restore that run's")
    check_vocab_size(tokenizer, checkpoint.vocab_size, found)
    # Training puts the end-of-text token before a text: a model that was not trained elsewhere knows no other start.
    trained_here = not state.special_tokens and state.config["model"]["init_from"] is None
    return tokenizer.without_beginning() if trained_here else tokenizer
