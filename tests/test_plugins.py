"""A model, an objective and a source from outside the package: the code of docs/extending.md, run."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from small_runs import learned
from warm_python import warm_python

from gptlab import UserError, compose, plugins, registry
from gptlab.registry import register

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
MAIN = ["-m", "gptlab.cli.main"]
RUN = "--config-dir presets plugins=[sums_lab] model=convnet objective=smoothed_lm data=sums model.dropout=0.1"


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def lab(tmp_path):
    """A folder with the files of the page."""
    for name, content in re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert (tmp_path / "sums_lab.py").is_file() and len(list(tmp_path.rglob("*.yaml"))) == 4
    return tmp_path


def gptlab(lab: Path, arguments: str, *, ok: bool = True, **environment) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [warm_python(), *MAIN, *shlex.split(arguments)],
        cwd=lab,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode == 0) == ok, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def killed(lab: Path, arguments: str, run: str, step: int) -> None:
    """Start the command and kill it and its children as soon as a checkpoint of that step is there."""
    process = subprocess.Popen(
        [warm_python(), *MAIN, *shlex.split(arguments)],
        cwd=lab,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not list((lab / run / "checkpoints").glob(f"step_{step:08d}*")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_trains_is_killed_and_resumes_bit_for_bit(lab, devices):
    spread = f"trainer.accelerator=cpu trainer.devices={devices} strategy={'ddp' if devices == 2 else 'auto'}"
    steps = "budget_steps=40 callbacks.checkpoint.every_steps=5 trainer.val_check_interval=20"
    started = gptlab(lab, f"train {RUN} {spread} {steps} run_dir=straight")
    # The plan, with parameters and FLOPs counted on the model.
    n_parameters = 257 * 64 + 3 * (64 * 2 + 64 * 5 + 64 + 64 * 65) + 64 * 2
    assert f"{n_parameters:,} parameters" in started.stdout and "FLOP per token" in started.stdout
    killed(lab, f"train {RUN} {spread} {steps} run_dir=cut", "cut", 10)
    continued = gptlab(lab, f"train {RUN} {spread} {steps} run_dir=cut")
    assert "continued from step" in continued.stdout
    assert learned(lab / "cut") == learned(lab / "straight")
    config = yaml.safe_load((lab / "cut" / "config.yaml").read_text())
    assert (config["plugins"], config["model"]["type"], config["data"]["type"]) == (["sums_lab"], "convnet", "sums")
    losses = [float(row["train/loss"]) for row in learned(lab / "straight")[1:]]
    assert losses[-1] < 0.7 * losses[0]
    # It generates; its temperature is 0, so that the text is the same each time.
    write = "generate run=straight prompt='12 + 30 = ' max_new_tokens=4 temperature=0 output=json"
    texts = [gptlab(lab, f"{write} plugins=[sums_lab]").stdout, gptlab(lab, write, GPTLAB_PLUGINS="sums_lab").stdout]
    assert all('"tokens": [' in text for text in texts)
    refused = gptlab(lab, write, ok=False)
    assert refused.returncode == 2 and "add plugins=[sums_lab]" in refused.stderr


def test_the_commands_of_the_page_work(lab):
    (block,) = fences("sh")
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "gptlab"
        short = ["budget_steps=2", "callbacks.sample=null"] if arguments[0] == "train" else []
        gptlab(lab, shlex.join([*arguments, *short]))
    assert (lab / "runs" / "sums" / "summary.json").is_file()
    refused = gptlab(lab, "convert from=runs/sums to=out plugins=[sums_lab]", ok=False)
    assert refused.stderr.startswith("error: ") and "convnet" in refused.stderr and "Traceback" not in refused.stderr
    swept = sorted(path.name for path in lab.glob("runs/sweep-*/*") if path.is_dir())
    assert swept == ["objective.smoothing=0.0", "objective.smoothing=0.2"]


@pytest.mark.slow
def test_trials_in_processes_of_their_own_have_the_plugin_too(lab):
    gptlab(
        lab, f"train {RUN} -m seed=1,2 trainer.accelerator=cpu trainer.devices=2 budget_steps=2 callbacks.sample=null"
    )
    assert len(list(lab.glob("runs/sweep-*/seed=*/summary.json"))) == 2


def test_the_python_of_the_page_works(lab):
    example = next(text for text in fences("python") if text.startswith("import gptlab"))
    done = subprocess.run([warm_python(), "-c", example], cwd=lab, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_plugin_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"plugins=no_such_module: there is no module of that name"):
        compose("plugins=[no_such_module]")
    with pytest.raises(UserError, match=r"without \.py"):
        compose("plugins=./x.py")


def test_a_plugin_that_needs_what_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needy_plugin.py").write_text("import no_such_package.part\n")
    with pytest.raises(UserError, match="plugins=needy_plugin imports no_such_package, which is not installed"):
        compose("plugins=[needy_plugin]")
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError) as error:
        compose("plugins=broken_plugin")
    assert error.value.__notes__ == ["while importing plugins=broken_plugin"]


def test_a_file_never_imports_a_plugin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_plugin.py").write_text("raise SystemExit('imported')")
    with pytest.raises(UserError, match=r"add plugins=\[evil_plugin\], or set GPTLAB_PLUGINS=evil_plugin"):
        plugins.require(["evil_plugin"], "config.yaml")
    preset = tmp_path / "presets" / "experiment" / "evil.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# @package _global_\nplugins: [evil_plugin]\n")
    config = compose("experiment=evil", config_dir=tmp_path / "presets")
    assert config.plugins == [], "a YAML names no plugin, neither now nor for the record"


def test_an_entry_point_is_a_plugin(lab):
    package = lab / "site" / "sums_lab-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: sums-lab\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[gptlab.plugins]\nsums = sums_lab\n")
    (lab / "sums_lab.py").rename(lab / "site" / "sums_lab.py")
    arguments = "train --config-dir presets model=convnet data=sums --cfg job"
    shown = yaml.safe_load(gptlab(lab, arguments, PYTHONPATH=str(lab / "site")).stdout)
    assert shown["plugins"] == ["sums_lab"] and shown["model"]["kernel_size"] == 5


def test_a_name_belongs_to_one_class(monkeypatch):
    monkeypatch.setitem(registry._classes, "schedule", dict(registry.variants("schedule")))

    def twice():
        @register("schedule", "cosine")
        class Other:
            pass

    with pytest.raises(UserError, match="the name belongs to CosineConfig"):
        twice()
    with pytest.raises(UserError, match="there is no such group; use one of model, data"):
        register("models", "x")(type("X", (), {}))


def test_super_works_in_a_registered_class(monkeypatch):
    monkeypatch.setitem(registry._classes, "model", dict(registry.variants("model")))
    from gptlab.models.config import ModelConfig

    @register("model", "narrow")
    class Narrow(ModelConfig):
        def check(self) -> None:
            super().check()
            if self.d_model > 8:
                raise UserError("too wide")

    assert Narrow().type == "narrow" and not hasattr(Narrow(), "__dict__")
    with pytest.raises(UserError, match="too wide"):
        Narrow(d_model=9).check()
    with pytest.raises(UserError, match=r"model\.n_layer=0 is outside"):
        Narrow(d_model=8, n_layer=0).check()
    with pytest.raises(AttributeError):
        Narrow().n_layr = 3
