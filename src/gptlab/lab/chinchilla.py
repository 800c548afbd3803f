"""Tokens and parameters that Chinchilla holds optimal for a compute budget (arXiv:2203.15556)."""

import math

TOKENS_PER_PARAMETER = 20  # the rule of thumb that is drawn from the paper
# Tokens for models of 400 million and of 10 trillion parameters (tables 3 and A3). All three approaches are power laws,
# so that two points give the rest; the paper's own tables agree with them to 8%.
SIZES = (400e6, 10e12)
APPROACHES = {
    "approach 1: minimum over training curves": (8.0e9, 216.2e12),
    "approach 2: isoFLOP profiles": (7.7e9, 292.0e12),
    "approach 3: parametric loss": (9.2e9, 1425.5e12),
}


def optimal_tokens(parameters: float) -> dict[str, float]:
    """Training tokens for a model of that size, by the rule of 20 a parameter and by each of the three approaches."""
    found = {f"{TOKENS_PER_PARAMETER} tokens per parameter": TOKENS_PER_PARAMETER * parameters}
    for name, tokens in APPROACHES.items():
        exponent, scale = _power_law(tokens)
        found[name] = scale * parameters**exponent
    return found


def optimal_allocation(flops: float) -> dict[str, tuple[float, float]]:
    """Parameters and tokens for a compute budget C = 6 N D, by the rule and by each approach."""
    n = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    found = {f"{TOKENS_PER_PARAMETER} tokens per parameter": (n, TOKENS_PER_PARAMETER * n)}
    for name, tokens in APPROACHES.items():
        exponent, scale = _power_law(tokens)
        n = (flops / (6 * scale)) ** (1 / (1 + exponent))
        found[name] = (n, scale * n**exponent)
    return found


def _power_law(tokens: tuple[float, float]) -> tuple[float, float]:
    """Exponent and factor of tokens = factor x parameters^exponent."""
    exponent = math.log(tokens[1] / tokens[0]) / math.log(SIZES[1] / SIZES[0])
    return exponent, tokens[0] / SIZES[0] ** exponent
