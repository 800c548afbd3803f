"""What a wheel contains: every package, every preset, the type marker."""

import tomllib
from importlib.resources import files
from pathlib import Path

from gptlab import composition

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    source = ROOT / "src"
    there = {path.parent.relative_to(source).as_posix().replace("/", ".") for path in source.rglob("__init__.py")}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(there | {"gptlab.conf"}) == sorted(listed)
    assert not [path for path in source.rglob("*.py") if not (path.parent / "__init__.py").exists()]


def test_the_presets_are_package_data():
    there = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    found = {f"{group}/{name}.yaml" for group, names in composition.preset_names().items() for name in names}
    assert there == found | {"config.yaml"}
    assert all(name.count("/") <= 1 for name in there), "package-data has a pattern for each depth"
    assert (files("gptlab") / "py.typed").is_file()


def test_the_dependencies_leave_the_choice_of_a_torch_to_users():
    (torch,) = (d for d in PROJECT["project"]["dependencies"] if d.startswith("torch>"))
    assert torch == "torch>=2.11,<3"


def test_the_files_of_the_lab_are_package_data():
    folder = ROOT / "src" / "gptlab" / "lab"
    there = {path.relative_to(folder) for path in (*(folder / "assets").rglob("*"), *folder.glob("*.yaml"))}
    there = {path for path in there if (folder / path).is_file()}
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["gptlab.lab"]
    assert there == {
        path.relative_to(folder) for pattern in patterns for path in folder.glob(pattern) if path.is_file()
    }
    assert (ROOT / PROJECT["project"]["license-files"][1]).read_text().startswith("The MIT License")
