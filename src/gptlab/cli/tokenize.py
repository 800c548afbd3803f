"""The command `gptlab tokenize`: the pieces and ids that tokenizers make of a text."""

import json
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, read, read_standard_input
from gptlab.data.tokenizers.pieces import Tokenization, columns, pieces, special_spellings, tokenize, visible
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.generation.config import OutputFormat
from gptlab.quoting import unescaped
from gptlab.runs.named_tokenizer import tokenizer_named, tokenizer_of_model
from gptlab.units import grid, plural

OPTIONS = {
    "text": str,
    "run": list[str],
    "tokenizer": list[str],
    "path": list[str],
    "ids": tuple[int, ...],
    "output": OutputFormat,
}
HELP = """gptlab tokenize "TEXT" run=PATH [tokenizer=NAME ...]
gptlab tokenize path=FILE tokenizer=NAME [tokenizer=NAME ...]
gptlab tokenize train tokenizer=bpe data=text data.path=FILE to=FOLDER

    TEXT         the text, which may also be given as text=TEXT; \\n is a new line and \\t a tab; without it standard
                 input is read as it is
    run          the tokenizer of a run folder, a .ckpt file, a transformers folder or a hub name; may be given several
                 times, and so may tokenizer: their pieces are shown side by side
    tokenizer    a tokenizer.json, a folder with one, or a preset that needs no training, such as gpt2 or byte
    path         a text file, a folder or a glob instead of a text: how many tokens each tokenizer makes of it; may be
                 given several times
    ids          decode these ids instead of a text, as [6109,3626]
    output       text, or json with nothing else on standard output (text)
    plugins      modules that register components of your own, as [MODULE]

gptlab tokenize train makes a tokenizer; see gptlab tokenize train --help. The text "train" is text=train.
"""
FOREIGN = {"model": "run", "prompt": "text", "input": "text", "tokens": "ids", "format": "output"}


def main(arguments: list[str]) -> int:
    """Tokenize as the arguments ask; returns the exit code."""
    if arguments[:1] == ["train"]:
        from gptlab.cli import tokenize_train

        return tokenize_train.main(arguments[1:])
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: show(arguments))


@dataclass(slots=True)
class _Named:
    name: str
    tokenizer: Tokenizer
    result: Tokenization


