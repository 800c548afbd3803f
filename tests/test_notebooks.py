"""notebooks/: each runs from top to bottom, its solutions are right, and wrong answers are told what is wrong."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FASTEST = ("sampling", "chinchilla", "number_formats")  # the others are slow tests

specification = importlib.util.spec_from_file_location("checks", FOLDER / "checks.py")
checks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(checks)
check = checks.check

of_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in FASTEST)) for path in NOTEBOOKS],
)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # without it jupyter_core warns
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    exercises, solved = 0, 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        shown = "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        warned = [o.text for o in cell.outputs if o.output_type == "stream" and re.search(r"\w+Warning: ", o.text)]
        # tqdm misses ipywidgets, which the extra `notebooks` has and `test` has not.
        warnings = [found for text in warned for found in re.findall(r"^\S+:\d+: (\w+Warning): ", text, re.M)]
        assert not {*warnings} - {"TqdmWarning"}, warned
        if "solution" in cell.metadata.get("tags", []):
            solved += shown.count(": right.\n")
        else:
            exercises += shown.count(": no answer yet.")
            assert ": right.\n" not in shown and ": not right" not in shown, shown
    assert exercises >= 3 and solved >= 3
    assert not (FOLDER / "runs").exists()


@of_notebook
def test_a_notebook_is_as_it_should_be_kept(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z0-9-]{1,64}", one) for one in ids)
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    head = "".join(notebook["cells"][0]["source"])
    assert head.startswith("# ") and 'pip install -e ".[notebooks]"' in head and "Colab" in head
    (seconds,) = re.findall(r"about (\d+) seconds", head)
    assert int(seconds) < 60


@of_notebook
def test_a_notebook_has_exercises_and_solutions_to_all_of_them(path):
    solutions = [cell for cell in cells(path, "code") if "solution" in cell["metadata"].get("tags", [])]
    assert solutions and all(cell["metadata"]["jupyter"]["source_hidden"] for cell in solutions)
    headings = re.findall(r"^## Exercise (\d+)", "\n".join("".join(c["source"]) for c in cells(path, "markdown")), re.M)
    solved = re.findall(r"exercise (\d+)", "".join("".join(cell["source"]) for cell in solutions))
    assert [int(n) for n in headings] == list(range(1, len(headings) + 1))
    assert {*headings} == {*solved}


def test_the_sites_navigation_has_every_notebook():
    listed = re.findall(r"^ +- notebooks/(\w+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (2.5, 2.5),
        (5, 5.0),
        ([1, 2], np.array([1.0, 2.0])),
        (torch.tensor([1.0, 2.0], requires_grad=True), [1, 2]),
        (np.array([1.0, -np.inf]), [1.0, -np.inf]),
        ("attn", "attn"),
        (1 / 3, 0.33333334),
    ],
)
def test_a_right_answer(answer, right, capsys):
    assert check("one", answer, right)
    assert capsys.readouterr().out == "one: right.\n"


@pytest.mark.parametrize("answer", [..., None, [1.0, ...], (None, 2.0)])
def test_no_answer_yet(answer, capsys):
    assert not check("one", answer, [1.0, 2.0], hint="Look again.")
    assert capsys.readouterr().out == "one: no answer yet. Look again.\n"


@pytest.mark.parametrize(
    ("answer", "right", "said"),
    [
        (4, 2, "4 is 2 times what it should be"),
        (-2, 2, "its sign is wrong"),
        (2.001, 2, "it is close"),
        ([1, 5], [1, 2], r"the first element that differs is \[1\], which is 5"),
        ([1, 2, 3], [1, 2], r"its shape is \(3,\), and \(2,\) is asked for"),
        (np.nan, 2, "nan"),
        (1, 0, "1"),
        ("two", 2, "it is a str, and a number is asked for"),
        (2, "two", "a str is asked for"),
        ("a", "b", ""),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(answer, right, said, capsys):
    assert not check("one", answer, right, hint="Look again.")
    assert re.match(rf"one: not right.*{said}.* Look again\.\n", capsys.readouterr().out)


def test_a_known_mistake_is_explained(capsys):
    mistakes = [(4, "that is its square."), ([1, 1], "no.")]
    assert not check("one", 4.0, 2, mistakes=mistakes, hint="Look again.")
    assert capsys.readouterr().out == "one: not right: that is its square.\n"


def test_the_tolerance_is_relative_to_the_largest_number():
    assert check("one", [1000.5, 0.2], [1000, 0], tolerance=1e-3)
    assert not check("one", [1002, 0], [1000, 0], tolerance=1e-3)
