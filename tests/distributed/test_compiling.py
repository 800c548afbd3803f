import os
import sys

import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from gptlab.distributed.compiling import CACHE, compiling_seconds, keep_compiled


def test_what_is_compiled_is_kept_where_the_next_run_finds_it(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, "elsewhere")
    keep_compiled(tmp_path)
    assert os.environ[CACHE] == "elsewhere"
    monkeypatch.delenv(CACHE)
    assert cache_dir() == default_cache_dir() == os.environ[CACHE]  # as torch does where it is imported
    keep_compiled(tmp_path / "compiled")
    assert cache_dir() == str(tmp_path / "compiled")


def test_the_time_spent_on_compiling(monkeypatch):
    before = compiling_seconds()
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
    compiled(torch.ones(3))
    first = compiling_seconds()
    compiled(torch.ones(3))
    assert before < first == compiling_seconds()
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils")
    assert compiling_seconds() == 0
