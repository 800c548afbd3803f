"""What each part of a training step's speed is worth on a CPU: the step as it is, and with one lever moved.

    OMP_NUM_THREADS=2 python benchmarks/levers.py [--size 30m] [--rounds 5] [--only NAME ...]

GPT-2 of benchmarks/training.py's sizes, float32, AdamW, one micro-batch a step, in this process through
`gptlab.training.step.train_step`. All variants take turns on one model and one optimizer, so that they differ in
nothing else. Each is held to the step as it is: from the same weights, before any update, its loss must be equal to
1e-4 and the norm of its gradient to 1e-3 of it. The gain is the median over rounds of the time of the variant by that
of the step as it is: above 1 the lever is worth where it stands. Variants that cost are the levers that were dropped.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.training import SIZES, Size
from gptlab.data.sources.config import StdlibConfig
from gptlab.distributed.allocator import keep_freed_memory
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.decoder.network import Decoder
from gptlab.nn import attention, loss
from gptlab.objectives.causal_lm import CausalLM
from gptlab.training.config import AdamWConfig
from gptlab.training.optimizers import build_optimizer
from gptlab.training.step import train_step

Change = Callable[["Bench"], AbstractContextManager[Any]]


@dataclass
class Bench:
    """What all variants share."""

    model: Decoder
    optimizer: torch.optim.Optimizer
    objective: CausalLM
    batch: dict[str, torch.Tensor]

    def step(self, *, lr_factor: float = 1.0) -> dict[str, torch.Tensor]:
        return train_step(
            self.model, self.objective, self.optimizer, self.batch, 0, seed=0, lr_factor=lr_factor, grad_clip=1.0
        )


def value(target: str, other: Any) -> Change:
    """The step with another value of something in gptlab."""
    return lambda bench: patch(target, other)


@contextmanager
def with_loss(loss: Callable):
    with patch("gptlab.objectives.causal_lm.linear_cross_entropy", loss):
        yield


def all_logits(hidden, head, targets, **_):
    return F.cross_entropy(head.logits(hidden).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)


def torchs(hidden, head, targets, **_):
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(
        hidden.flatten(0, -2), head.weight, targets.flatten(), reduction="sum", ignore_index=-100, options=options
    )


@contextmanager
def not_fused(bench: Bench):
    for group in bench.optimizer.param_groups:
        group["fused"], group["foreach"] = False, True
    yield
    for group in bench.optimizer.param_groups:
        group["fused"], group["foreach"] = True, None


@contextmanager
def checkpointed(bench: Bench):
    from torch.utils.checkpoint import checkpoint

    with ExitStack() as stack:
        for block in bench.model.blocks:
            run = block.forward
            stack.enter_context(
                patch.object(block, "forward", lambda *a, run=run, **k: checkpoint(run, *a, use_reentrant=False, **k))
            )
        yield


@contextmanager
def compiled(bench: Bench):
    """Blocks through torch.compile, which happens in the first step of the first turn and is not counted."""
    with ExitStack() as stack:
        for block in bench.model.blocks:
            if not hasattr(block, "_compiled_once"):
                object.__setattr__(block, "_compiled_once", torch.compile(block.forward))
            stack.enter_context(patch.object(block, "forward", block._compiled_once))
        yield


@contextmanager
def whole_chunks(bench: Bench):
    """The softmax of all positions of a chunk together, while the same steps as before are left to autograd."""
    n_plain = loss.plain_positions(len(bench.model.head.weight), on_cpu=True)
    with (
        patch.object(loss, "SOFTMAX_ELEMENTS_CPU", 2**40),
        patch.object(loss, "plain_positions", lambda *_, **__: n_plain),
    ):
        yield


LEVERS: dict[str, Change] = {
    "all logits at once": lambda bench: with_loss(all_logits),
    "torch's linear_cross_entropy": lambda bench: with_loss(torchs),
    "chunks of logits 4 x as small": value("gptlab.nn.loss.CHUNK_ELEMENTS_CPU", 2**22),
    "softmax of a whole chunk": whole_chunks,
    "logits not aligned": value("gptlab.nn.loss.LOGIT_ALIGNMENT", 1),
    "dense gradient of the lookup": lambda bench: patch.object(
        Decoder, "_head_gives_dense_gradient", lambda self: False
    ),
    "q, k, v as three products": value("gptlab.nn.attention.FUSED_ELEMENTS", 0),
    "q, k, v as one product": value("gptlab.nn.attention.FUSED_ELEMENTS", 2**40),
    "foreach AdamW": not_fused,
    "blocks compiled": compiled,
    "blocks recomputed": checkpointed,
}


def build(size: Size) -> Bench:
    generator = torch.Generator().manual_seed(0)
    shape = (size.micro_batch_size, size.context_length + 1)
    tokens = torch.randint(size.vocab_size, shape, generator=generator)
    config = DecoderConfig(
        n_layer=size.n_layer, d_model=size.d_model, n_head=size.n_head, context_length=size.context_length
    )
    model = build_model(config, size.vocab_size, seed=0)
    return Bench(
        model=model,
        optimizer=build_optimizer(model, AdamWConfig(), device=torch.device("cpu")),
        objective=CausalLM(data=StdlibConfig(), context_length=size.context_length),
        batch={"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()},
    )


@contextmanager
def moved(bench: Bench, change: Change | None):
    """The bench with a lever moved; attention decides once how it computes, so it is told again."""
    with ExitStack() as stack:
        if change is not None:
            stack.enter_context(change(bench))
        for block in bench.model.blocks:
            small = block.attn.q.weight.numel() <= attention.FUSED_ELEMENTS
            stack.enter_context(patch.object(block.attn, "_small", small))
        yield


def measure(bench: Bench, levers: dict[str, Change | None], rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Seconds of a step by variant and round; and loss and gradient norm from the first weights."""
    seconds: dict[str, list[float]] = {name: [] for name in levers}
    first = {}
    for name, change in levers.items():
        with moved(bench, change):
            started = time.perf_counter()
            found = bench.step(lr_factor=0.0)
            first[name] = (float(found["loss"]), float(found["grad_norm"]), time.perf_counter() - started)
    for _ in range(rounds):
        for name, change in levers.items():
            with moved(bench, change):
                bench.step()  # the memory of the variant before is of other sizes
                started = time.perf_counter()
                bench.step()
                seconds[name].append(time.perf_counter() - started)
    return seconds, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES["cpu"], default="30m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=LEVERS, metavar="NAME", help=", ".join(LEVERS))
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds} must be at least 1")
    keep_freed_memory()  # as a run on a CPU does
    as_it_is = "as it is"
    levers = {as_it_is: None, **{name: LEVERS[name] for name in given.only or LEVERS}}
    seconds, first = measure(build(SIZES["cpu"][given.size]), levers, given.rounds)
    print(f"{given.size}, threads: {torch.get_num_threads()}, {given.rounds} rounds\n")
    print(f"{'':32}ms a step   range            time by that as it is   first step")
    loss, norm, _ = first[as_it_is]
    wrong = []
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds[as_it_is], strict=True))
        span = f"{min(own) * 1e3:,.0f} to {max(own) * 1e3:,.0f}"
        same = abs(first[name][0] - loss) <= 1e-4 and abs(first[name][1] - norm) <= 1e-3 * norm
        wrong += [] if same else [name]
        shown = "" if name == as_it_is else f"{ratio:.3f}"
        note = f"{first[name][2]:.1f} s" + ("" if same else f"   DIFFERS: {first[name][:2]} and not {(loss, norm)}")
        print(f"{name:32}{statistics.median(own) * 1e3:9,.0f}   {span:15}{shown:>24}   {note}")
    if wrong:
        sys.exit(f"error: {', '.join(wrong)}: another loss or gradient")


if __name__ == "__main__":
    from ending import finish

    finish(main)
