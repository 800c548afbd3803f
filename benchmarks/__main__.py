"""Run a selection of benchmarks one after the other and keep what they print, dated, in benchmarks/results/.

    python -m benchmarks [NAME ...] [--list] [--rounds N] [--to FOLDER] [--nanogpt FOLDER] [--litgpt-python PATH]
                         [--transformers-python PATH] [--llama-python PATH] [-- OPTIONS of the one benchmark named]

Without a name the default selection runs, in under 25 minutes on two cores with nothing beside. Each benchmark is a
process of its own, as `python benchmarks/NAME.py` is. A result is a section of FOLDER/YYYY-MM-DD-NAME.md, with machine,
versions and command line; another run on the same day adds one. Ctrl-C keeps what was measured until then,
and so does `| head`.
"""

import argparse
import difflib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.ending import finish

FOLDER = Path(__file__).parent
GRACE_SECONDS = 30  # in which an interrupted benchmark removes its files
PEERS = ("nanogpt", "litgpt_python", "transformers_python")  # that train
OPTIONS = ("rounds", *PEERS, "llama_python", "text")  # handed on to those that have them


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder: about how long it takes on two cores, whether it runs without being named."""

    minutes: float
    default: bool = True
    arguments: tuple[str, ...] = ()  # that make it short enough
    options: tuple[str, ...] = ("rounds",)

    @property
    def accepts(self) -> str:
        return ", ".join(map(_flag, self.options)) or "none"


BENCHMARKS = {
    "training": Benchmark(8, arguments=("--rounds", "3"), options=("rounds", *PEERS)),
    "overhead": Benchmark(1.5),
    "generation": Benchmark(3, options=("rounds", "litgpt_python", "llama_python", "text")),
    "data": Benchmark(3),
    "saving": Benchmark(1),
    "experts": Benchmark(1),
    "startup": Benchmark(4, arguments=("--gigabytes", "0.2")),
    "growth": Benchmark(2),
    "levers": Benchmark(3, default=False),
    "learning": Benchmark(12, default=False, options=("nanogpt", "text")),
    "gpu": Benchmark(10, default=False, options=("nanogpt",)),
    "memory": Benchmark(4, default=False, options=()),
    "peak_memory": Benchmark(6, default=False, options=()),
    "largest_batch": Benchmark(30, default=False, options=()),
    "curation": Benchmark(10, default=False, options=()),
    "comparisons": Benchmark(30, default=False, options=()),
    "forecasts": Benchmark(15, default=False, options=()),
    "faults": Benchmark(20, default=False, options=()),
}


def main(typed: Sequence[str]) -> int:
    """Run what was asked for; returns the exit code: 1 where a benchmark failed, 130 after Ctrl-C."""
    typed, own = _divided(list(typed))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="left out: the default selection")
    parser.add_argument("--list", action="store_true", help="the known benchmarks")
    parser.add_argument("--rounds", metavar="N", type=_positive, help="of each benchmark; left out: its own default")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=FOLDER / "results")
    parser.add_argument("--nanogpt", metavar="FOLDER", help="a checkout of nanoGPT")
    parser.add_argument("--litgpt-python", metavar="PATH", help="an interpreter that can import litgpt")
    parser.add_argument("--transformers-python", metavar="PATH", help="an interpreter that can import transformers")
    parser.add_argument("--llama-python", metavar="PATH", help="an interpreter that can import xllamacpp and gguf")
    parser.add_argument("--text", metavar="FILE", help="tinyshakespeare, for learning")
    given = parser.parse_args(typed)
    if given.list:
        print(listing())
        return 0
    chosen = choose(given, own, parser)
    given.to.mkdir(parents=True, exist_ok=True)
    command = ["python", "-m", "benchmarks", *typed, *(["--", *own] if own else [])]
    failed = []
    for name, arguments in chosen.items():
        try:
            code = run(name, arguments, given.to, command)
        except KeyboardInterrupt:
            print(f"\ninterrupted; what was measured is in {given.to}", file=sys.stderr)
            return 130
        if code:
            failed.append(name)
    if failed:
        print(f"error: {', '.join(failed)} failed; see {given.to}", file=sys.stderr)
    return 1 if failed else 0


def choose(given: argparse.Namespace, own: list[str], parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The benchmarks to run with the arguments of each, or the end of the program; `own` are those of the one named."""
    for name in given.names:
        if name not in BENCHMARKS:
            close = difflib.get_close_matches(name, BENCHMARKS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            parser.error(f"no benchmark is called {name}; {hint}Known: {', '.join(BENCHMARKS)}")
    names = list(dict.fromkeys(given.names)) or [name for name, found in BENCHMARKS.items() if found.default]
    if own and len(names) != 1:
        parser.error(f"{' '.join(own)} after -- is for one benchmark, and {len(names)} would run; name one")
    asked = {option: value for option in OPTIONS if (value := getattr(given, option)) is not None}
    for option in asked:
        takers = [name for name, found in BENCHMARKS.items() if option in found.options]
        without = [name for name in names if name not in takers]
        # Rounds are asked of all, a peer of those that have it.
        if without and (option == "rounds" or len(without) == len(names)):
            parser.error(f"{_flag(option)} means nothing to {', '.join(without)}; it is for {', '.join(takers)}")
    arguments = {}
    for name in names:
        benchmark = BENCHMARKS[name]
        handed_on = [word for option in benchmark.options if option in asked for word in (_flag(option), asked[option])]
        arguments[name] = [*benchmark.arguments, *map(str, handed_on), *own]
    return arguments


def run(name: str, arguments: list[str], to: Path, typed: list[str]) -> int:
    """Run one benchmark, show what it prints and write it down; returns its exit code."""
    command = [sys.executable, "-u", str(FOLDER / f"{name}.py"), *arguments]
    measured_on, began, started = machine.describe(), datetime.now(), time.monotonic()
    print(f"== {name}", flush=True)
    lines, ending = [], "interrupted"
    # In a group of its own, so that Ctrl-C reaches it and its processes once, from here.
    given = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
    }
    with subprocess.Popen(command, **given, process_group=0) as process:
        # In a thread, where Ctrl-C is not raised: between reading a line and keeping it, it would lose it.
        reader = threading.Thread(target=_pass_on, args=(process, lines, closed := threading.Event()))
        reader.start()
        try:
            code = process.wait()
            ending = "" if code == 0 else f"failed with exit code {code}"
        except KeyboardInterrupt:
            _interrupt(process)
            raise
        finally:
            reader.join()
            ending = "interrupted" if closed.is_set() else ending
            seconds = time.monotonic() - started
            title = f"python benchmarks/{name}.py {' '.join(map(_shown, arguments))}".strip()
            facts = [f"{began:%Y-%m-%d %H:%M}", f"{seconds:.0f} seconds", *([f"**{ending}**"] if ending else [])]
            text = f"## {title}\n\n{', '.join(facts)}, by `{' '.join(map(_shown, typed))}`. {measured_on}.\n\n"
            _append(to / f"{began:%Y-%m-%d}-{name}.md", name, text + f"```text\n{''.join(lines).rstrip()}\n```\n")
    if closed.is_set():
        raise BrokenPipeError
    return code


