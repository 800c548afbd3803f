"""The loss of each token of a text, against explicit cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import write_run

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.lab.inspection.subject import Subject, open_subject
from gptlab.lab.inspection.token_loss import token_loss
from gptlab.models.build import build_model
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.loss import IGNORE_INDEX
from gptlab.runs.load import load_model

SIZES = {"n_layer": 1, "n_head": 2, "d_model": 16, "context_length": 24}


def test_a_decoders_text(tmp_path):
    text = "naïve cat"
    subject = open_subject(str(write_run(tmp_path / "run")), prompt=text)
    found = token_loss(subject)
    tokens = torch.tensor([list(text.encode())])
    logits = load_model(subject.name).model.eval()(tokens)[0, :-1].double()
    nats = F.cross_entropy(logits, tokens[0, 1:], reduction="none")
    assert [row["nats"] for row in found["rows"]] == pytest.approx(nats.tolist(), rel=1e-5)
    assert [row["p"] for row in found["rows"]] == pytest.approx((-nats).exp().tolist(), rel=1e-5)
    assert found["loss"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats.mean().item()), rel=1e-5)
    for i, row in enumerate(found["rows"]):
        order = logits[i].argsort(descending=True).tolist()
        assert order.index(int(tokens[0, i + 1])) + 1 == row["rank"]
        assert row["best_p"] == pytest.approx(logits[i].softmax(-1).max().item(), rel=1e-5)
    assert "".join(piece for piece, _ in found["text"]) == text and found["text"][0] == ["n", None]
    # Two bytes make a character, which costs what both do.
    assert found["text"][2] == ["ï", pytest.approx(nats[1:3].sum().item(), rel=1e-5)]
    assert found["scale"] == pytest.approx(math.log(257))


def test_masked_tokens_of_an_encoder():
    tokens = torch.tensor([list(b"some text")])
    chosen = torch.tensor([[False] * 4 + [True] + [False] * 3 + [True]])
    masked, targets = tokens.masked_fill(chosen, 0), tokens.masked_fill(~chosen, IGNORE_INDEX)
    model = build_model(EncoderConfig(**SIZES), 257, seed=0).eval()
    subject = Subject(name="", model=model, tokenizer=ByteTokenizer(), tokens=tokens, masked=masked, targets=targets)
    found = token_loss(subject)
    expected = F.cross_entropy(model(masked)[0], targets[0], ignore_index=IGNORE_INDEX)
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5) and len(found["rows"]) == 2
    assert [one[0] for one in found["text"] if one[1] is not None] == [" ", "t"]
    assert "".join(one[0] for one in found["text"]) == "some text"


def test_an_encoder_decoders_target_and_what_has_none():
    model = build_model(EncoderDecoderConfig(**SIZES), 257, seed=0).eval()
    source, tokens, targets = (torch.tensor([list(text)]) for text in (b"abc", b"\0xy", b"xyz"))
    subject = Subject(name="", model=model, tokenizer=ByteTokenizer(), tokens=tokens, source=source, targets=targets)
    found = token_loss(subject)
    expected = F.cross_entropy(model(tokens, source=source)[0], targets[0])
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert [one[0] for one in found["text"]] == ["x", "y", "z"]
    bare = build_model(EncoderConfig(**SIZES, heads=Heads.none), 257, seed=0).eval()
    assert token_loss(Subject(name="", model=bare, tokenizer=ByteTokenizer(), tokens=tokens)) is None
