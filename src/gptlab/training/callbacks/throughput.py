"""Tokens per second, memory and MFU."""

import time

import torch

from gptlab.distributed.devices import memory_gib, wait_for
from gptlab.steps import Steps

METER_SECONDS = 0.5  # over which tokens per second are averaged, at least
SLOW_SECONDS = 1  # more than that is long to wait for


class Throughput:
    """Measures over steps that follow each other, without what happens between them."""

    def __init__(self, *, steps: Steps, flops_per_token: float, peak_flops: float | None):
        self.steps = steps
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops  # per second, of all devices; None: not known
        self.newest: dict[str, float] = {}  # by metric
        self._since, self._since_step = time.perf_counter(), 0

    @property
    def columns(self) -> list[str]:
        """The metrics that it measures."""
        return ["perf/tokens_per_second", "perf/memory_gib", *(["perf/mfu"] if self.peak_flops is not None else [])]

    def is_slow(self, n_steps: int) -> bool:
        """Whether so many steps are known to take long."""
        rate = self.newest.get("perf/tokens_per_second")
        return rate is not None and n_steps * self.steps.tokens(self._since_step) > SLOW_SECONDS * rate

    def restart(self, step: int) -> None:
        """Measure from here: the time before does not count."""
        self._since, self._since_step = time.perf_counter(), step

    def measure(self, step: int, device: torch.device) -> bool:
        """Take a new measurement if the newest is old enough; returns whether it was.

        Called where a GPU's numbers are read, so that it is waited for anyway: steps that are only queued do not count.
        """
        wait_for(device)
        now = time.perf_counter()
        if now - self._since < METER_SECONDS or step == self._since_step:
            return False
        tokens = self.steps.tokens_before(step) - self.steps.tokens_before(self._since_step)
        rate = tokens / (now - self._since)
        self.newest = {"perf/tokens_per_second": round(rate, 1), "perf/memory_gib": round(memory_gib(device), 3)}
        if self.peak_flops is not None:
            self.newest["perf/mfu"] = round(rate * self.flops_per_token / self.peak_flops, 4)
        self.restart(step)
        return True
