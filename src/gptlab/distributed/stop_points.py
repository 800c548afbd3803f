"""Points inside a step, or between two evaluation batches, at which all ranks stop together."""

from itertools import count

from torch.distributed import Store


class StopPoints:
    """Lets all ranks stop at the same point, though a signal may have reached only one of them.

    The rank that comes to a point first decides about it, by an atomic write to the store through which the ranks found
    each other, and the others follow. No device takes part, and no rank waits for another. `store` has nothing in it
    yet; None for a run of one process.
    """

    def __init__(self, store: Store | None, *, rank: int = 0):
        self._store = store
        self._rank = rank
        self._decided: dict[str, int] = {}  # how many points, by the name of their sequence

    def decide(self, sequence: str, point: int, n_points: int | None, wanted: int) -> int:
        """The signal that all ranks stop for at `point` of a sequence of `n_points` (None: not known); 0: they go on.

        `wanted` is the signal that this rank has received, 0 for none. Where the others go on, they stop at the first
        later point of the sequence that none has come to, if there is one.
        """
        if self._store is None:
            return wanted
        self._decided[sequence] = n_points or point + 1
        decision = self._settle(sequence, point, wanted)
        if wanted and not decision:
            rest = count(point + 1) if n_points is None else range(point + 1, n_points)
            # Another rank may be many points ahead, but it has come to none that does not exist.
            any(self._settle(sequence, later, wanted) for later in rest)
        return decision

    def all_passed(self) -> None:
        """Forget the points so far: every rank is known to have passed them."""
        if self._store is not None and self._rank == 0:
            for sequence, n_points in self._decided.items():
                for point in range(n_points):
                    self._store.delete_key(f"{sequence}/{point}")
        self._decided.clear()

    def _settle(self, sequence: str, point: int, wanted: int) -> int:
        assert self._store is not None
        return int(self._store.compare_set(f"{sequence}/{point}", "", str(wanted)))
