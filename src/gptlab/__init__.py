"""gptlab: a research lab for GPT-family language models.

Everything a command does is a function here:

    config = gptlab.compose("model=gpt124m", "optimizer.lr=3e-4")   # overrides as on the command line, checked
    plan = gptlab.plan(config, device="h100")                       # parameters, FLOPs, memory, time, before a run
    run = gptlab.train(config)                                      # a Run: .summary, .metrics(), .checkpoints
    run = gptlab.open_run("runs/NAME")
    model, tokenizer = gptlab.load("runs/NAME")                     # or a checkpoint, a transformers folder, a hub name
    texts = gptlab.generate(model, tokenizer, "It was", max_new_tokens=50)
    inputs = gptlab.batch(config, step=100)                         # exactly what that training step reads
    found = gptlab.compare("runs/*")                                # .text(), .comparisons: is B better, or the seed?
    found = gptlab.sweep("space.yaml", ["model=small"])             # a search of hyperparameters: .trials, .best
    found = gptlab.train_ladder("ladder.yaml")                      # sizes and budgets: .law, .held_out
    law = gptlab.fit_scaling_law("runs/*")                          # or a CSV: .constants, .predict(N, D), .optimum(C)
    found = gptlab.verify("runs/NAME")                              # .is_confirmed: is it what it claims to be?
    found = gptlab.reproduce("runs/NAME", "runs/again")             # trained again: .agrees, .text()

Names are imported on first use: `import gptlab` alone imports nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptlab.composition import compose
    from gptlab.config import RunConfig
    from gptlab.errors import UserError
    from gptlab.generation.text import generate
    from gptlab.lab.compare import compare
    from gptlab.lab.ladder import train_ladder
    from gptlab.lab.plan import plan
    from gptlab.lab.reproduce import reproduce
    from gptlab.lab.scaling import fit_scaling_law
    from gptlab.lab.scaling_law import read_law
    from gptlab.lab.sweep import sweep
    from gptlab.lab.verify import verify
    from gptlab.registry import register
    from gptlab.runs.load import load
    from gptlab.runs.run import Run, open_run
    from gptlab.training.loop import batch, train

_HOMES = {
    "RunConfig": "config",
    "Run": "runs.run",
    "UserError": "errors",
    "batch": "training.loop",
    "compare": "lab.compare",
    "compose": "composition",
    "fit_scaling_law": "lab.scaling",
    "generate": "generation.text",
    "load": "runs.load",
    "open_run": "runs.run",
    "plan": "lab.plan",
    "read_law": "lab.scaling_law",
    "register": "registry",
    "reproduce": "lab.reproduce",
    "sweep": "lab.sweep",
    "train": "training.loop",
    "train_ladder": "lab.ladder",
    "verify": "lab.verify",
}

__all__ = [
    "Run",
    "RunConfig",
    "UserError",
    "batch",
    "compare",
    "compose",
    "fit_scaling_law",
    "generate",
    "load",
    "open_run",
    "plan",
    "read_law",
    "register",
    "reproduce",
    "sweep",
    "train",
    "train_ladder",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gptlab' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gptlab.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
