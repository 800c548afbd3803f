"""The process that forks trials: when it is killed, the sweep goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gptlab.lab import trial_process, trials
from gptlab.lab.trial_process import Starter, StarterDied
from gptlab.lab.trials import State, Trial, run_trials

# A server that imports nothing: it forks for each line, as the real one does, until its input is closed.
SERVER = """
import os, signal, sys, time
print("ready", flush=True)
while sys.stdin.readline():
    if os.environ.get("DIES") == "before":
        sys.exit(1)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        time.sleep(float(os.environ["SECONDS"]))
        os._exit(7)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def servers(monkeypatch):
    """Those that were started; what is not the server is a process that ends with code 5."""
    found = []

    def python(arguments, **files):
        code = SERVER if arguments == [trial_process.SERVE] else "raise SystemExit(5)"
        found.append(subprocess.Popen([sys.executable, "-SEc", code], stdin=subprocess.PIPE, **files))
        return found[-1]

    monkeypatch.setattr(trial_process, "_python", python)
    yield found
    for process in found:
        process.stdin.close()


def ended(process):
    while process.poll() is None:
        time.sleep(0.01)
    return process.returncode


def test_a_server_that_was_killed_between_two_trials_is_replaced(servers, tmp_path, monkeypatch):
    monkeypatch.setenv("SECONDS", "0")
    with Starter(lambda: 0) as starter:
        for _ in range(2):
            assert ended(starter.start(tmp_path, tmp_path / "log", [])) == 7
        servers[0].kill()
        os.waitid(os.P_PID, servers[0].pid, os.WEXITED | os.WNOWAIT)
        assert ended(starter.start(tmp_path, tmp_path / "log", [])) == 7
    assert len(servers) == 2 and all(server.returncode is not None for server in servers)


def test_where_no_server_lives_a_trial_is_a_python_of_its_own(servers, tmp_path, monkeypatch):
    monkeypatch.setenv("DIES", "before")
    with Starter(lambda: 0) as starter:
        assert ended(starter.start(tmp_path, tmp_path / "log", [])) == 5
    assert len(servers) == 3


@pytest.mark.slow
def test_a_trial_whose_server_is_killed_is_stopped_before_it_is_given_up(servers, tmp_path, monkeypatch):
    monkeypatch.setenv("SECONDS", "60")
    with Starter(lambda: 0) as starter:
        process = starter.start(tmp_path, tmp_path / "log", [])
        assert process.poll() is None
        servers[0].kill()
        with pytest.raises(StarterDied):
            while True:
                try:
                    process.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
        assert not trial_process._is_alive(process._pid)


class Trials:
    """Two trials, as a sweep's source."""

    def __init__(self, folder):
        self.all = [Trial(number=n, label=f"seed={n}", values={}, folder=folder / str(n), config={}) for n in range(2)]
        self.left = list(self.all)

    def take(self):
        trial = self.left.pop(0) if self.left else None
        if trial is not None:
            trial.hold()
        return trial

    def report(self, trial):
        return False

    def settle(self, trial):
        pass


@pytest.mark.parametrize("deaths, state, code", [(1, State.finished, 0), (2, State.failed, 1)])
def test_the_sweep_goes_on_when_the_process_that_starts_trials_dies(tmp_path, monkeypatch, deaths, state, code):
    starts = []

    class Fails:
        """In place of a starter: its first trials lose the process that forked them."""

        returncode = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def start(self, folder, log, plugins):
            starts.append(folder.name)
            return self

        def poll(self):
            if len(starts) <= deaths:
                raise StarterDied
            (tmp_path / starts[-1] / "summary.json").write_text('{"finished": true}')
            return 0

        def send_signal(self, sig):
            raise AssertionError(signal.Signals(sig))

    monkeypatch.setattr(trials, "Starter", lambda stopping: Fails())
    source, said = Trials(tmp_path), []
    assert run_trials(source, say=said.append) == code
    assert starts == ["0", "0", "1"]
    assert [trial.state for trial in source.all] == [state, State.finished]
    assert any("the process that starts trials was killed" in line for line in said)
    if state is State.failed:
        assert source.all[0].reason == "killed twice, with the process that had started it"
