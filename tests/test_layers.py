"""The plan of the house (docs/architecture.md), held against the imports that are really there."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gptlab"

FLOOR = {
    "nn": 0,
    "data": 0,
    "models": 1,
    "objectives": 2,
    "generation": 2,
    "interop": 2,
    "costs": 2,
    "evaluation": 3,
    "training": 3,
    "lab": 4,
    "compose": 4,
    "commands": 5,
}

# Each framework has one home.
HOMES = {
    "lightning": ("training",),
    "hydra": ("compose", "commands"),
    "omegaconf": ("compose", "commands"),
    "datasets": ("data/corpus",),
    "transformers": ("interop",),
    "torchmetrics": ("evaluation/rouge",),
    "lm_eval": ("evaluation/harness",),
    "tensorflow": ("interop/openai_checkpoint",),
    "matplotlib": ("lab", "training/plot"),
    "wandb": ("training/loggers",),
}

FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix()


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_config(name: str) -> bool:
    return name == "config" or name.endswith("/config")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downwards(path):
    name = name_of(path)
    room = name.split("/")[0]
    for imported in imports(path):
        parts = imported.split(".")
        if parts[0] != "gptlab" or len(parts) < 2:
            continue
        target_is_config = parts[1] == "config" or (len(parts) > 2 and parts[2] == "config")
        if is_config(name):
            assert target_is_config, f"{name} is read before any heavy import and may import config files only"
        elif not target_is_config and parts[1] != room:
            assert FLOOR[parts[1]] < FLOOR[room], f"{name} (floor {FLOOR[room]}) imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_framework_has_one_home(path):
    name = name_of(path)
    for imported in imports(path):
        for framework, homes in HOMES.items():
            if imported.split(".")[0] == framework:
                assert name.startswith(homes) if homes else False, f"{name} imports {imported}"


def test_configs_need_the_standard_library_only():
    for path in FILES:
        if is_config(name_of(path)):
            for imported in imports(path):
                root = imported.split(".")[0]
                assert root in sys.stdlib_module_names or root == "gptlab", f"{path} imports {imported}"


def test_costs_is_arithmetic_alone():
    assert not {"torch", "numpy"} & {name.split(".")[0] for name in imports(SOURCE / "costs.py")}


def test_data_works_without_torch():
    for path in FILES:
        if name_of(path).startswith("data/"):
            assert "torch" not in {name.split(".")[0] for name in imports(path)}, path


def test_packages_are_empty_doors():
    for path in SOURCE.rglob("__init__.py"):
        assert path.read_text() == "", f"{path} runs code whenever anything beneath it is imported"


def test_no_room_without_a_purpose():
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]
