"""Completion in a shell: `gptlab --completion bash` prints what installs it, `gptlab --complete LINE` what it asks."""

import importlib
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields
from enum import Enum

BASH = """_gptlab() {
    local line=${COMP_LINE:0:COMP_POINT} word
    word=${line##*[[:space:]]}
    local found
    found=$("${COMP_WORDS[0]}" --complete "$line" 2>/dev/null) || return
    local IFS=$'\\n'
    # Of a word with an equals sign, bash completes what follows it.
    [[ $word == *=* ]] && found=$(sed "s|^[^=]*=||" <<< "$found")
    COMPREPLY=($found)
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _gptlab gptlab
"""
ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n" + BASH
SHELLS = {"bash": BASH, "zsh": ZSH}


RUN_OPTIONS = ("train", "sweep", "plan", "inspect")  # commands that take what gptlab train takes


def candidates(line: str, commands: Iterable[str]) -> list[str]:
    """What the last argument of a command line may become; none where the shell's own file names serve."""
    *before, word = line.split(" ")
    before = [part for part in before if part]
    if len(before) < 2:
        return sorted(name for name in (*commands, "--help", "--version") if name.startswith(word))
    command, key, equals = before[1], *word.partition("=")[:2]
    if equals:
        found = [f"{key}={value}" for value in _values(command, key)]
    else:
        found = [f"{option}=" for option in _keys(command)]
    return sorted({name for name in found if name.startswith(word)})


def _keys(command: str) -> Sequence[str]:
    own = list(_options(command))
    if command not in RUN_OPTIONS:
        return own
    from gptlab.overrides import key_types
    from gptlab.registry import GROUPS

    keys = [key for key, _ in key_types() if not key.endswith(".type")]
    return [*own, *keys, *GROUPS, *presets()]


def _values(command: str, key: str) -> Iterable[str]:
    if command in RUN_OPTIONS and key in presets():
        return presets()[key]
    hint = _options(command).get(key)
    kinds = [hint, *typing.get_args(hint)]  # precision, or an enum or None
    return [str(member.value) for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for member in kind]


def _options(command: str) -> dict[str, typing.Any]:
    """The options of a command and their types."""
    if command in ("generate", "evaluate"):
        name = f"{command.capitalize()}Config"
        package = {"generate": "generation", "evaluate": "evaluation"}[command]
        config = getattr(importlib.import_module(f"gptlab.{package}.config"), name)
        hints = typing.get_type_hints(config)
        return {f.name: hints[f.name] for f in fields(config)}
    if command in ("train", "amend"):
        return {}
    module = importlib.import_module(f"gptlab.cli.{command.replace('-', '_')}")
    return dict(getattr(module, "OPTIONS", {}))


def presets() -> dict[str, list[str]]:
    """The presets of each group, without Hydra's import."""
    from importlib.resources import files

    found = {}
    for folder in files("gptlab.conf").iterdir():
        if folder.is_dir():
            names = sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))
            if names:
                found[folder.name] = names
    return dict(sorted(found.items()))
