"""All ranks begin with the same data and at the same step, or not at all."""

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from gptlab.distributed.signals import Failure

# What a rank that differs from rank 0 sees in another state, and how that is fixed.
CAUSES = {
    "data": (
        "data with fingerprint",
        "the ranks see different data; data.path has to lead to the same files on every node, "
        "and every process needs the same version of gptlab",
    ),
    "tokenizer": (
        "a tokenizer with fingerprint",
        "the ranks see different tokenizers; tokenizer.path has to lead to the same file on every node",
    ),
    "step": (
        "checkpoints up to step",
        "the ranks see different checkpoints; the run folder has to be on a file system that all nodes share",
    ),
}


class SameStart(Callback):
    """Compares over the ranks, before the first step, what each of them found by itself: Failure where it differs."""

    def __init__(self, *, step: int, data: str, tokenizer: str):
        self.found = {"data": data, "tokenizer": tokenizer, "step": step}

    def setup(self, trainer, module, stage: str) -> None:
        if trainer.world_size == 1 or stage != "fit":
            return
        everywhere: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everywhere, self.found)
        for rank, found in enumerate(everywhere):
            for key, (what, remedy) in CAUSES.items():
                if found[key] != everywhere[0][key]:
                    here, there = (str(value)[:16] for value in (found[key], everywhere[0][key]))
                    raise Failure(f"rank {rank} found {what} {here} and rank 0 {there}: {remedy}")
