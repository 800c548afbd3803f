"""torchrun, SLURM's variables and gptlab's own launcher: the same run, and one clear end when a process dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_runs import ROOT, learned, overrides_of, step_rows, train, write_text
from warm_python import warm_python

from gptlab.distributed.devices import find_devices
from gptlab.distributed.launch import check_program, find_launched, is_rank_0
from gptlab.errors import UserError
from gptlab.training.config import TrainerConfig

TWO = ["trainer.devices=2", "strategy=ddp"]

# Ends rank 1 in its nth training step, the first time that it comes there.
KILLER = """
import os, signal, sys, time
from pathlib import Path

if __name__ == "__main__":
    from gptlab.cli.train import main
    from gptlab.distributed import launch
    from gptlab.training.module import LanguageModule

    launch.GRACE_SECONDS = 1
    step, how, done = LanguageModule.training_step, os.environ["HOW"], Path("killed")

    def training_step(self, *arguments):
        first = self.finished_steps == 6 and not done.exists()
        if first and self.trainer.global_rank == 1:
            time.sleep(0.5)  # the first rank has read that nothing is done
            done.touch()
            if how == "disk":
                raise OSError(28, "No space left on device", "/full")
            os.kill(os.getpid(), signal.SIGKILL)
        if first and how == "deaf":  # as a GPU's collectives are to a dead rank
            time.sleep(60)
        return step(self, *arguments)

    LanguageModule.training_step = training_step
    sys.exit(main(sys.argv[1:], sys.argv[:1]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers")
    write_text(folder / "text.txt")
    (folder / "killer.py").write_text(KILLER)
    return folder


@pytest.fixture(scope="module")
def overrides(place):
    return overrides_of(place / "text.txt", micro_batch_size=2, **{"callbacks.checkpoint.every_steps": 5})


@pytest.fixture(scope="module")
def straight(place, overrides):
    # Here rank 1 is a new Python, as users have it; elsewhere it is a fork.
    done = train([*overrides, *TWO, "run_dir=straight"], place, GPTLAB_COLD_TESTS="1")
    assert done.returncode == 0, done.stderr
    return learned(place / "straight")


@pytest.fixture(autouse=True)
def killed_once(place):
    (place / "killed").unlink(missing_ok=True)


def torchrun(place, *arguments, **environment):
    return subprocess.Popen(
        [warm_python(), "-m", "torch.distributed.run", *map(str, arguments)],
        cwd=place,
        # Without the second, ranks that are started again may read where those before them listened.
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_agents_of_two_processes_equal_one(place, overrides):
    meet = ["--nnodes=2", "--nproc-per-node=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    # Neither the devices nor the nodes are said: torchrun's variables tell them.
    agents = [
        torchrun(place, *meet, "--local-addr=127.0.0.1", ROOT / "train.py", *overrides, "run_dir=four")
        for _ in range(2)
    ]
    said = [agent.communicate(timeout=240) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sum(out.count("val/loss") for out, _ in said) == 1, "one process speaks"
    assert train([*overrides, "run_dir=one"], place).returncode == 0
    rows, expected = (step_rows(place / name / "metrics.csv") for name in ("four", "one"))
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, 11))
    for got, want in zip(rows, expected, strict=True):
        for name in ("train/loss", "train/grad_norm", "val/loss"):
            if name in want:
                assert got[name] == pytest.approx(want[name], rel=1e-5, abs=1e-5), (name, got["step"])


@pytest.mark.slow
def test_torchrun_starts_a_killed_rank_again_and_no_bit_changes(place, overrides, straight):
    agent = torchrun(
        place,
        *("--standalone", "--nproc-per-node=2", "--max-restarts=1"),
        *(place / "killer.py", *overrides, "strategy=ddp", "run_dir=restarted"),
        HOW="kill",
    )
    _, err = agent.communicate(timeout=240)
    assert agent.returncode == 0, err
    assert learned(place / "restarted") == straight
    events = [json.loads(line) for line in (place / "restarted" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "continued"] == [5]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "rank 0 lost the other ranks at step 6: rank 1 (process "),
        pytest.param("deaf", "was killed by SIGKILL, and the others wait for it", marks=pytest.mark.slow),
        pytest.param("disk", "rank 1: error: No space left on device: /full", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_ends_the_run_soon_and_says_why(place, overrides, straight, how, said):
    began = time.monotonic()
    done = train([*overrides, *TWO, f"run_dir={how}"], place, program=place / "killer.py", HOW=how)
    assert done.returncode == 1 and said in done.stderr, done.stderr
    if how != "disk":
        saved = f"the run is saved at step 5, in {how}/checkpoints/step_00000005.ckpt; the same command goes on:\n  "
        assert saved in done.stderr and "--standalone" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("error: ") <= 2, done.stderr
    assert time.monotonic() - began < 180, "and not after strategy.timeout_seconds"
    events = [json.loads(line) for line in (place / how / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "failed" and "rank 1" in events[-1]["error"]
    again = train([*overrides, *TWO, f"run_dir={how}"], place)
    assert again.returncode == 0 and "continued from step 5" in again.stdout, again.stderr
    assert learned(place / how) == straight


def test_sigusr1_saves_all_ranks_and_stops(place, overrides):
    overrides = [*overrides, "budget_steps=100000", *TWO, "run_dir=usr1"]
    process = subprocess.Popen(
        [warm_python(), str(ROOT / "train.py"), *overrides], cwd=place, stderr=subprocess.PIPE, text=True
    )
    metrics = place / "usr1" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGUSR1)  # a launcher's echo of it does not stop the run at once
    _, err = process.communicate(timeout=60)
    assert process.returncode == 138 and "stopped by SIGUSR1, saved at step" in err, err
    last = [json.loads(line) for line in (place / "usr1" / "events.jsonl").read_text().splitlines()][-1]
    assert last["event"] == "stopped" and last["signal"] == "SIGUSR1"


def test_a_job_of_slurm_is_requeued_by_its_first_rank(monkeypatch, tmp_path):
    from gptlab.distributed.signals import requeue

    assert requeue() == "" or "SLURM_JOB_ID" in os.environ
    before = signal.getsignal(signal.SIGTERM)
    scontrol = tmp_path / "scontrol"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    try:
        assert "job 71 is not requeued: scontrol: No such file" in requeue()
        scontrol.write_text('#!/bin/sh\necho "$@" > ' + str(tmp_path / "asked"))
        scontrol.chmod(0o755)
        assert requeue() == "; job 71 is requeued" and (tmp_path / "asked").read_text() == "requeue 71\n"
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
        assert requeue() == "; job 70_1 is requeued"
        scontrol.write_text("#!/bin/sh\necho Requested operation is presently disabled >&2; exit 1")
        assert requeue() == "; job 70_1 is not requeued: Requested operation is presently disabled"
    finally:
        signal.signal(signal.SIGTERM, before)


RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "GPTLAB_STARTER")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": 0, "LOCAL_RANK": 0}
SRUN = {"SLURM_JOB_ID": 1, "SLURM_PROCID": 0, "SLURM_JOB_NAME": "run", "SLURM_NODELIST": "127.0.0.1"}


def given(monkeypatch, environment):
    for name in [n for n in os.environ if n.startswith(("SLURM_", "MASTER_", "TORCHELASTIC", *RANKS))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("environment", "trainer", "refusal"),
    [
        (
            {**TORCHRUN, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2},
            {"devices": 4},
            "torchrun started 2 x 2 (GROUP_WORLD_SIZE x LOCAL_WORLD_SIZE); use trainer.devices=2 trainer.num_nodes=2, "
            "or start torchrun --nnodes=1 --nproc-per-node=4",
        ),
        (
            {**TORCHRUN, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2},
            {"num_nodes": 2},
            "torchrun started 3 processes on 2 nodes, unevenly; start torchrun --nnodes=2 --nproc-per-node=2",
        ),
        (
            {**SRUN, "SLURM_NTASKS": 4, "SLURM_NNODES": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_STEP_NUM_TASKS": 4},
            {"devices": 2},
            "SLURM started 2 x 2 (SLURM_NNODES x SLURM_NTASKS_PER_NODE); use trainer.devices=2 trainer.num_nodes=2",
        ),
        (
            {**SRUN, "SLURM_NTASKS": 4, "SLURM_NNODES": 2, "SLURM_NTASKS_PER_NODE": 2},
            {},
            "start it with srun: srun",
        ),
        (
            {**SRUN, "SLURM_NTASKS": 4, "SLURM_NNODES": 2, "SLURM_STEP_NUM_TASKS": 4},
            {"num_nodes": 2},
            "use srun --nodes=2 --ntasks-per-node=2 instead of --ntasks",
        ),
        ({**SRUN, "SLURM_NTASKS": 1}, {"devices": 2}, "SLURM started 1 x 1"),
        ({"WORLD_SIZE": 4}, {"devices": 2}, "the environment has WORLD_SIZE=4; unset WORLD_SIZE"),
        ({}, {"devices": 2, "num_nodes": 2}, "no process was started on the other nodes; use torchrun or srun"),
        ({"RANK": 1}, {}, "the environment has RANK=1, as of a launcher, and none started this process"),
        ({"RANK": 0}, {"devices": 2}, "unset RANK, or start the processes with torchrun or srun"),
        ({"NODE_RANK": 1}, {}, "the environment has NODE_RANK=1"),
        ({"LOCAL_RANK": 1}, {}, "the environment has LOCAL_RANK=1"),
        ({"NODE_RANK": "one"}, {}, "the environment has NODE_RANK=one"),
        ({**SRUN, "SLURM_NTASKS": 1, "RANK": 1}, {}, "the environment has RANK=1"),
        ({"MASTER_PORT": "abc"}, {"devices": 2}, "MASTER_PORT=abc is not a port"),
        ({"MASTER_ADDR": "no.such.host.invalid"}, {"devices": 2}, "is not known here"),
    ],
)
def test_what_the_launcher_did_not_start_is_refused(monkeypatch, environment, trainer, refusal):
    given(monkeypatch, environment)
    with pytest.raises(ValueError) as refused:
        find_devices(TrainerConfig(accelerator="cpu", **trainer))
    assert refusal in str(refused.value)


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_srun_in_a_shell_of_an_allocation_is_a_launcher(monkeypatch, name):
    shell = {**SRUN, "SLURM_JOB_NAME": name, "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_NNODES": 1}
    given(monkeypatch, shell)
    assert find_launched() is None, "Lightning starts the processes"
    given(monkeypatch, {**shell, "SLURM_STEP_NUM_TASKS": 2, "SLURM_PROCID": 1, "SLURM_LOCALID": 1})
    assert find_launched().world_size == 2 and not is_rank_0()


def test_a_rank_that_agrees_with_the_launcher_is_no_leftover(monkeypatch):
    given(monkeypatch, {"RANK": 0, "WORLD_SIZE": 1})
    assert find_devices(TrainerConfig(accelerator="cpu")).world_size == 1
    tasks = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": 2, "SLURM_STEP_NUM_TASKS": 2}
    given(monkeypatch, {**SRUN, **tasks, "SLURM_PROCID": 1, "RANK": 1, "LOCAL_RANK": 0})
    assert find_devices(TrainerConfig(accelerator="cpu", num_nodes=2)).world_size == 2 and not is_rank_0()


def test_rank_0_is_who_the_launcher_says(monkeypatch):
    given(monkeypatch, {**TORCHRUN, "NODE_RANK": 1})  # torchrun's rendezvous may give the nodes another order
    assert is_rank_0()
    given(monkeypatch, {"LOCAL_RANK": 0, "NODE_RANK": 1})
    assert not is_rank_0()


def test_a_program_that_is_not_a_file_starts_no_other_ranks(monkeypatch):
    given(monkeypatch, {})
    check_program(per_node=1)
    for name in (None, "<stdin>"):
        monkeypatch.setattr(sys.modules["__main__"], "__file__", name, raising=False)
        with pytest.raises(UserError, match=r"trainer\.devices=2 .* not a file; save it as a \.py file"):
            check_program(per_node=2)
    given(monkeypatch, {**TORCHRUN, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 1})
    check_program(per_node=2)


def test_devices_follow_the_launcher(monkeypatch):
    given(monkeypatch, {**TORCHRUN, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2})
    devices = find_devices(TrainerConfig(accelerator="cpu", num_nodes=2))
    assert (devices.per_node, devices.world_size) == (2, 4)


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        given(monkeypatch, {"MASTER_PORT": port})
        with pytest.raises(ValueError, match=rf"port {port}, .* \(Address already in use\); set MASTER_PORT"):
            find_devices(TrainerConfig(accelerator="cpu", devices=2))
