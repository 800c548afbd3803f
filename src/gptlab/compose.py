"""Words and YAML in, a checked `RunConfig` out; the only place, with train.py and commands/, that knows Hydra."""

import difflib
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptlab.config import ALTERNATIVES, RunConfig
from gptlab.data.config import SOURCES, TOKENIZERS
from gptlab.models.config import ARCHITECTURES
from gptlab.objectives.config import OBJECTIVES
from gptlab.training.config import OPTIMIZERS, OWNED

CONF = Path(__file__).parents[2] / "conf"

# group -> the field that names the variant, and the variants
VARIANTS = {
    "model": ("architecture", ARCHITECTURES),
    "data": ("source", SOURCES),
    "tokenizer": ("kind", TOKENIZERS),
    "objective": ("name", OBJECTIVES),
    "optimizer": ("algorithm", OPTIMIZERS),
}

# Other code bases' words for ours, where spelling alone would not find them.
FOREIGN = {
    "n_embd": "model.d_model",
    "embed_dim": "model.d_model",
    "hidden_size": "model.d_model",
    "n_layers": "model.n_layer",
    "num_hidden_layers": "model.n_layer",
    "n_heads": "model.n_head",
    "num_attention_heads": "model.n_head",
    "num_key_value_heads": "model.n_kv_head",
    "intermediate_size": "model.d_ff",
    "block_size": "model.context_length",
    "max_seq_len": "model.context_length",
    "seq_len": "model.context_length",
    "n_ctx": "model.context_length",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "grad_clip": "optimizer.clip_norm",
    "batch_size": "micro_batch_size",
    "max_steps": "budget_steps",
    "max_iters": "budget_steps",
    "max_tokens": "budget_tokens",
    "epochs": "budget_tokens",
    "gpus": "trainer.devices",
    "devices": "trainer.devices",
    "eval_interval": "trainer.val_check_interval",
    "warmup_iters": "schedule.warmup_steps",
    "dtype": "trainer.precision",
    "lora_r": "finetune.rank",
    "lora_rank": "finetune.rank",
    "lora_alpha": "finetune.alpha",
    "lora_dropout": "finetune.dropout",
    "target_modules": "finetune.layers",
    "out_dir": "run_dir",
}

SILENT_SECONDS = 4  # more than a first rank takes to end the others

HELP = """gptlab trains GPT-family models.

    python train.py                                        the quick start: real text, no download, about three minutes
    python train.py model=gpt124m data=text data.path=DIR  another model, your own text
    python train.py -m optimizer.lr=1e-3,3e-3              a sweep, one run after another
    python train.py --cfg job                              what would run, as YAML

Choose a preset with GROUP=NAME:

{presets}

Change any value with group.word=value; the values of this run:

{config}
--cfg, --multirun (-m) and --shell-completion are Hydra's; --hydra-help says more of them.
"""


