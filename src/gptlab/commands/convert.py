"""The command `gptlab convert`: weights in from another program's folder, and out to one for transformers."""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gptlab import compose

FORMATS = ("transformers", "gptlab", "openai")
WORDS = ("from", "to", "format", "overwrite")
HELP = """gptlab convert from=PATH to=PATH [format=transformers|gptlab|openai] [overwrite=true]

    from       a run folder (its best checkpoint) or a .ckpt file, to be written for transformers;
               a transformers folder, a name on the Hugging Face hub or the TensorFlow checkpoint of
               GPT-2 that OpenAI released, to be read into gptlab
    to         the folder to write; one that is not empty is left alone
    format     what to write; left out: the other one than what from= holds. openai names what is read
               instead, OpenAI's checkpoint; that takes TensorFlow: pip install "gptlab[openai]"
    overwrite  true: a model that is at to= already is replaced
"""


def main(words: list[str]) -> int:
    """Convert as the words say; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    return compose.guard(lambda: convert(**_read_words(words)))


def convert(source: str, to: str, kind: str | None = None, *, overwrite: bool = False) -> None:
    """Write the model at `source` into the folder `to`, as transformers or gptlab keeps it.

    The folder appears whole or not at all. ValueError where it is not empty, unless `overwrite` says so and it holds a
    model.
    """
    from gptlab.interop.foreign_folder import ForeignFolder  # torch takes seconds: not for a wrong word
    from gptlab.interop.openai_checkpoint import OpenAIFolder
    from gptlab.training.initial import open_weights

    _give_back_freed_memory()
    target = Path(to).expanduser()
    _refuse_target(target, source, overwrite)
    if kind == "openai":  # what is read; detected without the word too
        opened, kind = OpenAIFolder(Path(source).expanduser()), "gptlab"
    else:
        opened = open_weights(source, "from")
    foreign = isinstance(opened, ForeignFolder)
    if kind is None:
        kind = "gptlab" if foreign else "transformers"
    if kind == "transformers" and isinstance(opened, OpenAIFolder):
        raise ValueError(
            f"from={source} is OpenAI's checkpoint, which goes into gptlab first; type "
            f"gptlab convert from={source} to=runs/gpt2 and gptlab convert from=runs/gpt2 to={to}"
        )
    if foreign == (kind == "transformers"):
        raise ValueError(f"from={source} has format={kind} already; name another format, or copy the folder")
    with _appearing(target) as folder:
        if foreign:
            _write_gptlab(folder, opened)
        else:
            _write_transformers(folder, *opened)
    print(f"{source} is written to {target} as {kind}")


def _write_transformers(folder: Path, path: Path, state: dict[str, Any]) -> None:
    from gptlab.data.tokenizer import load_tokenizer
    from gptlab.interop.transformers_folder import write_folder
    from gptlab.models.config import model_from_plain

    run = path.resolve().parent.parent
    tokenizer = load_tokenizer(run / "tokenizer.json") if (run / "tokenizer.json").is_file() else None
    if tokenizer is not None and tokenizer.fingerprint != state["tokenizer"]:
        raise ValueError(
            f"{run / 'tokenizer.json'} is not the tokenizer that {path} was trained with; restore that run's"
        )
    if tokenizer is None:
        print(f"there is no {run / 'tokenizer.json'}: the folder gets no tokenizer")
    write_folder(
        folder,
        model_from_plain(state["config"]["model"]),
        state["model"].__getitem__,
        tokenizer,
        card=_card(run, state),
    )


def _write_gptlab(folder: Path, foreign) -> None:
    import torch
    import yaml

    from gptlab.config import RunConfig, to_plain
    from gptlab.data.config import TokenizerFileConfig
    from gptlab.training import checkpoint

    tokenizer = foreign.tokenizer()
    if tokenizer is None:
        print(f"{foreign.path} has no tokenizer that can be read: the checkpoint gets no tokenizer")
    else:
        tokenizer.save(folder / "tokenizer.json")
    foreign.config.vocab_size = foreign.vocab_size
    config = to_plain(
        RunConfig(
            model=foreign.config,
            tokenizer=TokenizerFileConfig(path=None if tokenizer is None else str(foreign.tokenizer_file)),
            preset=foreign.architecture.model_type,
        )
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    state = {
        "gptlab_format": checkpoint.FORMAT,
        "step": 0,
        "samples": 0,
        "model": dict(foreign.tensors()),
        "optimizer": {},
        "precision": {},
        "callbacks": {},
        "random": torch.get_rng_state(),
        "config": config,
        "best": None,
        "data": "",
        "tokenizer": "" if tokenizer is None else tokenizer.fingerprint,
    }
    checkpoint.save(state, folder / "checkpoints" / "last.ckpt")


def _give_back_freed_memory() -> None:
    """Let the C library give each block back to the system that it frees.

    Tensors that are read and dropped lie between those that are kept; the gaps came to a quarter of the weights.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, 1 << 17)