def _pass_on(process: subprocess.Popen, lines: list[str], closed: threading.Event) -> None:
    """Keep and print the output of a benchmark; `closed` is set, and it is interrupted, once nobody reads on."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if closed.is_set():
            continue
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except BrokenPipeError:
            closed.set()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)


def _interrupt(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def listing() -> str:
    """The known benchmarks: minutes on two cores, the options they take, what they measure."""
    rows = []
    for name, found in BENCHMARKS.items():
        kind = "default" if found.default else "by name"
        rows.append(f"{name:14}{kind:9}{found.minutes:5g} min  {about(name)}\n{'':37}options: {found.accepts}")
    return "\n".join(rows)


def about(name: str) -> str:
    """The first line of a benchmark's docstring."""
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8").split("\n", 1)[0].strip('"')


def _append(path: Path, name: str, section: str) -> None:
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(f"# {name.capitalize()}, {path.name[:10]}\n\n" if new else "\n")
        file.write(section)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _divided(typed: list[str]) -> tuple[list[str], list[str]]:
    """What comes before and after the first --."""
    at = typed.index("--") if "--" in typed else len(typed)
    return typed[:at], typed[at + 1 :]


def _shown(argument: str) -> str:
    """An argument without folders that are of this machine alone."""
    return re.sub(r"^(--[\w-]+=)?.*[/\\].*$", r"\g<1>...", argument)


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return value


if __name__ == "__main__":
    finish(lambda: main(sys.argv[1:]))
