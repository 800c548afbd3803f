"""gptlab on one NVIDIA GPU: that it computes there what it computes on a CPU, and how fast it trains beside its peers.

    python benchmarks/gpu.py [--sections checks,speed] [--minutes 9] [--to FOLDER] [--nanogpt FOLDER] [--device cpu]

    environment   device, driver, versions, attention kernels, and the bf16 product that the device reaches
    checks        losses against those of a CPU, of other precisions, kernels and strategies, and the golden losses;
                  that no step waits for the device
    faults        a real run that is killed and continued, beside one that is not; a resume in another precision
    generation    tokens per second of 124M parameters in bf16, greedy
    speed         124M parameters at 1024 tokens in bf16-mixed: each lever by itself, the peers, and one step's kernels
    sizes         355M and 1558M parameters

Needed: torch >= 2.11 for CUDA with its Triton, lightning, numpy and safetensors, which images of clusters often have,
and hydra-core, omegaconf and antlr4-python3-runtime, which they often lack. For a machine without a network make these
three with `pip wheel --no-deps hydra-core==1.3.2 omegaconf==2.3.0 antlr4-python3-runtime==4.9.3`; there it is
`pip install --no-deps *.whl`, and `pip install --no-deps --no-build-isolation -e .` in the checkout.
`--nanogpt` names a checkout of github.com/karpathy/nanoGPT; transformers is a peer where it can be imported, and rows
of fp8-mixed need torchao.

Each section is a process of its own with its part of the `--minutes`, since an error of CUDA ends what a process can
do there. What fails is recorded and the rest goes on. Rows are appended to DATE-DEVICE.jsonl as they are found, and
DATE-DEVICE.md shows the newest of each, after every section: sections may be run one by one. On a CPU all shapes are
tiny, times say nothing, and what needs CUDA is listed as not run.

MFU counts attention scores in full and the vocabulary as 50,257, for every contender alike. A rate is the median of
blocks of steps, each of which the device has finished. A step is everything that one takes: gradient accumulation,
clipping, the schedule and the optimizer.
"""

import argparse
import csv
import gc
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
# What a section may take of the time that is left when it begins, beside those after it.
SHARES = {"environment": 1, "checks": 4, "faults": 6, "generation": 2, "speed": 12, "sizes": 8}
CONTEXT, VOCAB, PADDED = 1024, 50_257, 50_304  # the padded vocabulary is a multiple of 64, as nanoGPT has it
STEP_TOKENS = {"gpt124m": 262_144, "gpt355m": 131_072, "gpt1558m": 65_536}
TOY = {"n_layer": 2, "n_head": 2, "d_model": 32}
TOY_CONTEXT, TOY_VOCAB, TOY_PADDED, TOY_STEP_TOKENS = 32, 300, 320, 256
BLOCKS, BLOCK_SECONDS = 3, 1.5  # of a rate
GOALS = (
    ("124M: MFU", "speed", "gpt124m gptlab", "mfu", 0.55),
    ("1558M: MFU", "sizes", "gpt1558m gptlab", "mfu", 0.60),
)
PEER_GOAL = 1.2  # gptlab's best rate over that of the best peer
SHOWN_KERNELS = 14
GRACE_SECONDS = 15  # that a section may take beyond its time, before it is ended

Row = dict[str, Any]


class NotHere(Exception):
    """Something cannot be measured on this machine."""


@dataclass
class Bench:
    """One section's run: where it computes, until when, and the file that its rows go to."""

    section: str
    device: str  # cpu or cuda
    until: float  # of time.time()
    rows: Path
    nanogpt: Path | None

    @property
    def toy(self) -> bool:
        return self.device == "cpu"

    def run(self, name: str, work: Callable[[], Row], *, cuda: bool = False, seconds: float = 0) -> Row:
        """Record what `work` finds, or why it did not: it needs `cuda`, or `seconds` that are no longer left."""
        left, began = self.until - time.time(), time.perf_counter()
        row: Row = {"status": "ok"}
        if cuda and self.toy:
            row = {"status": "not run", "why": "needs a CUDA device"}
        elif not self.toy and left < seconds:
            row = {
                "status": "not run",
                "why": f"out of time: {max(0, left):.0f} s were left, and it takes {seconds:.0f}",
            }
        else:
            try:
                row |= work()
            except NotHere as reason:
                row = {"status": "not run", "why": str(reason)}
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
                row = {"status": "failed", "why": f"{text} ({Path(where.filename).name}:{where.lineno})"}
                row["traceback"] = traceback.format_exc().splitlines()[-12:]
                traceback.clear_frames(error.__traceback__)  # they hold a model
            free(self.device)
        row = {"section": self.section, "name": name, **row, "took_seconds": round(time.perf_counter() - began, 1)}
        with open(self.rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {name}: {outcome(row)}", flush=True)
        return row


def free(device: str) -> None:
    """Give back the memory of what was measured, compiled code too."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        with suppress(Exception):  # after an error of CUDA nothing can be done there
            torch.cuda.empty_cache()


def outcome(row: Row) -> str:
    """A row in a few words."""
    if row["status"] != "ok":
        return f"{row['status']} ({row.get('why', 'beyond what is allowed')})"
    shown = {k: v for k, v in row.items() if isinstance(v, int | float) and k not in ("ok", "took_seconds")}
    return ", ".join(f"{k} {v:,.4g}" for k, v in list(shown.items())[:4]) or "ok"


# Environment


def environment(bench: Bench) -> None:
    bench.run("machine", lambda: machine(bench.device))
    bench.run("bf16 product", lambda: product_rate(bench), cuda=True)
    bench.run("copy", lambda: copy_rate(bench), cuda=True)
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        bench.run(f"attention {backend}", partial(attention, bench, backend), cuda=True)


def machine(device: str) -> Row:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from gptlab.distributed import hardware

    found: Row = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("lightning", "hydra-core", "omegaconf", "transformers", "triton", "numpy"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        found["gptlab"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    found["device"] = "CPU"
    if device == "cuda":
        name = torch.cuda.get_device_name()
        about, kind = torch.cuda.get_device_properties(0), hardware.of_cuda(name)
        found |= {"device": name, "capability": f"{about.major}.{about.minor}", "cuda": torch.version.cuda}
        found |= {"memory GiB": round(about.total_memory / 2**30, 1), "multiprocessors": about.multi_processor_count}
        found["cudnn"] = torch.backends.cudnn.version()
        peak = None if kind is None else kind.peak_flops("bf16-mixed")
        found["peak of bf16 for MFU"] = "not known" if peak is None else f"{peak / 1e12:,.0f} TFLOP/s ({kind.name})"
        with suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
            found["driver, clock, power"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return found


def seconds_of(device: str, work: Callable[[], Any], times: int) -> float:
    """The time of one of so many calls, after three that do not count, once the device has finished."""
    for _ in range(3):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - began) / times


def wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def product_rate(bench: Bench) -> Row:
    import torch

    n = 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return {"tflops": round(2 * n**3 / seconds_of(bench.device, lambda: a @ b, 20) / 1e12, 1)}


def copy_rate(bench: Bench) -> Row:
    import torch

    a = torch.empty(2**31, device=bench.device, dtype=torch.uint8)
    b = torch.empty_like(a)
    return {"GB_per_second": round(2 * len(a) / seconds_of(bench.device, lambda: b.copy_(a), 10) / 1e9, 1)}


def attention(bench: Bench, backend: str) -> Row:
    """Causal attention as 124M has it, forward and backward."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape = (16, 12, CONTEXT, 64)
    q, k, v = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def both() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    with sdpa_kernel([getattr(SDPBackend, backend)]):
        return {"milliseconds": round(1e3 * seconds_of(bench.device, both, 10), 3)}


# What gptlab and its peers train


def sizes_of(bench: Bench) -> tuple[int, int, int]:
    """The context length, the vocabulary, and the padded one."""
    return (TOY_CONTEXT, TOY_VOCAB, TOY_PADDED) if bench.toy else (CONTEXT, VOCAB, PADDED)


def compose(bench: Bench, model: str, *overrides: str):
    """The config of a preset; on a CPU it is tiny."""
    import gptlab

    values: dict[str, Any] = {"model": model, "batch_tokens": STEP_TOKENS[model], "budget_steps": 1000}
    values |= {"tokenizer": "byte", "model.vocab_size": sizes_of(bench)[1]}
    if bench.toy:
        values |= {f"model.{key}": value for key, value in TOY.items()}
        values |= {"model.context_length": TOY_CONTEXT, "batch_tokens": TOY_STEP_TOKENS, "micro_batch_size": 4}
    values |= dict(override.split("=", 1) for override in overrides)
    return gptlab.compose(*(f"{key}={value}" for key, value in values.items()))


def fresh(config, device: str):
    """The model with random weights that are the same each time, made where they stay."""
    import torch

    from gptlab.models.build import shape_model

    model = shape_model(config, config.vocab_size).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02, generator=generator)
    return model


