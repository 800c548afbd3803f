"""The process of a sweep's trial: `python -m gptlab.cli.trial FOLDER`, which the sweep starts."""

import sys
from pathlib import Path

from gptlab.cli.guard import guard
from gptlab.distributed.signals import end_with_starter, requeue_before_the_first_step, stop_with_sweep


def main(arguments: list[str]) -> int:
    """Train the frozen config of the folder that the arguments name; returns the exit code."""
    from gptlab.lab.trial_process import SERVE, serve

    if arguments == [SERVE]:
        forked = serve()
        if forked is None:
            return 0
        arguments = forked
        sys.argv = [sys.argv[0], *arguments]  # with which the other ranks are started
    stop_with_sweep()
    end_with_starter()
    return guard(lambda: _train(arguments))


def _train(arguments: list[str]) -> None:
    from gptlab.cli.options import load_plugins
    from gptlab.distributed.lightning_import import import_lightning_alone
    from gptlab.errors import UserError
    from gptlab.lab.trials import read_frozen

    requeue_before_the_first_step()
    rest = load_plugins(arguments)
    if len(rest) != 1 or not Path(rest[0]).is_dir():
        raise UserError("name the folder of a sweep's trial, as in python -m gptlab.cli.trial runs/SWEEP/TRIAL")
    folder = Path(rest[0])
    config = read_frozen(folder)
    if not config.plugins and not config.callbacks.extra:  # nobody else's code
        import_lightning_alone()
    from gptlab.training.loop import train  # takes seconds to import

    train(config, command="the command of the sweep", sweep=folder.resolve().parent.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
