"""Texts as models read them."""

import pytest
import torch
import torch.nn.functional as F
from lab.inspection.subjects import MODELS, TEXT, subject, tokenizer
from small_runs import write_run

from gptlab.errors import UserError
from gptlab.lab.inspection.subject import N_TOKENS, USUAL_TEXT, open_subject
from gptlab.nn.loss import IGNORE_INDEX


def test_a_causal_model_predicts_the_next_token():
    one = subject("gpt2")
    assert one.tokens[0].tolist() == list(TEXT.encode()) and one.labels()[:4] == ["T", "o", " ", "b"]
    assert one.targets[0].tolist() == [*TEXT.encode()[1:], IGNORE_INDEX]
    logits = one.model(one.tokens)
    assert one.loss().item() == pytest.approx(F.cross_entropy(logits[0, :-1], one.tokens[0, 1:]).item(), rel=1e-5)


def test_an_encoder_predicts_masked_tokens():
    own, one = tokenizer(), subject("bert")
    assert one.tokens[0, 0] == own.cls and one.tokens[0, -1] == own.sep and one.tokens.shape[1] == len(TEXT) + 2
    hidden = one.masked[0] == own.mask
    assert hidden.sum() == 3 and torch.equal(one.targets[0][hidden], one.tokens[0][hidden])
    assert (one.targets[0][~hidden] == IGNORE_INDEX).all() and torch.equal(
        one.masked[0][~hidden], one.tokens[0][~hidden]
    )
    logits = one.model(one.masked)
    assert one.loss().item() == pytest.approx(
        F.cross_entropy(logits[0][hidden], one.targets[0][hidden]).item(), rel=1e-5
    )
    spelled = subject("bert", "To <mask>e")  # whose target nobody knows
    assert spelled.tokens[0].tolist() == [own.cls, *b"To ", own.mask, *b"e", own.sep]
    assert spelled.loss() is None and spelled.read is spelled.tokens
    assert subject("bert without heads").loss() is None


def test_an_encoder_decoder_reads_two_texts():
    own, one = tokenizer(), subject("t5", "To <extra_id_0>", target="be")
    start = MODELS["t5"].decoder_start_token_id
    assert one.source[0].tolist() == [*b"To ", own.sentinels[0], own.eot]
    assert one.tokens[0].tolist() == [start, *b"be"] and one.targets[0].tolist() == [*b"be", own.eot]
    written = subject("t5")
    greedy = [start]
    while len(greedy) < written.tokens.shape[1]:
        greedy.append(
            int(written.model(torch.tensor([greedy]), source=written.source)[0, -1, : own.vocab_size].argmax())
        )
    assert written.tokens[0].tolist() == greedy and any("target=" in note for note in written.notes)


@pytest.mark.parametrize("name, limit", [("gpt2", 32), ("bert", 32), ("t5", N_TOKENS)])
def test_a_long_text_is_cut(name, limit):
    one = subject(name, "x" * 300, **({"target": "y"} if name == "t5" else {}))
    read = one.tokens if one.source is None else one.source
    assert read.shape[1] == limit and any("of 300 tokens of the text the first" in note for note in one.notes)


def test_a_run_without_its_data_reads_a_fixed_sentence(tmp_path):
    folder = write_run(tmp_path / "a run", context_length=128)
    one = open_subject(str(folder))
    assert one.folder == folder and one.step == 1 and one.checkpoint == folder / "checkpoints" / "best.ckpt"
    assert "".join(one.labels()) == USUAL_TEXT and "a fixed sentence" in one.text_from
    with pytest.raises(UserError, match="target is what the decoder"):
        open_subject(str(folder), target="x")
    with pytest.raises(UserError, match="prompt is empty"):
        open_subject(str(folder), prompt="")