def groups() -> dict[str, list[str]]:
    """Each group of presets and the names in it."""
    return {
        folder.name: sorted(p.stem for p in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def register() -> None:
    """Tell Hydra the types of the config."""
    store = ConfigStore.instance()
    store.store("run", group="schema", package="_global_", node=_root())
    for group, (_, variants) in VARIANTS.items():
        for name, variant in variants.items():
            store.store(name, group=f"schema/{group}", node=variant)


def _sweep_name() -> str:
    words = sorted(_words())
    names = [word.split("=", 1)[1] for word in words if word.startswith("name=")]
    # The same words give the same folder, so that a sweep that was stopped is continued by its own command.
    return names[0] if names else f"sweep-{sha256(' '.join(words).encode()).hexdigest()[:8]}"


def _root() -> RunConfig:
    return RunConfig(**{group: "???" for group in VARIANTS})


class TrialFailed(Exception):
    """A trial that was carried out elsewhere did not end well; it has said why there."""

    def __init__(self, exit_code: int, run_dir: str):
        super().__init__(exit_code, run_dir)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"the trial {self.args[1]} ended with exit code {self.exit_code}; its output says why"


def run(task: Callable[[RunConfig], None]) -> int:
    """Compose the command line's words and hand each run to `task`.

    Returns the process's exit code: 0, 2 for bad input, 1 for a failure, 130 and 143 after a signal.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here instead of being printed by Hydra
    codes = [0]
    typed, here, starter = list(sys.argv), os.getcwd(), (os.uname().nodename, os.getpid())

    def one(cfg: DictConfig) -> None:
        about = HydraConfig.get()
        words, before = list(about.overrides.task), sys.argv
        if about.mode == RunMode.MULTIRUN:
            swept = {word.split("=", 1)[0] for word in typed if re.search(r"=.*(,|choice\(|range\(|glob\()", word)}
            differs = [word for word in words if word.split("=", 1)[0] in swept] or [f"trial-{about.job.num}"]
            cfg.run_dir = f"{about.sweep.dir}/{','.join(differs)}".replace("'", "")
            # A launcher that starts other ranks replays sys.argv: it must find this trial there, not the sweep.
            sys.argv = [typed[0], *words, f"run_dir='{cfg.run_dir}'"]
        elsewhere = (os.uname().nodename, os.getpid()) != starter  # hydra/launcher=submitit_slurm or ray
        try:
            if elsewhere or (about.mode == RunMode.MULTIRUN and cfg.trainer.devices not in (1, "1", "auto")):
                # The first trial's process group would be in the second's way.
                codes.append(_in_a_process([sys.executable, *sys.argv], here))
            else:
                codes.append(guard(lambda: task(resolve(cfg, words))))
        finally:
            sys.argv = before
        if elsewhere and codes[-1]:
            raise TrialFailed(codes[-1], cfg.run_dir)  # all that a launcher carries back
        if codes[-1] in (130, 143):
            raise SystemExit(codes[-1])  # a signal is meant for the whole sweep

    def everything() -> None:
        register()
        sys.argv = [sys.argv[0], *map(_for_hydra, sys.argv[1:])]
        if {"-m", "--multirun"} & set(sys.argv) and not any(word.startswith("hydra.sweep.dir=") for word in sys.argv):
            sys.argv.append(f"hydra.sweep.dir='runs/{_sweep_name()}'")
        if not {"-sc", "--shell-completion"} & set(sys.argv):
            refuse_unknown(_words())
        if {"-h", "--help"} & set(sys.argv):
            return print(help_text(_words()))
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(one)()

    code = guard(everything)
    return max(code, *codes)


def _in_a_process(command: list[str], folder: str) -> int:
    """Run a trial by itself, and let it answer the signals: it has a state to save."""
    process = subprocess.Popen(command, cwd=folder)
    late = []

    def pass_on(signum: int, frame: object) -> None:
        process.send_signal(signum)
        late.append(signum)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    replaced = {signum: signal.signal(signum, pass_on) for signum in signals}
    code = process.wait()
    for signum, handler in replaced.items():
        signal.signal(signum, handler)
    if signal.SIGUSR2 in late and callable(replaced[signal.SIGUSR2]):
        signal.raise_signal(signal.SIGUSR2)  # submitit puts the job back into the queue: not before it is saved
    return code if code >= 0 else 128 - code


def _for_hydra(word: str) -> str:
    """A word as Hydra's grammar wants it, where that differs from what a person types."""
    if word.startswith("callbacks.extra."):  # names of other people's callbacks are new keys
        return f"++{word}"
    key, _, value = word.partition("=")
    texts = ("resume", "run_dir", "data.path", "data.prompt", "data.response", "callbacks.sample.prompt")
    role = key.startswith("data.chat.")  # may be a new key, too
    free = (key in texts or role) and value[:1] not in ("'", '"', "[")
    if free and re.search(r"[^\w./,*~-]|[^\x00-\x7f]", value):
        quoted = value.replace("'", "\\'")
        word = f"{key}='{quoted}'"
    return f"++{word}" if role else word


def help_text(words: list[str]) -> str:
    """What `--help` prints: the presets, and the config that `words` compose."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_yaml(hydra.compose("config", overrides=words))
    presets = "\n".join(f"    {group:<11} {', '.join(names)}" for group, names in groups().items())
    return HELP.format(presets=presets, config=config)


def guard(action: Callable[[], None]) -> int:
    """Carry out `action`; tell a person what went wrong, and return the exit code that says so."""
    try:
        action()
    except (HydraException, OmegaConfBaseException) as error:
        return _say(explain(error), 2)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if getattr(error, "exit_code", None) is not None:
            return _say(str(error), error.exit_code)
        if isinstance(error, ValueError) and _is_ours(error):
            return _say(str(error), 2)
        if isinstance(error, OSError) and error.strerror:
            place = f": {error.filename}" if error.filename else ""
            return _say(f"{error.strerror}{place}", 1, shared=False)
        return _say(f"\n{traceback.format_exc().rstrip()}", 1, shared=False)
    return 0


def _say(message: str, code: int, *, shared: bool = True) -> int:
    """Print an error; one that the ranks share is said by the first alone."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", local)))
    if rank and shared:
        if code > 2:
            return code  # after a signal all ranks end
        # The first rank has the same to say, or else has not failed. Its launcher ends this one as soon as it has.
        time.sleep(SILENT_SECONDS)
    # In one piece, since the ranks write to the same screen.
    sys.stderr.write(f"{f'rank {rank}: ' if rank else ''}error: {message}\n")
    sys.stderr.flush()
    return code


def _is_ours(error: BaseException) -> bool:
    # A ValueError that a library raised is a fault of the program, and keeps its traceback.
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)


def resolve(cfg: DictConfig, words: list[str] = ()) -> RunConfig:
    """The composed config as a checked `RunConfig`; of alternatives the one among `words` counts."""
    typed = {word.split("=")[0].lstrip("+") for word in words}
    for names in ALTERNATIVES:
        said = typed & set(names)
        if len(said) == 1 and OmegaConf.select(cfg, *said) is not None:
            for name in set(names) - said:
                OmegaConf.update(cfg, name, None)
    try:
        config = OmegaConf.to_object(cfg)
    except AttributeError as error:  # a word added with `+` that the dataclass has no slot for
        raise ValueError(f"{error}; words cannot be added with +") from error
    config.check()
    return config


