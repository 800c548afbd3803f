import pytest

from gptlab.lab.chinchilla import optimal_allocation, optimal_tokens

# Tables 3 and A3 of arXiv:2203.15556: parameters, and tokens by approaches 1, 2 and 3.
PUBLISHED = [
    (1e9, (20.2e9, 20.0e9, 27.1e9)),
    (10e9, (205.1e9, 219.5e9, 410.1e9)),
    (67e9, (1.5e12, 1.7e12, 4.1e12)),
    (175e9, (3.7e12, 4.3e12, 12.0e12)),
    (280e9, (5.9e12, 7.1e12, 20.1e12)),
    (520e9, (11.0e12, 13.4e12, 43.5e12)),
    (1e12, (21.2e12, 26.5e12, 94.1e12)),
]


@pytest.mark.parametrize(("parameters", "tokens"), PUBLISHED)
def test_tokens_of_the_papers_tables(parameters, tokens):
    rule, *approaches = optimal_tokens(parameters).values()
    assert rule == 20 * parameters
    assert approaches == pytest.approx(tokens, rel=0.08)  # the tables are rounded to two digits


def test_an_allocation_spends_the_budget():
    for flops in (1e18, 5.76e23):
        found = optimal_allocation(flops)
        for name, (n, d) in found.items():
            assert 6 * n * d == pytest.approx(flops)
            assert d == pytest.approx(optimal_tokens(n)[name])
    # Table 3: 67 billion parameters for Gopher's 5.76e23 FLOP.
    assert found["approach 1: minimum over training curves"][0] == pytest.approx(67e9, rel=0.05)
