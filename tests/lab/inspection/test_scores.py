"""Sizes of scores, and what softmax makes of them."""

import math

import pytest
import torch

from gptlab.lab.inspection.scores import qk_std, softmax_effect


def test_independent_channels_give_the_root_of_their_number():
    n, generator = 200, torch.Generator().manual_seed(0)
    for d_head in range(2, 100):
        q, k = torch.randn(2, 1, 4, n, d_head, generator=generator)
        std, independent = qk_std(q, k, torch.ones(1, 4, n, n, dtype=torch.bool))
        # Each head has 2 n vectors: the error of a head's is about sqrt(d) / sqrt(2 n), of the mean of four half of it.
        assert abs(std.mean() / math.sqrt(d_head) - 1) < 4 / math.sqrt(2 * n) / 2, d_head
        assert independent.mean() == pytest.approx(math.sqrt(d_head), rel=0.03 + 0.2 / d_head)


def test_pairs_that_may_not_attend_do_not_count():
    q, k = torch.randn(2, 1, 1, 5, 3, generator=torch.Generator().manual_seed(1))
    visible = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    expected = torch.stack([q[0, 0, t] @ k[0, 0, s] for t in range(5) for s in range(t + 1)]).std(correction=0)
    assert qk_std(q, k, visible)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert qk_std(q, k, torch.zeros_like(visible))[0].item() == 0


def test_entropy_largest_probability_and_the_jacobian_of_softmax():
    scores = torch.randn(1, 1, 3, 6, generator=torch.Generator().manual_seed(2)) * 2
    found = softmax_effect(scores)
    jacobians = [torch.autograd.functional.jacobian(lambda x: x.softmax(-1), row) for row in scores[0, 0].double()]
    assert found["gradient"].item() == pytest.approx(sum(j.norm().item() for j in jacobians) / 3)
    p = scores.double().softmax(-1)
    assert found["entropy"].item() == pytest.approx(float(-(p * p.log()).sum(-1).mean()))
    assert found["largest"].item() == pytest.approx(float(p.amax(-1).mean()))
    sharp = softmax_effect(scores * 1000)
    assert sharp["gradient"].item() < 1e-6 and sharp["largest"].item() == pytest.approx(1)
