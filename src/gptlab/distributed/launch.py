"""How the processes of a run are started, find each other, and end together."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer

from gptlab.distributed.internals import replace_launcher, subprocess_launcher
from gptlab.distributed.signals import SIGNALS, STARTER, Failure
from gptlab.errors import UserError

WATCH_SECONDS = 1  # between two looks at the other processes
GRACE_SECONDS = 30  # in which a rank notices by itself that another one died
END_SECONDS = 10  # in which the others may end by themselves, once rank 0 has failed
ORDERLY = (0, *(128 + signum for signum in SIGNALS))  # exit codes


@dataclass(frozen=True, slots=True)
class Launched:
    """What torchrun or SLURM started, according to their environment variables."""

    by: str
    n_nodes: int
    per_node: int
    world_size: int
    variables: str
    template: str  # the launcher's command, with {n_nodes} and {per_node}


def find_launched() -> Launched | None:
    """What started this process; None where no launcher did. UserError for a launch that cannot work."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return Launched(
            "torchrun",
            int(env["GROUP_WORLD_SIZE"]),
            int(env["LOCAL_WORLD_SIZE"]),
            int(env["WORLD_SIZE"]),
            "GROUP_WORLD_SIZE x LOCAL_WORLD_SIZE",
            "torchrun --nnodes={n_nodes} --nproc-per-node={per_node}",
        )
    # In a shell within an allocation Lightning starts the processes itself, unless srun has been used there.
    in_shell = env.get("SLURM_JOB_NAME") in ("bash", "interactive") and env.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    if "SLURM_NTASKS" not in env or in_shell:
        return None
    n_tasks, n_nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", 1))
    if n_tasks > 1 and "SLURM_STEP_NUM_TASKS" not in env:
        raise UserError(
            f"SLURM_NTASKS={n_tasks} and srun did not start this process; start it with srun: srun python train.py ..."
        )
    if n_tasks > 1 and "SLURM_NTASKS_PER_NODE" not in env:
        raise UserError(
            f"SLURM_NTASKS={n_tasks} is a total; use srun --nodes={n_nodes} "
            f"--ntasks-per-node={-(-n_tasks // n_nodes)} instead of --ntasks"
        )
    return Launched(
        "SLURM",
        n_nodes,
        int(env.get("SLURM_NTASKS_PER_NODE", 1)),
        n_tasks,
        "SLURM_NNODES x SLURM_NTASKS_PER_NODE",
        "srun --nodes={n_nodes} --ntasks-per-node={per_node}",
    )


def check_launch(launched: Launched | None, *, per_node: int, n_nodes: int) -> None:
    """Refuse a number of processes that was not started, and a rendezvous address that cannot be used."""
    env = os.environ
    _refuse_leftovers(launched, per_node=per_node, n_nodes=n_nodes)
    asked = f"trainer.devices={per_node} x trainer.num_nodes={n_nodes} is {per_node * n_nodes} processes"
    if launched is not None:
        there = launched.n_nodes * launched.per_node
        if there != launched.world_size:
            raise UserError(
                f"{launched.by} started {launched.world_size} processes on {launched.n_nodes} nodes, unevenly; "
                f"start {launched.template.format(n_nodes=launched.n_nodes, per_node=per_node)}"
            )
        if (launched.n_nodes, launched.per_node) != (n_nodes, per_node):
            raise UserError(
                f"{asked}, and {launched.by} started {launched.n_nodes} x {launched.per_node} ({launched.variables}); "
                f"use trainer.devices={launched.per_node} trainer.num_nodes={launched.n_nodes}, "
                f"or start {launched.template.format(n_nodes=n_nodes, per_node=per_node)}"
            )
    elif n_nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= set(env):
        raise UserError(
            f"trainer.num_nodes={n_nodes}, and no process was started on the other nodes; use torchrun or srun "
            "(docs/multi-node.md)"
        )
    elif env.get("WORLD_SIZE", str(per_node * n_nodes)) != str(per_node * n_nodes):
        raise UserError(
            f"{asked}, and the environment has WORLD_SIZE={env['WORLD_SIZE']}; "
            "unset WORLD_SIZE, or start the processes with torchrun"
        )
    if per_node * n_nodes > 1 and (launched is None or launched.by != "torchrun"):
        _check_rendezvous(launched)


def _refuse_leftovers(launched: Launched | None, *, per_node: int, n_nodes: int) -> None:
    """Refuse ranks of a launcher that did not start this process: no process, or each, would be rank 0."""
    env = os.environ
    limits = {} if launched is not None and launched.by == "torchrun" else {"RANK": 0, "NODE_RANK": n_nodes}
    if STARTER not in env:
        limits["LOCAL_RANK"] = per_node
    for name, limit in limits.items():
        rank = env.get(name)
        # A script may repeat what the launcher says, or that there is one process.
        agrees = rank == (env.get("SLURM_PROCID") if launched is not None else "0" if per_node * n_nodes == 1 else None)
        if rank is None or (rank.isdecimal() and int(rank) < limit) or (name == "RANK" and agrees):
            continue
        raise UserError(
            f"the environment has {name}={rank}, as of a launcher, and none started this process as that rank of "
            f"trainer.devices={per_node} x trainer.num_nodes={n_nodes}; unset {name}, or start the processes with "
            "torchrun or srun"
        )


