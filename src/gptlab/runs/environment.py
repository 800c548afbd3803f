"""What a run's numbers depend on beside its config: versions, machine, kernels, threads and code; environment.json."""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gptlab.errors import UserError, without_password
from gptlab.files import write_text_atomic

FILE = "environment.json"
INSTALLED = re.compile(r"(.+?)-([^-]+)\.(?:dist|egg)-info")
DIFF_BYTES = 200_000  # of uncommitted changes that are kept, in each repository
GIT_SECONDS = 10
# Environment variables that choose kernels: the only ones whose values are kept.
KERNEL_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)
# Files whose changes are never kept, whatever a repository says of them.
PRIVATE = re.compile(
    r"""(?ix) (?:^|/) (?: \.env[^/]* | \.?netrc | id_[a-z0-9_-]+
        | (?! [^/]* \. (?: py[ix]? | ipynb | c | cc | cpp | cu | cuh | h | hpp | rs | go | js | ts | md | rst ) $ )
          [^/]* (?: secret | credential | password | token (?! i[sz] ) ) [^/]*
        | [^/]* \. (?: pem | key | p12 ) ) $"""
)
# A value that is assigned to a secret's name, in code or in a config: between quotes; without, to the end of the line,
# where names of language models' tokens, such as n_tokens, have only values of one word.
SECRET = re.compile(
    r"""(?imx) ( [\w-]* (?: api[_-]?key | secret | passw(?:or)?d | token | credential ) [\w-]* ["']? \s* [:=] \s* )
        (?: "[^"\n]{6,}" | '[^'\n]{6,}' )
    | ( [\w-]* (?: api[_-]?key | secret | passw(?:or)?d | credential | [a-z]_token\b ) [\w-]* ["']? [ \t]* [:=] [ \t]*
        | \b bearer [ \t]+ )
        [^\n]{6,} $
    | ( [\w-]* token \b [ \t]* [:=] [ \t]* ) [^\s"'()\[\]{},]{6,} (?= [ \t]* (?: \#.* )? $ )"""
)
KNOWN_SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|AKIA|xox)[\w-]{6,}")  # by how services begin theirs
# What decides about the last bit of every number, with the name that a person knows it by.
BITS = {
    "torch.version": "torch",
    "torch.blas": "BLAS",
    "torch.mkl": "MKL",
    "torch.onednn": "oneDNN",
    "torch.cuda": "CUDA",
    "torch.cudnn": "cuDNN",
    "torch.capability": "the kernels' CPU capability",
    "machine.architecture": "architecture",
    "machine.processor": "processor",
    "machine.gpus": "GPUs",
    "threads": "threads",
    "flags": "kernel choices",
    "layout": "devices and strategy",
    "code.source": "gptlab's own source",
}


def describe(layout: Mapping[str, Any], plugins: Iterable[str] = ()) -> dict[str, Any]:
    """The environment of this process; `layout` is how the run is spread over devices."""
    return {
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "packages": _packages(),
        "torch": _torch(),
        "threads": torch.get_num_threads(),
        "flags": _flags(),
        "machine": _machine(),
        "layout": dict(layout),
        "code": _code(tuple(plugins), os.getcwd()),
    }


