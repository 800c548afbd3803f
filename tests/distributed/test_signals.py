"""A signal ends work that has nothing to save, and is answered as before afterwards."""

import signal
import threading

import pytest

from gptlab.distributed.signals import Stopped, requeue_before_the_first_step, stopping_at_once


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_block_past_other_peoples_handlers(signum):
    before = signal.getsignal(signum)
    cleaned = []
    said = f"stopped by {signum.name} while it was read"
    with pytest.raises(Stopped, match=said) as stopped, stopping_at_once("while it was read"):
        try:
            signal.raise_signal(signum)
        except Exception:
            pytest.fail("a library would take it for an error of its own")
        finally:
            cleaned.append(True)
    assert stopped.value.exit_code == 128 + signum and cleaned == [True]
    assert signal.getsignal(signum) is before


def test_a_scheduler_is_answered_as_before_the_block(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setattr("gptlab.distributed.signals.requeue", lambda: "; requeued")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        requeue_before_the_first_step()
        with pytest.raises(Stopped, match=r"SIGUSR1 before the first step.*requeued"), stopping_at_once("anywhere"):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_another_thread_nothing_changes():
    found = []

    def work():
        before = signal.getsignal(signal.SIGTERM)
        with stopping_at_once("x"):
            found.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
