"""The largest micro-batch that `gptlab plan` finds for a memory limit, held against the peak memory of runs.

    python benchmarks/largest_batch.py [--cases N] [--seed N]

Random models, data lengths, optimizers, precisions and recomputation; each is planned for a CPU with a random limit of
0.75 to 1.2 GiB. Two runs follow, each a process of its own with two steps of two micro-batches: at the largest
micro-batch that fits, the peak of resident memory must stay within the limit; at the next one that divides the step it
must exceed 85% of it. Linux only.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import memory
from memory import MIB, write_texts

from gptlab.distributed.allocator import NO_THREAD_CACHE, TUNABLES

MARGIN = 0.85
MAX_FLOPS = 2e10  # of a micro-batch: a second or a few
SHARES = (60, 96, 120, 144, 180, 240, 360, 480, 720)  # sequences of a step; each has many divisors


def draw(random: random.Random) -> tuple[list[str], int]:
    """The overrides of a run, and a limit in bytes."""
    kind = random.choice(("decoder", "decoder", "decoder", "encoder", "encoder_decoder", "experts"))
    model = {"decoder": "small", "encoder": "bert_laptop", "encoder_decoder": "t5_laptop", "experts": "moe_small"}[kind]
    d_head, n_head = random.choice((8, 16, 32, 64)), random.choice((2, 3, 4, 6))
    context_length = random.choice((64, 128, 256, 512))
    typed = [
        f"model={model}",
        "tokenizer=byte",
        f"model.n_layer={random.randint(2, 6)}",
        f"model.n_head={n_head}",
        f"model.d_model={d_head * n_head}",
        f"model.context_length={context_length}",
        f"model.vocab_size={random.choice((512, 1024, 4096, 16384))}",
        f"model.dropout={random.choice((0, 0, 0.1))}",
        f"optimizer={random.choice(('adamw', 'muon'))}",
        f"trainer.precision={random.choice(('32-true', '32-true', '32-true', 'bf16-mixed', 'bf16-true'))}",
        f"strategy.activation_checkpointing={random.choice(('none', 'none', 'selective', 'full'))}",
        f"data.val_fraction={random.choice((0, 0, 0.1))}",
        f"batch_tokens={context_length * random.choice(SHARES)}",
    ]
    if kind in ("decoder", "encoder_decoder"):
        typed.append(f"model.feedforward={random.choice(('gelu', 'relu2', 'swiglu'))}")
    if kind == "encoder":
        typed += ["objective=masked_lm", "tokenizer.special_tokens=[<mask>,<cls>,<sep>,<pad>]"]
    return typed, round(random.uniform(0.75, 1.2) * 2**30)


def find_largest(overrides: list[str], limit: int) -> dict[str, int] | None:
    """The largest micro-batch that fits and the next that divides the step; None where either is none."""
    import gptlab
    from gptlab.distributed.hardware import Hardware
    from gptlab.lab.plan import Devices, Planner

    config = gptlab.compose(*overrides, "trainer.accelerator=cpu")
    planner = Planner(config, Devices(Hardware("cpu", memory_bytes=limit)))
    largest, share = planner.summary()["largest_micro_batch"], config.sequences_per_step
    if largest is None or largest == share:
        return None
    if planner.training_pass().flops_per_token * config.context_length * largest > MAX_FLOPS:
        return None
    following = next(n for n in range(largest + 1, share + 1) if share % n == 0)
    return {"largest": largest, "next": following, "context_length": config.context_length}


def train(overrides: list[str], n_sequences: int, context_length: int, folder: str) -> Any:
    """Planned and measured bytes of two steps of two micro-batches, in a process of its own; or what was raised."""
    kept = [one for one in overrides if not one.startswith("batch_tokens=")]
    batch = [f"micro_batch_size={n_sequences}", f"batch_tokens={2 * n_sequences * context_length}"]
    typed = " ".join([*kept, *batch, "strategy.check_memory=false"])
    command = [sys.executable, memory.__file__, "--case", typed, "--folder", folder]
    environment = {**os.environ, TUNABLES: NO_THREAD_CACHE}  # as train.py starts itself
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    choose, n_runs, fits, tight = random.Random(given.seed), 0, 0, 0
    print("| limit MiB | largest | planned | peak | next | planned | peak | run |\n|---:" + "|---:" * 6 + "|---|")
    while n_runs < given.cases:
        overrides, limit = draw(choose)
        found = find_largest(overrides, limit)
        if found is None:
            continue
        n_runs += 1
        cells = []
        for n in (found["largest"], found["next"]):
            with tempfile.TemporaryDirectory() as folder:
                write_texts(Path(folder))
                run = train(overrides, n, found["context_length"], folder)
            if "error" in run:
                cells += [str(n), "", run["error"]]
                continue
            cells += [str(n), f"{run['planned']['total'] / MIB:,.0f}", f"{run['measured'] / MIB:,.0f}"]
            if n == found["largest"]:
                fits += run["measured"] <= limit
            else:
                tight += run["measured"] > MARGIN * limit
        print(f"| {limit / MIB:,.0f} | {' | '.join(cells)} | {' '.join(overrides)} |", flush=True)
    print(
        f"\nWithin the limit: {fits} of {n_runs}; the next micro-batch exceeds {MARGIN:.0%} of the limit in "
        f"{tight} of {n_runs}."
    )


if __name__ == "__main__":
    from ending import finish

    finish(main)
