"""Processes of our own that do one thing for this one, through pipes at their standard input and output."""

import os
import subprocess
import sys
from contextlib import suppress
from typing import Any, BinaryIO


def start_child(module: str, environment: dict[str, str]) -> subprocess.Popen:
    """Start `main()` of a module with this process's `sys.path`, in a session of its own.

    Ctrl-C is for this process alone, which then ends the other with `end_child`.
    """
    start = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", start],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def pipes_of(child: subprocess.Popen) -> tuple[Any, Any]:
    """Where to write to a child, and where to read its replies."""
    assert child.stdin is not None and child.stdout is not None
    return child.stdin, child.stdout


def end_child(child: subprocess.Popen) -> None:
    """Kill a child, unless it has ended, and close its pipes."""
    child.kill()
    child.wait()
    requests, replies = pipes_of(child)
    replies.close()
    with suppress(BrokenPipeError):
        requests.close()


def own_replies() -> BinaryIO:
    """Within a child: where its replies go; a stray print goes to standard error instead."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies
