"""What W&B has of a run: read back from its offline files."""

import json
import re
import shlex
import subprocess

import pytest
import yaml
from small_runs import overrides_of, start_sweep, write_text

from gptlab.distributed.signals import Stopped
from gptlab.errors import UserError
from gptlab.runs.folder import read_metrics
from gptlab.training.config import LoggersConfig, WandbConfig
from gptlab.training.loggers import build_loggers, ended_with_run


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


def test_each_trial_of_a_sweep_has_its_own_file_that_equals_its_metrics(tmp_path):
    write_text(tmp_path / "text.txt")
    given = {"optimizer.lr": "1e-3,1e-2", "trainer.log_every_n_steps": 1, "logger": "wandb", "name": "four trials"}
    process = start_sweep(["train", "-m", "seed=1,2", *overrides_of(tmp_path / "text.txt", **given)], tmp_path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    runs = sorted((tmp_path / "runs" / "four trials").glob("*/"))
    assert [run.name for run in runs] == [f"seed={s},optimizer.lr={lr}" for s in (1, 2) for lr in (0.001, 0.01)]
    for run in runs:
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
