"""Completion in a shell, and the list of commands."""

import gc
import os
import shutil
import subprocess
import sys

import pytest

from gptlab.cli import main
from gptlab.cli.completion import SHELLS, candidates
from gptlab.cli.main import VERBS


@pytest.mark.parametrize(
    "line, expected",
    [
        ("gptlab ge", ["generate"]),
        ("gptlab generate max_n", ["max_new_tokens="]),
        ("gptlab generate run=x precision=b", ["precision=bf16"]),
        ("gptlab train model=gpt124", ["model=gpt124m"]),
        ("gptlab train -m optimizer.weight_d", ["optimizer.weight_decay="]),
        ("gptlab inspect by_", ["by_token="]),
        ("gptlab tokenize tok", ["tokenizer="]),
        ("gptlab fill-mask output=j", ["output=json"]),
        ("gptlab generate prompt_file=/tm", []),
    ],
)
def test_what_a_word_may_become(line, expected):
    assert candidates(line, VERBS) == expected


def test_every_command_has_candidates():
    assert set(VERBS) <= set(candidates("gptlab ", VERBS))
    for command in set(VERBS) - {"amend"}:
        assert candidates(f"gptlab {command} ", VERBS), command


def test_gptlab_alone_lists_the_commands(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gptlab"])
    assert main.main() == 0
    alone = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in alone if line.startswith("    gptlab ")][: len(VERBS)] == list(VERBS)
    assert max(map(len, alone)) <= 120 and not any("presets of gptlab train:" in line for line in alone)
    monkeypatch.setattr("sys.argv", ["gptlab", "--help"])
    assert main.main() == 0
    assert "presets of gptlab train:" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["gptlab", "--completion", "fish"])
    assert main.main() == 2
    assert "--completion needs a shell: bash or zsh" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["gptlab", "--completion", "bash"])
    assert main.main() == 0
    assert capsys.readouterr().out == SHELLS["bash"]


def test_a_command_ends_without_a_search_for_garbage(monkeypatch, capsys):
    """Through all that torch and Lightning made it took seconds, also after Ctrl-C."""
    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    assert main.run("tokenize", ["--help"], program=["gptlab", "tokenize"]) == 0
    assert at_exit == [gc.freeze]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path):
    command = tmp_path / "gptlab"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gptlab.cli.main "$@"\n')
    command.chmod(0o755)
    script = (
        SHELLS["bash"]
        + 'COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=(gptlab); _gptlab 2>/dev/null; echo "${COMPREPLY[@]}"\n'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    for line, expected in (("gptlab tok", "tokenize"), ("gptlab train model=gpt124", "gpt124m")):
        done = subprocess.run(
            ["bash", "-c", script, "bash", line], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == expected, done.stderr
