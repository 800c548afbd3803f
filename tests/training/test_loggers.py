"""What loggers have of a run: read back from the files of W&B, MLflow and Trackio."""

import json
import re
import shlex
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from small_runs import overrides_of, small_run, start_sweep, write_text

from gptlab.cli import trial
from gptlab.config import to_plain
from gptlab.distributed.signals import Stopped
from gptlab.errors import UserError
from gptlab.lab.trials import Trial, freeze
from gptlab.runs.folder import read_metrics
from gptlab.training.config import LoggersConfig, MlflowConfig, TensorboardConfig, TrackioConfig, WandbConfig
from gptlab.training.loggers import _wandb_hint, build_loggers, check_installed, ended_with_run


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def opened(folder, rows=(), **settings):
    folder.mkdir(exist_ok=True)
    config = LoggersConfig(wandb=WandbConfig(**settings))
    return build_loggers(config, folder, group="g", tags=["t" * 99, ""], hyperparameters={"seed": 1}, rows=rows)


def part(folder, rows, earlier=(), error=None, **settings):
    """One start of a run, which logs `rows` after the `earlier` ones; returns what it says at its end."""
    try:
        with ended_with_run() as loggers:
            loggers += opened(folder, earlier, **settings)
            for row in rows:
                loggers[0].log_metrics(row, step=row["step"])
            if error is not None:
                raise error
    except type(error or None) as raised:
        assert raised is error
    return loggers[0].hint if loggers else None


