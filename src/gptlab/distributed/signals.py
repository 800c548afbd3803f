"""Signals, SLURM requeue, and how a run ends before its last step."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# Ctrl-C; a scheduler's end or `kill`; SLURM's warning as gptlab's job scripts request it; submitit's warning.
# Windows has the first two alone.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
ECHO_SECONDS = 1  # in which a launcher passes on a signal that the whole group has got already
REQUEUES = getattr(signal, "SIGUSR1", None)


STARTER = "GPTLAB_STARTER"  # the process that started this one, in the environment
SWEEP = "GPTLAB_SWEEP"  # likewise that of the sweep whose trial this is
SWEEP_NAME = "GPTLAB_SWEEP_NAME"  # and the name of the sweep, where a launcher of Hydra starts its trials


def end_with_starter() -> None:
    """Let this process end when rank 0, which started it, does: rank 0 may be killed and unable to end it."""
    starter = os.environ.get(STARTER)
    if starter is None or starter == str(os.getpid()) or sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(starter):  # it has ended already
        os._exit(1)


def stop_with_sweep() -> None:
    """Let this process, a trial, save and stop when the sweep that started it does, even by a kill.

    The sweep holds the other end of standard input: on every system that is closed when it ends.
    """
    if SWEEP not in os.environ or STARTER in os.environ:  # rank 0 watches, and the others follow it
        return

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Stopped(Exception):
    """A signal ended the run, which is saved."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum


class Interrupted(BaseException):
    """A signal arrived where nothing is lost by leaving at once.

    Not an Exception, so that no library takes it for an error of its own.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class Failure(Exception):
    """The run cannot go on, through no mistake of the user."""

    exit_code = 1


@contextmanager
def stopping_at_once(during: str) -> Iterator[None]:
    """Let a signal end the block wherever it is, as Stopped, whose message says `during`.

    What the block leaves behind is for its `finally` to remove. Also of a closed terminal, unless that is ignored, as
    under nohup. SIGUSR1 and SIGUSR2 are taken where
    `requeue_before_the_first_step` takes them. In another thread than the main one, where Python takes no signals,
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    stopped_by = stopped_at = None

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped_by, stopped_at
        earlier, stopped_at = stopped_at, time.monotonic()
        if earlier is None or stopped_at - earlier > ECHO_SECONDS:
            stopped_by = signum
            raise Interrupted(signum)

    warnings = [number for number in SIGNALS if signal.getsignal(number) is leave_before_the_first_step]
    hangup = getattr(signal, "SIGHUP", None)  # which Windows lacks
    hangups = [hangup] if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN else []
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, *hangups, *warnings)}
    try:
        yield
    except BaseException:
        if stopped_by is None:
            raise
        # Also where a library that was interrupted has raised an error of its own.
        if stopped_by in warnings:
            leave_before_the_first_step(stopped_by)
        raise Stopped(stopped_by, f"stopped by {signal.Signals(stopped_by).name} {during}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def requeue_before_the_first_step() -> None:
    """Answer a scheduler's warning while there is nothing to save yet; the run's own answer replaces this one."""

    if "SLURM_JOB_ID" in os.environ:
        for signum in SIGNALS[2:]:
            signal.signal(signum, leave_before_the_first_step)


def leave_before_the_first_step(signum: int, frame: object = None) -> NoReturn:
    """A signal handler for a process that has nothing to save yet: raises Stopped."""
    rank_0 = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0
    queued = requeue() if signum == REQUEUES and rank_0 else ""
    raise Stopped(signum, f"stopped by {signal.Signals(signum).name} before the first step{queued}")


def requeue() -> str:
    """Ask SLURM to start this job again, where there is one; returns the outcome for a message."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    print(f"job {job} asks SLURM to start it again", file=sys.stderr, flush=True)  # before SLURM ends this process
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"; job {job} is not requeued: scontrol: {error.strerror}"
    return f"; job {job} is requeued" if done.returncode == 0 else f"; job {job} is not requeued: {done.stderr.strip()}"
