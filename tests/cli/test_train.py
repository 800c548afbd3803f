"""The command line of training, through the real train.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab import composition
from gptlab.cli import train

ROOT = Path(__file__).parents[2]


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        **{"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 60, **options},
    )


@pytest.fixture
def tasks(monkeypatch, tmp_path):
    """Replaces training by a list of the configs that would be trained, or by a function of them."""
    monkeypatch.chdir(tmp_path)
    seen: list = []

    def replace(task):
        monkeypatch.setattr(train, "_train", lambda composed, overrides: task(composition.resolve(composed, overrides)))

    replace(lambda config: seen.append((config, list(sys.argv))))
    seen_and_replace = type("Tasks", (), {"seen": seen, "replace": staticmethod(replace)})
    return seen_and_replace


def test_a_wrong_key_is_answered_without_a_traceback_or_a_folder():
    before = set(ROOT.iterdir())
    done = command("model.n_embd=64")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unknown config key model.n_embd; did you mean model.d_model?\n"
    assert set(ROOT.iterdir()) <= before | {ROOT / "runs"}


def test_a_value_that_cannot_work_is_answered_in_a_line(capsys, tasks):
    for arguments in (["batch_tokens=1000"], ["-m", "batch_tokens=1000,1001"]):
        assert train.main(arguments, ["train.py"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith("error: batch_tokens=100") for line in lines)
    assert not tasks.seen


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--help"], ["model.n_embd=64"]])
def test_an_answer_needs_neither_torch_nor_lightning(arguments):
    code = (
        "import sys\n"
        "from gptlab.cli.train import main\n"
        f"assert main({arguments}, ['train.py']) in (0, 2)\n"
        "heavy = set(sys.modules) & {'torch', 'lightning', 'numpy', 'tiktoken', 'datasets', 'wandb', 'matplotlib'}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_preset_and_the_keys():
    shown = command("--help").stdout
    for names in composition.preset_names().values():
        assert all(name in shown for name in names)
    assert "budget_tokens:" in shown and "grad_clip:" in shown


def test_the_config_is_shown_as_it_would_run(tasks):
    import yaml

    shown = yaml.safe_load(command("model=gpt124m", "strategy=fsdp", "trainer.devices=8", "--cfg", "job").stdout)
    assert (shown["model_tag"], shown["data_tag"], shown["optimizer"]["lr"]) == ("gpt124m", "stdlib", 6e-4)
    assert "hydra" not in shown


def test_the_shell_completes_presets_and_keys():
    def completed(line: str) -> list[str]:
        done = command("-sc", "query=bash", env={**os.environ, "COMP_LINE": line})
        return done.stdout.split()

    assert "model=gpt124m" in completed("python train.py model=gpt1")
    assert "optimizer.lr=" in completed("python train.py optimizer.l")


def test_a_sweep_gives_each_trial_its_folder_and_a_command_line_of_its_own(tasks):
    before = list(sys.argv)
    assert train.main(["-m", "optimizer.lr=0.1,0.2", "seed=3"], ["gptlab", "train"]) == 0
    folders = [Path(config.folder()) for config, _ in tasks.seen]
    assert [folder.name for folder in folders] == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert folders[0].parent == folders[1].parent and folders[0].parent.parent == Path("runs")
    for config, argv in tasks.seen:
        assert argv[:2] == ["gptlab", "train"], "what starts other ranks starts the same command"
        assert "-m" not in argv and f"optimizer.lr={config.optimizer.lr}" in argv and "seed=3" in argv
        assert f"run_dir='{config.run_dir}'" in argv
    assert sys.argv == before


def test_a_sweep_over_texts_gives_each_trial_what_was_typed(tasks):
    long = "x" * 260
    assert train.main(["-m", f"callbacks.sample.prompt=1_0,it's,a/b: c?,{long}1,{long}2", "seed=3"], ["train.py"]) == 0
    prompts = ["1_0", "it's", "a/b: c?", f"{long}1", f"{long}2"]
    assert [config.callbacks.sample.prompt for config, _ in tasks.seen] == prompts
    folders = [Path(config.folder()).name for config, _ in tasks.seen]
    assert folders[:2] == ["callbacks.sample.prompt=1_0", "callbacks.sample.prompt=it's"]
    assert len(set(folders)) == 5 and all(len(name) <= 200 and not set(name) & set("/:?") for name in folders)
    for config, argv in list(tasks.seen):  # what starts other ranks, or another machine
        assert train.main(argv[1:], ["train.py"]) == 0
        again, _ = tasks.seen[-1]
        assert again == config


def test_a_config_dir_reaches_each_trial(tasks, tmp_path):
    folder = tmp_path / "mine" / "recipe"
    folder.mkdir(parents=True)
    (folder / "fast.yaml").write_text("# @package _global_\ndefaults: [default, _self_]\nbatch_tokens: 1024\n")
    arguments = ["--config-dir", str(folder.parent), "-m", "recipe=fast", "seed=1,2"]
    assert train.main(arguments, ["train.py"]) == 0
    assert [(config.batch_tokens, config.seed) for config, _ in tasks.seen] == [(1024, 1), (1024, 2)]
    for _, argv in tasks.seen:
        assert argv[1:3] == ["--config-dir", str(folder.parent)]


def test_options_may_stand_between_overrides(tasks):
    assert train.split(["a=1", "-m", "--config-dir", "x=y", "b=2"]) == (["-m", "--config-dir", "x=y"], ["a=1", "b=2"])
    assert train.main(["optimizer.lr=0.1", "-m", "seed=1,2", "model=small"], ["train.py"]) == 0
    assert [config.seed for config, _ in tasks.seen][-2:] == [1, 2]


def test_a_word_that_is_no_override_is_answered(tasks, capsys):
    assert train.main(["model=small", "smoke"], ["train.py"]) == 2
    assert "smoke is not an override; write smoke=VALUE" in capsys.readouterr().err


def test_a_signal_ends_the_whole_sweep(tasks):
    class Interrupted(Exception):
        exit_code = 130

    def task(config):
        tasks.seen.append(config.seed)
        raise Interrupted("stopped")

    tasks.replace(task)
    assert train.main(["-m", "seed=1,2"], ["train.py"]) == 130 and tasks.seen == [1]


def test_a_failing_trial_does_not_end_the_sweep(tasks):
    def task(config):
        tasks.seen.append(Path(config.folder()).name)
        if config.seed == 1:
            raise OSError(28, "No space left on device")

    tasks.replace(task)
    assert train.main(["-m", "seed=1,2", "eval_train=false", "optimizer.lr=1e-3"], ["train.py"]) == 1
    assert tasks.seen == ["seed=1", "seed=2"], "named by what differs alone"


def test_the_command_that_continues_a_run_can_be_pasted():
    argv = ["/somewhere/train.py", "name=my run", "resume=runs/a/checkpoints/last.ckpt"]
    assert train.continue_command(argv) == "python train.py 'name=my run'"
    assert train.continue_command(["/bin/gptlab", "train", "seed=1"]) == "gptlab train seed=1"


def test_options_and_sweeps_that_cannot_work_are_answered(tasks, capsys):
    for arguments, said in (
        (["--multi", "seed=1"], "--multi is not an option of gptlab train; did you mean --multirun?"),
        (["--config-path", "x"], "--config-path is decided by gptlab"),
        (["--config-dir=", "seed=1"], "--config-dir= is not a folder"),
        (["--config-dir=/tmp", "-cd", "/"], "--config-dir is given twice"),
        (["-m", "run_dir=x", "seed=1,2"], "name the sweep's folder with name=NAME"),
        (["-m", "model=glob(x*)"], "the sweep has no runs"),
        (["-m", "seed=1,x"], "seed=x must be a whole number"),
        (["-m", "++run_dir=x", "seed=1,2"], "name the sweep's folder with name=NAME"),
        (["--cfg", "job", "data=text"], "name it with data.path=FILE"),
        (["--cfg", "job", "batch_tokens=1000"], "batch_tokens=1000 is not divisible"),
        (["--package", "model"], "--package is an option of --cfg"),
        (["--resolve"], "--resolve is an option of --cfg"),
        (["hydra.run.dir=x"], "hydra.run.dir has no effect in gptlab"),
    ):
        assert train.main(arguments, ["train.py"]) == 2
        assert said in capsys.readouterr().err
    assert not tasks.seen
    assert train.main(["-m", "optimizer=choice(adamw,muon)"], ["train.py"]) == 0 and len(tasks.seen) == 2
