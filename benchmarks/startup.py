"""How long starting takes: to an answer, to the first batch of a run, and to the first batch of a large corpus.

    python benchmarks/startup.py [--rounds 5] [--gigabytes 1] [--against CHECKOUT] [--output FILE]

Whole processes take turns over rounds; medians and ranges are printed as a Markdown table. With `--against`, another
checkout of the project is measured in the same rounds by the same interpreter. The parts:

    answers        `train.py model.n_embd=64` (a key that does not exist), `--help` and `--cfg job`
    quick start    from the start of the process to the first batch of `train.py`, whose data is prepared already
    large corpus   a token file of so many gigabytes: the time inside `train(config)` until the first batch, on each of
                   one and two processes. Everything is imported before the clock starts, a small run has passed
                   through the same code, and the model is tiny, so that neither imports nor building it count. On
                   two processes the time includes that of torch.distributed to connect them, which `prepare` does
                   not. The first start tokenizes, writes and verifies.

Whole processes have their CPU time in a row of its own: it is what to compare on a machine with other work.
"""

import argparse
import json
import os
import platform
import random
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

ANSWERS = (["model.n_embd=64"], ["--help"], ["--cfg", "job"])
WARM_BYTES = 1_000_000
MIB = 1 << 20

# Importable in every measured process. Ends it at the first batch, after a note of when that was.
CLOCK = """
import json, os, time
from lightning import Callback


class FirstBatch(Callback):
    def __init__(self, started=None):
        self.started = time.monotonic() if started is None else started

    def on_train_batch_start(self, trainer, *_):
        note = {"seconds": time.monotonic() - self.started, "at": time.monotonic(), "data": data_seconds()}
        path = f"{os.environ['STARTUP_NOTE']}.{trainer.global_rank}"
        with open(path + ".partial", "w") as file:
            json.dump(note, file)
        os.replace(path + ".partial", path)
        os._exit(0)


_spent = [0.0]


def data_seconds():
    return _spent[0]


def timed(function):
    def wrapper(*args, **kwargs):
        started = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            _spent[0] += time.monotonic() - started
    return wrapper
"""

# An editable install finds whatever a checkout lacks in its own: it must not help.
ALONE = """
import sys
sys.meta_path = [f for f in sys.meta_path if not str(getattr(f, "__module__", "")).startswith("__editable__")]
"""

# One rank of a run on a large corpus. It knows where older checkouts keep what it needs.
PROBE = """
import importlib, json, os, pkgutil, sys, time
from pathlib import Path


def composed(overrides):
    try:
        from gptlab import composition
    except ImportError:
        import hydra
        from gptlab import compose
        compose.register()
        with hydra.initialize_config_dir(str(compose.CONF), version_base="1.3"):
            return compose.resolve(hydra.compose("config", overrides=overrides), overrides)
    return composition.compose(*overrides)


def training():
    try:
        return importlib.import_module("gptlab.training.loop")
    except ModuleNotFoundError:
        return importlib.import_module("gptlab.training.run")


if __name__ == "__main__":
    import gptlab
    import startup_clock

    rank, world_size, barrier = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    warm, overrides = json.loads(sys.argv[4]), json.loads(sys.argv[5])
    for module in pkgutil.walk_packages(gptlab.__path__, "gptlab."):
        if not module.name.startswith("gptlab.conf"):
            importlib.import_module(module.name)
    loop = training()
    with open(os.devnull, "w") as nowhere:
        sys.stdout, shown = nowhere, sys.stdout
        loop.train(composed(warm))
        sys.stdout = shown
    loop.prepare_run = startup_clock.timed(loop.prepare_run)  # the name by which `train` calls it
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                       "LOCAL_WORLD_SIZE": str(world_size), "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
                       "TORCHELASTIC_RUN_ID": "startup"}
    config = composed(overrides)
    barrier.with_name(f"{barrier.name}.{rank}").touch()
    while not barrier.exists():
        time.sleep(0.001)
    loop.train(config, callbacks=[startup_clock.FirstBatch()])
    sys.exit("there was no batch")
"""


