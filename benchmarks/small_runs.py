"""Small runs that benchmarks train in one process, of a text that is on every machine."""

import contextlib
import io
import sysconfig
from pathlib import Path

QUIET = "callbacks.plot=false callbacks.sample=null trainer.enable_progress_bar=false trainer.accelerator=cpu"
N_CHARACTERS = 400_000


def train_small(folder: Path, seed: int, overrides: str) -> None:
    """Carry out a run in `folder`, or find that it is finished, without its output; beside it is the text."""
    import gptlab

    text = folder.parent / "text.txt"
    if not text.exists():
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        text.write_text("".join(file.read_text(errors="replace") for file in files[:60])[:N_CHARACTERS])
    own = [f"run_dir={folder}", f"seed={seed}", "data=text", f"data.path={text}", "tokenizer=byte", "batch_tokens=1024"]
    with contextlib.redirect_stdout(io.StringIO()):
        gptlab.train(gptlab.compose(*own, "model.context_length=32", *QUIET.split(), *overrides.split()))