def batch_of(bench: Bench, config, batch_tokens: int) -> Row:
    """One step's random tokens (B, T) with their targets; every contender trains on the same."""
    import torch

    length, vocab_size, _ = sizes_of(bench)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (batch_tokens // length, length + 1), generator=generator).to(bench.device)
    return {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


def autocast(device: str, precision: str = "bf16-mixed"):
    import torch

    return torch.autocast(device, torch.bfloat16) if precision in ("bf16-mixed", "fp8-mixed") else nullcontext()


def in_float8(model, device: str) -> None:
    """What trainer.precision=fp8-mixed does to a model; NotHere without torchao or on a GPU that has no float8."""
    import torch

    from gptlab.distributed import float8
    from gptlab.errors import UserError

    try:
        float8.check_installed()
        if device == "cuda":
            float8.check_capability(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    except UserError as error:
        raise NotHere(str(error)) from None
    float8.check_layers(model)
    float8.use_float8(model, emulate=device == "cpu")


def own_step(bench: Bench, config, *, precision: str = "bf16-mixed") -> Callable[[int], Any]:
    """gptlab's own step, with its strategy, optimizer and schedule; it returns the loss before the update."""
    import torch

    from gptlab.distributed.config import Recompute
    from gptlab.objectives.causal_lm import CausalLM
    from gptlab.training.optimizers import build_optimizer
    from gptlab.training.step import train_step

    model = fresh(config.model, bench.device)
    if precision == "fp8-mixed":
        in_float8(model, bench.device)
    if config.strategy.compile or config.strategy.activation_checkpointing is not Recompute.none:
        from gptlab.distributed.parallelize import parallelize

        parallelize(model, config.strategy, None, precision=precision)
    optimizer = build_optimizer(model, config.optimizer, device=torch.device(bench.device))
    schedule = config.schedule.build(n_steps=config.budget_steps, batch_tokens=config.batch_tokens)
    objective = CausalLM(data=config.data, context_length=config.model.context_length)
    batch = batch_of(bench, config, config.batch_tokens)

    def step(i: int):
        with autocast(bench.device, precision):
            return train_step(
                model,
                objective,
                optimizer,
                batch,
                i,
                seed=config.seed,
                lr_factor=schedule.factor(i),
                grad_clip=config.optimizer.grad_clip,
                micro_batch_size=config.micro_batch_size,
            )["loss"]

    return step


def peer_weights(config, device: str, *, transposed: bool) -> dict[str, Any]:
    """The weights of `fresh` under the names that GPT-2's implementations share; Conv1D has them `transposed`."""
    import torch

    own = fresh(config, device).state_dict()
    names = {"attn.c_proj": "attn.out", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down"}
    found = {"wte.weight": own["tok_emb.weight"], "wpe.weight": own["pos_emb.weight"]}
    for kind in ("weight", "bias"):
        found[f"ln_f.{kind}"] = own[f"final_norm.{kind}"]
        for i in range(config.n_layer):
            block = f"blocks.{i}"
            matrices = {theirs: own[f"{block}.{ours}.{kind}"] for theirs, ours in names.items()}
            matrices["attn.c_attn"] = torch.cat([own[f"{block}.attn.{part}.{kind}"] for part in "qkv"])
            turned = transposed and kind == "weight"
            found |= {f"h.{i}.{name}.{kind}": value.T if turned else value for name, value in matrices.items()}
            found |= {f"h.{i}.ln_{n}.{kind}": own[f"{block}.norm{n}.{kind}"] for n in (1, 2)}
    return found


def nanogpt_step(bench: Bench, config, *, compiled: bool) -> Callable[[int], Any]:
    """nanoGPT's model and optimizer, in the steps of its train.py."""
    import torch

    if bench.nanogpt is None:
        raise NotHere("needs --nanogpt FOLDER")
    sys.path.insert(0, str(bench.nanogpt))
    try:
        from model import GPT, GPTConfig
    finally:
        sys.path.remove(str(bench.nanogpt))
    c = config.model
    shape = GPTConfig(c.context_length, c.vocab_size, c.n_layer, c.n_head, c.d_model, dropout=0.0, bias=True)
    with torch.device(bench.device):
        model = GPT(shape)
    called = torch.compile(model) if compiled else model
    o = config.optimizer
    optimizer = model.configure_optimizers(o.weight_decay, o.lr, (o.beta1, o.beta2), bench.device)
    return peer_step(bench, config, model, lambda tokens, targets: called(tokens, targets)[1], optimizer, False)


def transformers_step(bench: Bench, config, *, compiled: bool) -> Callable[[int], Any]:
    """transformers' GPT-2 with SDPA and torch's fused AdamW."""
    import torch
    import torch.nn.functional as F

    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise NotHere(f"needs transformers ({error})") from None
    c, o = config.model, config.optimizer
    shape = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.context_length,
        n_embd=c.d_model,
        n_layer=c.n_layer,
        n_head=c.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device(bench.device):
        model = GPT2LMHeadModel(shape)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=o.lr, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay, fused=True
    )

    def loss(tokens, targets):
        return F.cross_entropy(model(tokens).logits.flatten(0, 1).float(), targets.flatten())

    return peer_step(bench, config, model, torch.compile(loss) if compiled else loss, optimizer, True)


def peer_step(bench: Bench, config, model, loss, optimizer, transposed: bool) -> Callable[[int], Any]:
    """A step of a peer from gptlab's weights: accumulated micro-batches, clipping and the update."""
    import torch

    weights = peer_weights(config.model, bench.device, transposed=transposed)
    missing, unexpected = model.transformer.load_state_dict(weights, strict=False)
    # Masks, which are no parameters, and what the implementation calls by another name.
    if unexpected or any(not name.endswith(("attn.bias", "attn.masked_bias")) for name in missing):
        raise RuntimeError(f"other names of weights than GPT-2's: {[*missing, *unexpected][:4]}")
    del weights
    model.train()
    batch = batch_of(bench, config, config.batch_tokens)
    size = config.micro_batch_size or len(batch["tokens"])
    parts = list(zip(batch["tokens"].split(size), batch["targets"].split(size), strict=True))

    def step(i: int):
        total = 0.0
        for tokens, targets in parts:
            with autocast(bench.device):
                part = loss(tokens, targets) / len(parts)
            part.backward()
            total = total + part.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


def flops_per_token(bench: Bench, config) -> float:
    """Of a training step, by the model's own count, with the vocabulary that is not padded."""
    from gptlab.costs import training_pass
    from gptlab.models.build import shape_model

    return training_pass(shape_model(config.model, sizes_of(bench)[1]), config.model.context_length).flops_per_token


def peak_flops() -> float | None:
    import torch

    from gptlab.distributed import hardware

    kind = hardware.of_cuda(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return None if kind is None else kind.peak_flops("bf16-mixed")


def rate(bench: Bench, config, step: Callable[[int], Any]) -> Row:
    """Tokens per second of a contender, its memory, and its first loss."""
    import torch

    began = time.perf_counter()
    first = float(step(0))
    first_seconds = time.perf_counter() - began
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step(1)  # clocks have risen, and the allocator knows the sizes
    wait(bench.device)
    began = time.perf_counter()
    step(2)
    wait(bench.device)
    n = 1 if bench.toy else max(1, round(BLOCK_SECONDS / (time.perf_counter() - began)))
    rates, taken = [], 3
    for _ in range(BLOCKS):
        began = time.perf_counter()
        for i in range(taken, taken + n):
            step(i)
        wait(bench.device)
        rates.append(n * config.batch_tokens / (time.perf_counter() - began))
        taken += n
    return rates_row(bench, config, rates) | {
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if bench.device == "cuda" else None,
        "first_loss": round(first, 5),
        "first_step_seconds": round(first_seconds, 1),
    }


def rates_row(bench: Bench, config, rates: list[float]) -> Row:
    middle, peak = statistics.median(rates), None if bench.toy else peak_flops()
    mfu = None if peak is None else round(middle * flops_per_token(bench, config) / peak, 4)
    found = {"tokens_per_second": round(middle), "range": [round(min(rates)), round(max(rates))], "mfu": mfu}
    return found | {"micro_batch_size": config.micro_batch_size, "step_tokens": config.batch_tokens}


# Speed


@contextmanager
def attention_by(backend: str) -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([getattr(SDPBackend, backend)]):
        yield


@contextmanager
def newer_flash_attention(name: str) -> Iterator[None]:
    """torch's flash attention by a library of its own, FA3 or FA4, where that is installed."""
    from torch.nn import attention

    if not hasattr(attention, "activate_flash_attention_impl"):
        raise NotHere("this torch has no activate_flash_attention_impl")
    try:
        attention.activate_flash_attention_impl(name)
    except ImportError as error:
        raise NotHere(f"{name} is not installed: {error}") from None
    try:
        with attention_by("FLASH_ATTENTION"):
            yield
    finally:
        attention.restore_flash_attention_impl()


@contextmanager
def cuda_graphs() -> Iterator[None]:
    """Blocks compiled with CUDA graphs, which replay a block's kernels as one launch."""
    from torch import nn

    compile = nn.Module.compile
    with patch.object(nn.Module, "compile", lambda self, **given: compile(self, mode="reduce-overhead", **given)):
        yield


@contextmanager
def torch_loss() -> Iterator[None]:
    """torch's linear_cross_entropy in the place of gptlab's."""
    import torch
    import torch.nn.functional as F

    if not hasattr(F, "linear_cross_entropy"):
        raise NotHere(f"torch {torch.__version__} has no linear_cross_entropy")

    def loss(hidden, head, targets, *, ignore_index=-100, chunk_size=None):
        device = hidden.device.type
        hidden, weight = hidden.flatten(0, -2), head.weight
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(kind), weight.to(kind)
        options = torch.nn.LinearCrossEntropyOptions()
        with torch.autocast(device, enabled=False):
            return F.linear_cross_entropy(
                hidden, weight, targets.flatten(), reduction="sum", ignore_index=ignore_index, options=options
            )

    with patch("gptlab.objectives.causal_lm.linear_cross_entropy", loss):
        yield


@contextmanager
def chunks_of(elements: int) -> Iterator[None]:
    with patch("gptlab.nn.loss.CHUNK_ELEMENTS_GPU", elements):
        yield


def own(bench: Bench, model: str, *overrides: str, within: Callable[[], Any] = nullcontext) -> Row:
    with within():
        config = compose(bench, model, *overrides)
        found = rate(bench, config, own_step(bench, config, precision=config.trainer.precision or "bf16-mixed"))
        return found | ({"mfu": None} if config.trainer.precision == "fp8-mixed" else {})  # of which peak?


def peer(bench: Bench, step_of: Callable, model: str, micro: str, *, compiled: bool) -> Row:
    config = compose(bench, model, f"model.vocab_size={sizes_of(bench)[2]}", micro)
    return rate(bench, config, step_of(bench, config, compiled=compiled))


def speed(bench: Bench) -> None:
    """Rows in the order of what matters, as time may run out."""
    model, micro = "gpt124m", "micro_batch_size=4" if bench.toy else "micro_batch_size=32"
    padded = f"model.vocab_size={sizes_of(bench)[2]}"
    best = (micro, padded, "strategy.compile=true")

    def measure(name: str, *overrides: str, within: Callable[[], Any] = nullcontext, cuda: bool = True) -> None:
        work = partial(own, bench, model, *overrides, within=within)
        bench.run(f"{model} {name}", work, cuda=cuda, seconds=35 if best[2] in overrides else 15)

    measure("gptlab, eager", micro, cuda=False)
    measure("gptlab, compiled", micro, best[2])
    measure("gptlab, compiled, padded vocabulary", *best)
    for name, step_of in (("nanoGPT", nanogpt_step), ("transformers", transformers_step)):
        work = partial(peer, bench, step_of, model, micro, compiled=True)
        bench.run(f"{model} {name}, compiled, padded vocabulary", work, cuda=True, seconds=60)
    bench.run("one step's kernels", lambda: kernels(bench, compose(bench, model, *best)), cuda=True, seconds=30)
    measure("gptlab, eager, padded vocabulary", micro, padded, cuda=False)
    for name, step_of in (("nanoGPT", nanogpt_step), ("transformers", transformers_step)):
        work = partial(peer, bench, step_of, model, micro, compiled=False)
        bench.run(f"{model} {name}, eager, padded vocabulary", work, seconds=20)
    for size in (8, 16, 64):
        measure(f"gptlab, compiled, padded, micro-batch {size}", f"micro_batch_size={size}", *best[1:])
    kind = "eager" if bench.toy else "compiled"  # which takes longer than tiny steps are worth
    bench.run(f"{model} gptlab.train, {kind}, padded", lambda: whole_run(bench, model, *best), seconds=60)
    measure("gptlab, compiled, padded, optimizer.fused=false", *best, "optimizer.fused=false")
    measure("gptlab, compiled, padded, torch's linear_cross_entropy", *best, within=torch_loss)
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        measure(f"gptlab, compiled, padded, {backend}", *best, within=partial(attention_by, backend))
    for name in ("FA3", "FA4"):
        measure(f"gptlab, compiled, padded, {name}", *best, within=partial(newer_flash_attention, name))
    measure("gptlab, compiled, padded, CUDA graphs", *best, within=cuda_graphs)
    for what in ("selective", "full"):
        measure(f"gptlab, compiled, padded, recompute {what}", *best, f"strategy.activation_checkpointing={what}")
    for power in (25, 29):
        measure(f"gptlab, compiled, padded, 2^{power} logits a chunk", *best, within=partial(chunks_of, 2**power))
    measure("gptlab, compiled, padded, optimizer=muon", *best, "optimizer=muon")
    float8 = "trainer.precision=fp8-mixed"
    measure("gptlab, compiled, padded, fp8-mixed", *best, float8)
    if bench.toy:
        measure("gptlab, eager, padded, fp8-mixed", micro, padded, float8, cuda=False)
    measure("gptlab, compiled, padded vocabulary, again", *best)  # whether the machine has drifted


def sizes(bench: Bench) -> None:
    padded, compiled = f"model.vocab_size={sizes_of(bench)[2]}", "strategy.compile=true"
    for model, micros in (("gpt1558m", (8, 16)), ("gpt355m", (16, 32))):
        for size in micros:
            work = partial(own, bench, model, padded, compiled, f"micro_batch_size={size}")
            bench.run(f"{model} gptlab, compiled, padded, micro-batch {size}", work, cuda=True, seconds=60)
        for name, step_of in (("nanoGPT", nanogpt_step), ("transformers", transformers_step)):
            work = partial(peer, bench, step_of, model, f"micro_batch_size={micros[0]}", compiled=True)
            bench.run(f"{model} {name}, compiled, padded, micro-batch {micros[0]}", work, cuda=True, seconds=90)
        recompute = "strategy.activation_checkpointing=selective"
        work = partial(own, bench, model, padded, compiled, f"micro_batch_size={micros[1]}", recompute)
        bench.run(f"{model} gptlab, compiled, padded, recompute selective", work, cuda=True, seconds=60)
        work = partial(
            own, bench, model, padded, compiled, f"micro_batch_size={micros[0]}", "trainer.precision=fp8-mixed"
        )
        bench.run(f"{model} gptlab, compiled, padded, fp8-mixed", work, cuda=True, seconds=60)
        if bench.toy:
            bench.run(f"{model} gptlab, eager", partial(own, bench, model, "micro_batch_size=4"))


def kernels(bench: Bench, config) -> Row:
    """Where the time of a step goes, by kernel."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    step = own_step(bench, config)
    for i in range(2):
        step(i)
    wait(bench.device)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        step(2)
        wait(bench.device)
    found = [
        (event.key, event.self_device_time_total / 1e3, event.count)
        for event in profiler.key_averages()
        # Operators and ranges have the time of their kernels too.
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    found.sort(key=lambda one: -one[1])
    return {
        "milliseconds": round(sum(one[1] for one in found), 2),
        "kernels": [[name[:120], round(ms, 2), count] for name, ms, count in found[:SHOWN_KERNELS]],
    }


def text_file(folder: Path) -> Path:
    """Text that is on every machine: Python's own modules."""
    import sysconfig

    path = folder / "text.txt"
    if not path.exists():
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
        path.write_text("".join(file.read_text(encoding="utf-8", errors="replace") for file in files), encoding="utf-8")
    return path


# A forecast needs scipy.
QUIET = """
    callbacks.sample=null callbacks.plot=false callbacks.forecast=false
    trainer.enable_progress_bar=false trainer.enable_model_summary=false
"""


def whole_run(bench: Bench, model: str, *overrides: str) -> Row:
    """`gptlab.train` itself: loader, metrics and checkpoints around the steps, by the rates in its metrics.csv."""
    import gptlab
    from gptlab.runs.folder import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        text = text_file(Path(folder))
        given = [*overrides, *QUIET.split(), "data=text", f"data.path={text}", "tokenizer=byte", "data.val_fraction=0"]
        given += [f"data.cache_dir={folder}/cache", f"run_dir={folder}/run", "strategy.check_memory=false"]
        given += [f"trainer.accelerator={'gpu' if bench.device == 'cuda' else 'cpu'}", "trainer.devices=1"]
        if bench.toy:
            given.remove("strategy.compile=true")
        n_steps = 300 if bench.toy else 40  # tiny ones take milliseconds, and rates are over half a second
        config = compose(bench, model, *given, f"budget_steps={n_steps}")
        gptlab.train(config)
        rows = read_metrics(Path(folder, "run", "metrics.csv"))
    by_step = {row["step"]: row for row in rows}
    # The first ones measure compilation too.
    rates = [
        r["perf/tokens_per_second"] for s, r in by_step.items() if s > n_steps / 2 and "perf/tokens_per_second" in r
    ]
    if not rates:
        raise RuntimeError(f"no rate was measured in {len(by_step)} rows")
    last = by_step[max(by_step)]
    found = rates_row(bench, config, rates) | {"memory_gib": last.get("perf/memory_gib")}
    return found | {"mfu_of_the_run": last.get("perf/mfu"), "last_loss": last["train/loss"]}


# Checks


def within(found: float, allowed: float) -> Row:
    """A difference, and whether it is allowed; NaN is not."""
    return {"status": "ok" if found <= allowed else "failed", "difference": found, "allowed": allowed}


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def tiny(name: str):
    """Architectures whose losses are compared: 300 tokens of vocabulary, 32 of context."""
    from gptlab.models.config import Feedforward
    from gptlab.models.decoder.config import DecoderConfig, Norm, Position

    shape = {"n_layer": 2, "n_head": 4, "d_model": 64, "context_length": 32, "vocab_size": 300}
    modern = {"n_kv_head": 2, "position": Position.rotary, "norm": Norm.rmsnorm, "feedforward": Feedforward.relu2}
    modern |= {"bias": False, "qk_norm": True, "tie_embeddings": False, "logit_softcap": 15.0}
    return DecoderConfig(**shape, **{"gpt2": {}, "modern": modern, "experts": {"n_expert": 4, "bias": False}}[name])


def losses(
    name: str,
    device: str,
    *,
    precision: str = "32-true",
    optimizer: Any = None,
    n_steps: int = 10,
    strategy: Any = None,
    guard: Callable[[], Any] = nullcontext,
) -> list[float]:
    """The losses of some steps of a tiny model by `train_step`, in micro-batches; `guard` is around each later one."""
    import torch

    from gptlab.data.sources.config import TextConfig
    from gptlab.distributed.parallelize import parallelize
    from gptlab.models.build import build_model
    from gptlab.objectives.causal_lm import CausalLM
    from gptlab.training.config import AdamWConfig
    from gptlab.training.optimizers import build_optimizer
    from gptlab.training.step import train_step

    config = tiny(name)
    model = build_model(config, config.vocab_size, seed=0)
    if precision == "fp8-mixed":
        in_float8(model, device)
    if strategy is not None:
        parallelize(model, strategy, None, precision=precision)
    model.to(device)
    chosen = optimizer or AdamWConfig(lr=1e-3)
    built = build_optimizer(model, chosen, device=torch.device(device))
    objective = CausalLM(data=TextConfig(path="none"), context_length=config.context_length)
    generator, found = torch.Generator().manual_seed(0), []
    for i in range(n_steps):
        tokens = (torch.rand(8, 33, generator=generator) ** 3 * config.vocab_size).long().to(device)  # few are frequent
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
        with guard() if i > 1 else nullcontext(), autocast(device, precision):
            measured = train_step(model, objective, built, batch, i, seed=0, grad_clip=1.0, micro_batch_size=4)
        found.append(measured["loss"])
    return [float(loss) for loss in found]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, an operation that waits for the GPU raises RuntimeError."""
    import torch

    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def checks(bench: Bench) -> None:
    from gptlab.distributed.config import Recompute, StrategyConfig
    from gptlab.training.config import AdamWConfig, MuonConfig

    device, muon = bench.device, MuonConfig(lr=1e-3)

    def same(what: str, allowed: float, a: Callable[[], list[float]], b: Callable[[], list[float]], cuda: bool) -> None:
        bench.run(what, lambda: within(largest_difference(a(), b()), allowed), cuda=cuda)

    for name, allowed in (("gpt2", 1e-4), ("modern", 1e-4), ("experts", 1e-3)):
        plain = partial(losses, name, device)
        same(f"{name}: losses of the GPU and the CPU in float32", allowed, plain, partial(losses, name, "cpu"), True)
        rounded = partial(losses, name, device, precision="bf16-mixed")
        same(f"{name}: losses in bf16-mixed and float32", 5e-2, rounded, plain, False)
        same(
            f"{name}: losses in fp8-mixed and bf16-mixed", 1e-1, partial(rounded, precision="fp8-mixed"), rounded, False
        )
    plain = partial(losses, "gpt2", device)
    # Newton-Schulz steps are in bfloat16 on a GPU.
    on_cpu = partial(losses, "gpt2", "cpu", optimizer=muon)
    same("muon: losses of the GPU and the CPU", 2e-2, partial(losses, "gpt2", device, optimizer=muon), on_cpu, True)
    unfused = partial(losses, "gpt2", device, optimizer=AdamWConfig(lr=1e-3, fused=False))
    same("AdamW fused and not", 1e-4, unfused, plain, False)
    for what in (Recompute.selective, Recompute.full):
        again = partial(losses, "gpt2", device, strategy=StrategyConfig(activation_checkpointing=what))
        same(f"activation checkpointing {what.value} and none", 1e-4, again, plain, False)
    compiled = StrategyConfig(compile=True)
    for name in ("gpt2", "modern", "experts"):
        eager, blocks = partial(losses, name, device), partial(losses, name, device, strategy=compiled)
        same(f"{name}: compiled by block and eager", 1e-3, blocks, eager, True)
    bench.run("cross-entropy in chunks: loss and gradients", lambda: cross_entropy(device))
    bench.run("greedy tokens of the GPU and the CPU", lambda: greedy_alike(device), cuda=True)
    for name, optimizer in (("gpt2", None), ("modern", muon), ("experts", None)):
        for label, strategy in (("eager", None), ("compiled", compiled)):
            options = {"precision": "bf16-mixed", "optimizer": optimizer, "n_steps": 4, "strategy": strategy}
            work = partial(losses, name, device, guard=no_waiting, **options)
            bench.run(
                f"{name}, {label}: a step does not wait for the GPU", lambda w=work: {"steps": len(w())}, cuda=True
            )
    bench.run("gptlab.train: a step does not wait for the GPU", lambda: waiting_in_a_run(bench), cuda=True)
    golden(bench)


def cross_entropy(device: str) -> Row:
    """gptlab's loss in chunks beside torch's of all logits, in float32."""
    import torch
    import torch.nn.functional as F

    from gptlab.nn.loss import LMHead, linear_cross_entropy

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).to(device) for shape in ((200, 32), (300, 32)))
    targets = torch.randint(300, (200,), generator=generator).to(device)
    targets[::7] = -100
    found = []
    for chunked in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            loss = linear_cross_entropy(h, LMHead(weight=w), targets, chunk_size=64)
        else:
            loss = F.cross_entropy(F.linear(h, w), targets, reduction="sum")
        loss.backward()
        found.append([loss.detach() / 200, h.grad, w.grad])
    return within(max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)), 1e-4)


def greedy_alike(device: str) -> Row:
    import torch

    from gptlab.generation.decode import generate_tokens
    from gptlab.models.build import build_model

    drawn = []
    for kind in ("cpu", device):
        config = tiny("modern")
        model = build_model(config, config.vocab_size, seed=0).to(kind).eval()
        prompt = torch.arange(8, device=kind).view(2, 4)
        drawn.append(generate_tokens(model, prompt, 20, temperature=0.0).cpu())
    return within(float((drawn[0] != drawn[1]).sum()), 0)


def waiting_in_a_run(bench: Bench) -> Row:
    """A real run whose training steps, Lightning's part of them included, may not wait for the GPU."""
    import gptlab
    from gptlab.training.module import LanguageModule

    step, watched = LanguageModule.training_step, 0

    def guarded(module, batch, batch_idx):
        nonlocal watched
        if module.finished_steps < 2:
            return step(module, batch, batch_idx)
        watched += 1
        with no_waiting():
            return step(module, batch, batch_idx)

    with tempfile.TemporaryDirectory() as folder, patch.object(LanguageModule, "training_step", guarded):
        gptlab.train(gptlab.compose(*small_overrides(bench, Path(folder), n_steps=20), f"run_dir={folder}/run"))
    return {"steps": watched}


def golden(bench: Bench) -> None:
    """The losses that tests hold, on the GPU."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from golden.runs import RUNS, golden_losses, golden_run
    except ImportError as error:
        bench.run("golden losses", partial(unavailable, f"the checkout's tests are not there ({error})"))
        return
    from dataclasses import replace

    from gptlab.runs.folder import read_metrics
    from gptlab.training.loop import train

    def compare(name: str) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            config = golden_run(name, Path(folder))
            if config.model.dropout:
                raise NotHere("its dropout is drawn by the device's own generator")
            trainer = replace(config.trainer, accelerator="gpu", precision="32-true")
            train(replace(config, trainer=trainer))
            rows = [row for row in read_metrics(Path(config.run_dir) / "metrics.csv") if row["step"] > 0]
        # Newton-Schulz steps are in bfloat16 on a GPU.
        allowed = 5e-2 if config.optimizer.type == "muon" else 1e-3
        return within(largest_difference([row["train/loss"] for row in rows], golden_losses(name)), allowed)

    for name in RUNS:
        bench.run(f"golden losses: {name}", partial(compare, name), cuda=True)


def unavailable(why: str) -> Row:
    raise NotHere(why)


# Faults


def small_overrides(bench: Bench, folder: Path, *, n_steps: int) -> list[str]:
    values = {
        "data": "text",
        "data.path": text_file(folder),
        "data.cache_dir": folder / "cache",
        "data.n_workers": 1 if bench.device == "cuda" else 0,
        "tokenizer": "byte",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.d_model": 64,
        "model.context_length": 64,
        "model.dropout": 0.1,
        "batch_tokens": 1024,
        "budget_steps": n_steps,
        "micro_batch_size": 8,
        "optimizer": "adamw",
        "schedule.warmup_steps": 2,
        "callbacks.checkpoint.every_steps": 10,
        "callbacks.checkpoint.keep_last": 100,
        "trainer.val_check_interval": n_steps,
        "trainer.limit_val_batches": 2,
        "trainer.accelerator": "gpu" if bench.device == "cuda" else "cpu",
        "trainer.devices": 1,
    }
    return [*(f"{key}={value}" for key, value in values.items()), *QUIET.split()]


def faults(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Kernels may add in another order each time, unless they are told not to.
        bench.run("killed and continued, trainer.deterministic=true", lambda: killed(bench, folder, "deterministic"))
        bench.run(
            "killed and continued, default kernels", lambda: killed(bench, folder, "default"), cuda=True, seconds=45
        )
        bench.run("resume=auto in another precision", lambda: other_precision(bench, folder), seconds=15)
        bench.run("continued on the CPU", lambda: continued_on_cpu(bench, folder), cuda=True, seconds=25)


def train_command(overrides: list[str], folder: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def finish(bench: Bench, overrides: list[str], folder: Path) -> tuple[int, str]:
    """Run train.py to its end; its exit code and what it printed last."""
    before = (folder / "log.txt").stat().st_size if (folder / "log.txt").exists() else 0
    process = train_command(overrides, folder)
    try:
        code = process.wait(timeout=max(5, bench.until - time.time()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return code, (folder / "log.txt").read_text(errors="replace")[before:]


def learned(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv as text, without what depends on the clock."""
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def killed(bench: Bench, folder: Path, kernels: str) -> Row:
    n_steps = 60 if bench.toy else 200
    given = small_overrides(bench, folder, n_steps=n_steps)
    given += ["trainer.deterministic=true"] if kernels == "deterministic" else []
    straight, broken = f"straight_{kernels}", f"killed_{kernels}"
    code, text = finish(bench, [*given, f"run_dir={straight}"], folder)
    if code:
        raise RuntimeError(f"train.py ended with {code}: {text[-600:]}")
    process, saved = train_command([*given, f"run_dir={broken}"], folder), []
    deadline = min(bench.until, time.time() + 120)
    while process.poll() is None and time.time() < deadline:
        saved = sorted((folder / broken / "checkpoints").glob("step_*.ckpt"))
        if len(saved) >= 2:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if not saved:
        raise RuntimeError("it saved nothing before the kill")
    if (folder / broken / "summary.json").exists():
        raise RuntimeError("it had finished before the kill")
    copy = folder / f"{broken}_copy"  # for what else is continued from here
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / broken, copy, symlinks=True)
    code, text = finish(bench, [*given, f"run_dir={broken}"], folder)
    if code:
        raise RuntimeError(f"the continued run ended with {code}: {text[-600:]}")
    a, b = learned(folder / straight), learned(folder / broken)
    if len(a) != len(b):
        raise RuntimeError(f"{len(b)} rows instead of {len(a)}")
    pairs = [(float(x["train/loss"]), float(y["train/loss"])) for x, y in zip(a, b, strict=True) if x["train/loss"]]
    # Bit-identical where kernels are deterministic; otherwise what another order of additions makes of it.
    allowed = 0 if kernels == "deterministic" else 5e-2
    found = within(max(abs(x - y) for x, y in pairs), allowed)
    return found | {
        "steps": len(pairs),
        "bit_identical": a == b,
        "saved_at": int(re.findall(r"\d+", saved[-1].name)[0]),
    }


def unfinished(folder: Path) -> Path:
    copy = folder / "killed_deterministic_copy"
    if not copy.is_dir():
        raise NotHere("needs the run that was killed, which failed")
    return copy


def other_precision(bench: Bench, folder: Path) -> Row:
    """It has to be refused with what to type."""
    unfinished(folder)
    given = small_overrides(bench, folder, n_steps=60 if bench.toy else 200)
    other = "bf16-mixed" if bench.toy else "32-true"
    given += ["trainer.deterministic=true", f"trainer.precision={other}", "run_dir=killed_deterministic_copy"]
    code, text = finish(bench, given, folder)
    refused = code == 2 and "trainer.precision" in text
    return {"status": "ok" if refused else "failed", "refused": refused, "exit_code": code, "said": text[-300:].strip()}


def continued_on_cpu(bench: Bench, folder: Path) -> Row:
    """The GPU's checkpoint goes on on the CPU, in the same precision; dropout is drawn by another generator there."""
    copy = unfinished(folder)
    given = small_overrides(bench, folder, n_steps=200)
    given = [one for one in given if not one.startswith("trainer.accelerator=")]
    given += ["trainer.deterministic=true", "trainer.accelerator=cpu", "trainer.precision=bf16-mixed"]
    code, text = finish(bench, [*given, f"run_dir={copy.name}"], folder)
    if code:
        raise RuntimeError(f"it ended with {code}: {text[-600:]}")
    a, b = learned(folder / "straight_deterministic")[-1], learned(copy)[-1]
    return within(abs(float(a["train/loss"]) - float(b["train/loss"])), 0.3)


# Generation


def generation(bench: Bench) -> None:
    for size in (1, 16):
        bench.run(f"124M, bf16, greedy, batch {size}", partial(decoded, bench, size), seconds=20)


def decoded(bench: Bench, size: int) -> Row:
    """The rate by the median time between two tokens, and the time to the first."""
    import torch

    from gptlab.generation.config import Precision
    from gptlab.generation.decode import decode
    from gptlab.generation.decoding_state import DecodingState
    from gptlab.generation.precision import prepare
    from gptlab.generation.sampling import Sampling

    config = compose(bench, "gpt124m").model
    model = prepare(fresh(config, bench.device), Precision.bfloat16, torch.device(bench.device))
    n_tokens, generator = (8 if bench.toy else 128), torch.Generator().manual_seed(0)
    prompts = torch.randint(config.vocab_size, (size, 16), generator=generator).tolist()
    for _ in range(2):  # the first is to warm up
        times = [time.perf_counter()]
        with torch.no_grad():
            state = DecodingState(model, prompts, n_more=n_tokens)
            for _ in decode(state, n_tokens, Sampling(temperature=0.0)):
                times.append(time.perf_counter())
    steps = [b - a for a, b in pairwise(times[1:])]
    middle = statistics.median(steps)
    found = {"tokens_per_second": round(size / middle, 1), "milliseconds": round(1e3 * middle, 3)}
    return found | {"first_token_milliseconds": round(1e3 * (times[1] - times[0]), 2), "batch": size}


# The report


def newest(rows: list[Row]) -> dict[tuple[str, str], Row]:
    """The newest of each name of a section, a measurement before one that could not be made."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["section"], row["name"]
        if key not in found or row["status"] != "not run" or found[key]["status"] == "not run":
            found[key] = row
    return found


def markdown(rows: list[Row], title: str) -> str:
    """The table of what was found, section by section."""
    by_section: dict[str, list[Row]] = {}
    for (section, _), row in newest(rows).items():
        by_section.setdefault(section, []).append(row)
    lines = [f"# {title}", "", "`python benchmarks/gpu.py`", "", "| goal | wanted | measured |", "|---|---:|---:|"]
    lines += [f"| {goal} | {wanted} | {measured} |" for goal, wanted, measured in goals(by_section)]
    for section in (*SHARES, *(name for name in by_section if name not in SHARES)):
        if section in by_section:
            lines += [
                "",
                f"## {section.capitalize()}",
                "",
                *SECTIONS_SHOWN.get(section, checks_shown)(by_section[section]),
            ]
    return "\n".join(lines) + "\n"


def goals(by_section: dict[str, list[Row]]) -> Iterator[tuple[str, str, str]]:
    for goal, section, name, key, wanted in GOALS:
        values = [row[key] for row in by_section.get(section, ()) if row["name"].startswith(name) and row.get(key)]
        yield goal, f"{wanted:.0%}", f"{max(values):.1%}" if values else "not measured"
    for section, model in (("speed", "gpt124m"), ("sizes", "gpt355m"), ("sizes", "gpt1558m")):
        rates: dict[bool, dict[int, float]] = {True: {}, False: {}}  # the best by micro-batch
        for row in by_section.get(section, ()):
            if row["name"].startswith(model) and row.get("tokens_per_second"):
                best, size = rates["gptlab" in row["name"]], row["micro_batch_size"]
                best[size] = max(best.get(size, 0.0), row["tokens_per_second"])
        ratios = [rates[True][size] / rate for size, rate in rates[False].items() if size in rates[True]]
        measured = f"{max(ratios):.2f}" if ratios else "not measured"
        yield f"{model}: gptlab's best rate over the best peer's, of equal micro-batches", f"{PEER_GOAL}", measured


def cell(row: Row, key: str, form: str = "") -> str:
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(f"{one:,}" for one in value)
    return format(value, form)


def note(row: Row) -> str:
    why = row.get("why", "" if row["status"] == "ok" else "beyond what is allowed")
    return f"{'' if row['status'] == 'ok' else row['status'] + ': '}{why}".replace("|", "\\|").rstrip(": ")


def environment_shown(rows: list[Row]) -> list[str]:
    lines = ["| | |", "|---|---|"]
    for row in rows:
        if row["name"] == "machine" and row["status"] == "ok":
            kept = {k: v for k, v in row.items() if k not in ("call", "section", "name", "status", "took_seconds")}
            lines += [f"| {key} | {value} |" for key, value in kept.items()]
        else:
            lines.append(f"| {row['name']} | {note(row) or outcome(row)} |")
    return lines


def checks_shown(rows: list[Row]) -> list[str]:
    lines = ["| check | result | difference | allowed | |", "|---|---|---:|---:|---|"]
    for row in rows:
        extra = [f"{k} {row[k]}" for k in ("steps", "bit_identical", "saved_at", "refused") if k in row]
        about = "; ".join(text for text in (*extra, row.get("why", "")) if text).replace("|", "\\|")
        numbers = f"{cell(row, 'difference', '.2g')} | {cell(row, 'allowed', '.2g')}"
        lines.append(f"| {row['name']} | {row['status']} | {numbers} | {about} |")
    return lines


def speed_shown(rows: list[Row]) -> list[str]:
    lines = ["| contender | tokens/s | range | MFU | GiB | micro-batch | first loss | first step, s | |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    tables = []
    for row in rows:
        if "kernels" in row:
            total = row["milliseconds"]
            tables += [
                "",
                f"One step: {total:,} ms of kernels.",
                "",
                "| kernel | ms | share | calls |",
                "|---|---:|---:|---:|",
            ]
            tables += [
                f"| `{name.replace('|', ' ')}` | {ms:,} | {ms / total:.1%} | {count} |"
                for name, ms, count in row["kernels"]
            ]
            continue
        values = [cell(row, "tokens_per_second", ","), cell(row, "range"), cell(row, "mfu", ".1%")]
        values += [cell(row, "memory_gib", ".1f"), cell(row, "micro_batch_size"), cell(row, "first_loss", ".4f")]
        lines.append(
            f"| {row['name']} | {' | '.join([*values, cell(row, 'first_step_seconds', '.1f')])} | {note(row)} |"
        )
    return lines + tables


def generation_shown(rows: list[Row]) -> list[str]:
    lines = ["| | tokens/s | ms a token | first token, ms | |", "|---|---:|---:|---:|---|"]
    for row in rows:
        values = [cell(row, "tokens_per_second", ","), cell(row, "milliseconds", ".2f")]
        values.append(cell(row, "first_token_milliseconds", ".1f"))
        lines.append(f"| {row['name']} | {' | '.join(values)} | {note(row)} |")
    return lines


SECTIONS = {f.__name__: f for f in (environment, checks, faults, generation, speed, sizes)}
SECTIONS_SHOWN = {
    "environment": environment_shown,
    "speed": speed_shown,
    "sizes": speed_shown,
    "generation": generation_shown,
}


def carry_out(section: str, given: argparse.Namespace, until: float, rows: Path) -> None:
    """Run a section in a process of its own, and record it if the process ended badly."""
    command = [sys.executable, str(Path(__file__).resolve()), "--section", section, "--until", str(until)]
    command += ["--device", given.device, "--rows", str(rows)]
    command += ["--nanogpt", str(given.nanogpt)] if given.nanogpt else []
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(command, stderr=errors, env=env, start_new_session=True)
        why = ""
        try:
            code = process.wait(timeout=max(0.0, until - time.time()) + GRACE_SECONDS)
            if code:
                errors.seek(0)
                why = f"its process ended with {code}: {' '.join(errors.read().split())[-500:]}"
        except subprocess.TimeoutExpired:
            why = "it ran past its time and was ended"
        except KeyboardInterrupt:
            why = "interrupted"
            raise
        finally:
            with suppress(ProcessLookupError):  # what it may have started too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if why:
                print(f"  {section}: {why}", flush=True)
                with open(rows, "a", encoding="utf-8") as file:
                    row = {"section": section, "name": "the section itself", "status": "failed", "why": why}
                    file.write(json.dumps(row) + "\n")


def run_section(given: argparse.Namespace) -> None:
    with ExitStack() as stack:
        if given.device == "cpu":
            import torch

            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        os.environ["GPTLAB_CACHE"] = stack.enter_context(tempfile.TemporaryDirectory())
        SECTIONS[given.section](Bench(given.section, given.device, given.until, given.rows, given.nanogpt))


def find_device() -> str:
    """cuda where there is a GPU that torch can use; asked in another process, so that this one holds none of it."""
    code = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"error: torch cannot be imported: {asked.stderr.strip().splitlines()[-1]}")
    return asked.stdout.split()[-1]


def named_sections(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name} is no section; use some of {','.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=named_sections, default=list(SECTIONS), help=",".join(SECTIONS))
    parser.add_argument("--minutes", type=float, default=9.0, help="all sections together; default 9")
    parser.add_argument("--to", type=Path, default=ROOT / "benchmarks" / "results", help="where results are written")
    parser.add_argument("--nanogpt", type=lambda text: Path(text).resolve(), help="a checkout of nanoGPT")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for hidden, kind in (("section", str), ("until", float), ("rows", Path)):
        parser.add_argument(f"--{hidden}", type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.section:
        run_section(given)
        return 0
    if given.nanogpt and not (given.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt {given.nanogpt} has no model.py; give the folder of a checkout of nanoGPT")
    if given.device == "auto":
        given.device = find_device()
    end, found = time.time() + 60 * given.minutes, []
    given.to.mkdir(parents=True, exist_ok=True)
    sections = ["environment", *(name for name in given.sections if name != "environment")]
    with tempfile.TemporaryDirectory() as folder:
        for i, section in enumerate(sections):
            rows, left = Path(folder) / f"{section}.jsonl", max(0.0, end - time.time())
            until = time.time() + left * SHARES[section] / sum(SHARES[name] for name in sections[i:])
            print(f"{section}, at most {until - time.time():.0f} s", flush=True)
            carry_out(section, given, until, rows)
            found += [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
            files = write(given, found)
    print(f"\n{files}")
    return int(any(row["status"] == "failed" for row in found))


def write(given: argparse.Namespace, found: list[Row]) -> str:
    """Write this call's rows after those of earlier ones of the day on the device, and the table of all."""
    device = next((row["device"] for row in found if row["name"] == "machine" and "device" in row), given.device)
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")
    name = f"{date.today()}-gpu-{slug}"
    lines, table = given.to / f"{name}.jsonl", given.to / f"{name}.md"
    known = lines.read_text(encoding="utf-8").splitlines() if lines.exists() else []
    rows = [row for row in map(json.loads, known) if row["call"] != CALL]
    rows += [{"call": CALL, **row} for row in found]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    title = f"{date.today()}, {device}" + ("" if given.device == "cuda" else ": tiny shapes, whose times say nothing")
    table.write_text(markdown(rows, title), encoding="utf-8")
    return str(table)


CALL = time.strftime("%H:%M:%S")

if __name__ == "__main__":
    from ending import finish

    finish(main)