def load(path: Path) -> RunConfig:
    """Read a run's config.yaml back."""
    plain = OmegaConf.load(path)
    schema = OmegaConf.structured(_root())
    for group, (discriminator, variants) in VARIANTS.items():
        kind = plain[group][discriminator]
        if kind not in variants:
            raise ValueError(f"{path}: {group}.{discriminator}={kind} is unknown; known: {', '.join(variants)}")
        schema[group] = OmegaConf.structured(variants[kind])
    return OmegaConf.to_object(OmegaConf.merge(schema, plain))


def _words() -> list[str]:
    """The words of the command line, without options and without Hydra's own."""
    return [w for w in sys.argv[1:] if "=" in w and not w.startswith("-") and not w.lstrip("+~").startswith("hydra")]


def refuse_unknown(words: list[str]) -> None:
    """Answer a word that no config has with the nearest one that exists."""
    presets, known = groups(), set(known_words())
    for word in words:
        key, value = word.split("=", 1)
        key = key.lstrip("+~").split("@")[0]
        if key in presets:
            for name in value.strip("[]").split(","):
                allowed = [*presets[key], "null"] if key in ("experiment", "debug") else presets[key]
                if name and name not in allowed and not name.startswith(("glob(", "choice(")):
                    raise ValueError(f"{key}={name} is not a preset{nearest(name, presets[key])}")
        elif key.startswith("trainer.") and key.removeprefix("trainer.") in OWNED:
            raise ValueError(f"{key} is decided by gptlab; use {OWNED[key.removeprefix('trainer.')]}")
        elif key.startswith("logger.") and key.count(".") == 2 and not _has_logger(key.split(".")[1], words):
            raise ValueError(f"{key} is said of a logger that is off; add logger={key.split('.')[1]}")
        elif key not in known and not key.startswith(("callbacks.extra.", "data.chat.", "trainer.plugins.")):
            foreign = FOREIGN.get(key.split(".")[-1])
            hint = f"; did you mean {foreign}?" if foreign else nearest(key, sorted(known | set(presets)))
            raise ValueError(f"{key} is not a word of the config{hint}")


def _has_logger(name: str, words: list[str]) -> bool:
    # An experiment may turn a logger on as well: then Hydra itself answers.
    return any(w.split("=", 1)[0] in ("logger", "experiment") and (name in w or w.startswith("exp")) for w in words)


def known_words() -> Iterator[str]:
    """Every dotted word that some choice of variants has."""
    yield from _fields_of(RunConfig, "")
    for group, (_, variants) in VARIANTS.items():
        for variant in variants.values():
            yield from _fields_of(variant, f"{group}.")


def _fields_of(kind: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        yield f"{prefix}{f.name}"
        for inner in (hints[f.name], *typing.get_args(hints[f.name])):
            if is_dataclass(inner) and not isinstance(inner, types.UnionType):
                yield from _fields_of(inner, f"{prefix}{f.name}.")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is not known: the nearest that is, or all of them if they are few."""
    known = list(known)
    # `model.n_layr` is compared as a whole and by its last part, so that `n_layr` alone finds it too.
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not near:
        last = {name.split(".")[-1]: name for name in known}
        near = [last[m] for m in difflib.get_close_matches(word.split(".")[-1], list(last), n=1, cutoff=0.7)]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if len(known) <= 40 else "; see python train.py --help"


def explain(error: Exception) -> str:
    """A library's message about the config, and what to type instead."""
    words = dict(word.lstrip("+~").split("=", 1) for word in _words())
    links = [error]
    while (cause := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(cause)
    for link in links:
        key, reason = getattr(link, "full_key", None), str(link).split("\n")[0]
        if key in words:
            return _explain_word(key, words[key], reason)
    return " ".join(str(error).split())


def _explain_word(key: str, value: str, reason: str) -> str:
    group = key.split(".")[0]
    if " not in " in reason and group in VARIANTS:
        name, variants = VARIANTS[group]
        owners = [kind for kind, variant in variants.items() if key in set(_fields_of(variant, f"{group}."))]
        return f"{key} does not belong to the chosen {group}; it is a word of {group}.{name}={' or '.join(owners)}"
    if "Integer" in reason and _is_whole_float(value):
        return f"{key}={value} must be a whole number; write {key}={int(float(value))}"
    if "expected one of [" in reason:
        allowed = reason.split("[")[1].rstrip("]").split(", ")
        return f"{key}={value} is none of {', '.join(allowed)}{nearest(value, allowed)}"
    return f"{key}={value}: {reason}"


def _is_whole_float(value: str) -> bool:
    try:
        return float(value).is_integer()
    except ValueError:
        return False
