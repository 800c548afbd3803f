import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.data.config import AttentionScope, Packing
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.errors import UserError
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.nn.loss import IGNORE_INDEX
from gptlab.objectives.base import logged_means
from gptlab.objectives.causal_lm import CausalLM

objective = CausalLM(data=TextConfig(path="none"), context_length=6)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_collate_shifts_by_one_without_a_copy(kind):
    windows = kind(np.arange(14).reshape(2, 7))
    batch = objective.collate(windows)
    assert batch["tokens"].tolist() == [[0, 1, 2, 3, 4, 5], [7, 8, 9, 10, 11, 12]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4, 5, 6], [8, 9, 10, 11, 12, 13]]
    windows[1, 3] = 99
    assert batch["tokens"][1, 3] == batch["targets"][1, 2] == 99


def test_loss_is_a_sum_over_targets():
    model = build_model(DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=6, init_std=0.5), 11, seed=0)
    batch = objective.collate(torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(0)))
    result = objective.loss(model, batch)
    expected = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten(), reduction="sum")
    assert torch.allclose(result["loss"].sum, expected, rtol=1e-6)
    assert objective.counts(batch) == {"targets": 18}
    assert torch.allclose(objective.mean_loss(model, batch), expected / 18, rtol=1e-6)
    logged = logged_means(result, {"targets": 1.0})
    assert list(logged) == ["loss"] and logged["loss"] == result["loss"].sum and not logged["loss"].requires_grad
    halves = [
        objective.loss(model, {k: v[part] for k, v in batch.items()})["loss"].sum for part in (slice(0, 1), slice(1, 3))
    ]
    assert torch.allclose(sum(halves), expected, rtol=1e-6)


BYTES = ByteTokenizer()
END = BYTES.eot
NO = IGNORE_INDEX


def of_documents(**data):
    return CausalLM(data=TextConfig(path="none", **data), context_length=7, tokenizer=BYTES)


def test_documents_of_a_sequence_by_hand():
    sequence = np.array([[1, 2, END, 3, END, END, 4, 5]])  # the third document has no text
    batch = of_documents(attention=AttentionScope.document).collate(sequence)
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1, 1, 2, 3]]
    assert batch["targets"].tolist() == [[2, END, 3, END, END, 4, 5]] and "attention_mask" not in batch
    for data in ({"attention": AttentionScope.document}, {}):
        within = of_documents(boundary_targets=False, **data)
        batch = within.collate(sequence)
        assert batch["targets"].tolist() == [[2, END, NO, END, NO, NO, 5]]
        assert within.counts(batch)["targets"] == 4 and not within.per_byte
    assert "document_ids" not in batch


def test_padding_of_packed_documents_by_hand():
    sequence = np.array([[1, 2, END, 3, END, -1, -1, -1], [1, 2, 3, 4, 5, 6, 7, 8]])
    batch = of_documents(packing=Packing.best_fit, attention=AttentionScope.document).collate(sequence)
    assert batch["attention_mask"].tolist() == [[True] * 5 + [False] * 2, [True] * 7]
    assert batch["tokens"][0, :5].tolist() == [1, 2, END, 3, END] and (batch["tokens"] >= 0).all()
    assert batch["targets"].tolist() == [[2, END, 3, END, NO, NO, NO], [2, 3, 4, 5, 6, 7, 8]]
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1, 1, 2, 2], [0] * 7]
    alone = of_documents(packing=Packing.none, attention=AttentionScope.document).collate(sequence[:1, :3])
    assert "document_ids" not in alone, "a sequence holds one"


@pytest.mark.parametrize("boundary_targets", [True, False])
def test_the_loss_of_documents_is_that_of_each_alone(boundary_targets):
    confined = of_documents(attention=AttentionScope.document, boundary_targets=boundary_targets)
    model = build_model(DecoderConfig(n_layer=2, n_head=2, d_model=16, context_length=7, init_std=0.5), 257, seed=0)
    sequence = torch.tensor([[1, 2, END, 3, 4, 5, END, 6]])
    batch = confined.collate(sequence)
    loss = confined.loss(model, batch)["loss"].sum
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = 0.0
    for start, end in ((0, 3), (3, 7)):
        text, targets = sequence[:, start:end], sequence[0, start + 1 : end + 1]
        n = len(targets) if boundary_targets else len(targets) - 1
        expected = expected + F.cross_entropy(model(text)[0, :n], targets[:n], reduction="sum")
    assert torch.allclose(loss, expected, atol=1e-5)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"attention": AttentionScope.document}, "data.attention=document"),
        ({"boundary_targets": False}, "data.boundary_targets=false"),
        ({"packing": Packing.none}, "data.packing=none"),
    ],
)
def test_documents_need_an_end_of_text_token(data, key):
    with pytest.raises(UserError, match=f"{key} needs .*tokenizer=char has no end-of-text token; use another"):
        CausalLM(data=TextConfig(path="none", **data), context_length=7, tokenizer=CharTokenizer("abc"))
