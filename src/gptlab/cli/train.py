"""The command `gptlab train`, which is also `python train.py`."""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from gptlab import composition, plugins, quoting
from gptlab.cli.guard import guard
from gptlab.config import to_plain
from gptlab.distributed.signals import STARTER, SWEEP_NAME
from gptlab.errors import UserError, did_you_mean
from gptlab.overrides import as_typed, for_hydra, key_of, refuse_of_hydra, swept_keys, trial_name

HELP = """gptlab trains GPT-family models.

    gptlab train                                        the quick start: real text, no download, about three minutes
    gptlab train model=gpt124m data=text data.path=DIR  another model, your own text
    gptlab train -m optimizer.lr=1e-3,3e-3              a sweep, one run after another
    gptlab train --cfg job                              what would run, as YAML
    gptlab train --config-dir DIR plugins=[MODULE]      presets and components of your own

Choose a preset with GROUP=NAME:

{presets}

Change any value with group.key=value; the values of this run:

{config}
--cfg, --config-dir, --multirun (-m) and --shell-completion are Hydra's; --hydra-help describes them.
python train.py is the same command.
"""
MULTIRUN = {"-m", "--multirun"}
WITH_VALUE = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p"}
COMPLETION = {"-sc", "--shell-completion"}
FLAGS = {*MULTIRUN, *COMPLETION, *WITH_VALUE, "-h", "--help", "--hydra-help", "--version", "--info", "-i", "--resolve"}


class TrialFailed(Exception):
    """A trial that ran on another machine failed; its own output says why."""

    def __init__(self, exit_code: int, run_dir: str):
        super().__init__(exit_code, run_dir)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"the trial {self.args[1]} ended with exit code {self.exit_code}; its output says why"


def main(arguments: list[str], program: list[str]) -> int:
    """Train with these arguments; returns the exit code. `program` is what starts the command, before them."""
    return _Command(program, list(arguments)).run()


