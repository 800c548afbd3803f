"""What README.md promises, tried: its commands are run, its lists are held against the code."""

import os
import random
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterable
from math import prod
from pathlib import Path

import pytest
import torch
from test_layers import LAYERS
from warm_python import warm_python

from gptlab import UserError, compose
from gptlab.data.tokenizers.tokenizer import load_tokenizer
from gptlab.registry import variants
from gptlab.runs import checkpoint

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
(_, _, LEFT_BEHIND) = (ROOT / "docs" / "runs.md").read_text().partition("## What a run leaves")
QUICK_START = "pip install -e . && python train.py"
TEST = 'pip install -e ".[test]" && pytest'
LAST_LINE = re.compile(r"val/loss (?P<loss>\d+\.\d{4})(?: val/\w+ \d+\.\d+)* run (?P<run>runs/\S+)")


def fences(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


SHELL_LINES = [line for block in fences("sh") for line in block.splitlines()]
COMMANDS = [
    " ".join(shlex.quote(argument) for argument in shlex.split(line, comments=True))
    for line in SHELL_LINES
    if line.startswith("python train.py")
]


# A pretraining and a fine-tuning command for each architecture.
(_, _, TUNING) = (ROOT / "docs" / "finetuning.md").read_text().partition("## From pretraining to a task")
TUNING_COMMANDS = fences("sh", TUNING)[0].splitlines()
PAIRS = list(zip(TUNING_COMMANDS[::2], TUNING_COMMANDS[1::2], strict=True))
OF_OBJECTIVE = dict(re.findall(r"^(python train\.py.*?) +# (\w+): ", README, re.MULTILINE))


@pytest.fixture
def folder(tmp_path):
    """An empty place to run in, with some text of one's own."""
    words = ["it", "was", "the", "best", "of", "times", "the", "worst", "age", "of", "wisdom", "and", "foolishness"]
    draw = random.Random(0)
    lines = (" ".join(draw.choices(words, k=10)).capitalize() + "." for _ in range(2000))
    (tmp_path / "input.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def smoke(overrides: Iterable[str]) -> list[str]:
    """The overrides of a command with those that keep it short; most share the tokens of the standard library."""
    given = list(overrides)
    if any(override.startswith(("data", "experiment")) for override in given):  # which read another text
        short = []
    elif any(override.startswith(("model=bert", "model=t5", "tokenizer")) for override in given):
        package = Path(sysconfig.get_path("stdlib"), "email")  # of 31 MB, which each of these would cut for itself
        short = [f"data.path={package}", "data.val_fraction=0.2"]
    else:
        short = ["data.val_fraction=0.001"]
    narrow = ["model.d_model=96", "model.n_layer=2"] if "model=gpt124m" in given else []
    return [*given, "debug=smoke", *short, *narrow]


def run(folder: Path, *arguments: str, timeout: int = 300) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}
    done = subprocess.run(
        [warm_python(), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_first_screen_holds_the_two_commands():
    screen = "\n".join(README.splitlines()[:20])
    shown = [line.split("#")[0].strip() for line in screen.splitlines()]
    assert QUICK_START in shown and TEST in shown


def test_continuous_integration_runs_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert TEST in script.read_text().splitlines()
    assert os.access(script, os.X_OK)
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_commands_are_found_and_few():
    assert "python train.py model=gpt124m trainer.devices=8 strategy=fsdp" in COMMANDS
    assert len(COMMANDS) <= 10, "each is started by the tests"
    assert len(OF_OBJECTIVE) == len(variants("objective")) and set(OF_OBJECTIVE) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(command, folder):
    overrides = smoke(argument.replace("=FILE", "=input.txt") for argument in shlex.split(command)[2:])
    if any(argument.startswith(("trainer.devices=", "strategy=")) for argument in overrides):
        overrides += ["trainer.accelerator=cpu", "trainer.devices=2", "batch_tokens=256"]
    n_runs = prod(argument.count(",") + 1 for argument in overrides if "[" not in argument) if "-m" in overrides else 1
    lines = run(folder, str(ROOT / "train.py"), *overrides).splitlines()
    ends = [line for line in lines if LAST_LINE.fullmatch(line)]
    assert len(ends) == n_runs
    assert (f"{n_runs} trials: {n_runs} finished" in lines) if "-m" in overrides else (lines[-1] in ends)
    for end in ends:
        left = folder / LAST_LINE.fullmatch(end)["run"]
        for name in re.findall(r"^\| `([\w.]+)/?` \|", LEFT_BEHIND, re.MULTILINE):
            assert (left / name).exists(), f"{name} is promised and missing"
        if command in OF_OBJECTIVE:
            assert f"objective:\n  type: {OF_OBJECTIVE[command]}\n" in (left / "config.yaml").read_text()


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, id=name, marks=[pytest.mark.slow] * (name != "gpt"))  # the others are alike
        for pair, name in zip(PAIRS, ("gpt", "bert", "t5"), strict=True)
    ],
)
def test_a_pretrained_run_is_tuned(pair, folder):
    """Each token of a text has the id that it had, and what both runs have begins where the first was best."""
    ends = []
    for command in pair:
        overrides = [*smoke(shlex.split(command)[2:]), "optimizer.lr=1e-12", f"seed={len(ends)}"]
        ends.append(LAST_LINE.fullmatch(run(folder, str(ROOT / "train.py"), *overrides).splitlines()[-1]))
    first, second = (folder / end["run"] for end in ends)
    assert load_tokenizer(first / "tokenizer.json").fingerprint == load_tokenizer(second / "tokenizer.json").fingerprint
    before, after = (checkpoint.load(path / "checkpoints" / "last.ckpt").model for path in (first, second))
    assert set(after) - set(before) <= {"class_head.weight", "class_head.bias"} and not set(before) - set(after)
    assert all(torch.allclose(value, after[name], atol=1e-9) for name, value in before.items())


def test_the_python_example_works_and_is_short(folder):
    (example,) = fences("python")
    lines = [line for line in example.splitlines() if line]
    assert len(lines) <= 8 and sum("gptlab" in line and "import" in line for line in lines) <= 3
    shown = run(folder, "-c", example)
    assert "val/loss" in shown and (folder / "runs" / "from-python" / "summary.json").is_file()


def test_refusals_are_quoted_as_they_are():
    shown = re.findall(r"^\$ python train\.py (.+)\n(error: .+)$", README, re.MULTILINE)
    assert shown
    for overrides, answer in shown:
        with pytest.raises(UserError) as error:
            compose(*shlex.split(overrides))
        assert f"error: {error.value}" == answer


@pytest.mark.slow
def test_the_quick_start_learns(folder):
    lines = run(folder, str(ROOT / "train.py"), timeout=1800).splitlines()
    (entropy,) = (float(line.split()[-4]) for line in lines if line.startswith("unigram entropy"))
    assert float(LAST_LINE.fullmatch(lines[-1])["loss"]) < entropy


def test_the_documented_layers_are_the_tested_ones():
    page = (ROOT / "docs" / "architecture.md").read_text()
    documented = {}
    for layer, names in re.findall(r"^\| (\d+) \| (.+?) \|", page, re.MULTILINE):
        documented |= {name.removesuffix(".py").rstrip("/"): int(layer) for name in names.split("`")[1::2]}
    there = {path.stem for path in (ROOT / "src" / "gptlab").iterdir() if path.name[0] not in "._"} - {"py"}
    assert documented == {name: layer for name, layer in LAYERS.items() if name in there}