def _card(run: Path, state: dict[str, Any]) -> str:
    """README.md of an exported model: what it is, what it reached and how it was trained."""
    import yaml

    from gptlab.training.folder import read_metrics

    rows = [row for row in read_metrics(run / "metrics.csv") if row["step"] == state["step"]]
    metrics = {name: value for row in rows for name, value in row.items() if name.startswith(("train/", "val/"))}
    summary = json.loads((run / "summary.json").read_text()) if (run / "summary.json").is_file() else {}
    n_parameters = sum(value.numel() for value in state["model"].values())
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {run.name}",
        "",
        f"A language model of {n_parameters:,} parameters, trained with gptlab for {state['step']:,} steps"
        + (f" on {summary['corpus']}" if "corpus" in summary else "")
        + ".",
        "",
    ]
    if metrics:
        lines += ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in metrics.items())]
        lines += ["", "Losses are in nats per token, measured at this checkpoint's step.", ""]
    lines += ["## Config", "", "```yaml", yaml.safe_dump(state["config"], sort_keys=False).rstrip(), "```", ""]
    return "\n".join(lines)


def _refuse_target(target: Path, source: str, overwrite: bool) -> None:
    if target.is_file():
        raise ValueError(f"to={target} is a file; name a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"to={target} is not empty; name another folder, or add overwrite=true to replace it")
    if not any((target / name).is_file() for name in ("config.json", "config.yaml")):
        raise ValueError(
            f"to={target} is not empty and holds no model, so overwrite=true leaves it; name another folder"
        )
    if Path(source).expanduser().resolve().is_relative_to(target.resolve()):
        raise ValueError(f"to={target} holds from={source}; name another folder")


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if target.is_dir():
            replaced = temporary.with_suffix(".old")
            os.replace(target, replaced)
            os.replace(temporary, target)
            shutil.rmtree(replaced)
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_words(words: list[str]) -> dict[str, Any]:
    said = {}
    for word in words:
        key, sign, value = word.partition("=")
        if key not in WORDS:
            raise ValueError(f"{key} is not a word of gptlab convert{compose.nearest(key, WORDS)}")
        if not sign or not value:
            raise ValueError(f"{key} needs a value; write {key}=...")
        said[key] = value
    for key in ("from", "to"):
        if key not in said:
            raise ValueError(f"gptlab convert needs {key}=PATH")
    if said.get("format", "gptlab") not in FORMATS:
        raise ValueError(f"format={said['format']} is unknown{compose.nearest(said['format'], FORMATS)}")
    if said.get("overwrite", "true") not in ("true", "false"):
        raise ValueError(f"overwrite={said['overwrite']} must be true or false")
    overwrite = said.get("overwrite") == "true"
    return {"source": said["from"], "to": said["to"], "kind": said.get("format"), "overwrite": overwrite}
