"""docs/sweeps.md and the sweep of W&B in experiments/, tried: their commands are run."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from small_runs import ROOT, start_sweep, write_text
from warm_python import warm_python

from gptlab.cli.main import VERBS
from gptlab.cli.sweep import OPTIONS
from gptlab.runs.folder import read_summary

PAGE = (ROOT / "docs" / "sweeps.md").read_text()


def fences(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


LINES = [line for block in fences("sh") for line in block.splitlines()]
SWEEPS = [line for line in LINES if line.startswith("gptlab sweep")]
GRIDS = [line for line in LINES if line.startswith("python train.py -m")]
SMOKE = ["debug=smoke", "callbacks.sample=null", "data=text", "data.path=text.txt", "tokenizer=byte"]


@pytest.fixture
def folder(tmp_path):
    (space,) = fences("yaml")
    (tmp_path / "space.yaml").write_text(space)
    write_text(tmp_path / "text.txt")
    return tmp_path


def finished(folder, process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return [path.parent for path in sorted(folder.glob("runs/*/*/summary.json"))], out


@pytest.mark.parametrize("command", SWEEPS)
def test_a_search_of_the_page_works(folder, command):
    _, _, *arguments = shlex.split(command)
    arguments = [argument for argument in arguments if not argument.startswith("n_trials=")]
    n = 2 if "n_trials=" in command else 1
    runs, out = finished(folder, start_sweep(["sweep", *arguments, f"n_trials={n}", *SMOKE], folder))
    assert len(runs) == n and all((run / name).is_file() for run in runs for name in ("trial.yaml", "trial.log"))
    assert "optuna-dashboard " + ("runs/search.journal" if "journal" in command else "sqlite:///runs/") in out
    if "journal" in command:  # an address on the page, which stands for such a file's
        assert (folder / "runs" / "search.journal").is_file()


@pytest.mark.parametrize("command", GRIDS)
def test_a_grid_of_the_page_works(folder, command):
    _, _, *arguments = shlex.split(command)
    runs, _ = finished(folder, start_sweep(["train", *arguments, *SMOKE], folder))
    assert len(runs) == 4 and {read_summary(run)["steps"] for run in runs} == {3}


@pytest.mark.slow
def test_the_python_example_works(folder):
    (example,) = fences("python")
    example = example.replace('"debug=smoke"', f"*{SMOKE}")
    code = f"import sys; sys.executable = {warm_python()!r}\n{example}"
    done = subprocess.run([warm_python(), "-c", code], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[-1].startswith("runs/from-python/00")


def test_every_option_is_on_the_page_and_no_other():
    (_, _, table) = PAGE.partition("\n| option |")
    cells = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[2:]]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(OPTIONS)
    assert "sweep" in VERBS


def test_what_the_agent_of_wandb_would_start_is_a_run(folder):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())
    chosen = {
        name: {"value": about["values"][0] if "values" in about else about["min"]}
        for name, about in sweep["parameters"].items()
    }
    # As wandb.wandb_agent puts a command together.
    words = create_sweep_command_args({"args": chosen}) | {
        "env": ["/usr/bin/env"],
        "interpreter": [warm_python()],
        "program": [str(ROOT / sweep["program"])],
    }
    command = []
    for part in create_sweep_command(list(sweep["command"])):
        command += words[part[2:-1]] if part.startswith("${") else [part]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run([*command, *SMOKE], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["model"]["n_layer"]) == (0.0001, 2)
    assert config["schedule"]["type"] == "cosine" and config["callbacks"]["plot"] is False
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    inspected = ["wandb", "leet", "inspect", "--summary", "--json", file]
    said = subprocess.run(inspected, capture_output=True, text=True, check=True, timeout=120).stdout
    assert json.loads(json.dumps(read_summary(run)))["val/loss"] and "val/loss" in said
    assert Path(sweep["program"]).name == "train.py"