def flags_in_training(flags: Mapping[str, Any], deterministic: Any, benchmark: bool | None) -> dict[str, Any]:
    """What Lightning's Trainer makes of a process' choices of kernels, by trainer.deterministic and benchmark."""
    found = dict(flags)
    if deterministic is not None:
        found["deterministic"] = bool(deterministic)
    if deterministic:
        found["variables"] = {**flags["variables"], "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        benchmark = bool(benchmark)
    if benchmark is not None:
        found["cudnn_benchmark"] = benchmark
    return found


def varies(environment: Mapping[str, Any]) -> str | None:
    """Why even the same machine may give other bits; None where it gives the same."""
    gpus, on_cpu = _at(environment, "machine.gpus"), " x CPU" in str(_at(environment, "layout.devices"))
    if not gpus or on_cpu or _at(environment, "flags.deterministic"):
        return None
    return "GPU kernels may add in another order each time without trainer.deterministic=true"


def record(run: Path, step: int, environment: Mapping[str, Any], *, anew: bool) -> None:
    """Add the environment to environment.json, where it computes other bits than that of before; `anew` begins it."""
    before = [] if anew else read(run)
    kept = [one for one in before if one["step"] <= step]
    if not kept or differences(kept[-1], environment)[0]:
        kept.append({"step": step, **environment})
    if kept != before:
        write_text_atomic(run / FILE, json.dumps(kept, indent=1) + "\n")


def read(run: Path) -> list[dict[str, Any]]:
    """The environments of a run, each with the step that it began at; none of a run of before they were kept.

    UserError for a damaged file.
    """
    path = run / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        if not all(isinstance(one, dict) and isinstance(one.get("step"), int) for one in found):
            raise ValueError("it holds no environments")
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from None
    return found


def at_step(environments: Iterable[dict[str, Any]], step: int) -> dict[str, Any] | None:
    """The environment in which the update after `step` finished ones was made; None where it is not known."""
    return next((one for one in reversed(list(environments)) if one["step"] <= step), None)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two environments, as lines: first what decides about the last bit, then the rest."""
    bits = []
    for key, name in BITS.items():
        then, now = _at(there, key), _at(here, key)
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            changed = [part for part in {**then, **now} if (then.get(part) or None) != (now.get(part) or None)]
            bits += [
                f"{name}, {part}: {_shown(then.get(part))} there, {_shown(now.get(part))} here" for part in changed
            ]
        elif then != now:
            digits = 12 if key == "code.source" else None
            bits.append(f"{name}: {_shown(then)[:digits]} there, {_shown(now)[:digits]} here")
    then, now = _at(there, "code.plugins") or {}, _at(here, "code.plugins") or {}
    bits += [f"plugin {name}: another source" for name in {**then, **now} if then.get(name) != now.get(name)]
    rest = []
    if there.get("python") != here.get("python"):
        rest.append(f"Python: {_shown(_at(there, 'python.version'))} there, {_shown(_at(here, 'python.version'))} here")
    then, now = there.get("packages") or {}, here.get("packages") or {}
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name) and name != "torch"]
    own = [name for name in changed if name in ("gptlab", "lightning", "numpy", "tiktoken", "tokenizers", "hydra-core")]
    for name in own:
        rest.append(f"{name}: {then.get(name, 'none')} there, {now.get(name, 'none')} here")
    if others := [name for name in changed if name not in own]:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        rest.append(f"{len(others)} other packages: {', '.join(others[:4])}{more}")
    return bits, rest


def _at(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


@cache
def _packages() -> dict[str, str]:
    """The version of each package that is installed, by the names of their folders: reading all metadata took 0.5 s."""
    found: dict[str, str] = {}
    for folder in sys.path:
        with suppress(OSError):
            for name in os.listdir(folder or "."):
                if match := INSTALLED.fullmatch(name):
                    found.setdefault(match[1].lower().replace("_", "-"), match[2])
    return dict(sorted(found.items()))


@cache
def _torch() -> dict[str, Any]:
    build = torch.__config__.show()

    def named(pattern: str) -> str | None:
        found = re.search(pattern, build)
        return found[1].strip() if found else None

    return {
        "version": torch.__version__,
        "commit": torch.version.git_version,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "blas": named(r"BLAS_INFO=(\w+)"),
        "mkl": named(r"Math Kernel Library Version ([^\n]+?)(?: Product Build| for|\n)"),
        "onednn": named(r"MKL-DNN (v[\d.]+)"),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "build": named(r"C\+\+ Version: (\d+)"),
    }


def _flags() -> dict[str, Any]:
    """The choices of kernels that a process makes."""
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "mkldnn": torch.backends.mkldnn.enabled,
        "flash_sdp": torch.backends.cuda.flash_sdp_enabled(),
        "mem_efficient_sdp": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math_sdp": torch.backends.cuda.math_sdp_enabled(),
        "variables": {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ},
    }


@cache
def _machine() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


def _processor() -> str | None:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or None


@cache
def _code(plugins: tuple[str, ...], folder: str) -> dict[str, Any]:
    """The source of gptlab and of plugins, by checksum, and the state of the repositories in which code lies."""
    own = Path(__file__).parents[1]
    source = hashlib.sha256()
    for path in sorted(own.rglob("*.py")):
        source.update(path.relative_to(own).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    files = {
        name: Path(file)
        for name in plugins
        if (file := getattr(sys.modules.get(name), "__file__", None)) is not None and os.path.isfile(file)
    }
    roots: dict[str, None] = {}  # of the working directory, the plugins, and gptlab where it is not installed
    for place in (Path(folder), *(file.parent for file in files.values()), own):
        if root := _git(place, "rev-parse", "--show-toplevel").strip():
            roots[root] = None
    return {
        "source": source.hexdigest(),
        "plugins": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
        "repositories": [_repository(Path(root)) for root in roots],
    }


def _repository(root: Path) -> dict[str, Any]:
    """The commit of a repository and what differs from it, without private files and the values of secrets."""
    keys = _git(root, "config", "-z", "--name-only", "--get-regexp", r"^filter\.").split("\0")
    if any("=" in key for key in keys):  # -c cannot name such a filter
        return {"name": root.name, "commit": _git(root, "rev-parse", "HEAD").strip() or None, "diff": ""} | {
            "diff_is_whole": False,
            "untracked_files": 0,
        }
    drivers = {key.rpartition(".")[0] for key in keys if key}
    no_filters = [
        part
        for driver in sorted(drivers)
        for setting in ("clean=", "smudge=", "process=", "required=false")
        for part in ("-c", f"{driver}.{setting}")
    ]
    names = [name for name in _git(root, *no_filters, "diff", "HEAD", "--name-only", "-z").split("\0") if name]
    kept = [name for name in names if not PRIVATE.search(name)]
    options = ("--no-ext-diff", "--no-textconv", "--no-color")
    diff = _git(root, *no_filters, "diff", "HEAD", *options, "--", *kept) if kept else ""
    diff = without_secrets(without_password(diff))
    whole = len(diff.encode()) <= DIFF_BYTES
    untracked = [n for n in _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0") if n]
    return {
        "name": root.name,
        "commit": _git(root, "rev-parse", "HEAD").strip() or None,
        "diff": diff if whole else diff.encode()[:DIFF_BYTES].decode(errors="ignore"),
        "diff_is_whole": whole and kept == names,
        "untracked_files": len(untracked),
    }


def without_secrets(text: str) -> str:
    """Text with *** for the values of secrets."""
    text = SECRET.sub(lambda found: f"{found[1] or found[2] or found[3]}***", text)
    return KNOWN_SECRET.sub("***", text)


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing where it cannot. No program that the repository's config names is started."""
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_PAGER": "cat", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
