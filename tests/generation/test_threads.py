"""How long threads spin."""

import pytest

from gptlab.generation import threads
from gptlab.generation.threads import SPIN_COUNT, brief_spin


@pytest.mark.parametrize(
    "environment, added",
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPIN_COUNT)}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),  # a count would be obeyed, and not the policy
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {}),
    ],
)
def test_what_is_set_stays(monkeypatch, environment, added):
    assert brief_spin(environment) == added
    monkeypatch.setattr(threads.os, "environ", dict(environment))
    threads.spin_briefly()
    assert threads.os.environ == environment | added
