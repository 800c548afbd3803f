import torch

from gptlab.nn.mask import as_scores, causal_band, positions_in_documents, same_document


def test_a_band_by_hand():
    positions = torch.arange(4)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert causal_band(positions, positions, 2).int().tolist() == expected
    assert torch.equal(causal_band(positions, positions, 4), torch.ones(4, 4, dtype=torch.bool).tril())


def test_positions_of_each_row():
    queries, keys = torch.tensor([[5], [2]]), torch.arange(7)
    assert causal_band(queries, keys, 3).int().tolist() == [[[0, 0, 0, 1, 1, 1, 0]], [[1, 1, 1, 0, 0, 0, 0]]]


def test_positions_begin_again_in_each_document():
    ids = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 5, 5, 5, 5, 5]])
    assert positions_in_documents(ids).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert positions_in_documents(ids[0]).tolist() == [0, 1, 2, 0, 0, 1]
    expected = [[1, 1, 1, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 0, 0]] + [[0, 0, 0, 0, 1, 1]] * 2
    assert same_document(ids)[0].int().tolist() == expected and same_document(ids)[1].all()


def test_a_mask_as_scores_in_the_dtype_of_attention():
    mask, hidden = torch.tensor([[True, False], [True, True]]), torch.zeros(1)
    assert as_scores(mask, hidden).tolist() == [[0.0, -torch.inf], [0.0, 0.0]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert as_scores(mask, hidden).dtype == torch.bfloat16
    assert as_scores(mask, hidden.half()).dtype == torch.float16
