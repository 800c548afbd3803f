"""Rates on a clock that the test moves."""

from types import SimpleNamespace

import pytest
import torch

from gptlab.distributed import devices
from gptlab.steps import Steps
from gptlab.training.callbacks import throughput
from gptlab.training.callbacks.throughput import Throughput


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    return clock


def test_steps_that_a_gpu_has_yet_to_finish_are_waited_for(clock, monkeypatch):
    """The host gives a GPU ten steps in a second, and the GPU takes nine more to finish them."""

    def finish(device):
        assert device.type == "cuda"
        clock.now += 9

    monkeypatch.setattr(devices.torch.cuda, "synchronize", finish)
    monkeypatch.setattr(throughput, "memory_gib", lambda device: 1.0)
    meter = Throughput(steps=Steps.of(100, 100), flops_per_token=2.0, peak_flops=1000.0)
    meter.restart(0)
    clock.now += 1
    assert meter.measure(10, torch.device("cuda"))
    assert meter.newest == {"perf/tokens_per_second": 100.0, "perf/memory_gib": 1.0, "perf/mfu": 0.2}


def test_a_short_time_is_not_measured(clock):
    meter = Throughput(steps=Steps.of(100, 100), flops_per_token=2.0, peak_flops=None)
    meter.restart(0)
    clock.now += 0.4
    assert not meter.measure(1, torch.device("cpu")) and meter.newest == {}
    clock.now += 0.6
    assert meter.measure(2, torch.device("cpu")) and meter.newest["perf/tokens_per_second"] == 200.0
