"""Training speed beside nanoGPT, litgpt and Hugging Face's Trainer: the same steps from the same weights, in turn.

    python benchmarks/training.py [--sizes 30m 124m] [--rounds 5] [--nanogpt FOLDER] [--litgpt-python PATH]
                                  [--transformers-python PATH]

Each contender is a process that takes so many steps when it is its turn and sleeps until the next (`contenders.py`);
with `--fresh`, and where they do not fit into memory together, a process is started for each turn. gptlab goes through
`gptlab.train` with all that a run does after a step; validation, saving, samples, plot and progress bar are off. No
contender logs, validates or saves. All have the same number of threads and train GPT-2 in float32 on bytes of Python's
standard library: learned positions, tied embeddings, GELU in its tanh form, biases, no dropout. They differ in this:

    nanoGPT        AdamW is torch's foreach one on a CPU; a second contender has the fused one
    transformers   GPT-2 in Trainer, with its default optimizer
    litgpt         has no learned positions: it has rotary ones, and is compared with the loss of a gptlab that has too

The losses of the first steps must agree to 0.001, or the table says that they differ. A ratio is the median over rounds
of what gptlab did in a round by what the peer did in it. Peak memory is that of the whole process.

Peers are never installed by this: nanoGPT is a folder, the others are looked for in this interpreter unless a path
names another. On a GPU the sizes are 124m, 355m and 1558m at T = 1024 in bfloat16, compiled as each ships, and memory
is what torch allocated; that has not been tried on one yet.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

WORKER = Path(__file__).with_name("contenders.py")
WARM_UP_STEPS = 3  # whose losses are compared
TOLERANCE = 1e-3
SEED = 0


@dataclass(frozen=True)
class Size:
    """A GPT-2, its batch, and how many steps a turn takes."""

    n_layer: int
    d_model: int
    n_head: int
    vocab_size: int
    context_length: int
    micro_batch_size: int
    steps: int

    @property
    def step_tokens(self) -> int:
        return self.micro_batch_size * self.context_length


SIZES = {
    "cpu": {
        "toy": Size(2, 64, 4, 512, 32, 4, steps=4),  # to try the benchmark
        "30m": Size(6, 384, 6, 50_257, 256, 4, steps=4),
        "124m": Size(12, 768, 12, 50_257, 256, 2, steps=2),
    },
    "cuda": {
        "124m": Size(12, 768, 12, 50_257, 1024, 16, steps=20),
        "355m": Size(24, 1024, 16, 50_257, 1024, 8, steps=20),
        "1558m": Size(48, 1600, 25, 50_257, 1024, 4, steps=10),
    },
}
DEFAULT = {"cpu": ["30m", "124m"], "cuda": ["124m", "355m", "1558m"]}


@dataclass(frozen=True)
class Contender:
    """What trains, in which interpreter, and what only it is told."""

    name: str
    library: str
    python: str = sys.executable
    options: dict[str, Any] = field(default_factory=dict)
    rotary: bool = False  # instead of learned positions


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What is the same for all contenders."""

    size: Size
    rounds: int
    steps: int  # of a turn
    threads: int
    device: str = "cpu"
    compiled: bool = False
    fresh: bool = False  # a process for each turn

    @property
    def n_steps(self) -> int:
        """More than any contender takes: a training loop that is over would end its process."""
        return WARM_UP_STEPS + self.rounds * self.steps + 1

    def __str__(self) -> str:
        size, numbers = self.size, "bfloat16" if self.device == "cuda" else "float32"
        return (
            f"{size.n_layer} layers, d_model {size.d_model}, {size.n_head} heads, V {size.vocab_size:,}, "
            f"T {size.context_length}, micro-batch {size.micro_batch_size}; "
            f"{numbers}{', compiled' if self.compiled else ''}; threads: {self.threads}; "
            f"{self.rounds} rounds of {self.steps} steps{', a process each' if self.fresh else ''}"
        )


class Turn(NamedTuple):
    """What a contender did when it was its turn."""

    seconds: float
    losses: list[float]
    peak_bytes: int | None


class Failed(Exception):
    """A contender that ended when it should not have."""


