"""The command `gptlab prepare`: text to token shards, and checking them."""

import re
import shlex
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from gptlab.cli.guard import guard
from gptlab.cli.options import compose, print_text, read
from gptlab.data.config import DataConfig
from gptlab.errors import UserError, refuse_password
from gptlab.files import is_address
from gptlab.units import bytes_text, duration, plural

SHARD_TOKENS = "100M"
HELP = """gptlab prepare data=text data.path=FOLDER tokenizer=gpt2 to=FOLDER [group.key=value ...]
gptlab prepare verify=FOLDER

    data          text, huggingface or another source of text, with its options as for gptlab train, such as data.path,
                  data.text_column, data.val_fraction and data.n_processes
    tokenizer     as for gptlab train; one that is trained learns from the training split
    to            the folder for the shards, or an address such as s3://bucket/shards; the same command goes on with
                  one that is not finished
    shard_tokens  tokens of a shard, such as 100M, 2B or 500k; the last of a split has fewer (100M)
    verify        read every shard of a folder or an address against its checksum
    plugins       modules that register components of your own, as [MODULE]

gptlab train data=shards data.path=FOLDER trains on the shards. --config-dir DIR adds presets of your own.
"""
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000, "B": 1_000_000_000, "G": 1_000_000_000}
_N_LISTED = 20  # damaged shards


@dataclass(kw_only=True, slots=True)
class _Options:
    to: str | None = None
    shard_tokens: str = SHARD_TOKENS
    verify: str | None = None


OPTIONS = typing.get_type_hints(_Options)


def main(arguments: list[str]) -> int:
    """Prepare or verify what the arguments name; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in OPTIONS]
    own = [argument for argument in arguments if argument not in overrides]
    return guard(lambda: _carry_out(own, overrides), overrides)


def _carry_out(own: list[str], overrides: list[str]) -> None:
    options = _Options(**read(own, OPTIONS, "gptlab prepare"))
    if options.verify is not None:
        if overrides or len(own) > 1:
            other = next(argument for argument in [*own, *overrides] if not argument.startswith("verify="))
            raise UserError(
                f"{other} has no effect on verify={options.verify}, which reads what is there; leave it out"
            )
        _verify(options.verify)
    elif options.to is None:
        raise UserError("gptlab prepare needs to=FOLDER for the shards, or verify=FOLDER to check some")
    elif not options.to:
        raise UserError("to= is empty; name a folder for the shards")
    else:
        _prepare(options, overrides)


def _prepare(options: _Options, overrides: list[str]) -> None:
    shard_tokens = _number("shard_tokens", options.shard_tokens)
    if not any(override.startswith("data.split=") for override in overrides):
        overrides = [*overrides, "data.split=document"]  # some sources would cut the text itself
    config = compose(overrides, "gptlab prepare")
    if not isinstance(config.data, DataConfig):
        raise UserError(
            f"data={config.data.type} is mixed while it is read; prepare each of its sources, and mix data=shards"
        )

    from gptlab.data.sharding import is_begun, prepare_shards
    from gptlab.data.token_shards import MANIFEST
    from gptlab.distributed.signals import stopping_at_once

    assert options.to is not None
    refuse_password("to", options.to)
    folder = options.to.rstrip("/") if is_address(options.to) else str(Path(options.to).expanduser())
    if is_begun(folder, config.data.cache_dir):
        print(f"{folder} is not finished; going on", file=sys.stderr, flush=True)
    elif not is_address(folder) and Path(folder, MANIFEST).exists():
        print(f"{folder} is finished already", file=sys.stderr, flush=True)
    with stopping_at_once("while shards were written; the same command goes on"):
        manifest = prepare_shards(config.data, config.tokenizer, folder, shard_tokens=shard_tokens, progress=True)
    found = manifest.documents
    for note in found["notes"]:
        print(f"warning: {note}", file=sys.stderr, flush=True)
    left_out = "".join(f", without {what}" for what in found["left_out"])
    print_text(
        f"{manifest.source['description']}: {plural(found['n_documents'], 'document')}, {found['n_bytes']:,} bytes"
        f"{left_out}\n"
    )
    for part, shards in manifest.shards.items():
        tokens, documents = sum(shard.n_tokens for shard in shards), sum(shard.n_documents for shard in shards)
        print(f"{part:<6} {plural(len(shards), 'shard')}, {tokens:,} tokens, {plural(documents, 'document')}")
    print_text(f"train on them with: gptlab train data=shards {shlex.quote(f'data.path={folder}')}\n")


def _verify(path: str) -> None:
    import time

    from gptlab.data.prepare import n_cores
    from gptlab.data.token_shards import open_folder, read_manifest, verify_shards

    folder = open_folder(path)
    start, n_bytes, wrong = time.monotonic(), 0, []
    vocab_size = read_manifest(folder).tokenizer["vocab_size"]
    n_shards = 0
    for shard, error in verify_shards(folder, n_cores()):
        n_shards += 1
        n_bytes += shard.size_bytes(vocab_size)
        if error is not None:
            wrong.append(str(error))
    if wrong:
        more = f"\nand {len(wrong) - _N_LISTED:,} more" if len(wrong) > _N_LISTED else ""
        listed = "\n".join(wrong[:_N_LISTED])
        raise UserError(f"{len(wrong):,} of {plural(n_shards, 'shard')} of {folder} damaged:\n{listed}{more}")
    seconds = time.monotonic() - start
    print_text(f"{folder}: {plural(n_shards, 'shard')} as written, {bytes_text(n_bytes)} read in {duration(seconds)}\n")


def _number(key: str, text: str) -> int:
    found = re.fullmatch(r"([\d_]+(?:\.\d+)?|\d+e\d+)([kMBG]?)", text)
    number = float(found[1].replace("_", "")) * _UNITS[found[2]] if found else 0
    if number < 1 or number != int(number):
        raise UserError(f"{key}={text} must be a number of tokens, such as {SHARD_TOKENS}, 500k or 1_000_000")
    return int(number)