def _check_rendezvous(launched: Launched | None) -> None:
    if torch.distributed.is_initialized():  # by an earlier training of this process, whose ranks are still connected
        return
    # PyTorch retries an unreachable address until strategy.timeout_seconds are over.
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if launched is not None:  # by SLURM; what is not set is Lightning's choice
        address = address or SLURMEnvironment.resolve_root_node_address(os.environ.get("SLURM_NODELIST", "127.0.0.1"))
        port = port or str(15000 + int(os.environ.get("SLURM_JOB_ID", "0")[-4:]))
    try:
        if address is not None:
            socket.getaddrinfo(address, None)
    except OSError as error:
        raise UserError(
            f"the address {address}, at which the processes of this run connect, is not known here ({error.strerror}); "
            "set MASTER_ADDR to the first node's name or address"
        ) from None
    if port is None or not is_rank_0():
        return
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"MASTER_PORT={port} is not a port; use a number from 1024 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise UserError(
                f"port {port}, at which the processes of this run connect, cannot be used ({error.strerror}); "
                "set MASTER_PORT to a free one"
            ) from None


def check_program(*, per_node: int) -> None:
    """Refuse to start a program once more for each device that is not a file, such as a notebook."""
    program = getattr(sys.modules["__main__"], "__file__", None) or ""
    if per_node > 1 and find_launched() is None and not os.path.isfile(program):
        raise UserError(
            f"trainer.devices={per_node} starts this program once more for each device, and it is not a file; save it "
            "as a .py file, or use trainer.devices=1"
        )


def is_rank_0() -> bool:
    """Whether this process is rank 0, which writes and prints, according to the launchers' variables."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return env["RANK"] == "0"
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # srun started them all
        return env.get("SLURM_PROCID", "0") == "0"
    # Of processes that Lightning starts, and else of srun's only task.
    name = "LOCAL_RANK" if "LOCAL_RANK" in env else "SLURM_PROCID"
    return env.get(name, "0") == env.get("NODE_RANK", "0") == "0"


def restarted() -> bool:
    """Whether torchrun or SLURM started this process again, by itself and with the same command."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(count.isdecimal() and int(count) > 0 for count in counts)


SubprocessLauncher: Any = subprocess_launcher()


class Ranks(SubprocessLauncher):
    """The other processes of this machine, where gptlab starts them itself.

    Lightning's own observer is left out: five seconds after one process has ended it kills rank 0 without a message,
    and rank 0 may still be saving. `record` is called with the cause, and `remedy` says how the run goes on.
    """

    def __init__(self, launcher: Any, record: Callable[[str], None], remedy: Callable[[], str]):
        super().__init__(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
        self.record, self.remedy = record, remedy
        self._ended = False

    def launch(self, function, *args, trainer=None, **kwargs):
        if not self.cluster_environment.creates_processes_externally:
            os.environ[STARTER] = str(os.getpid())
            try:
                self._call_children_scripts()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise Failure("this machine has no free port; end what holds them, or set MASTER_PORT") from error
            threading.Thread(target=self._watch, daemon=True).start()
        return super().launch(function, *args, trainer=trainer, **kwargs)  # starts no process now

    def failed(self) -> str | None:
        """Which process was killed or failed, as a text; None where none did."""
        for i, process in enumerate(self.procs, 1):
            code = process.poll()
            if code is None or code in ORDERLY:
                continue
            rank = f"rank {self.cluster_environment.node_rank() * self.num_processes + i} (process {process.pid})"
            return (
                f"{rank} was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"{rank} failed with its own error"
            )
        return None

    def end(self) -> str | None:
        """Give the others a moment to end, kill those that are left, and return what `failed` says."""
        self._ended = True
        deadline = time.monotonic() + END_SECONDS
        for process in self.procs:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
        failed = self.failed()
        for process in self.procs:
            process.kill()
        return failed

    def _watch(self) -> None:
        # A GPU's collectives wait for a dead rank until they time out.
        while (failed := self.failed()) is None:
            time.sleep(WATCH_SECONDS)
        time.sleep(GRACE_SECONDS)
        if self._ended:
            return
        message = f"{failed}, and the others wait for it; {self.remedy()}"
        with suppress(OSError):
            self.record(message)
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.end()
        os._exit(1)


def watch(trainer: Trainer, record: Callable[[str], None], remedy: Callable[[], str]) -> None:
    """Let the processes of this machine end together, as `Ranks` does."""
    launcher: Any = trainer.strategy.launcher
    ours = isinstance(launcher, SubprocessLauncher)
    if ours and not launcher.cluster_environment.creates_processes_externally:
        replace_launcher(trainer, Ranks(launcher, record, remedy))


def end_together(
    trainer: Trainer, error: Exception, *, step: int, timeout_seconds: int, remedy: Callable[[], str]
) -> Exception:
    """End what is left of the other ranks after `error`; returns the error that names the cause and the remedy."""
    launcher = trainer.strategy.launcher
    failed = launcher.end() if isinstance(launcher, Ranks) else None
    text = str(error)
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in text:
        return error
    if "timed out" in text.lower() or "timeout" in text.lower():
        what = (
            f"rank {trainer.global_rank} waited strategy.timeout_seconds={timeout_seconds} for the other ranks at step "
            f"{step}: one of them hangs, is much slower, or was never started"
        )
    else:
        failed = failed or "one of them ended, and its own output says why, unless it was killed"
        what = f"rank {trainer.global_rank} lost the other ranks at step {step}: {failed}"
    return Failure(f"{what}; {remedy()}")
