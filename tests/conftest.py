"""What every test needs: one thread for tiny shapes, and a cache of its own."""

import gc
import os

# On tiny shapes a second thread costs more than it brings; processes that tests start inherit the setting.
os.environ["OMP_NUM_THREADS"] = "1"
# The compiler's own processes would each import torch to compile a few small kernels.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
# A run must never reach for a network or for a person's own cache.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder that the whole session shares, so that a corpus is prepared once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gptlab-cache"
    os.environ["GPTLAB_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """What is there before a file's tests is no longer looked at by the collector, which runs call often."""
    gc.collect()
    gc.freeze()


# Files that start processes. They come first, so that at the end no worker waits for another's long file.
LONG = (
    "test_readme test_strategies test_launchers test_stop_points test_plugins test_spikes test_experts test_objectives "
    "test_finetune test_resume test_notebooks test_loop test_sweeps_page test_parametrization test_experiments"
).split()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden losses")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")
