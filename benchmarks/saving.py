"""How long a checkpoint blocks training: a plain copy of the state in memory, a save, and an asynchronous save.

    OMP_NUM_THREADS=2 python benchmarks/saving.py [--rounds 5] [--model gpt124m]

One process, AdamW. The three take turns within one run. `blocked` is the time until the next step may begin; `on disk`
is when the checkpoint has its final name: written, flushed with fsync, with its checksum.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gptlab.distributed.allocator import keep_freed_memory
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.writer import CheckpointWriter, Save
from gptlab.training.config import AdamWConfig

SHAPES = {"toy": (2, 2, 32, 16, 100), "gpt124m": (12, 12, 768, 1024, 50_257), "gpt30m": (6, 6, 384, 256, 50_257)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=SHAPES, default="gpt124m")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; left out: a temporary folder")
    given = parser.parse_args()
    keep_freed_memory()  # as a run on a CPU does
    n_layer, n_head, d_model, context_length, vocab_size = SHAPES[given.model]
    config = DecoderConfig(n_layer=n_layer, n_head=n_head, d_model=d_model, context_length=context_length)
    model = build_model(config, vocab_size, seed=1)
    optimizer = AdamWConfig().build(model.named_parameters(), device=torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    def by_key() -> dict[str, Any]:
        return checkpoint.by_key(checkpoint.model_state(model), checkpoint.optimizer_state(optimizer))

    tensors = [value for value in by_key().values() if isinstance(value, torch.Tensor)]
    n_bytes = sum(t.numel() * t.element_size() for t in tensors)
    blocked = {"plain copy": [], "save": [], "asynchronous save": []}
    on_disk = {name: [] for name in blocked}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for turn in range(given.rounds + 1):
            for name in blocked:
                started = time.perf_counter()
                if name == "plain copy":
                    copies = [t.clone() for t in tensors]
                    seconds = time.perf_counter() - started
                    del copies
                else:
                    writer = CheckpointWriter(
                        asynchronous=name != "save", keep_last=1, rank=0, world_size=1, timeout_seconds=600
                    )
                    path = Path(folder) / f"step_{turn:08d}.ckpt"
                    writer.save(Save(path, CheckpointState(step=turn), by_key(), sharded=False, links=["last"]))
                    seconds = time.perf_counter() - started
                    writer.wait()
                if turn:  # the first warms up
                    blocked[name].append(seconds)
                    on_disk[name].append(time.perf_counter() - started)
    plain = statistics.median(blocked["plain copy"])
    print(f"{n_bytes / 2**20:,.0f} MiB of weights and optimizer state\n")
    print(f"{'':<20} {'blocked':>9}  {'range':>20}  {'on disk':>9}  {'of a copy':>9}")
    for name, times in blocked.items():
        median = statistics.median(times)
        disk = "" if name == "plain copy" else f"{statistics.median(on_disk[name]):7.2f} s"
        span = f"{min(times):.3f} to {max(times):.3f} s"
        print(f"{name:<20} {median:7.3f} s  {span:>20}  {disk:>9}  {median / plain:9.2f}")


if __name__ == "__main__":
    from ending import finish

    finish(main)
