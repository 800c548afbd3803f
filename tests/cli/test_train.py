"""The command line of training, through the real train.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import TrialsInProcess

from gptlab import composition
from gptlab.cli import train
from gptlab.lab.trials import read_frozen

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
        TrialsInProcess(task, monkeypatch)  # those of a sweep

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
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: batch_tokens=1000 is not divisible")
        assert ("batch_tokens=1001" in line) == ("-m" in arguments)
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


def test_a_sweep_gives_each_trial_its_folder_and_a_frozen_config(tasks):
    before = list(sys.argv)
    assert train.main(["-m", "optimizer.lr=0.1,0.2", "seed=3"], ["gptlab", "train"]) == 0
    configs = [config for config, _ in tasks.seen]
    folders = [Path(config.folder()) for config in configs]
    assert [folder.name for folder in folders] == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert folders[0].parent == folders[1].parent and folders[0].parent.parent == Path("runs")
    for config, folder in zip(configs, folders, strict=True):
        typed = [f"optimizer.lr={config.optimizer.lr}", "seed=3", f"run_dir='{folder}'"]
        assert config == composition.compose(*typed) == read_frozen(folder)
    assert sys.argv == before


def test_a_sweep_over_texts_gives_each_trial_what_was_typed(tasks):
    long = "x" * 260
    assert train.main(["-m", f"callbacks.sample.prompt=1_0,it's,a/b: c?,{long}1,{long}2", "seed=3"], ["train.py"]) == 0
    prompts = ["1_0", "it's", "a/b: c?", f"{long}1", f"{long}2"]
    assert [config.callbacks.sample.prompt for config, _ in tasks.seen] == prompts
    folders = [Path(config.folder()).name for config, _ in tasks.seen]
    assert folders[:2] == ["callbacks.sample.prompt=1_0", "callbacks.sample.prompt=it's"]
    assert len(set(folders)) == 5 and all(len(name) <= 200 and not set(name) & set("/:?") for name in folders)


def test_a_launcher_of_another_machine_is_given_a_command_line_of_the_trial(tasks, monkeypatch, tmp_path):
    """What submitit or Ray brings elsewhere starts the trial as a command, whose texts are what was typed."""
    commands, names = [], []

    def in_a_process(command, folder, environment):
        commands.append(command)
        names.append(environment["GPTLAB_SWEEP_NAME"])
        return 0

    monkeypatch.setattr(train, "_in_a_process", in_a_process)
    nodes = iter(["here"])
    monkeypatch.setattr(train.platform, "node", lambda: next(nodes, "there"))
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    arguments = ["--config-dir", str(tmp_path / "mine"), "-m", "callbacks.sample.prompt=it's,a/b: c?"]
    assert train.main([*arguments, "hydra/launcher=basic"], ["gptlab", "train"]) == 0
    assert len(commands) == 2 and not tasks.seen
    assert len(set(names)) == 1 and names[0].startswith("sweep-")
    for command, prompt in zip(commands, ("it's", "a/b: c?"), strict=True):
        assert command[1:5] == ["gptlab", "train", "--config-dir", str(tmp_path / "mine")] and "-m" not in command
        assert train.main(command[3:], ["gptlab", "train"]) == 0
        config, _ = tasks.seen[-1]
        assert config.callbacks.sample.prompt == prompt and config.folder().startswith("runs/sweep-")


def test_only_what_a_sweep_started_is_its_trial(tmp_path, monkeypatch):
    folder = tmp_path / "a sweep" / "seed=1"
    folder.mkdir(parents=True)
    assert train._sweep_of(folder) is None, "whatever the path looks like"
    monkeypatch.setenv("GPTLAB_SWEEP_NAME", "elsewhere")
    assert train._sweep_of(folder) == "elsewhere"
    (folder / "trial.yaml").touch()
    assert train._sweep_of(folder) == "a sweep", "also when it is continued by itself"


def test_a_config_dir_reaches_each_trial(tasks, tmp_path):
    folder = tmp_path / "mine" / "recipe"
    folder.mkdir(parents=True)
    (folder / "fast.yaml").write_text("# @package _global_\ndefaults: [default, _self_]\nbatch_tokens: 1024\n")
    arguments = ["--config-dir", str(folder.parent), "-m", "recipe=fast", "seed=1,2"]
    assert train.main(arguments, ["train.py"]) == 0
    assert [(config.batch_tokens, config.seed) for config, _ in tasks.seen] == [(1024, 1), (1024, 2)]


def test_options_may_stand_between_overrides(tasks):
    assert train.split(["a=1", "-m", "--config-dir", "x=y", "b=2"]) == (["-m", "--config-dir", "x=y"], ["a=1", "b=2"])
    assert train.main(["optimizer.lr=0.1", "-m", "seed=1,2", "model=small"], ["train.py"]) == 0
    assert [config.seed for config, _ in tasks.seen][-2:] == [1, 2]


def test_a_word_that_is_no_override_is_answered(tasks, capsys):
    assert train.main(["model=small", "smoke"], ["train.py"]) == 2
    assert "smoke is not an override; write smoke=VALUE" in capsys.readouterr().err


def test_a_signal_ends_the_whole_sweep_and_its_command_goes_on(tasks, capsys):
    class Interrupted(Exception):
        exit_code = 130

    def task(config):
        tasks.seen.append(config.seed)
        if len(tasks.seen) == 1:
            raise Interrupted("stopped, saved at step 4")

    tasks.replace(task)
    arguments = ["-m", "seed=1,2", "name=my sweep"]
    assert train.main(arguments, ["/x/train.py"]) == 130 and tasks.seen == [1]
    out = capsys.readouterr().out
    assert "stopped: stopped, saved at step 4" in out and out.count("not begun") == 3
    assert "this goes on with what is left:\n  python train.py -m seed=1,2 'name=my sweep'\n" in out
    assert train.main(arguments, ["train.py"]) == 0 and tasks.seen == [1, 1, 2]
    assert train.main(arguments, ["train.py"]) == 0 and tasks.seen == [1, 1, 2], "finished trials are not trained again"


def test_a_failing_trial_is_a_line_of_the_table_and_the_others_go_on(tasks, capsys):
    def task(config):
        tasks.seen.append(Path(config.folder()).name)
        if config.seed == 1:
            raise OSError(28, "No space left on device")

    tasks.replace(task)
    arguments = ["-m", "seed=1,2", "eval_train=false", "optimizer.lr=1e-3", "name=full"]
    assert train.main(arguments, ["train.py"]) == 1
    assert tasks.seen == ["seed=1", "seed=2"], "named by what differs alone"
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[:2] == ["0", "1"]]
    assert line.endswith("failed: No space left on device; runs/full/seed=1/trial.log")
    assert "No space left on device" in Path("runs/full/seed=1/trial.log").read_text()
    assert train.main(arguments, ["train.py"]) == 1 and tasks.seen[2:] == ["seed=1"], "what failed is tried again"


def test_a_sweep_trains_equal_configs_once(tasks, capsys):
    assert train.main(["-m", "optimizer.lr=1e-2,0.01", "strategy=auto,ddp", "name=same"], ["train.py"]) == 0
    assert len(tasks.seen) == 2
    assert capsys.readouterr().out.count("same: as trial") == 2


def test_a_combination_that_cannot_work_is_left_out_and_a_value_that_cannot_is_refused(tasks, capsys):
    shapes = ["-m", "model.d_model=32,48", "model.context_length=16", "batch_tokens=64"]
    assert train.main([*shapes, "model.n_head=2,3"], ["train.py"]) == 2
    assert (
        len(tasks.seen) == 3
        and "refused: model.d_model=32 is not divisible by model.n_head=3" in capsys.readouterr().out
    )
    assert train.main([*shapes, "model.n_head=2,5"], ["train.py"]) == 2
    assert len(tasks.seen) == 3 and "model.n_head=5" in capsys.readouterr().err, "nothing is trained before"
    assert len(list(Path("runs").iterdir())) == 1, "and nothing is left behind"


def test_a_sweep_is_not_started_by_a_launcher_of_ranks(tasks, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main(["-m", "seed=1,2"], ["train.py"]) == 2 and not tasks.seen
    assert "a launcher started 2 processes (WORLD_SIZE)" in capsys.readouterr().err


def test_a_sweep_does_not_go_on_in_the_folder_of_another(tasks, capsys):
    import yaml

    from gptlab.config import to_plain

    assert train.main(["-m", "seed=1,2", "name=a"], ["train.py"]) == 0
    for config, _ in tasks.seen:  # as training leaves it
        Path(config.folder(), "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    assert train.main(["-m", "seed=1,2", "name=a", "optimizer.lr=0.5"], ["train.py"]) == 2
    assert "runs/a/seed=1 holds a run of another config: optimizer.lr was" in capsys.readouterr().err
    assert train.main(["-m", "seed=1,2", "name=a/seed=1"], ["train.py"]) == 2
    assert "runs/a/seed=1 holds a run, not a sweep" in capsys.readouterr().err and len(tasks.seen) == 2


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
