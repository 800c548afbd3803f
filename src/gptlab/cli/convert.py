"""The command `gptlab convert`: weights in from another program's folder, and out to one for transformers."""

import ctypes
import glob
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptlab.cli.guard import guard
from gptlab.cli.options import read
from gptlab.errors import UserError

if TYPE_CHECKING:
    from gptlab.runs.checkpoint import Checkpoint

# What this command writes, for transformers and for gptlab: what is always there, and what may be.
WRITTEN = (
    (
        {"config.json", "model.safetensors", "README.md"},
        {"generation_config.json", "tokenizer.json", "tokenizer_config.json"},
    ),
    ({"config.yaml", "checkpoints", "checkpoints/last.ckpt"}, {"tokenizer.json", "checkpoints/SHA256SUMS"}),
)


class Format(Enum):
    """What a folder holds."""

    transformers = "transformers"
    gptlab = "gptlab"
    openai = "openai"


WORDS = {"from": str, "to": str, "format": Format, "overwrite": bool}
HELP = """gptlab convert from=PATH to=PATH [format=transformers|gptlab|openai] [overwrite=true]

    from       a run folder (its best checkpoint) or a checkpoint, to be written for transformers, or where
               the checkpoint is a folder with format=gptlab as one file;
               a transformers folder, a name on the Hugging Face hub or the TensorFlow checkpoint of
               GPT-2 that OpenAI released, to be read into gptlab
    to         the folder to write; one that is not empty is left alone
    format     what to write; left out: the other one than what from= holds. openai names what is read
               instead, OpenAI's checkpoint; that takes TensorFlow: pip install "gptlab[openai]"
    overwrite  true: what an earlier conversion wrote to to= is replaced
"""


def main(words: list[str]) -> int:
    """Convert as the words say; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return 0
    return guard(lambda: convert(**_read_words(words)))


def convert(source: str, to: str, kind: str | None = None, *, overwrite: bool = False) -> None:
    """Write the model at `source` into the folder `to`, as transformers or gptlab keeps it.

    The folder appears whole or not at all. ValueError where it is not empty, unless `overwrite` says so and it holds
    nothing but what was written by this command.
    """
    from gptlab.interop.external_folder import ExternalFolder  # torch takes seconds: not for a wrong word
    from gptlab.interop.openai_checkpoint import OpenAIFolder
    from gptlab.runs.initial_weights import open_weights

    _give_back_freed_memory()
    target = Path(to).expanduser().resolve()  # behind a link the folder is replaced, not the link
    _refuse_target(target, to, source, overwrite)
    if kind == "openai":  # what is read; detected without the word too
        opened, kind = OpenAIFolder(Path(source).expanduser()), "gptlab"
    else:
        opened = open_weights(source, "from")
    foreign = isinstance(opened, ExternalFolder)
    if kind is None:
        kind = "gptlab" if foreign else "transformers"
    if kind == "transformers" and isinstance(opened, OpenAIFolder):
        raise UserError(
            f"from={source} is OpenAI's checkpoint, which goes into gptlab first; type "
            f"gptlab convert from={source} to=runs/gpt2 and gptlab convert from=runs/gpt2 to={to}"
        )
    joins = not foreign and kind == "gptlab" and opened.path.is_dir()
    if foreign == (kind == "transformers") and not joins:
        raise UserError(f"from={source} has format={kind} already; name another format, or copy the folder")
    write = _for_gptlab(opened) if foreign else _joined(opened) if joins else _for_transformers(opened)
    with _appearing(target) as folder:
        write(folder)
    print(f"{source} is written to {to} as {kind}")


def _for_transformers(checkpoint: "Checkpoint") -> Callable[[Path], None]:
    """What writes a checkpoint for transformers; ValueError where that cannot be done."""
    from gptlab.interop.transformers_folder import architecture_for, write_folder
    from gptlab.models.base import CLASS_HEAD
    from gptlab.models.config import model_from_plain
    from gptlab.runs.run_tokenizer import run_of, tokenizer_of

    config = model_from_plain(checkpoint.state.config["model"])
    architecture = architecture_for(config)
    tokenizer = tokenizer_of(checkpoint)
    if tokenizer is None:
        print(f"there is no {run_of(checkpoint.path) / 'tokenizer.json'}: the folder gets no tokenizer")
    weights = checkpoint.weights()
    if any(name.startswith(CLASS_HEAD) for name in weights):
        print(f"the class head is left out: {architecture.class_name} of transformers has none")
    return lambda folder: write_folder(
        folder,
        config,
        weights.__getitem__,
        tokenizer,
        card=_card(checkpoint, weights, architecture.task),
        special_tokens=checkpoint.state.special_tokens,
    )


def _joined(source: "Checkpoint") -> Callable[[Path], None]:
    """What writes a checkpoint that is a folder as one file, with all that a run needs to go on from it."""
    import yaml

    from gptlab.runs import checkpoint
    from gptlab.runs.run_tokenizer import tokenizer_file

    def write(folder: Path) -> None:
        (folder / "config.yaml").write_text(yaml.safe_dump(source.state.config, sort_keys=False))
        if (tokenizer := tokenizer_file(source.path)) is not None:
            shutil.copyfile(tokenizer, folder / "tokenizer.json")
        checkpoint.save(folder / "checkpoints" / "last.ckpt", source.state, source.model, source.optimizer)

    return write


def _for_gptlab(foreign) -> Callable[[Path], None]:
    """What writes a foreign folder for gptlab; ValueError where that cannot be done."""
    tokenizer, special = foreign.tokenizer(), foreign.special_tokens
    if tokenizer is None:
        print(f"{foreign.path} has no tokenizer that can be read: the checkpoint gets no tokenizer")
    return lambda folder: _write_gptlab(folder, foreign, tokenizer, special)


def _write_gptlab(folder: Path, foreign, tokenizer, special) -> None:
    import yaml

    from gptlab.config import RunConfig, to_plain
    from gptlab.data.tokenizers.config import TokenizerFileConfig
    from gptlab.runs import checkpoint
    from gptlab.runs.checkpoint_state import CheckpointState

    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    foreign.config.vocab_size = foreign.vocab_size
    config = to_plain(
        RunConfig(
            model=foreign.config,
            tokenizer=TokenizerFileConfig(path=None if tokenizer is None else str(foreign.tokenizer_file)),
            model_tag=foreign.architecture.model_type,
        )
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    state = CheckpointState(
        config=config, tokenizer="" if tokenizer is None else tokenizer.fingerprint, special_tokens=special
    )
    checkpoint.save(folder / "checkpoints" / "last.ckpt", state, dict(foreign.tensors()))


def _give_back_freed_memory() -> None:
    """Let the C library give each block back to the system that it frees.

    Tensors that are read and dropped lie between those that are kept; the gaps came to a quarter of the weights.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, 1 << 17)