class _Command:
    """One call of the command: a run, or the trials of a sweep."""

    def __init__(self, program: list[str], arguments: list[str]):
        self.program = program  # as in sys.argv, with the verb if there is one
        self.arguments = arguments
        self.options, overrides = split(arguments)
        self.overrides = [a for a in overrides if not a.lstrip("+~").startswith("hydra")]
        self.of_hydra = [a for a in overrides if a not in self.overrides]
        self.config_dir: str | None = None
        self.folder = os.getcwd()
        self.starter = (platform.node(), os.getpid())
        self.codes = [0]
        self.trials: list[tuple[DictConfig, list[str], dict[str, str]]] = []  # a config, its overrides, what differs

    def run(self) -> int:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here instead of being printed by Hydra
        before = sys.argv
        try:
            code = guard(self._compose_and_run, self.overrides)
        finally:
            sys.argv = before
        return max(code, *self.codes)

    def _compose_and_run(self) -> None:
        arguments = set(self.arguments)
        if "--version" in arguments:
            return print(f"gptlab {version('gptlab')}")
        for fixed in ("--config-path", "-cp", "--config-name", "-cn"):
            if option(self.arguments, fixed) is not None:
                raise UserError(f"{fixed} is decided by gptlab; presets of your own are added with --config-dir DIR")
        for flag in (argument.partition("=")[0] for argument in self.options if argument.startswith("-")):
            if flag not in FLAGS:
                raise UserError(f"{flag} is not an option of gptlab train{did_you_mean(flag, FLAGS)}")
        self.config_dir = option(self.arguments, "--config-dir", "-cd")
        composition.check_config_dir(self.config_dir, "--config-dir")
        multirun = bool(MULTIRUN & arguments)
        if multirun and any(key_of(override) == "run_dir" for override in self.overrides):
            raise UserError("run_dir= is chosen for each run of a sweep; name the sweep's folder with name=NAME")
        shown = option(self.arguments, "--cfg", "-c")
        if multirun and shown is not None:
            raise UserError("--cfg shows one run; leave out -m, or leave out --cfg")
        for needy in {"--package", "-p", "--resolve"} & {o.partition("=")[0] for o in self.options}:
            if shown is None:
                raise UserError(f"{needy} is an option of --cfg; add --cfg job, or leave it out")
        if os.environ.get(STARTER, own := str(os.getpid())) == own:  # for other ranks Lightning adds keys of Hydra
            refuse_of_hydra(self.of_hydra, multirun=multirun)
        plugins.load(plugins.named_in(self.overrides))
        if not COMPLETION & arguments:
            composition.refuse_wrong(self.overrides, self.config_dir)
        composition.register_schemas(self.config_dir)
        if {"-h", "--help"} & arguments:
            return print(help_text(self.overrides, self.config_dir))
        if shown == "job":
            plain = composition.compose_checked(*self.overrides, *self.of_hydra, config_dir=self.config_dir)
            if option(self.arguments, "--package", "-p") is None:
                return print(OmegaConf.to_yaml(plain, resolve="--resolve" in arguments), end="")
        typed = [*(for_hydra(override, multirun=multirun) for override in self.overrides), *self.of_hydra]
        if multirun and not any(a.startswith("hydra.sweep.dir=") for a in typed):
            typed.append(f"hydra.sweep.dir={quoting.quote(f'runs/{self._sweep_name()}')}")
        options = self.options
        if self.config_dir is not None:  # which may begin with ~, as in --config-dir=~/presets
            options = [o.replace(self.config_dir, str(Path(self.config_dir).expanduser())) for o in options]
        sys.argv = [self.program[0], *options, *typed]  # Hydra reads it, and wants options first
        run = hydra.main(version_base="1.3", config_path=f"pkg://{composition.CONF}", config_name="config")(self._job)
        if not multirun:
            return run()
        with _without_leftovers(typed):
            run()
            if self.trials:
                self._train_trials()
            elif not any(key_of(o) == "hydra/launcher" for o in typed):  # whose trials are not seen here
                raise UserError("the sweep has no runs: a glob, range or list among its overrides is empty")

    def _sweep_name(self) -> str:
        overrides = sorted(self.overrides)
        names = [override.partition("=")[2] for override in overrides if key_of(override) == "name"]
        # The same overrides give the same folder, so that a sweep that was stopped is continued by its own command.
        return quoting.unquote(names[0]) if names else f"sweep-{sha256(' '.join(overrides).encode()).hexdigest()[:8]}"

    def _job(self, config: DictConfig) -> None:
        """A run, or one trial of a sweep, which Hydra composed."""
        about = HydraConfig.get()
        overrides = list(about.overrides.task)
        if about.mode != RunMode.MULTIRUN:
            sys.argv = [*self.program, *self._own_options(), *overrides]
            self.codes.append(guard(lambda: self._settle_and_train(config, overrides), overrides))
            return
        swept = swept_keys(self.overrides)
        differs = [override for override in overrides if key_of(as_typed(override)) in swept]
        config.run_dir = f"{about.sweep.dir}/{trial_name(differs) or f'trial-{about.job.num}'}"
        if (platform.node(), os.getpid()) == self.starter:
            with open_dict(config):
                composition.settle(config, about.runtime.choices, self.config_dir)
            typed = [as_typed(override).lstrip("+").partition("=") for override in differs]
            self.trials.append((config, overrides, {key: value for key, _, value in typed}))
            return
        # hydra/launcher=submitit_slurm or ray has brought it to another process.
        command = [*self.program, *self._own_options(), *overrides, f"run_dir={quoting.quote(config.run_dir)}"]
        name = Path(about.sweep.dir).name
        self.codes.append(_in_a_process([sys.executable, *command], self.folder, {SWEEP_NAME: name}))
        if self.codes[-1]:
            raise TrialFailed(self.codes[-1], config.run_dir)  # all that a launcher carries back

    def _own_options(self) -> list[str]:
        return [] if self.config_dir is None else ["--config-dir", self.config_dir]

    def _train_trials(self) -> None:
        """Train the trials of a sweep, all of which were composed, and print what has come of them."""
        from gptlab.lab.grid import Grid, Point
        from gptlab.lab.trials import refuse_launched, run_trials

        refuse_launched()
        points = []
        for config, overrides, differs in self.trials:
            try:
                found = composition.resolve(config, overrides)
                points.append(Point(differs, to_plain(found), found.identity_fields(), config.run_dir))
            except UserError as error:
                points.append(Point(differs, None, {}, config.run_dir, refusal=str(error)))
        grid = Grid(points, say=_say)
        self.codes += [run_trials(grid, plugins=list(self.trials[0][0].plugins), say=_say), 2 * grid.refused]
        again = shlex.join([*_starts(self.program), *self.arguments])
        print(grid.text(f"this goes on with what is left:\n  {again}"), flush=True)
        if max(self.codes) < 128:
            from gptlab.lab.report import report_sweep

            print(report_sweep(grid.folder, table=False), flush=True)

    def _settle_and_train(self, config: DictConfig, overrides: list[str]) -> None:
        with open_dict(config):
            composition.settle(config, HydraConfig.get().runtime.choices, self.config_dir)
        _train(config, overrides)


