"""Ranks that found different data, tokenizers or checkpoints end before the first step, all with one message."""

import json
import subprocess

import pytest
from warm_python import warm_python

RANK = """
import json, sys
from types import SimpleNamespace

import torch

from gptlab.distributed.signals import Failure
from gptlab.training.callbacks.same_start import SameStart

rank = int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
same = {"step": 4, "data": "aa" * 32, "tokenizer": "bb" * 32}
answers = []
for other in ({}, {"data": "cc" * 32}, {"tokenizer": "dd" * 32}, {"step": 8}):
    try:
        SameStart(**(same | other if rank else same)).setup(SimpleNamespace(world_size=2), None, "fit")
        answers.append("")
    except Failure as failure:
        answers.append(str(failure))
print(json.dumps(answers))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of two ranks says where rank 1 differs in nothing, data, tokenizer, step."""
    store = tmp_path_factory.mktemp("store") / "store"
    ranks = [
        subprocess.Popen(
            [warm_python(), "-c", RANK, str(store), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    return [json.loads(out) for out, _ in outputs]


def test_equal_ranks_start_and_others_do_not(answers):
    assert answers[0] == answers[1], "every rank ends, and for the same reason"
    nothing, data, tokenizer, step = answers[0]
    assert nothing == ""
    assert "rank 1" in data and "different data" in data and "data.path" in data
    assert "cc" * 8 in data and "aa" * 8 in data and "cc" * 9 not in data
    assert "rank 1" in tokenizer and "different tokenizers" in tokenizer and "tokenizer.path" in tokenizer
    assert "step 8 and rank 0 4" in step and "run folder" in step
