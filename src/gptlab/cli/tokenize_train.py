"""The command `gptlab tokenize train`: a tokenizer learned from text, as files that other programs read."""

import shlex
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from gptlab.cli.options import carry_out
from gptlab.errors import UserError

HELP = """gptlab tokenize train tokenizer=bpe data=text data.path=FILE to=FOLDER

    tokenizer    bpe, unigram or wordpiece, and its keys, as tokenizer.vocab_size=8192
                 tokenizer.special_tokens=[<mask>,<pad>] tokenizer.pattern=gpt4
    data         what it is learned from, and its keys, as for gptlab train: the training split of it
    to           the folder to write: tokenizer.json, tokenizer_config.json and, of bpe, ranks.tiktoken
    overwrite    true: replace what an earlier call wrote there (false)
    plugins      modules that register components of your own, as [MODULE]

tokenizer.pattern is the split of a text into pieces before merging: gpt2, gpt4, which takes numbers apart by three
digits, or a regular expression of your own. A run that is trained with tokenizer=bpe learns the same by itself.
"""


@dataclass(kw_only=True, slots=True)
class _Options:
    to: str = ""
    overwrite: bool = False


OPTIONS = typing.get_type_hints(_Options)


def main(arguments: list[str]) -> int:
    """Learn as the arguments ask; returns the exit code."""
    return carry_out(arguments, _Options, _learn, of="gptlab tokenize train", help=HELP)


def _learn(own: _Options, overrides: list[str]) -> None:
    if not own.to:
        raise UserError("gptlab tokenize train needs to=FOLDER, which it writes")
    from gptlab import composition
    from gptlab.cli.train import option, split

    options, typed = split(overrides)
    unknown = [one for one in options if one.startswith("-") and one.partition("=")[0] not in ("--config-dir", "-cd")]
    if unknown:
        raise UserError(f"{unknown[0]} is not an option of gptlab tokenize train; see gptlab tokenize train --help")
    groups = {one.lstrip("+~").partition("=")[0].partition(".")[0] for one in typed}
    foreign = sorted(groups - {"data", "tokenizer", "plugins"})
    if foreign:
        raise UserError(f"{foreign[0]} has no effect on a tokenizer, which takes data and tokenizer; leave it out")
    config = composition.compose(*typed, config_dir=option(options, "--config-dir", "-cd"))
    from gptlab.data.mixture.prepare import learn_run_tokenizer
    from gptlab.interop.tokenizer_folder import check_target, write_tokenizer

    folder = Path(own.to).expanduser()
    check_target(folder, "to", overwrite=own.overwrite)
    tokenizer = learn_run_tokenizer(config.data, config.tokenizer, progress=sys.stderr.isatty())
    written = write_tokenizer(folder, tokenizer)
    print(f"{folder}: {', '.join(written)}; vocabulary {tokenizer.vocab_size:,}")
    named = shlex.quote(f"tokenizer={own.to}")
    path = shlex.quote(f"tokenizer.path={own.to}/tokenizer.json")
    print(f"next: gptlab tokenize path=FILE {named} tokenizer=gpt2; to train with it, tokenizer=file {path}")