class Checkout:
    """A working copy of the project, of this layout or an older one, and a place to run it in."""

    def __init__(self, name: str, source: Path, folder: Path):
        self.name, self.folder = name, folder
        self.commit = _git(source, "rev-parse", "--short", "HEAD") or "?"
        if _git(source, "status", "--porcelain", "--untracked-files=no"):
            self.commit += " with changes"
        # `gptlab.conf` is a folder beside src, which only links put into the package without an install.
        package = folder / "src" / "gptlab"
        package.mkdir(parents=True)
        for path in (source / "src" / "gptlab").iterdir():
            if path.name != "__pycache__":
                (package / path.name).symlink_to(path.resolve())
        if (source / "conf" / "__init__.py").exists():
            (package / "conf").symlink_to((source / "conf").resolve())
        for name in ("conf", "train.py"):
            (folder / name).symlink_to((source / name).resolve())
        (folder / "src" / "sitecustomize.py").write_text(ALONE)
        (folder / "src" / "startup_clock.py").write_text(CLOCK)
        (folder / "probe.py").write_text(PROBE)
        (folder / "work").mkdir()
        self.n_notes = 0

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start a Python process of this checkout in its folder `work`."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GPTLAB"))}
        own = {"PYTHONPATH": str(self.folder / "src"), "GPTLAB_CACHE": str(self.folder / "cache")}
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder / "work",
            env={**inherited, **own, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answer(self, arguments: list[str]) -> tuple[float, float]:
        """Seconds that `train.py ARGUMENTS` takes as a whole, and of CPU time."""
        started, cpu = time.monotonic(), _cpu_seconds()
        process = self.start(str(self.folder / "train.py"), *arguments)
        _, errors = process.communicate(timeout=600)
        seconds = time.monotonic() - started, _cpu_seconds() - cpu
        is_wrong = "model.n_embd=64" in arguments
        if process.returncode != (2 if is_wrong else 0) or (is_wrong and "model.d_model" not in errors):
            sys.exit(f"{self.name}: train.py {' '.join(arguments)} failed:\n{errors}")
        return seconds

    def quick_start(self) -> tuple[float, float]:
        """Seconds from the start of the process to its first batch, and of CPU time."""
        note, run = self._note()
        started, cpu = time.monotonic(), _cpu_seconds()
        extra = "callbacks.extra.clock._target_=startup_clock.FirstBatch"
        process = self.start(str(self.folder / "train.py"), extra, f"run_dir={run}", STARTUP_NOTE=str(note))
        return self._read(note, process, 0)["at"] - started, _cpu_seconds() - cpu

    def train(self, text: Path, warm: Path, n_processes: int) -> list[dict[str, float]]:
        """For each rank the seconds inside `train` until the first batch, and of these the data's."""
        note, run = self._note()
        barrier, probe = note.with_suffix(".go"), str(self.folder / "probe.py")
        small = [run_overrides(warm, f"{run}-warm{rank}", n_steps=1) for rank in range(n_processes)]
        overrides = [*run_overrides(text, run, n_steps=10), f"trainer.devices={n_processes}"]
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())} if n_processes > 1 else {}
        processes = [
            self.start(
                probe,
                *(str(rank), str(n_processes), str(barrier), json.dumps(small[rank]), json.dumps(overrides)),
                STARTUP_NOTE=str(note),
                **port,
            )
            for rank in range(n_processes)
        ]
        while not all(barrier.with_name(f"{barrier.name}.{rank}").exists() for rank in range(n_processes)):
            if any(process.poll() is not None for process in processes):
                break
            time.sleep(0.01)
        barrier.touch()
        return [self._read(note, process, rank) for rank, process in enumerate(processes)]

    def _note(self) -> tuple[Path, str]:
        self.n_notes += 1
        return self.folder / f"note{self.n_notes}", f"runs/{self.n_notes}"

    def _read(self, note: Path, process: subprocess.Popen, rank: int) -> dict[str, float]:
        _, errors = process.communicate(timeout=3600)
        path = note.with_name(f"{note.name}.{rank}")
        if not path.exists():
            sys.exit(f"{self.name}, rank {rank}: no first batch:\n{errors}")
        return json.loads(path.read_text())


def run_overrides(text: Path, run_dir: str, *, n_steps: int) -> list[str]:
    """A tiny model on a text, byte by byte, with keys that every checkout has."""
    values = {
        "data": "text",
        "data.path": text,
        "tokenizer": "byte",
        "model.n_layer": 1,
        "model.n_head": 1,
        "model.d_model": 16,
        "model.context_length": 64,
        "batch_tokens": 512,
        "budget_steps": n_steps,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.limit_val_batches": 1,  # the split is evaluated before the first step
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "callbacks.sample": "null",
        "callbacks.plot": "false",
        "run_dir": run_dir,
    }
    return [f"{key}={value}" for key, value in values.items()]