def _card(checkpoint: "Checkpoint", weights: Mapping[str, Any], task: str) -> str:
    """README.md of an exported model: what it is, what it reached and how it was trained."""
    import yaml

    from gptlab.models.base import CLASS_HEAD
    from gptlab.runs.folder import read_metrics
    from gptlab.runs.run_tokenizer import run_of

    path, state = checkpoint.path, checkpoint.state
    run = run_of(path)
    own = run != path.resolve().parent  # beside a checkpoint that was copied elsewhere lie other runs' files
    rows = [row for row in read_metrics(run / "metrics.csv") if own and row["step"] == state.step]
    metrics = {name: value for row in rows for name, value in row.items() if name.startswith(("train/", "val/"))}
    summary = json.loads((run / "summary.json").read_text()) if own and (run / "summary.json").is_file() else {}
    n_parameters = sum(value.numel() for name, value in weights.items() if not name.startswith(CLASS_HEAD))
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "---",
        "",
        f"# {run.name if own else path.stem}",
        "",
        f"A language model of {n_parameters:,} parameters, trained with gptlab for {state.step:,} steps"
        + (f" on {summary['corpus']}" if "corpus" in summary else "")
        + ".",
        "",
    ]
    if metrics:
        lines += ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in metrics.items())]
        lines += ["", "Losses are in nats per token, measured at this checkpoint's step.", ""]
    lines += ["## Config", "", "```yaml", yaml.safe_dump(state.config, sort_keys=False).rstrip(), "```", ""]
    return "\n".join(lines)


def _refuse_target(target: Path, to: str, source: str, overwrite: bool) -> None:
    above = next(folder for folder in (target, *target.parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"to={to} is {'' if above == target else 'within '}a file; name a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"to={to} is not empty; name another folder, or add overwrite=true to replace it")
    if Path(source).expanduser().resolve().is_relative_to(target):
        raise UserError(f"to={to} holds from={source}; name another folder")
    present = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    kinds = [(sorted(always - present), sorted(present - always - maybe)) for always, maybe in WRITTEN]
    if not any(lacking == foreign == [] for lacking, foreign in kinds):
        lacking, foreign = min(kinds, key=lambda kind: (len(kind[0]), len(kind[1])))
        what = f"holds {foreign[0]}, which gptlab convert does not write" if foreign else f"lacks {lacking[0]}"
        raise UserError(
            f"to={to} {what}: it is not what an earlier conversion left, and overwrite=true replaces nothing else; "
            "name another folder"
        )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_interrupted(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        with _ending_on_signals():
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


def _clear_interrupted(target: Path) -> None:
    """Remove what conversions to the same folder left that were killed; a folder that one had moved away comes back."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.*"):
        process, kind = path.name.removeprefix(f".{target.name}.").split(".", 1)
        if kind not in ("tmp", "old") or not process.isdecimal() or _is_running(int(process)):
            continue
        if kind == "old" and not target.exists():
            os.replace(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let a signal end the block as an exception would, so that it can clean up."""
    stopped: list[int] = []

    def stop(number: int, frame) -> None:
        stopped.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except BaseException:
        if stopped:  # a library whose writing was cut short raises errors of its own
            raise SystemExit(128 + stopped[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_words(words: list[str]) -> dict[str, Any]:
    said = read(words, WORDS, "gptlab convert")
    for key in ("from", "to"):
        if not said.get(key):
            raise UserError(f"gptlab convert needs {key}=PATH")
    kind = said["format"].value if "format" in said else None
    return {"source": said["from"], "to": said["to"], "kind": kind, "overwrite": said.get("overwrite", False)}
