"""`gptlab inspect run=RUN`: pictures as files."""

import json

import pytest
from small_runs import write_run

from gptlab.cli.inspect import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return str(write_run(tmp_path_factory.mktemp("some runs") / "run"))


def test_pictures_are_written_and_listed(run, tmp_path, capsys):
    folder = tmp_path / "my pictures"
    options = (f"run={run}", f"html={tmp_path / 'page.html'}", "prompt=a cat", f"plots={folder}")
    assert main([*options, "plots_format=svg", "output=json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert sorted(out["plots"]) == sorted(map(str, folder.iterdir()))
    assert str(folder / "temperatures.svg") in out["plots"] and str(folder / "over_training.svg") not in out["plots"]
    assert main([*options]) == 0
    assert f"{len(out['plots'])} pictures in {folder}" in capsys.readouterr().out
    assert (folder / "temperatures.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["plots_format=svg"], "plots_format=svg is of pictures as files; give plots=FOLDER too"),
        (["plots=x", "plots_format=pdf"], "plots_format=pdf"),
        (["plots="], "plots"),
        (["step=1", "plots=x"], "plots has no effect on step="),
    ],
)
def test_what_makes_no_pictures_is_refused(run, options, message, capsys):
    assert main([f"run={run}", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_is_no_folder(run, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main([f"run={run}", f"plots={tmp_path / 'taken'}"]) == 2
    assert "taken is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_pictures_are_of_a_model(capsys):
    assert main(["plots=x", "data=text"]) == 2
    assert "plots is about a model; give run=runs/NAME" in capsys.readouterr().err