def write_text(path: Path, n_bytes: int) -> Path:
    """Random lowercase text, which takes a second a gigabyte to write."""
    draw = random.Random(0)
    block = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz    \n") for _ in range(MIB)).encode()
    with open(path, "wb") as file:
        for start in range(0, n_bytes, MIB):
            turn = draw.randrange(MIB)
            file.write((block[turn:] + block[:turn])[: n_bytes - start])
    return path


def measure(checkouts: list[Checkout], rounds: int, gigabytes: float, folder: Path) -> Iterator[tuple[str, list]]:
    """Each part's name and, for every checkout, its times."""
    whole = {f"`train.py {' '.join(a)}`": lambda checkout, a=a: checkout.answer(a) for a in ANSWERS}
    for name, action in {**whole, "quick start, process start to first batch": Checkout.quick_start}.items():
        for checkout in checkouts:
            action(checkout)  # writes byte code, prepares data, fills the page cache
        found = _turns(checkouts, rounds, action)
        yield name, [[wall for wall, _ in times] for times in found]
        yield f"{name}, CPU time", [[cpu for _, cpu in times] for times in found]
    if not gigabytes:
        return
    warm = write_text(folder / "warm.txt", WARM_BYTES)
    # A byte is a token of two bytes.
    large = write_text(folder / "large.txt", int(gigabytes * 1e9 / 2))
    size = f"{gigabytes:g} GB of tokens"
    first = [[checkout.train(large, warm, 1)[0]] for checkout in checkouts]
    yield f"{size}, first start: tokenized, written, verified", [[note["seconds"] for note in n] for n in first]
    for n in (1, 2):
        found = _turns(checkouts, rounds, lambda checkout, n=n: checkout.train(large, warm, n))
        for rank in range(n):
            name = f"{size}, second start, {'1 process' if n == 1 else f'rank {rank} of 2'}"
            yield f"{name}: `train` to first batch", [[notes[rank]["seconds"] for notes in turns] for turns in found]
            yield f"{name}: of it `prepare`", [[notes[rank]["data"] for notes in turns] for turns in found]


def _turns(checkouts: list[Checkout], rounds: int, action) -> list[list]:
    found: list[list] = [[] for _ in checkouts]
    for _ in range(rounds):
        for i, checkout in enumerate(checkouts):
            found[i].append(action(checkout))
    return found


def table(title: str, checkouts: list[Checkout], parts: list[tuple[str, list[list[float]]]]) -> str:
    """Medians and ranges in seconds as Markdown."""
    names = [f"{checkout.name} ({checkout.commit})" for checkout in checkouts]
    ratio = [f"{checkouts[0].name} / {checkouts[1].name}"] if len(checkouts) > 1 else []
    lines = [title, "", f"| seconds | {' | '.join([*names, *ratio])} |", "|---" * (1 + len(names) + len(ratio)) + "|"]
    for name, times in parts:
        cells = [_cell(values) for values in times]
        if ratio:
            cells.append(f"{statistics.median(times[0]) / max(statistics.median(times[1]), 1e-4):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    median = f"{statistics.median(values):.2f}"
    return median if len(values) == 1 else f"{median} ({min(values):.2f} to {max(values):.2f})"


def _cpu_seconds() -> float:
    """Of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _versions() -> str:
    from importlib.metadata import version

    n_cores = len(os.sched_getaffinity(0))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "hydra-core"))
    return f"{n_cores} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {libraries}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the token file; 0 leaves that part out")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to measure beside this one")
    parser.add_argument("--folder", type=Path, help="where to work; left out: a temporary folder")
    parser.add_argument("--output", type=Path, help="also write the table here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        checkouts = [Checkout("new", Path(__file__).resolve().parents[1], folder / "new")]
        if given.against is not None:
            checkouts.insert(0, Checkout("old", given.against.resolve(), folder / "old"))
        parts = []
        for name, times in measure(checkouts, given.rounds, given.gigabytes, folder):
            parts.append((name, times))
            print(f"{name}: {', '.join(_cell(values) for values in times)}", file=sys.stderr, flush=True)
    command = re.sub(r"--(against|folder|output) \S+", r"--\1 ...", " ".join(["benchmarks/startup.py", *sys.argv[1:]]))
    title = f"# Starting, {date.today()}\n\n`python {command}`: {_versions()}. Medians and ranges of whole processes."
    text = table(title, checkouts, parts)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    from ending import finish

    finish(main)
