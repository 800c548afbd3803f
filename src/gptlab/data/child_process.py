"""Processes of our own that do one thing for this one, through pipes at their standard input and output."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


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


def map_in_order(
    workers: Sequence[subprocess.Popen], ask: Callable[[subprocess.Popen, Job], Answer], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Answer]]:
    """Each job with what `ask` returns of an idle worker, in the order given; holds a few jobs per worker at a time."""
    idle: SimpleQueue[subprocess.Popen] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def answer(job: Job) -> Answer:
        worker = idle.get()
        try:
            return ask(worker, job)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as threads:
        running: deque = deque()
        try:
            for job in jobs:
                running.append((job, threads.submit(answer, job)))
                if len(running) > 3 * len(workers):
                    job, found = running.popleft()
                    yield job, found.result()
            while running:
                job, found = running.popleft()
                yield job, found.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # what they are at is of no use any more, and leaving waits for it
                worker.kill()
            raise
