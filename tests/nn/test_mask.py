import torch

from gptlab.nn.mask import causal_band


def test_a_band_by_hand():
    positions = torch.arange(4)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert causal_band(positions, positions, 2).int().tolist() == expected
    assert torch.equal(causal_band(positions, positions, 4), torch.ones(4, 4, dtype=torch.bool).tril())


def test_positions_of_each_row():
    queries, keys = torch.tensor([[5], [2]]), torch.arange(7)
    assert causal_band(queries, keys, 3).int().tolist() == [[[0, 0, 0, 1, 1, 1, 0]], [[1, 1, 1, 0, 0, 0, 0]]]
