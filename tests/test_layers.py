"""The layers of docs/architecture.md, compared with the imports that are really there."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gptlab"

# A module imports from lower layers and from its own package.
LAYERS = {
    "errors": 0,
    "files": 0,
    "units": 0,
    "quoting": 0,
    "values": 0,
    "fields": 0,
    "registry": 0,
    "plugins": 0,
    "steps": 0,
    "config": 1,
    "nn": 2,
    "data": 2,
    "models": 3,
    "objectives": 4,
    "generation": 4,
    "interop": 4,
    "counting": 4,
    "costs": 4,
    "forecast": 4,
    "loss_curve": 4,
    "distributed": 5,
    "runs": 5,
    "training": 6,
    "evaluation": 6,
    "overrides": 7,
    "composition": 7,
    "lab": 8,
    "cli": 9,
}
# Of one layer, those that may import each other's modules.
SIDEWAYS = {
    ("fields", "errors"),
    ("registry", "errors"),
    ("plugins", "errors"),
    ("values", "errors"),
    ("values", "quoting"),
    ("values", "fields"),
    ("values", "registry"),
    ("files", "errors"),
    ("costs", "counting"),
    ("forecast", "costs"),
    ("forecast", "objectives"),
    ("costs", "objectives"),
    ("runs", "distributed"),
    ("training", "evaluation"),
    ("composition", "overrides"),
}

# Each framework has one home.
HOMES = {
    "lightning": ("training", "distributed/internals", "distributed/launch", "distributed/parallelize"),
    "hydra": ("composition", "cli"),
    "omegaconf": ("composition", "cli"),
    "datasets": ("data/sources/huggingface",),
    "transformers": ("interop",),
    "torchmetrics": ("evaluation/rouge", "distributed/lightning_import"),
    "lm_eval": ("evaluation/harness",),
    "tensorflow": ("interop/openai_checkpoint",),
    "matplotlib": ("lab", "training/plot"),
    "wandb": ("training/loggers",),
    "mlflow": ("training/loggers",),
    "trackio": ("training/loggers",),
    "optuna": ("lab",),
}

# What may see the whole RunConfig.
WHOLE_CONFIG = {
    *("__init__", "config", "overrides", "composition", "training/loop", "runs/run", "forecast"),
    *("lab/plan", "lab/trials"),
}

FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("/__init__")


def statements(tree: ast.AST, *, lazy: bool) -> Iterator[ast.stmt]:
    """Import statements, without those for the type checker; `lazy` are those within functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(node, lazy=lazy)


def imports(path: Path, *, lazy: bool = True) -> list[str]:
    found = []
    for node in statements(ast.parse(path.read_text()), lazy=lazy):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_config(name: str) -> bool:
    return name == "config" or name.endswith("/config")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downwards(path):
    name = name_of(path)
    package = name.split("/")[0]
    # A config's `build` imports what it configures: the one import that looks upwards.
    for imported in imports(path, lazy=not is_config(name)):
        parts = imported.split(".")
        if parts[0] != "gptlab" or len(parts) < 2 or package == ".":
            continue
        other, of_config = parts[1], "config" in parts[1:-1] or parts[-1] == "config"
        if is_config(name):
            assert of_config or LAYERS.get(other) == 0, (
                f"{name} is read before any heavy import, and imports {imported}"
            )
        elif not of_config and other != package and other in LAYERS:
            lower = LAYERS[other] < LAYERS[package]
            assert lower or (package, other) in SIDEWAYS, f"{name} (layer {LAYERS[package]}) imports {imported}"


def test_the_table_is_complete():
    there = {name_of(path).split("/")[0] for path in FILES} - {".", "__init__"}
    assert there <= set(LAYERS), there - set(LAYERS)
    for pair in SIDEWAYS:
        assert LAYERS[pair[0]] == LAYERS[pair[1]], pair


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_framework_has_one_home(path):
    name = name_of(path)
    for imported in imports(path):
        for framework, homes in HOMES.items():
            if imported.split(".")[0] == framework:
                assert name.startswith(homes), f"{name} imports {imported}"


def test_configs_need_the_standard_library_only():
    for path in FILES:
        name = name_of(path)
        if is_config(name) or LAYERS.get(name) == 0:
            for imported in imports(path, lazy=False):
                root = imported.split(".")[0]
                assert root in sys.stdlib_module_names or root == "gptlab", f"{path} imports {imported}"


def test_data_works_without_torch():
    for path in FILES:
        if name_of(path).startswith("data/"):
            assert "torch" not in {name.split(".")[0] for name in imports(path)}, path


def test_the_command_line_is_read_in_one_package():
    for path in FILES:
        if not name_of(path).startswith("cli/"):
            assert "sys.argv" not in path.read_text(), path


def test_few_modules_see_the_whole_config():
    seen = {name_of(path) for path in FILES if "gptlab.config.RunConfig" in _all_imports(path)}
    assert {name or "__init__" for name in seen} - {"."} <= WHOLE_CONFIG, seen - WHOLE_CONFIG


def _all_imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_no_architecture_is_named_outside_its_home():
    networks = ("Decoder", "Encoder", "EncoderDecoder", "DecoderConfig", "EncoderConfig", "EncoderDecoderConfig")
    allowed = ("models/", "interop/", "config")
    for path in FILES:
        name = name_of(path)
        if name.startswith(allowed):
            continue
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & set(networks), f"{name} names {names & set(networks)}"


def test_packages_are_empty_doors():
    for path in SOURCE.rglob("__init__.py"):
        if path.parent != SOURCE:
            assert path.read_text() == "", f"{path} runs code whenever anything beneath it is imported"


def test_no_module_without_a_purpose():
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "common", "misc")]


def test_tests_mirror_the_package():
    packages = {path.parent.relative_to(SOURCE).as_posix() for path in FILES}
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests").as_posix()
        assert folder in packages | {"golden", "parity", "conf"}, f"{path} is of no package"
