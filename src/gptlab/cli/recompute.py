"""The process of steps that `gptlab verify` takes again on several devices: `python -m gptlab.cli.recompute FOLDER`."""

import json
import sys
from pathlib import Path

from gptlab.cli.guard import guard
from gptlab.distributed.signals import end_with_starter


def main(arguments: list[str]) -> int:
    """Take the steps that the folder describes; returns the exit code."""
    end_with_starter()
    return guard(lambda: _take(arguments))


def _take(arguments: list[str]) -> None:
    from gptlab.cli.options import load_plugins
    from gptlab.config import config_from_plain
    from gptlab.errors import UserError
    from gptlab.lab.recompute import JOB, take

    rest = load_plugins(arguments)
    if len(rest) != 1 or not (Path(rest[0]) / JOB).is_file():
        raise UserError(f"name a folder that has a {JOB}; gptlab verify RUN starts this program by itself")
    job = json.loads((Path(rest[0]) / JOB).read_text(encoding="utf-8"))
    take(config_from_plain(job["config"], rest[0]), job["until_step"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
