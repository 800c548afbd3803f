"""How many hashes a band of a MinHash signature has, and what is found with it."""

FOUND = 0.99  # of documents as alike as asked for, at least so many are compared


def chance(jaccard: float, n_rows: int, n_bands: int) -> float:
    """The probability that two documents of this similarity share a band (Leskovec et al., section 3.4)."""
    return 1 - (1 - jaccard**n_rows) ** n_bands


def bands_for(jaccard: float, n_hashes: int) -> tuple[int, int] | None:
    """Rows of a band and bands: the longest rows with which `FOUND` is reached; None where no rows reach it.

    Longer rows let fewer pairs through that are less alike, and each of these has to be compared.
    """
    for n_rows in range(min(n_hashes, 32), 0, -1):
        for n_bands in range(1, n_hashes // n_rows + 1):
            if chance(jaccard, n_rows, n_bands) >= FOUND:
                return n_rows, n_bands
    return None
