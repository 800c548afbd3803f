"""Where the peak of resident memory of a training run on a CPU comes from, phase by phase and part by part.

    python benchmarks/peak_memory.py [--model 30M] [--steps 3] [--threads 1] [OVERRIDE ...]

Trains a GPT-2 of that size on sequences of 256 tokens in a fresh process, started as train.py starts itself, with
everything that a run does by default: validation, samples, checkpoints, plots. The first table has each phase's own
peak, for which the system's high-water mark is set back where the phase begins, and what is resident at its end. The
second has the tensors by part, as counted in that process, and the plan's forecast beside them. Linux only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gptlab.distributed.allocator import NO_THREAD_CACHE, TUNABLES
from gptlab.distributed.lightning_import import import_lightning_alone

MIB = 2**20
CONTEXT = 256
MODELS = {  # layers, heads, width, sequences of a micro-batch
    "toy": (2, 4, 64, 2),
    "30M": (6, 6, 384, 4),
    "124M": (12, 12, 768, 2),
}
SETTINGS = (
    "model=gpt124m tokenizer=byte data=text schedule=cosine schedule.warmup_steps=0 schedule.warmup_fraction=null "
    "tokens_per_parameter=null trainer.accelerator=cpu trainer.precision=32-true trainer.enable_progress_bar=false "
    "trainer.limit_val_batches=1 trainer.val_check_interval=1.0"
)


def resident() -> dict[str, int]:
    """Bytes that this process holds: now, of those the pages of files, and the most since the mark was set back."""
    status = Path("/proc/self/status").read_text()
    names = {"now": "VmRSS", "files": "RssFile", "peak": "VmHWM"}
    found = {name: re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE) for name, field in names.items()}
    return {name: 1024 * int(match[1]) for name, match in found.items() if match is not None}


class Phases:
    """The peak of each phase, over all times that it was entered, and what was resident when it last ended."""

    def __init__(self):
        self.found: dict[str, dict[str, int]] = {}
        self.current = "imports"

    def begin(self, name: str) -> None:
        """End the current phase and begin another."""
        own = resident()
        own["peak"] = max(own["peak"], self.found.get(self.current, own)["peak"])
        self.found[self.current], self.current = own, name
        Path("/proc/self/clear_refs").write_text("5")


def tensor_bytes(tensors) -> int:
    """Bytes of the storages of tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def measure(overrides: list[str], folder: Path) -> dict[str, dict]:
    """Train, and return what was found: phases, tensors by part, and the plan's parts."""
    phases = Phases()
    import_lightning_alone()  # as train.py does
    import lightning
    import torch

    import gptlab
    from gptlab.distributed.allocator import keep_freed_memory
    from gptlab.training import loop
    from gptlab.training.callbacks import preview

    parts: dict[str, int] = {}
    planned: dict[str, int] = {}
    saved: dict[int, int] = {}
    make_plan = loop.make_plan

    def plan(*given):
        found = make_plan(*given)
        planned.update(found.memory)
        return found

    loop.make_plan = plan

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def within(owner: object, name: str, phase: str) -> None:
        """Let a function be a phase of its own."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            outer = phases.current
            phases.begin(phase)
            try:
                return function(*args, **kwargs)
            finally:
                phases.begin(outer)

        setattr(owner, name, timed)

    from gptlab.runs import checkpoint

    within(checkpoint, "save_file", "saving")
    within(preview.Preview, "on_validation_end", "samples")
    within(loop, "draw", "plots")

    class Watch(lightning.Callback):
        hooks = None

        def setup(self, trainer, module, stage):
            phases.begin("building the model")

        def on_train_start(self, trainer, module):
            phases.begin("between steps")

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            phases.begin("forward")
            if batch_idx == 0:  # of the first step alone, whose phases are the smaller ones
                self.hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
                self.hooks.__enter__()

        def on_before_backward(self, trainer, module, loss):
            phases.begin("backward")
            if self.hooks is not None:
                self.hooks.__exit__(None, None, None)
                self.hooks = None
                weights = {p.untyped_storage().data_ptr() for p in module.model.parameters()}
                parts["saved for the backward pass"] = sum(n for at, n in saved.items() if at not in weights)

        def on_after_backward(self, trainer, module):
            phases.begin("clipping and update")

        def on_before_optimizer_step(self, trainer, module, optimizer):
            parts["gradients"] = tensor_bytes(p.grad for p in module.model.parameters() if p.grad is not None)

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            phases.begin("between steps")

        def on_validation_start(self, trainer, module):
            phases.begin("validation")

        def on_validation_end(self, trainer, module):
            phases.begin("between steps")

        def on_train_end(self, trainer, module):
            parts["weights"] = tensor_bytes(module.model.parameters())
            states = trainer.optimizers[0].state.values()
            parts["optimizer"] = tensor_bytes(v for s in states for v in s.values() if isinstance(v, torch.Tensor))
            phases.begin("end")

    keep_freed_memory()
    phases.begin("data and plan")
    config = gptlab.compose(f"data.path={folder}/texts", f"run_dir={folder}/run", *overrides)
    gptlab.train(config, [Watch()])
    phases.begin("after")
    return {"phases": phases.found, "parts": parts, "planned": planned}


def overrides(model: str, steps: int) -> list[str]:
    """What to type for a model."""
    n_layer, n_head, d_model, n_sequences = MODELS[model]
    sizes = {"n_layer": n_layer, "n_head": n_head, "d_model": d_model, "context_length": CONTEXT}
    typed = [*SETTINGS.split(), *(f"model.{name}={value}" for name, value in sizes.items())]
    return [*typed, f"micro_batch_size={n_sequences}", f"batch_tokens={n_sequences * CONTEXT}", f"budget_steps={steps}"]


def write_texts(folder: Path) -> None:
    """Documents that a tokenizer of bytes reads in a moment."""
    (folder / "texts").mkdir()
    for i in range(60):
        lines = (f"The sum of {i} and {j} is {i + j}, and their product is {i * j}.\n" for j in range(150))
        (folder / "texts" / f"{i:02}.txt").write_text("".join(lines))


def report(found: dict[str, dict]) -> str:
    """Both tables, as Markdown."""
    phases, parts, planned = found["phases"], found["parts"], found["planned"]
    lines = ["| phase | peak MiB | at its end MiB | of which files |", "|---|---:|---:|---:|"]
    for name, own in phases.items():
        lines.append(f"| {name} | {own['peak'] / MIB:,.0f} | {own['now'] / MIB:,.0f} | {own['files'] / MIB:,.0f} |")
    peak = max(own["peak"] for own in phases.values())
    lines += [f"\nPeak: {peak / MIB:,.0f} MiB, {peak / 1e9:.2f} GB.\n", "| part | MiB |", "|---|---:|"]
    lines += [f"| {name} | {n / MIB:,.0f} |" for name, n in {"imports": phases["imports"]["now"], **parts}.items()]
    lines += [f"| planned: {name} | {n / MIB:,.0f} |" for name, n in planned.items() if n]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="30M")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="further overrides of the run")
    given = parser.parse_args()
    if given.folder is not None:
        return print(json.dumps(measure(given.overrides, given.folder)))
    with tempfile.TemporaryDirectory() as folder:
        write_texts(Path(folder))
        command = [sys.executable, __file__, "--folder", folder, *overrides(given.model, given.steps), *given.overrides]
        environment = {**os.environ, TUNABLES: NO_THREAD_CACHE, "OMP_NUM_THREADS": str(given.threads)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            sys.exit(done.returncode)
    print(report(json.loads(done.stdout.splitlines()[-1])))


if __name__ == "__main__":
    from ending import finish

    finish(main)