def records(path):
    (file,) = path.glob("*.wandb")
    done = subprocess.run(["wandb", "leet", "inspect", "--json", file], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(path):
    items = [record["history"]["item"] for record in records(path) if record["type"] == "history"]
    return [{key: value for key, value in item.items() if key in ("_step", "step", "train/loss")} for item in items]


def rows(*steps, loss=0.5):
    return [{"step": step, "train/loss": step * loss} for step in steps]


def shown(found):
    return [{"_step": row["step"], **row} for row in found]


@pytest.mark.parametrize("earlier_id", [None, "a:b#-1", "x" * 129, " "])
def test_a_run_of_any_name_has_an_id_that_wandb_takes(tmp_path, earlier_id):
    folder = tmp_path / "2024: a #1?"
    folder.mkdir()
    if earlier_id is not None:
        (folder / "wandb_id").write_text(earlier_id)
    hint = part(folder, rows(1))
    run_id = (folder / "wandb_id").read_text()
    assert re.fullmatch(r"2024-a-1-[0-9a-f]{8}", run_id)
    (path,) = (folder / "wandb").glob("offline-run-*")
    assert hint.endswith(f"wandb sync {shlex.quote(str(path))}")
    (about,) = [record["run"] for record in records(path) if record["type"] == "run"]
    assert (about["run_id"], about["display_name"], about["tags"]) == (run_id, folder.name, ["t" * 64])


def test_an_offline_run_that_is_continued_is_one_history(tmp_path):
    folder = tmp_path / "run"
    part(folder, rows(1, 10, 20, 25), error=Stopped(2, "interrupted"))
    (first,) = (folder / "wandb").glob("offline-run-*")
    assert records(first)[-1]["exit"]["exit_code"] == 130, "ended, as a run that was interrupted"
    # Saved at step 20: what comes after it is trained again.
    hint = part(folder, rows(21, 30, loss=2), earlier=rows(1, 10, 20))
    (whole,) = (folder / "wandb").glob("offline-run-*")
    assert history(whole) == shown(rows(1, 10, 20) + rows(21, 30, loss=2))
    assert hint.endswith(f"wandb sync {whole}") and records(whole)[-1]["exit"]["exit_code"] == 0
    (whole / f"{next(whole.glob('*.wandb')).name}.synced").touch()  # as `wandb sync` leaves it
    hint = part(folder, rows(31), earlier=rows(1, 10, 20, 21, 30))
    (new,) = [path for path in (folder / "wandb").glob("offline-run-*") if not list(path.glob("*.synced"))]
    assert history(new) == shown(rows(31)), "W&B has the rest"
    assert hint.endswith(f"wandb sync {new}") and whole.is_dir()


def test_steps_that_come_again_after_a_rollback_are_kept(tmp_path):
    part(tmp_path / "run", [*rows(1, 10, 20), *rows(10, 20, 30, loss=2)])
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert [row["step"] for row in history(path)] == [1, 10, 20, 10, 20, 30]


def test_the_modes_of_wandb_are_obeyed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert opened(tmp_path / "run", offline=False) == [] and list((tmp_path / "run").iterdir()) == []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "wandb sync" in part(tmp_path / "run", rows(1))
    monkeypatch.setenv("WANDB_MODE", "maybe")
    with pytest.raises(UserError, match="WANDB_MODE=maybe is unknown; use online, offline or disabled"):
        opened(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"project": "a/b"}, "logger.wandb.project=a/b"),
        ({"project": ""}, "logger.wandb.project="),
        ({"name": "x" * 129}, "logger.wandb.name=x"),
        ({"tags": ["a", "x" * 65]}, "a tag has 1 to 64 characters"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before(settings, message):
    with pytest.raises(UserError, match=message):
        LoggersConfig(wandb=WandbConfig(**settings)).check()


def test_the_summary_has_the_last_and_the_lowest_loss(tmp_path):
    losses = {0: 5.0, 10: 3.0, 20: 4.0}
    found = [{"step": step, "val/loss": loss} for step, loss in losses.items()]
    part(tmp_path / "run", found[:2], error=Stopped(2, "interrupted"))
    part(tmp_path / "run", found[2:], earlier=found[:2])
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    done = subprocess.run(
        ["wandb", "leet", "inspect", "--summary", "--json", next(path.glob("*.wandb"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"best/val_loss":3' in done.stdout.replace(" ", "") and '"val/loss":4' in done.stdout.replace(" ", "")


def test_a_trial_is_named_by_what_differs_and_grouped_by_its_sweep(tmp_path):
    folder = tmp_path / "my sweep" / "optimizer.lr=0.001,seed=2"
    folder.mkdir(parents=True)
    nested = {"optimizer": {"lr": 0.001}, "seed": 2}
    config = LoggersConfig(wandb=WandbConfig(tags=["mine"]))
    with ended_with_run() as loggers:
        loggers += build_loggers(
            config, folder, group="g", tags=["small", ""], hyperparameters=nested, sweep="my sweep"
        )
    (path,) = (folder / "wandb").glob("offline-run-*")
    (about,) = [record["run"] for record in records(path) if record["type"] == "run"]
    assert (about["run_group"], about["display_name"]) == ("my sweep", "optimizer.lr=0.001,seed=2")
    assert about["tags"] == ["small", "mine"]
    config = about["config"]["update"]
    assert config["optimizer"] == {"lr": 0.001} and config["seed"] == 2


def test_a_run_in_a_folder_of_ones_own_is_no_trial(tmp_path):
    """Only what a sweep started is grouped by the folder's parent."""
    folder = tmp_path / "scratch" / "x"
    folder.mkdir(parents=True)
    part(folder, rows(1))
    (path,) = (folder / "wandb").glob("offline-run-*")
    (about,) = [record["run"] for record in records(path) if record["type"] == "run"]
    assert (about["run_group"], about["display_name"]) == ("g", "x")


def test_an_online_run_shows_its_page(tmp_path):
    assert _wandb_hint(SimpleNamespace(url="https://wandb.ai/me/gptlab/runs/x"), "online", tmp_path) == (
        "W&B has this run at https://wandb.ai/me/gptlab/runs/x"
    )


def test_mlflow_has_what_was_measured(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason='needs MLflow: pip install "gptlab[mlflow]"')
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my runs" / "a run"
    folder.mkdir(parents=True)
    config = LoggersConfig(mlflow=MlflowConfig())
    values = {"model": {"n_layer": 2}, "seed": 1}

    def one(rows, error=None):
        try:
            with ended_with_run() as loggers:
                loggers += build_loggers(
                    config, folder, group="g", tags=["small"], hyperparameters=values, sweep="my runs"
                )
                for row in rows:
                    loggers[0].log_metrics(row, step=row["step"])
                if error is not None:
                    raise error
        except Stopped:
            pass
        return loggers[0]

    first = one([*rows(1, 2), {"step": 3, "eval/grammar/2_shot/accuracy": 0.75}], error=Stopped(2, "interrupted"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'my runs' / 'mlflow.db'}")
    assert client.get_run(first.run_id).info.status == "KILLED"
    again = one(rows(4))
    assert again.run_id == first.run_id and again.hint.startswith("mlflow ui --backend-store-uri 'sqlite:///")
    run = client.get_run(first.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a run")
    assert run.data.params == {"model/n_layer": "2", "seed": "1"} and run.data.tags["group"] == "my runs"
    history = client.get_metric_history(first.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0), (4, 2.0)]
    assert run.data.metrics["eval/grammar/2_shot/accuracy"] == 0.75
    assert client.get_experiment_by_name("my runs").experiment_id == run.info.experiment_id


def test_trackio_has_what_was_measured(tmp_path, tmp_path_factory, monkeypatch, capsys):
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))  # read when it is imported
    trackio = pytest.importorskip("trackio", reason='needs Trackio: pip install "gptlab[trackio]"')
    folder = tmp_path / "sweep" / "seed=1"
    folder.mkdir(parents=True)
    config = LoggersConfig(trackio=TrackioConfig(project="mine"))
    for steps in ((1, 2), (3,)):
        with ended_with_run() as loggers:
            values = {"model": {"n_layer": 2}}
            loggers += build_loggers(config, folder, group="g", tags=[], hyperparameters=values, sweep="sweep")
            for row in rows(*steps):
                loggers[0].log_metrics(row, step=row["step"])
    assert loggers[0].hint == "trackio show --project mine" and capsys.readouterr().out == ""
    (run,) = trackio.Api().runs("mine")
    assert (run.name, run.config["model"]) == ("sweep/seed=1", {"n_layer": 2})
    logged = trackio.SQLiteStorage.get_logs("mine", "sweep/seed=1")
    assert [(row["step"], row["train/loss"]) for row in logged] == [(1, 0.5), (2, 1.0), (3, 1.5)]


@pytest.mark.parametrize("name", ["mlflow", "trackio", "tensorboard"])
def test_a_logger_without_its_package_is_refused_at_once(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    config = LoggersConfig(**{name: {"mlflow": MlflowConfig, "trackio": TrackioConfig}.get(name, TensorboardConfig)()})
    with pytest.raises(
        UserError, match=rf'logger={name} needs the {name} package; type: pip install "gptlab\[{name}\]"'
    ):
        check_installed(config)


def assert_wandb_has(run):
    """The config, the history and the summary of a run's offline file are those of its folder; returns what it is."""
    (part,) = run.glob("wandb/offline-run-*")
    found = records(part)
    (about,) = [record["run"] for record in found if record["type"] == "run"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    values = about["config"]["update"]
    assert {name: values[name] for name in config} == config
    rows = read_metrics(run / "metrics.csv")
    logged = [record["history"]["item"] for record in found if record["type"] == "history"]
    assert [{k: v for k, v in item.items() if k in rows[-1]} for item in logged] == rows
    summary = {}
    for record in found:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    assert {name: summary[name] for name in rows[-1]} == rows[-1]
    return about


def test_a_trial_has_a_file_that_equals_its_metrics(tmp_path):
    """In this process, what the process of a trial does."""
    folder = tmp_path / "two trials" / "seed=2"
    folder.mkdir(parents=True)
    config = small_run(folder, logger=LoggersConfig(wandb=WandbConfig()), seed=2)
    config.trainer.log_every_n_steps = 1
    config.callbacks.sample = None
    freeze(Trial(number=0, label="seed=2", values={}, folder=folder, config=to_plain(config)))
    trial._train([str(folder)])
    about = assert_wandb_has(folder)
    assert (about["run_group"], about["display_name"]) == ("two trials", "seed=2")


@pytest.mark.slow  # a trial by itself is tried above
def test_each_trial_of_a_sweep_has_its_own_file_that_equals_its_metrics(tmp_path):
    write_text(tmp_path / "text.txt")
    given = {"optimizer.lr": "1e-3,1e-2", "trainer.log_every_n_steps": 1, "logger": "wandb", "name": "four trials"}
    process = start_sweep(["train", "-m", "seed=1,2", *overrides_of(tmp_path / "text.txt", **given)], tmp_path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    runs = sorted((tmp_path / "runs" / "four trials").glob("*/"))
    assert [run.name for run in runs] == [f"seed={s},optimizer.lr={lr}" for s in (1, 2) for lr in (0.001, 0.01)]
    for run in runs:
        assert assert_wandb_has(run)["run_group"] == "four trials"
