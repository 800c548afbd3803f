"""How long the threads of a CPU spin before they sleep."""

import os
from collections.abc import Mapping

SPIN_COUNT = 2000  # about as long as a thread takes to wake up; GNU's runtime counts it, which torch has on Linux


def spin_briefly() -> None:
    """Let threads sleep soon after a product; call it before torch is imported, which reads the environment once.

    A thread that spins for long keeps other programs from its core, and they it; one that sleeps at once takes longer
    to wake up than a small product takes.
    """
    os.environ.update(brief_spin(os.environ))


def brief_spin(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to an environment; none where it sets a policy."""
    if "OMP_WAIT_POLICY" in environment:
        return {}
    added = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPIN_COUNT)}
    return {name: value for name, value in added.items() if name not in environment}