def show(arguments: list[str]) -> None:
    """Print what each tokenizer makes of the text."""
    texts, options = _split(load_plugins(arguments))
    given: dict[str, Any] = read(options, OPTIONS, "gptlab tokenize", FOREIGN)
    texts += [given["text"]] if "text" in given else []
    if len(texts) > 1:
        raise UserError(f"there are {len(texts)} texts, {' and '.join(map(repr, texts[:2]))}; put one in quotes")
    if not given.get("run") and not given.get("tokenizer"):
        raise UserError("gptlab tokenize needs run=PATH or tokenizer=NAME, such as tokenizer=gpt2 or tokenizer=FILE")
    ways = [*(["a text"] if texts else []), *(f"{key}=" for key in ("path", "ids") if key in given)]
    if len(ways) > 1:
        raise UserError(f"{ways[0]} and {ways[1]} are both given; leave out one of them")
    text = None
    if not {"ids", "path"} & given.keys():
        text = unescaped(texts[0]) if texts else read_standard_input()
        if text is None:
            raise UserError('there is no text; give gptlab tokenize "TEXT", or one on standard input')
    opened = [(name, tokenizer_of_model(name)) for name in given.get("run", ())]
    opened += [(name, tokenizer_named(name)) for name in given.get("tokenizer", ())]
    if "path" in given:
        _show_compression(opened, given["path"], given.get("output"))
        return
    found = []
    for name, tokenizer in opened:
        try:
            result = _decoded(tokenizer, given["ids"]) if text is None else tokenize(tokenizer, text)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        found.append(_Named(name, tokenizer, result))
    if given.get("output") is OutputFormat.json:
        print(json.dumps({"text": text, "tokenizers": list(map(_as_json, found))}))
    elif len(found) == 1:
        _print_one(found[0])
    else:
        _print_beside(found)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that are text, and the options."""
    # A name and an equals sign at the beginning are an option, and a wrong one is worth an answer.
    options = [argument for argument in arguments if re.match(r"[a-z_]+=", argument)]
    return [argument for argument in arguments if argument not in options], options


def _decoded(tokenizer: Tokenizer, ids: tuple[int, ...]) -> Tokenization:
    decoded = tokenizer.decode(ids)
    return Tokenization(decoded, pieces(tokenizer, ids), decoded)


def _about(one: _Named) -> str:
    result, n = one.result, len(one.result.pieces)
    per_token = f", {result.n_bytes / n:.2f} bytes per token" if n else ""
    return (
        f"{n:,} token{'' if n == 1 else 's'}, {len(result.text):,} character{'' if len(result.text) == 1 else 's'}, "
        f"{result.n_bytes:,} bytes{per_token}, vocabulary {one.tokenizer.vocab_size:,}"
    )


def _print_one(one: _Named) -> None:
    pieces = one.result.pieces
    widths = [len(str(len(pieces))), max((len(str(piece.token)) for piece in pieces), default=1)]
    for position, piece in enumerate(pieces):
        print_text(f"{position:>{widths[0]}}  {piece.token:>{widths[1]}}  {piece}\n")
    print_text(f"{one.name}: {_about(one)}\n")
    _print_notes(one)


def _print_beside(found: list[_Named]) -> None:
    table = []
    for one in found:
        width = max((len(str(piece.token)) for piece in one.result.pieces), default=1)
        cells = [f"{piece.token:>{width}} {piece}" for piece in one.result.pieces]
        table.append([one.name, *cells])
    height, widths = max(map(len, table)), [max(map(columns, column)) for column in table]
    digits = len(str(height))
    for i in range(height):
        cells = [column[i] if i < len(column) else "" for column in table]
        cells = [cell + " " * (width - columns(cell)) for cell, width in zip(cells, widths, strict=True)]
        print_text(f"{'' if i == 0 else i - 1!s:>{digits}}  {'  '.join(cells)}".rstrip() + "\n")
    print()
    for one in found:
        print_text(f"{one.name}: {_about(one)}\n")
        _print_notes(one)


def _show_compression(opened: list[tuple[str, Tokenizer]], paths: list[str], output: OutputFormat | None) -> None:
    from gptlab.data.progress import byte_progress
    from gptlab.data.sources.config import TextConfig
    from gptlab.data.sources.text import open_text
    from gptlab.data.tokenizers.compression import compression

    corpus = open_text(TextConfig(paths=paths, text_column=None))
    found = []
    for name, tokenizer in opened:
        with byte_progress(f"tokenizing, {name}", corpus.n_bytes, show=sys.stderr.isatty()) as advance:
            try:
                found.append(compression(tokenizer, corpus.chunks(), advance))
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    named = list(zip(opened, found, strict=True))
    if output is OutputFormat.json:
        rows = [
            {"name": name, "vocab_size": tokenizer.vocab_size, **asdict(one)}
            | {"bytes_per_token": one.bytes_per_token, "characters_per_token": one.characters_per_token}
            for (name, tokenizer), one in named
        ]
        print(json.dumps({"text": corpus.description, "tokenizers": rows}))
        return
    print_text(f"{corpus.description}: {plural(found[0].n_documents, 'document')}, {found[0].n_bytes:,} bytes\n")
    header = ("tokenizer", "vocabulary", "tokens", "bytes per token", "characters per token")
    rows = []
    for (name, tokenizer), one in named:
        counts = (f"{tokenizer.vocab_size:,}", f"{one.n_tokens:,}")
        rows.append((name, *counts, f"{one.bytes_per_token:.3f}", f"{one.characters_per_token:.3f}"))
    print_text(grid(header, rows) + "\n")
    for (name, _), one in named:
        if one.lost is not None:
            print_text(f"{name} loses text: {one.lost}\n")


def _print_notes(one: _Named) -> None:
    beginning = one.tokenizer.beginning
    if beginning:
        spelled = special_spellings(one.tokenizer)
        names = " ".join(f"{spelled.get(token, '?')} ({token})" for token in beginning)
        print_text(f"    before a prompt a model of this tokenizer reads {names}\n")
    if not one.result.is_lossless:
        print_text(f"    the tokens do not give the text back, but {visible(one.result.decoded)}\n")


def _as_json(one: _Named) -> dict[str, Any]:
    return {
        "name": one.name,
        "vocab_size": one.tokenizer.vocab_size,
        "n_tokens": len(one.result.pieces),
        "n_characters": len(one.result.text),
        "n_bytes": one.result.n_bytes,
        "ids": [piece.token for piece in one.result.pieces],
        "pieces": [
            {"id": piece.token, "text": piece.text}
            | ({} if piece.n_parts == 1 else {"part": piece.part, "n_parts": piece.n_parts})
            for piece in one.result.pieces
        ],
        "beginning": list(one.tokenizer.beginning),
        "decoded": one.result.decoded,
        "lossless": one.result.is_lossless,
    }