@contextmanager
def _without_leftovers(typed: list[str]) -> Iterator[None]:
    """Remove what Hydra leaves in the folder of a sweep that is refused before its first trial."""
    (found,) = [o.partition("=")[2] for o in typed if o.startswith("hydra.sweep.dir=")][-1:]
    folder = Path(quoting.unquote(found))
    there = folder.exists()
    try:
        yield
    except Exception:
        if not there and folder.is_dir() and {path.name for path in folder.iterdir()} <= {"multirun.yaml"}:
            shutil.rmtree(folder)
        raise


def _say(line: str) -> None:
    print(line, flush=True)


def _starts(argv: list[str]) -> list[str]:
    """What a person types to start the program of `argv`, before its arguments."""
    name = Path(argv[0]).name
    return [*(["python"] if name.endswith(".py") else []), name, *argv[1:]]


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and all other arguments, which are overrides."""
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        (options if argument.startswith("-") or before in WITH_VALUE else overrides).append(argument)
    return options, overrides


def option(arguments: list[str], *names: str) -> str | None:
    """The value of an option that is written `--name value` or `--name=value`; None where it is not there."""
    found = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            if not equals and i + 1 == len(arguments):
                raise UserError(f"{name} needs a value")
            found.append(value if equals else arguments[i + 1])
    if len(found) > 1:
        raise UserError(f"{names[0]} is given twice, as {' and '.join(found)}; give it once")
    return found[0] if found else None


def help_text(overrides: list[str], config_dir: str | None = None) -> str:
    """What `--help` prints: the presets, and the config that `overrides` compose."""
    config = OmegaConf.to_yaml(composition.compose_plain(*overrides, config_dir=config_dir))
    names = composition.preset_names(config_dir)
    presets = "\n".join(f"    {group:<11} {', '.join(found)}" for group, found in names.items())
    return HELP.format(presets=presets, config=config)


def _train(composed: DictConfig, overrides: list[str]) -> None:
    from gptlab.distributed.lightning_import import import_lightning_alone
    from gptlab.distributed.signals import end_with_starter, requeue_before_the_first_step

    end_with_starter()
    requeue_before_the_first_step()
    config = composition.resolve(composed, overrides)
    # torch and lightning take seconds to import: only an accepted config pays for them.
    if not config.plugins and not config.callbacks.extra:  # nobody else's code
        import_lightning_alone()
    from gptlab.training.loop import train

    train(config, command=continue_command(sys.argv), sweep=_sweep_of(Path(config.folder())))


def _sweep_of(folder: Path) -> str | None:
    """The name of the sweep that started the run in a folder, also where the run is continued by itself."""
    from gptlab.lab.trials import is_trial

    return folder.resolve().parent.name if is_trial(folder) else os.environ.get(SWEEP_NAME)


def continue_command(argv: list[str]) -> str:
    """The line that continues this run, for a shell: the one that started it, without a place to start from."""
    arguments = [as_typed(argument) for argument in argv[1:] if key_of(argument) != "resume"]
    name = Path(argv[0]).name
    launcher = "" if not name.endswith(".py") else "python "
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = "torchrun ... "
    elif "SLURM_STEP_NUM_TASKS" in os.environ:
        launcher = f"srun {launcher}"
    return f"{launcher}{shlex.join([name, *arguments])}"


def _in_a_process(command: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run a trial in its own process, and pass signals on to it: it has a state to save."""
    process = subprocess.Popen(command, cwd=folder, env=os.environ | environment)
    late = []

    def pass_on(signum: int, frame: object) -> None:
        process.send_signal(signum)
        late.append(signum)

    from gptlab.distributed.signals import SIGNALS

    replaced = {signum: signal.signal(signum, pass_on) for signum in SIGNALS}
    code = process.wait()
    for signum, handler in replaced.items():
        signal.signal(signum, handler)
    usr2 = getattr(signal, "SIGUSR2", None)  # not on Windows
    if usr2 is not None and usr2 in late and callable(replaced[usr2]):
        signal.raise_signal(usr2)  # submitit requeues the job: not before it is saved
    return code if code >= 0 else 128 - code
