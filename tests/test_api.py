"""`import gptlab`: lazy, complete, and not shadowed by its submodules."""

import subprocess
import sys

import gptlab


def test_every_public_name_survives_the_import_of_every_submodule():
    code = """
import importlib, pkgutil, types, warnings
warnings.simplefilter("ignore")
import gptlab
for module in pkgutil.walk_packages(gptlab.__path__, "gptlab."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert error.name.split(".")[0] in ("lm_eval", "tensorflow", "tensorboard"), error
for name in gptlab.__all__:
    value = getattr(gptlab, name)
    assert not isinstance(value, types.ModuleType), name
    assert callable(value), name
assert gptlab.compose("seed=3").seed == 3
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, gptlab; dir(gptlab); print(sorted(set(sys.modules) & {'torch', 'hydra', 'numpy', 'lightning'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_names_are_listed_once():
    assert set(gptlab.__all__) == set(gptlab._HOMES)
    assert set(gptlab.__all__) <= set(dir(gptlab))