class Worker:
    """The process of a contender."""

    def __init__(self, contender: Contender, settings: dict[str, Any], folder: Path):
        shutil.rmtree(folder, ignore_errors=True)  # of the round before
        folder.mkdir(parents=True)
        self.errors, self.threads = folder / "errors.txt", settings["threads"]
        given = {**settings, **contender.options, "library": contender.library, "folder": str(folder)}
        (folder / "settings.json").write_text(json.dumps(given))
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [contender.python, str(WORKER), str(folder / "settings.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(contender, self.threads),
                start_new_session=True,  # Ctrl-C is for the parent, which ends it
            )

    def ready(self) -> str:
        """Wait until it can take a step; returns the version of its library, and of torch where that is another."""
        found, own = self._answer(), version("torch")
        if found["threads"] != self.threads:
            raise Failed(f"computes with {found['threads']} threads and not with {self.threads}")
        return found["version"] + (f", torch {found['torch']}" if found["torch"] != own else "")

    def take(self, steps: int) -> Turn:
        """Let it take so many steps."""
        try:
            print(steps, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed(self._why()) from None
        return Turn(**self._answer())

    def close(self) -> None:
        """End it, at the latest in two seconds."""
        with suppress(BrokenPipeError):  # it has ended already
            self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._why())
        return json.loads(line)

    def _why(self) -> str:
        lines = [line for line in self.errors.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with exit code {self.process.wait()}"


@dataclass
class Measured:
    """What was found out about a contender, until it failed."""

    tokens_per_second: list[float] = field(default_factory=list)  # by round
    losses: list[float] = field(default_factory=list)  # of the first steps
    peak_bytes: int = 0
    version: str = ""
    failure: str = ""

    def warm_up(self, worker: Worker) -> None:
        """Let it take its first steps, whose losses are compared."""
        try:
            self.version = worker.ready()
            self.losses = worker.take(WARM_UP_STEPS).losses
        except Failed as error:
            self.failure = str(error)

    def take(self, worker: Worker, conditions: Conditions) -> None:
        """Let it take the steps of a turn."""
        if self.failure:
            return
        try:
            turn = worker.take(conditions.steps)
        except Failed as error:
            self.failure = str(error)
            return
        self.tokens_per_second.append(conditions.steps * conditions.size.step_tokens / turn.seconds)
        self.peak_bytes = max(self.peak_bytes, turn.peak_bytes or 0)


def _environment(contender: Contender, threads: int) -> dict[str, str]:
    from gptlab.distributed.allocator import NO_THREAD_CACHE, TUNABLES

    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if contender.library == "gptlab":
        environment |= {TUNABLES: NO_THREAD_CACHE}  # as train.py starts itself
    elif contender.python != sys.executable:
        environment.pop("PYTHONPATH", None)
    return environment


def overrides(conditions: Conditions, cache_dir: Path, *, rotary: bool) -> list[str]:
    """gptlab's run: GPT-2 of a size, one micro-batch a step, nothing but training."""
    size, device = conditions.size, conditions.device
    return [
        "model=gpt124m",
        f"model.vocab_size={size.vocab_size}",
        f"model.context_length={size.context_length}",
        f"model.n_layer={size.n_layer}",
        f"model.d_model={size.d_model}",
        f"model.n_head={size.n_head}",
        "model.dropout=0",
        f"model.position={'rotary' if rotary else 'learned'}",
        "optimizer=adamw",
        "optimizer.lr=6e-4",
        "optimizer.weight_decay=0.1",
        "optimizer.beta1=0.9",
        "optimizer.beta2=0.95",
        "optimizer.grad_clip=1.0",
        "schedule=constant",
        "schedule.warmup_steps=0",
        f"batch_tokens={size.step_tokens}",
        f"micro_batch_size={size.micro_batch_size}",
        f"budget_steps={conditions.n_steps}",
        f"seed={SEED}",
        "tokenizer=byte",
        "data.val_fraction=0",
        f"data.cache_dir={cache_dir}",
        f"trainer.accelerator={device}",
        "trainer.devices=1",
        f"trainer.precision={'bf16-mixed' if device == 'cuda' else '32-true'}",
        f"strategy.compile={str(conditions.compiled).lower()}",
        "trainer.enable_checkpointing=false",
        "trainer.enable_progress_bar=false",
        "trainer.enable_model_summary=false",
        "callbacks.sample=null",
        "callbacks.plot=false",
    ]


def write_inputs(size: Size, run: list[str], folder: Path, n_steps: int) -> dict[str, str]:
    """The batches of gptlab's run as (steps, B, T + 1), and its initial weights under GPT-2's names, as files."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    import gptlab
    from gptlab.interop.architecture import joined
    from gptlab.interop.gpt2 import GPT2
    from gptlab.models.build import build_model

    config = gptlab.compose(*run)
    shape = (n_steps, size.micro_batch_size, size.context_length + 1)
    batches = np.lib.format.open_memmap(folder / "batches.npy", mode="w+", dtype=np.int32, shape=shape)
    for step in range(n_steps):
        batch = gptlab.batch(config, step)
        batches[step] = torch.cat([batch["tokens"], batch["targets"][:, -1:]], 1)
    batches.flush()
    weights = build_model(config.model, size.vocab_size, seed=config.seed).state_dict()
    theirs: dict[str, list[str]] = {}
    locations = GPT2.locations(config.model)
    for ours, location in locations.items():
        theirs.setdefault(location.names[0], []).append(ours)
    save_file(
        {name: joined([locations[o] for o in ours], [weights[o] for o in ours])[0] for name, ours in theirs.items()},
        folder / "weights.safetensors",
    )
    return {"batches": str(folder / "batches.npy"), "weights": str(folder / "weights.safetensors")}


@contextmanager
def _started(contenders: list[Contender], settings: dict[str, Any], folder: Path) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        workers = {}
        for contender in contenders:
            workers[contender.name] = Worker(contender, settings, folder / contender.name.replace(" ", "_"))
            stack.callback(workers[contender.name].close)
        yield workers


def measure(contenders: list[Contender], conditions: Conditions, folder: Path) -> dict[str, Measured]:
    """Let contenders take turns; the first of them is gptlab. One that fails is left out of what follows.

    A contender with rotary positions is compared with `gptlab, rotary`, which takes the first steps and no others.
    `folder` gets the files that they read and write.
    """
    size, cache = conditions.size, folder / "cache"
    learned = overrides(conditions, cache, rotary=False)
    settings = asdict(size) | write_inputs(size, learned, folder, conditions.n_steps)
    settings |= {"threads": conditions.threads, "device": conditions.device, "compile": conditions.compiled}
    settings |= {"n_steps": conditions.n_steps, "overrides": learned, "nanogpt": "", "fused": False}
    found = {contender.name: Measured() for contender in contenders}
    if any(contender.rotary for contender in contenders):
        options = {"overrides": overrides(conditions, cache, rotary=True)}
        reference = Contender("gptlab, rotary", "gptlab", options=options)
        found[reference.name] = Measured()
        with _started([reference], settings, folder) as workers:
            found[reference.name].warm_up(workers[reference.name])
    together = [] if conditions.fresh else contenders
    with _started(together, settings, folder) as workers:
        for contender in together:
            found[contender.name].warm_up(workers[contender.name])
        for round_ in range(conditions.rounds):
            first = round_ % len(contenders)  # each is the first of a round in turn
            for contender in contenders[first:] + contenders[:first]:
                measured = found[contender.name]
                if measured.failure:
                    continue
                if not conditions.fresh:
                    measured.take(workers[contender.name], conditions)
                    continue
                with _started([contender], settings, folder) as alone:
                    measured.warm_up(alone[contender.name])
                    measured.take(alone[contender.name], conditions)
    return found


def table(contenders: list[Contender], found: dict[str, Measured]) -> str:
    """Medians and ranges over rounds, gptlab's ratio to each peer, peaks of memory, and how far losses are apart."""
    ours = found[contenders[0].name]
    lines = [f"{'':22}tokens/s   range                     gptlab's ratio   peak MiB   loss of {WARM_UP_STEPS} steps"]
    ratios = {}
    for contender in contenders:
        measured = found[contender.name]
        if measured.failure:
            lines.append(f"{contender.name:22}failed: {measured.failure}")
            continue
        rates, ratio = measured.tokens_per_second, ""
        if measured is not ours and not ours.failure:
            ratios[contender.name] = statistics.median(
                a / b for a, b in zip(ours.tokens_per_second, rates, strict=True)
            )
            ratio = f"{ratios[contender.name]:.2f}"
        span = f"{min(rates):,.0f} to {max(rates):,.0f}"
        peak = f"{measured.peak_bytes / 2**20:,.0f}" if measured.peak_bytes else "?"
        loss = _compared(contender, contenders[0], found)
        name = f"{contender.name} {measured.version}".strip()
        lines.append(f"{name:22}{statistics.median(rates):8,.0f}   {span:25}{ratio:>15}{peak:>11}   {loss}")
    if ratios:
        best = min(ratios, key=ratios.__getitem__)
        lines.append(f"gptlab's ratio to the best peer ({best}): {ratios[best]:.2f}")
    return "\n".join(lines)


def _compared(contender: Contender, first: Contender, found: dict[str, Measured]) -> str:
    losses = found[contender.name].losses
    if contender is first:
        return ", ".join(f"{loss:.4f}" for loss in losses)
    reference = found["gptlab, rotary" if contender.rotary else first.name]
    if reference.failure:
        return f"not compared: {reference.failure}"
    apart = max(abs(a - b) for a, b in zip(losses, reference.losses, strict=True))
    note = ", to gptlab's with rotary positions" if contender.rotary else ""
    return f"{'agrees' if apart <= TOLERANCE else 'DIFFERS'} (by {apart:.0e}{note})"


def find_contenders(
    nanogpt: Path | None, litgpt_python: str | None, transformers_python: str | None, *, device: str
) -> tuple[list[Contender], dict[str, str]]:
    """gptlab and the peers that are there; and of those that are not, how to get them."""
    contenders, absent = [Contender("gptlab", "gptlab")], {}
    if nanogpt is None:
        absent["nanoGPT"] = "git clone https://github.com/karpathy/nanoGPT and add --nanogpt FOLDER"
    else:
        options = {"nanogpt": str(nanogpt.resolve())}
        contenders.append(Contender("nanoGPT", "nanogpt", options=options))
        if device == "cpu":  # on a GPU it has the fused one by itself
            contenders.append(Contender("nanoGPT, fused", "nanogpt", options=options | {"fused": True}))
    for library, python in (("litgpt", litgpt_python), ("transformers", transformers_python)):
        if python is None and importlib.util.find_spec(library) is None:
            absent[library] = f"pip install {library}, in an environment of its own with --{library}-python PATH"
        else:
            contenders.append(Contender(library, library, python or sys.executable, rotary=library == "litgpt"))
    return contenders, absent


def needed_bytes(size: Size) -> int:
    """About what a contender holds: weights, gradients and AdamW's moments, logits three times, and its imports."""
    n_parameters = 12 * size.n_layer * size.d_model**2 + (size.vocab_size + size.context_length) * size.d_model
    return 20 * n_parameters + 12 * size.step_tokens * size.vocab_size + 800 * 2**20


def main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default=device)
    sizes = sorted({name for of_device in SIZES.values() for name in of_device})
    parser.add_argument("--sizes", nargs="+", choices=sizes, help=f"left out: {' '.join(DEFAULT[device])}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a turn; left out: by size, about five seconds on two cores")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="nanoGPT, from which model.py is imported")
    parser.add_argument("--litgpt-python", metavar="PATH", help="an interpreter that can import litgpt")
    parser.add_argument("--transformers-python", metavar="PATH", help="an interpreter that can import transformers")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="left out: on a GPU")
    parser.add_argument("--fresh", action="store_true", help="start a process for each turn")
    given = parser.parse_args()
    if given.nanogpt is not None and not (given.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt {given.nanogpt} has no model.py; git clone https://github.com/karpathy/nanoGPT")
    for option in ("rounds", "steps", "threads"):
        value = getattr(given, option)
        if value is not None and value < 1:
            parser.error(f"--{option} {value} must be at least 1")
    names = given.sizes or DEFAULT[given.device]
    for name in names:
        if name not in SIZES[given.device]:
            parser.error(f"--sizes {name} is not for --device {given.device}; use {' '.join(SIZES[given.device])}")
    contenders, absent = find_contenders(
        given.nanogpt, given.litgpt_python, given.transformers_python, device=given.device
    )
    for name in names:
        size = SIZES[given.device][name]
        conditions = Conditions(
            size=size,
            rounds=given.rounds,
            steps=given.steps or size.steps,
            threads=given.threads,
            device=given.device,
            compiled=given.compile if given.compile is not None else given.device == "cuda",
            fresh=given.fresh or len(contenders) * needed_bytes(size) > _free_bytes(given.device),
        )
        print(f"{name}: {conditions}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(contenders, conditions, Path(folder))
        print(table(contenders, found), end="\n\n", flush=True)
    for name, how in absent.items():
        print(f"absent: {name} ({how})")


def _free_bytes(device: str) -> float:
    from gptlab.config import TrainerConfig
    from gptlab.distributed.devices import find_devices, free_memory_bytes

    free = free_memory_bytes(find_devices(TrainerConfig(accelerator=device, devices=1)))
    return float("inf") if free is None else free


if __name__ == "__main__":
    from ending import finish

    finish(main)
