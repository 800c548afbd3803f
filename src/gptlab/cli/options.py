"""The options key=value of a command, parsed by the types of a config."""

import shlex
import sys
import typing
from collections.abc import Callable, Container, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from gptlab import plugins
from gptlab.cli.guard import guard
from gptlab.errors import UserError, did_you_mean
from gptlab.fields import check_bounds
from gptlab.values import coerce

Options = TypeVar("Options")


def carry_out(
    arguments: list[str],
    kind: type[Options],
    action: Callable[[Options, list[str]], int | None],
    *,
    of: str,
    help: str | Callable[[], str],
    foreign: Mapping[str, str] | None = None,
) -> int:
    """Carry out a command that has options of its own beside the overrides of `gptlab train`; returns the exit code.

    `kind` is the dataclass of its own options, and `action` gets them, checked, and the overrides, and may return an
    exit code. `of` is the command, as errors call it, and `help` what it prints without arguments. `foreign` is as in
    `read`.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help if isinstance(help, str) else help(), end="")
        return 0
    hints = typing.get_type_hints(kind)
    known = {*hints, *(foreign or ())}
    own = [argument for argument in arguments if argument.partition("=")[0] in known]
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in known]

    def checked() -> int | None:
        refuse_bare_run(arguments, hints)
        options = kind(**read(own, hints, of, foreign))
        check_bounds(options)
        return action(options, overrides)

    return guard(checked, overrides)


def split(arguments: list[str]) -> list[tuple[str, str]]:
    """Each argument's key and value; UserError for one that has none."""
    found = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{key} needs a value; write {key}=...")
        found.append((key, value))
    return found


def refuse_bare_run(arguments: list[str], keys: Container[str]) -> None:
    """Refuse the path of a run without `run=`, which other commands take, where `run` is among the keys."""
    if "run" in keys:
        for before, argument in pairwise(["", *arguments]):
            if before in ("--config-dir", "-cd"):
                continue
            if "=" not in argument and "/" in argument and Path(argument).expanduser().exists():
                raise UserError(f"{argument} lacks its key; write {shlex.quote(f'run={argument}')}")


def load_plugins(arguments: list[str]) -> list[str]:
    """Import the modules that `plugins=` names; returns the other arguments."""
    plugins.load(plugins.named_in(arguments))
    return [argument for argument in arguments if argument.partition("=")[0] != "plugins"]


def read(arguments: list[str], hints: Mapping[str, Any], of: str, foreign: Mapping[str, str] | None = None) -> dict:
    """The values of options, by key.

    `hints` has the type of each key, and `of` names in errors whose options they are. An option with the type list may
    be given several times, once per item. `foreign` maps other programs' names to ours. UserError for an unknown key,
    for one that is given twice, and for a value of another type.
    """
    refuse_bare_run(arguments, hints)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in hints:
            ours = (foreign or {}).get(key)
            hint = f"; did you mean {ours}?" if ours else did_you_mean(key, [*hints, "plugins"])
            raise UserError(f"unknown option {key} of {of}{hint}")
        if not equals:
            raise UserError(f"{key} needs a value; write {key}=...")
        if typing.get_origin(hints[key]) is list:
            (kind,) = typing.get_args(hints[key])
            values.setdefault(key, []).append(coerce(key, value, kind))
        elif key in values:
            raise UserError(f"{key}= is given twice; give it once")
        else:
            values[key] = coerce(key, value, hints[key])
    return values


def with_run(arguments: list[str], kind: type[Options], of: str) -> tuple[str, Options]:
    """A run folder, as the one argument that is no option or as run=PATH, and the other options, checked.

    UserError for none, for two, and for options that `read` refuses. A path may have an equals sign.
    """
    hints = typing.get_type_hints(kind)
    runs, rest = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        is_path = not equals or (key not in hints and key != "run" and Path(argument).expanduser().is_dir())
        if is_path or key == "run":
            runs.append(argument if is_path else value)
        else:
            rest.append(argument)
    if len(runs) != 1 or not runs[0]:
        given = f"was given {len(runs)}: {', '.join(runs)}" if len(runs) > 1 else "none was given"
        raise UserError(f"{of} needs one run folder, such as runs/NAME, and {given}")
    options = kind(**read(rest, hints, of))
    check_bounds(options)
    return runs[0], options


def compose(overrides: list[str], of: str) -> Any:
    """The run that the overrides of `gptlab train` describe, with --config-dir among them; `of` names the command.

    UserError for another option of train's.
    """
    from gptlab import composition
    from gptlab.cli.train import option, split

    options, typed = split(overrides)
    for one in options:
        if one.startswith("-") and one.partition("=")[0] not in ("--config-dir", "-cd"):
            raise UserError(f"{one} is not an option of {of}; see {of} --help")
    return composition.compose(*typed, config_dir=option(options, "--config-dir", "-cd"))


def html_path(given: str, name: str) -> Path:
    """The file that `html=` means, `name` within a folder; UserError where it is no page or has no folder."""
    if not given.strip():  # which Path takes for this folder
        raise UserError(f"html= is empty; name a file that ends in .html or a folder, such as html={name}")
    path = Path(given).expanduser()
    path = path / name if path.is_dir() else path
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"html={given} is no folder and does not end in .html; write {shlex.quote(f'html={given}.html')}"
        )
    if not path.parent.is_dir():
        raise UserError(f"html={given} is in a folder that does not exist; create {path.parent}")
    return path


def read_text(path: Path, option: str) -> str:
    """The text of a file as it is, line ends included, without a byte order mark.

    UserError names the `option` with which it was given.
    """
    try:
        return path.expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option}={path} is not UTF-8 text: the byte at {error.start:,}; convert the file") from None
    except OSError as error:
        raise UserError(f"{option}={path} cannot be read: {error.strerror or error}; name a text file") from None


def read_standard_input() -> str | None:
    """The text on standard input as `read_text` reads a file; None where there is none, but a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: the byte at {error.start:,}; convert it") from None


def without_last_line_end(text: str) -> str:
    """A text file's content without the end of its last line, which editors add."""
    return text.removesuffix("\r\n") if text.endswith("\r\n") else text.removesuffix("\n")


def print_text(text: str) -> None:
    """Print a text as far as standard output can show it: no lone surrogates, and much less on an ASCII terminal."""
    sys.stdout.write(encodable(text))
    sys.stdout.flush()


def encodable(text: str) -> str:
    """The text without what standard output cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
