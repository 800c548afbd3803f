import json
import os
import sys
from pathlib import Path

import pytest
import torch
from small_runs import small_run
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from gptlab.distributed.compiling import CACHE, compiling_seconds, keep_compiled
from gptlab.distributed.config import StrategyConfig
from gptlab.training.loop import train


def test_what_is_compiled_is_kept_where_the_next_run_finds_it(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, "elsewhere")
    keep_compiled(tmp_path)
    assert os.environ[CACHE] == "elsewhere"
    monkeypatch.delenv(CACHE)
    assert cache_dir() == default_cache_dir() == os.environ[CACHE]  # as torch does where it is imported
    for kept in (os.environ[CACHE], ""):
        monkeypatch.setenv(CACHE, kept)
        keep_compiled(tmp_path)
        folder = Path(cache_dir())
        assert folder.parent == tmp_path and folder.name.startswith("compiled-")
        assert folder.stat().st_mode & 0o777 == 0o700, "code that is run is nobody else's"


@pytest.mark.parametrize("kind", ["blank", "file", "read-only"])
def test_a_folder_that_will_not_do_leaves_the_choice_to_torch(monkeypatch, tmp_path, kind):
    monkeypatch.setenv(CACHE, "")
    cache = tmp_path / ("with blank" if kind == "blank" else kind)
    if kind == "file":
        cache.write_text("")
    if kind == "read-only":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    keep_compiled(cache)
    assert cache_dir() == default_cache_dir()


def test_a_run_that_compiles_keeps_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(CACHE, "")
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: took.append(given))
    took = []
    monkeypatch.setattr("gptlab.training.loop.compiling_seconds", lambda: 7.5 * len(took))
    run = train(small_run(tmp_path / "run", budget_steps=3, strategy=StrategyConfig(compile=True)))
    assert len(took) == 2 and cache_dir().startswith(str(tmp_path / "cache" / "compiled-"))
    assert json.loads((run.path / "summary.json").read_text())["compiling_seconds"] == 15
    assert "; compiling took 15.0 s of it" in capsys.readouterr().out


def test_the_time_spent_on_compiling(monkeypatch):
    before = compiling_seconds()
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
    compiled(torch.ones(3))
    first = compiling_seconds()
    compiled(torch.ones(3))
    assert before < first == compiling_seconds()
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils")
    assert compiling_seconds() == 0
