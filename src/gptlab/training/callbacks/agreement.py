"""Decisions that all ranks take after the same step, though one rank alone may ask for them."""

from collections.abc import Callable, Sequence

SLOW_STEPS = "slow steps"  # the request not to wait for the end of a step


class Agreement:
    """What ranks request, and which of the requests some rank made: these are agreed.

    The flags travel with the numbers of a step, in one collective. Every rank adds the same requests in the same order.
    """

    def __init__(self):
        self.requests: dict[str, Callable[[], bool]] = {}  # whether this rank asks for it
        self.agreed: set[str] = set()
        self.settled = False  # whether ranks have agreed at all yet
        self.afterwards: list[Callable[[], None]] = []  # called when they have, and so have all finished the same steps

    def flags(self) -> list[float]:
        """This rank's requests: 1 where it asks, else 0."""
        return [float(request()) for request in self.requests.values()]

    def settle(self, means: Sequence[float]) -> None:
        """Agree on what any rank asked for; `means` are those of all ranks' flags."""
        self.settled = True
        self.agreed = {name for name, mean in zip(self.requests, means, strict=True) if mean > 0}
        for call in self.afterwards:
            call()

    def take(self, name: str) -> bool:
        """Whether it is agreed; from then on it counts as done."""
        agreed = name in self.agreed
        self.agreed.discard(name)
        return agreed
