"""Workers that gather batches."""

import subprocess
import sys

import pytest

WORKER = """
import os, sys, time
from gptlab.training.datamodule import _begin_worker
_begin_worker(0, run=os.getppid() if sys.argv[1] == "alive" else 1 << 22)
print("begun", flush=True)
time.sleep(60 if sys.argv[1] == "dead" else 2)
"""


@pytest.mark.slow
def test_a_worker_ends_with_a_run_that_was_killed_before_it_began():
    alive, dead = (
        subprocess.Popen([sys.executable, "-c", WORKER, state], stdout=subprocess.PIPE, text=True)
        for state in ("alive", "dead")
    )
    out, _ = dead.communicate(timeout=55)
    assert dead.returncode == 1 and out in ("", "begun\n")
    assert alive.communicate(timeout=55) == ("begun\n", None) and alive.returncode == 0
