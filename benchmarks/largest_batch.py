"""The largest micro-batch that `gptlab plan` finds for a memory limit, held against runs under that limit.

    python benchmarks/largest_batch.py [--cases N] [--seed N]

Random models, data lengths, optimizers, precisions and recomputation; each is planned for a CPU with a random limit of
0.75 to 1.2 GiB. Two steps at the largest micro-batch that fits, of two micro-batches each, must not run out of memory:
the process is limited by RLIMIT_DATA, and its peak of resident memory is compared with the limit too. At the next
micro-batch that divides the step one pass, without a limit, must exceed 85% of it. A fork of a warm process a run, as a
sweep starts its trials. Linux only.
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from memory import MIB, measure, write_texts

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


def train(overrides: list[str], n_sequences: int, context_length: int, limit: int | None, **files: str) -> Any:
    """Planned and measured bytes: two steps of two micro-batches under a limit, else one pass; or what was raised."""
    times = 1
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        times = 2
    batch = [f"micro_batch_size={n_sequences}", f"batch_tokens={times * n_sequences * context_length}"]
    kept = [one for one in overrides if not one.startswith("batch_tokens=")]
    try:
        return measure([*kept, *batch, f"budget_steps={times}", "strategy.check_memory=false"], **files)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def in_fork(call: Callable[[], Any]) -> Any:
    """What `call` returns in a process of its own, as JSON takes it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.write(write, json.dumps(call()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        found = file.read()
    os.waitpid(pid, 0)
    return json.loads(found) if found else {"error": "the process died"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if NO_THREAD_CACHE not in os.environ.get(TUNABLES, ""):  # as train.py starts itself
        os.execve(sys.executable, sys.orig_argv, {**os.environ, TUNABLES: NO_THREAD_CACHE})
    import gc

    import gptlab.composition
    import gptlab.lab.plan
    import gptlab.training.loop  # noqa: F401

    gc.freeze()
    choose, n_runs, fits, tight = random.Random(given.seed), 0, 0, 0
    print("| limit MiB | largest | planned | peak | next | planned | peak | run |\n|---:" + "|---:" * 6 + "|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_texts(Path(folder))
        while n_runs < given.cases:
            overrides, limit = draw(choose)
            found = in_fork(partial(find_largest, overrides, limit))
            if found is None:
                continue
            if "error" in found:
                print(f"| | | | | | | | {found['error']}: {' '.join(overrides)} |", flush=True)
                continue
            n_runs += 1
            length = found["context_length"]
            at = [
                in_fork(partial(train, overrides, n, length, most, folder=folder, name=f"{n_runs}-{n}"))
                for n, most in ((found["largest"], limit), (found["next"], None))
            ]
            cells = [
                (f"{one['planned']['total'] / MIB:,.0f}", f"{one['measured'] / MIB:,.0f}")
                if "error" not in one
                else ("", one["error"])
                for one in at
            ]
            fits += "error" not in at[0] and at[0]["measured"] <= limit
            tight += "error" in at[1] or at[1]["measured"] > MARGIN * limit
            print(
                f"| {limit / MIB:,.0f} | {found['largest']} | {' | '.join(cells[0])} | {found['next']} "
                f"| {' | '.join(cells[1])} | {' '.join(overrides)} |",
                flush=True,
            )
    print(
        f"\nNone ran out of memory in {fits} of {n_runs}; the next micro-batch exceeds {MARGIN:.0%} of the limit in "
        f"{tight} of {n_runs}."
    )


if __name__ == "__main__":
    main()
