import os
import subprocess
import sys

import pytest

from gptlab.distributed import allocator

PROGRAM = """
import os, sys
from gptlab.distributed.allocator import expected_fragmentation, without_thread_cache
print("started", sys.argv[1:], expected_fragmentation(), flush=True)
without_thread_cache(sys.argv[0])
"""
BLOCKS = """
import ctypes, resource
from gptlab.distributed.allocator import keep_freed_memory
from gptlab.nn.loss import CHUNK_ELEMENTS_CPU
SIZE = 4 * CHUNK_ELEMENTS_CPU + 64  # aligned
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
pages = SIZE // resource.getpagesize()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages)
"""
ARGUMENTS = ["a b", "c='d'", "x=[1,2]"]


def started(folder, monkeypatch, before="", *options):
    """How often the program started, with what arguments, and with the thread cache or without."""
    monkeypatch.delenv(allocator.TUNABLES, raising=False)
    program = folder / "a program.py"
    program.write_text(before + PROGRAM)
    command = [sys.executable, *options, str(program), *ARGUMENTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not allocator._is_glibc(), reason="the C library is not glibc")
def test_a_program_starts_once_more_without_the_thread_cache(tmp_path, monkeypatch):
    found = [
        f"started {ARGUMENTS} {allocator.FRAGMENTATION_WITH_THREAD_CACHE}",
        f"started {ARGUMENTS} {allocator.FRAGMENTATION}",
    ]
    assert started(tmp_path, monkeypatch) == found
    assert started(tmp_path, monkeypatch, "", "-X", "utf8", "-W", "error") == found  # Python's own options stay


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("import os\ndef refuse(*_): raise PermissionError\nos.execve = refuse\n", id="not permitted"),
        pytest.param("import sys; sys.settrace(lambda *_: None)\n", id="a debugger"),
        pytest.param("import sys; sys.modules['torch'] = sys\n", id="not at the start"),
        pytest.param("import sys; sys.argv[0] = 'another.py'\n", id="not the program"),
        pytest.param("import os; os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.mxfast=0'\n", id="the user's choice"),
    ],
)
def test_a_program_is_not_started_again(tmp_path, monkeypatch, before):
    assert len(started(tmp_path, monkeypatch, before)) == 1


@pytest.mark.skipif(not allocator._is_glibc(), reason="the C library is not glibc")
def test_the_block_of_a_chunk_of_logits_is_used_again_without_the_thread_cache():
    environment = {**os.environ, allocator.TUNABLES: allocator.NO_THREAD_CACHE}
    done = subprocess.run([sys.executable, "-c", BLOCKS], capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) < 2  # of eight times: its pages are fetched once
