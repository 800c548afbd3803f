"""A Python that has imported torch and Lightning already, for tests that start the real commands.

Importing them takes eight seconds, a fork of a process that has done so some milliseconds. `warm_python()` gives the
path of a program that takes Python's arguments: it hands them, with its files, environment and folder, to a server
that forks, passes signals on to the fork, and ends as the fork ends. In the fork it is `sys.executable`: other ranks
and trials are forks as well. GPTLAB_COLD_TESTS=1 turns all this off, in a fork's environment for what that starts.
"""

import array
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

# What runs and sweeps import, some of it on their way.
IMPORTED = (
    *("gptlab.cli.train", "gptlab.training.loop", "gptlab.lab.trials", "gptlab.lab.report"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "rich.progress"),
)
_servers: list[subprocess.Popen] = []
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@cache
def warm_python() -> str:
    """The program; its server lives as long as this process."""
    if os.environ.get("GPTLAB_COLD_TESTS"):
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    program, address = folder / "python", folder / "socket"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SEs "{__file__}" ask "{address}" "$@"\n')
    program.chmod(0o755)
    # The pipe is closed when this process ends, however it does: then the server ends too.
    command = [sys.executable, __file__, "serve", str(address)]
    _servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
    return str(program)


def ask(address: str, arguments: list[str]) -> None:
    """Let the server carry out `python ARGUMENTS` and end as that ends."""
    with socket.socket(socket.AF_UNIX) as server:
        for _ in range(6000):  # two minutes, in which it imports everything
            if server.connect_ex(address) == 0:
                break
            signal.sigtimedwait([], 0.02)
        else:
            sys.exit("the server of warm_python() did not start; its error is above")
        if "GPTLAB_STARTER" in os.environ:  # a rank ends with rank 0, and is the server's child
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        job = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd(), "parent": os.getppid()}
        # As the server may have been started otherwise, under nohup for one.
        job["hangups"] = int(signal.getsignal(signal.SIGHUP))
        files = array.array("i", [0, 1, 2])
        text = json.dumps(job).encode()
        server.sendmsg([len(text).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        server.sendall(text)
        for signum in PASSED_ON:
            signal.signal(signum, lambda signum, _: server.sendall(bytes([signum])))
        status = server.recv(4)  # interrupted by signals, it goes on
    if len(status) < 4:
        sys.exit("the server of warm_python() died")
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(address: str) -> dict | None:
    """Fork for each connection until standard input is closed; returns None then, and in a fork its job."""
    import gc
    import importlib
    import select

    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a fork's collector does not touch, and so copy, what is here

    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    running: dict[int, socket.socket] = {}  # by process
    while True:
        ready, _, _ = select.select([0, woken, listener, *running.values()], [], [])
        if 0 in ready:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(Path(address).parent, ignore_errors=True)
            return None
        if woken in ready:
            os.read(woken, 4096)
        for pid, client in list(running.items()):
            if client in ready:
                asked = client.recv(16)
                for signum in asked or [signal.SIGKILL]:  # a client that is gone was killed
                    with suppress(ProcessLookupError):
                        os.kill(pid, signum)
                if not asked:
                    os.waitpid(pid, 0)
                    running.pop(pid).close()
                    continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with suppress(BrokenPipeError):
                    client.sendall(status.to_bytes(4, "big"))
                running.pop(pid).close()
        if listener in ready:
            client, _ = listener.accept()
            header, ancillary, _, _ = client.recvmsg(8, socket.CMSG_SPACE(3 * 4))
            files = array.array("i", ancillary[0][2] if ancillary else b"")
            size, text = int.from_bytes(header, "big"), b""
            while len(text) < size and (part := client.recv(size - len(text))):
                text += part
            if not text or len(text) < size:  # a client that was killed meanwhile
                client.close()
                for file in files:
                    os.close(file)
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for target, file in enumerate(files):
                    os.dup2(file, target)
                for file in (*files, woken, wake):
                    os.close(file)
                for other in (listener, client, *running.values()):
                    other.close()
                return json.loads(text)
            running[pid] = client
            for file in files:
                os.close(file)


def carry_out(job: dict, program: Path) -> None:
    """What `python ARGUMENTS` does in that folder and environment; `program` starts others like it."""
    import runpy

    own, getppid = os.getpid(), os.getppid
    os.getppid = lambda: job["parent"] if os.getpid() == own else getppid()  # not the server, but who asked it
    signal.signal(signal.SIGHUP, signal.Handlers(job["hangups"]))
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    if not os.environ.get("GPTLAB_COLD_TESTS"):
        sys.executable = str(program)
    encoding = os.environ.get("PYTHONIOENCODING")
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first, *others = job["arguments"]
    while first.startswith(("-u", "-P", "-Xfrozen")):  # which change nothing but that lines are shown at once
        sys.stdout.reconfigure(line_buffering=True)
        first, *others = others
    if first == "-m":
        sys.argv = others
        sys.path.insert(0, job["folder"])
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *others[1:]]
        sys.path.insert(0, "")
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *others]
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(sys.argv[2], sys.argv[3:])
    sys.path.pop(0)  # this folder, which no other program sees
    todo = serve(sys.argv[2])
    if todo is not None:
        carry_out(todo, Path(sys.argv[2]).with_name("python"))
