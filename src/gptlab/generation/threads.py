"""How the threads of a CPU wait for their next product."""

import os

# A thread sleeps once it has waited about as long as it takes to wake up. GNU's runtime, which is that of torch on
# Linux, counts that in turns of a loop; for others it is to sleep at once.
BRIEF_WAITS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}


def wait_briefly() -> None:
    """Let threads sleep soon after a product; call it before torch is imported, which reads the environment once.

    A thread that waits for long without sleeping keeps other programs from its core, and they it; one that sleeps at
    once takes longer to wake up than a small product takes. A policy that the environment sets stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(BRIEF_WAITS | os.environ)
