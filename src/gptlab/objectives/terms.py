"""What an objective hands to the trainer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class LossTerms:
    """Sums over targets: divide by the number of targets of the whole optimiser step, once."""

    total: Tensor  # what to differentiate
    terms: dict[str, Tensor]  # what to log, detached; "loss" is always there
    n_targets: int
