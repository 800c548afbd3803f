"""The study of a sweep: where it is, and the password of its database."""

import pytest

from gptlab.errors import UserError
from gptlab.lab import study
from gptlab.lab.config import SweepConfig


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Opens a study at an address, whose database is not there; gives the address that Optuna was given."""
    optuna = pytest.importorskip("optuna")
    given = []

    class Storage:
        def __init__(self, url, engine_kwargs=None):
            given.append(url)
            raise RuntimeError(f"no server for {url}\nand more")

    monkeypatch.setattr(optuna.storages, "RDBStorage", Storage)

    def open_at(url):
        with pytest.raises(UserError) as refused:
            study.Study(SweepConfig(storage=url), [], lambda _: None, tmp_path / "s", {}, None, print)
        return given[-1], str(refused.value)

    return open_at


def test_the_password_of_a_database_is_in_the_environment_and_in_no_message(opened, monkeypatch):
    given, message = opened("postgresql://me@host/db")
    assert given == "postgresql://me@host/db" and message.endswith(
        "RuntimeError: no server for postgresql://me@host/db"
    )
    monkeypatch.setenv("GPTLAB_STORAGE_PASSWORD", "se/cr@et")
    given, message = opened("postgresql://me@host/db")
    assert given == "postgresql://me:se%2Fcr%40et@host/db"
    assert message.endswith("RuntimeError: no server for postgresql://me:***@host/db")
