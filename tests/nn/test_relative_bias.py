import math

import pytest
import torch

from gptlab.nn.position import RelativeBias


def bucket(distance, n_bucket, max_distance, bidirectional):
    """The bucket of one distance, key minus query, as in the paper's code."""
    first = 0
    if bidirectional:
        n_bucket //= 2
        first = n_bucket if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    single = n_bucket // 2
    if distance < single:
        return first + distance
    growth = math.log(distance / single) / math.log(max_distance / single)
    return first + min(n_bucket - 1, single + math.floor(growth * (n_bucket - single)))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("n_bucket, max_distance", [(32, 128), (8, 23), (4, 3)])
def test_buckets(n_bucket, max_distance, bidirectional):
    module = RelativeBias(n_bucket, 3, max_distance=max_distance, bidirectional=bidirectional)
    queries, keys = torch.arange(140, 143), torch.arange(300)
    bias = module(queries, keys)
    assert bias.shape == (3, 3, 300)
    expected = [[bucket(int(k - q), n_bucket, max_distance, bidirectional) for k in keys] for q in queries]
    assert torch.equal(bias, module.table.weight[torch.tensor(expected)].permute(2, 0, 1))
    nowhere = {n_bucket // 2} if bidirectional else set()  # a key to come is never at distance 0
    assert {bucket for buckets in expected for bucket in buckets} == set(range(n_bucket)) - nowhere


def test_rows_may_stand_at_places_of_their_own():
    module = RelativeBias(8, 3, max_distance=20, bidirectional=False)
    keys = torch.arange(9)
    biases = module(torch.tensor([[4], [7]]), keys)
    assert biases.shape == (2, 3, 1, 9)
    for bias, at in zip(biases, (4, 7), strict=True):
        assert torch.equal(bias, module(torch.tensor([at]), keys))
