"""The processes of trials: each a fork of one that has imported torch already, where the system forks.

Importing takes seconds, a fork milliseconds. What is forked has imported modules and done nothing else: a trial shares
no state with another. Elsewhere each trial is a new Python.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from gptlab.distributed.signals import SIGNALS, SWEEP

MODULE = "gptlab.cli.trial"  # which `python -m` runs
SERVE = "--serve"
READY = "ready"
POLL_SECONDS = 0.2  # between two looks at a process


class StarterDied(Exception):
    """The process that forks was killed: the trial that it had started has saved and stopped, and may be started again.

    Raised by what asks for the state of a trial, once that trial is over.
    """


class Process(Protocol):
    """What a sweep asks of a trial's process, as of `subprocess.Popen`."""

    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int: ...

    def send_signal(self, sig: int) -> None: ...


class Starter:
    """Starts the processes of trials, one at a time; each ends when this process does, whose end closes its input.

    `stopping` says whether a signal has come: then nothing more is started.
    """

    def __init__(self, stopping: Callable[[], object]) -> None:
        self._stopping = stopping
        self._server: subprocess.Popen | None = None
        self._forks = hasattr(os, "fork")

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, folder: Path, log: Path, plugins: Sequence[str]) -> Process | None:
        """Start the trial of a folder; what it prints is added to `log`. None where a signal came before."""
        arguments = [str(folder), *([f"plugins=[{','.join(plugins)}]"] if plugins else [])]
        for _ in range(2):
            if self._forks and self._server is None:
                self._server = self._serve()
            if self._stopping():
                return None
            if self._server is None:
                break
            try:
                return _Fork(self._server, {"arguments": arguments, "log": str(log)})
            except BrokenPipeError:  # it was killed, a moment ago or while it waited
                self.close()
        with open(log, "ab") as file:
            return _python(arguments, stdout=file, stderr=file)

    def close(self) -> None:
        """End the process that forks, so that the next trial gets a new one."""
        if self._server is not None:
            self._server.communicate()  # which closes its input: it ends, and so does what it has forked
            self._server = None

    def _serve(self) -> subprocess.Popen | None:
        """The process that forks; None where it cannot, or where a signal came before it could."""
        server = _python([SERVE], stdout=subprocess.PIPE, bufsize=0)
        assert server.stdout is not None
        while not select.select([server.stdout], [], [], POLL_SECONDS)[0]:  # it imports
            if self._stopping():
                server.kill()
        if server.stdout.readline().decode().strip() == READY:
            return server
        self._forks = False
        server.communicate()
        return None


def _python(arguments: Sequence[str], **files) -> subprocess.Popen:
    environment = {**os.environ, SWEEP: str(os.getpid())}
    return subprocess.Popen([sys.executable, "-m", MODULE, *arguments], stdin=subprocess.PIPE, env=environment, **files)


class _Fork:
    """A process that the server forks: the server says its number, and how it ended.

    BrokenPipeError where the server is dead; StarterDied by `poll` and `wait` where it dies later.
    """

    def __init__(self, server: subprocess.Popen, job: dict) -> None:
        self.returncode: int | None = None
        self._server = server
        self._orphaned = False
        assert server.stdin is not None
        server.stdin.write(json.dumps(job).encode() + b"\n")
        server.stdin.flush()
        if not (line := self._line()):
            raise BrokenPipeError
        self._pid = int(line)

    def poll(self) -> int | None:
        assert self._server.stdout is not None
        if self._orphaned:
            if not _is_alive(self._pid):
                raise StarterDied
        elif self.returncode is None and select.select([self._server.stdout], [], [], 0)[0]:
            if line := self._line():
                self.returncode = int(line)
            else:  # nobody will say how this trial ends, and its successor must not meet it
                self.send_signal(signal.SIGTERM)
                self._orphaned = True
        return self.returncode

    def wait(self, timeout: float) -> int:
        assert self._server.stdout is not None
        if self._orphaned:
            time.sleep(timeout)
        elif self.returncode is None:
            select.select([self._server.stdout], [], [], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(MODULE, timeout)
        return code

    def send_signal(self, sig: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, sig)

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().decode().strip()


def _is_alive(pid: int) -> bool:
    """Whether a process that is no child of this one goes on; where nobody collects it, it is left as a zombie."""
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except ProcessLookupError:
        return False
    except OSError:  # another system, without /proc; or it ended between the two lines
        return not Path("/proc/self").exists()


def serve() -> list[str] | None:
    """Fork for each line of standard input until it is closed; returns None then, and in a fork its arguments."""
    for signum in SIGNALS:  # a terminal sends them to all its processes, and the sweep passes them on
        signal.signal(signum, signal.SIG_IGN)
    import torch

    import gptlab.training.loop  # noqa: F401

    if torch.cuda.is_initialized():  # which no fork survives
        return None
    gc.freeze()  # a fork's collector does not touch, and so copy, what is here
    out = sys.stdout
    print(READY, file=out, flush=True)
    while line := _read_line():
        job = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid == 0:
            _become(job["log"])
            return job["arguments"]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with suppress(BrokenPipeError):
            print(pid, file=out, flush=True)
        _, status = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):
            print(os.waitstatus_to_exitcode(status), file=out, flush=True)
    with suppress(BrokenPipeError, ValueError):
        out.close()
    return None


def _read_line() -> bytes:
    """A line of standard input, and no byte of what follows: a fork waits for the end of the same input."""
    found = bytearray()
    while (char := os.read(0, 1)) not in (b"", b"\n"):
        found += char
    return bytes(found)


def _become(log: str) -> None:
    """Let a fork print into its log and take signals."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for target in (1, 2):
        os.dup2(file, target)
    os.close(file)
    for signum in SIGNALS:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
