"""What an objective hands to the trainer."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(slots=True)
class LossTerms:
    """Sums over targets: divide by the number of targets of the whole optimiser step, once."""

    total: Tensor  # what to differentiate
    terms: dict[str, Tensor]  # what to log, detached; "loss" is always there
    n_targets: int


def with_auxiliary(terms: LossTerms, model: nn.Module) -> LossTerms:
    """An objective's terms, and what its model adds to them in training: a mean per token, which each target bears."""
    auxiliary, n = model.auxiliary, terms.n_targets
    if auxiliary is None:
        return terms
    named = terms.terms | {name: value * n for name, value in auxiliary.terms.items()}
    return LossTerms(total=terms.total + auxiliary.loss * n, terms=named, n_targets=n)
