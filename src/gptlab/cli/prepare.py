"""The command `gptlab prepare`: text to token shards, and checking them."""

import re
import shlex
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from gptlab.cli.options import carry_out, compose, print_text
from gptlab.data.config import DataConfig
from gptlab.errors import UserError, refuse_password
from gptlab.fields import bounded
from gptlab.files import is_address
from gptlab.units import bytes_text, duration, plural

SHARD_TOKENS = "100M"
HELP = """gptlab prepare data=text data.path=FOLDER tokenizer=gpt2 to=FOLDER [group.key=value ...]
gptlab prepare data=text data.path=FOLDER filters=[gopher,duplicates] html=FILE
gptlab prepare verify=FOLDER

    data          text, huggingface or another source of text, with its options as for gptlab train, such as data.path,
                  data.text_column, data.val_fraction and data.n_processes
    tokenizer     as for gptlab train; one that is trained learns from the training split
    to            the folder for the shards, or an address such as s3://bucket/shards; the same command goes on with
                  one that is not finished
    filters       what removes documents before they are tokenized; options in data.filters; see docs/curation.md
    html          a file that ends in .html, or a folder, which gets curation.html: what each filter removed, with
                  samples. Without to= the documents are filtered and nothing is tokenized (curation.html in to=)
    n_shown       samples of each filter in that page (5)
    seed          by which they are drawn (0)
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
    html: str | None = None
    n_shown: int = bounded(5, ge=0)
    seed: int = bounded(0, ge=0)


OPTIONS = typing.get_type_hints(_Options)


def main(arguments: list[str]) -> int:
    """Prepare or verify what the arguments name; returns the exit code."""

    def action(options: _Options, overrides: list[str]) -> None:
        others = [argument for argument in arguments if not argument.startswith("verify=")]
        if options.verify is not None and others:
            raise UserError(
                f"{others[0]} has no effect on verify={options.verify}, which reads what is there; leave it out"
            )
        own = [argument.partition("=")[0] for argument in arguments]
        _prepare_or_verify(options, own, overrides)

    return carry_out(arguments, _Options, action, of="gptlab prepare", help=HELP)


def _prepare_or_verify(options: _Options, own: list[str], overrides: list[str]) -> None:
    if options.verify is not None:
        _verify(options.verify)
    elif options.to is None and options.html is None:
        raise UserError(
            "gptlab prepare needs to=FOLDER for the shards, html=FILE to see what filters remove, or verify=FOLDER to "
            "check some shards"
        )
    elif options.to == "":
        raise UserError("to= is empty; name a folder for the shards")
    else:
        _prepare(options, own, overrides)


def _prepare(options: _Options, own: list[str], overrides: list[str]) -> None:
    shard_tokens = _number("shard_tokens", options.shard_tokens)
    if not any(override.startswith("data.split=") for override in overrides):
        overrides = [*overrides, "data.split=document"]  # some sources would cut the text itself
    config = compose(overrides, "gptlab prepare")
    if not isinstance(config.data, DataConfig):
        raise UserError(
            f"data={config.data.type} is mixed while it is read; prepare each of its sources, and mix data=shards"
        )

    filtered = bool(config.data.filter_configs)
    for name in ("html", "n_shown", "seed"):
        if not filtered and name in own:
            raise UserError(f"{name}= is about filters, and there is none; add filters=[NAME], or leave it out")
    page = None if options.html is None else _page_path(options.html)
    if options.to is None:
        _show_filtered(config.data, page, options)
        return

    from gptlab.data.sharding import is_begun, prepare_shards
    from gptlab.data.token_shards import MANIFEST
    from gptlab.distributed.signals import stopping_at_once

    refuse_password("to", options.to)
    folder = options.to.rstrip("/") if is_address(options.to) else str(Path(options.to).expanduser())
    if is_begun(folder, config.data.cache_dir):
        print(f"{folder} is not finished; going on", file=sys.stderr, flush=True)
    was_finished = not is_address(folder) and Path(folder, MANIFEST).exists()
    with stopping_at_once("while shards were written; the same command goes on"):
        manifest = prepare_shards(config.data, config.tokenizer, folder, shard_tokens=shard_tokens, progress=True)
    if was_finished:
        print(f"{folder} is finished already", file=sys.stderr, flush=True)
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
    if filtered:
        if page is None and not is_address(folder):
            page = _page_path(folder)
        _show_filtered(config.data, page, options)
    print_text(f"train on them with: gptlab train data=shards {shlex.quote(f'data.path={folder}')}\n")


def _page_path(given: str) -> Path:
    from gptlab.lab.curation import PAGE
    from gptlab.lab.report import page_path

    return page_path(given, PAGE)


def _show_filtered(data: DataConfig, page: Path | None, options: _Options) -> None:
    """Print what each filter removed, and write a page; the documents are filtered first, where they were not yet."""
    from gptlab.data.curation.corpus import CuratedCorpus, open_source
    from gptlab.distributed.signals import stopping_at_once
    from gptlab.lab.curation import share, write_page
    from gptlab.units import grid

    with stopping_at_once("while documents were filtered; the same command goes on"):
        corpus = open_source(data)
        assert isinstance(corpus, CuratedCorpus)
        counts = corpus.counts
        if page is not None:
            write_page(corpus, page, n_shown=options.n_shown, seed=options.seed)
    rows = []
    for one in counts:
        n = one.n_documents_in - one.n_documents_out
        most = max(one.rules, key=lambda rule: one.rules[rule]) if len(one.rules) > 1 else ""
        why = f"most by {most}" if most else ""
        sizes = (f"{one.n_documents_in:,}", f"{n:,}", share(n, one.n_documents_in), f"{one.n_bytes_out:,}")
        rows.append((one.name, *sizes, why))
    print_text(grid(("filter", "documents", "removed", "share", "bytes left", ""), rows) + "\n")
    shown = page or "html=FILE writes a page of it"
    print_text(f"samples of what was removed: {shown}\n")


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
