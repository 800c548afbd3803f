"""Errors that a person can fix: no password in what is shown, written or sent."""

import pytest
from small_runs import small_run

from gptlab.cli import train
from gptlab.cli.guard import guard
from gptlab.errors import UserError, refuse_password, without_password
from gptlab.lab.config import SweepConfig
from gptlab.training.config import LoggersConfig, MlflowConfig

HIDDEN = {
    "postgresql://me:secret@host/db": "postgresql://me:***@host/db",
    "mysql+pymysql://me:se/cr@et@host:3306/db": "mysql+pymysql://me:***@host:3306/db",
    "redis://:secret@host": "redis://:***@host",
    "https://me:12345secret@host": "https://me:***@host",
    "postgresql://host/db?user=me&password=secret&sslmode=require": (
        "postgresql://host/db?user=me&password=***&sslmode=require"
    ),
    "https://host/file?API_KEY=secret#top": "https://host/file?API_KEY=***#top",
    "postgresql://me:123/secret@host/db": "postgresql://me:***@host/db",
    "https://me.blob.core.windows.net/c/x.jsonl?sv=2&sig=secret&x=1": (
        "https://me.blob.core.windows.net/c/x.jsonl?sv=2&sig=***&x=1"
    ),
    "https://host/x?X-Amz-Date=1&X-Amz-Signature=secret": "https://host/x?X-Amz-Date=1&X-Amz-Signature=***",
    "https://host/x?X-Amz-Security-Token=secret": "https://host/x?X-Amz-Security-Token=***",
    "https://host/x?api-key=secret&hf_token=secret": "https://host/x?api-key=***&hf_token=***",
    "https://ghp_secret@github.com/x": "https://***@github.com/x",
}
PLAIN = [
    "sqlite:////place/study.db",
    "postgresql://me@host/db",
    "http://localhost:5000",
    "http://localhost:5000/me@home",
    "http://[::1]:5000/me@home",
    "https://host/file.txt?raw=true&tokens=3&monkey=1",
    "s3://bucket/folder@2/x.jsonl",
    "runs/search.journal",
]


@pytest.mark.parametrize("address, shown", HIDDEN.items())
def test_a_password_is_neither_shown_nor_taken_from_a_config(address, shown):
    assert without_password(f"no: {address} is not there") == f"no: {shown} is not there"
    with pytest.raises(UserError) as refused:
        refuse_password("storage", address)
    assert str(refused.value).startswith(f"storage={shown} has a password in it") and "secret" not in str(refused.value)


@pytest.mark.parametrize("address", PLAIN)
def test_an_address_without_one_is_taken_as_it_is(address):
    assert without_password(address) == address
    refuse_password("storage", address)
    SweepConfig(storage=address).check()


def test_a_text_about_an_address_is_a_text():
    refuse_password("callbacks.sample.prompt", "He wrote to ftp://me:secret@host at once.")


def test_every_text_of_a_config_is_looked_at(tmp_path):
    for change in (
        {"logger": LoggersConfig(mlflow=MlflowConfig(tracking_uri="postgresql://me:secret@host"))},
        {"run_dir": "s3://me:secret@host"},
        {"plugins": ["one", "git://me:secret@host"]},
    ):
        with pytest.raises(UserError, match=f"^{next(iter(change))}.*MLFLOW_TRACKING_URI") as refused:
            small_run(tmp_path / "run", **change).check()
        assert "secret" not in str(refused.value)
    with pytest.raises(UserError, match=r"storage=.*GPTLAB_STORAGE_PASSWORD"):
        SweepConfig(storage="postgresql://me:secret@host").check()


@pytest.mark.parametrize("more", [[], ["-m", "seed=1,2"]])
def test_a_password_that_is_typed_is_written_nowhere(more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    typed = ["logger=mlflow", "logger.mlflow.tracking_uri=postgresql://me:secret@host/db", *more]
    assert train.main(typed, ["train.py"]) == 2
    found = capsys.readouterr()
    assert "logger.mlflow.tracking_uri=postgresql://me:***@host/db has a password" in found.err
    assert "secret" not in found.out + found.err and not list(tmp_path.iterdir())


def test_no_message_of_a_command_has_one(capsys):
    def fails():
        raise RuntimeError("cannot reach postgresql://me:secret@host/db")

    assert guard(fails) == 1
    assert "postgresql://me:***@host/db" in (said := capsys.readouterr().err) and "secret" not in said
