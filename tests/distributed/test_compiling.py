import os
import sys

import torch

from gptlab.distributed.compiling import CACHE, compiling_seconds, keep_compiled


def test_what_is_compiled_is_kept_where_the_next_run_finds_it(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, "elsewhere")
    keep_compiled(tmp_path)
    assert os.environ[CACHE] == "elsewhere"
    monkeypatch.delenv(CACHE)
    keep_compiled(tmp_path)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path)


def test_the_time_spent_on_compiling(monkeypatch):
    before = compiling_seconds()
    compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
    compiled(torch.ones(3))
    first = compiling_seconds()
    compiled(torch.ones(3))
    assert before < first == compiling_seconds()
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils")
    assert compiling_seconds() == 0
