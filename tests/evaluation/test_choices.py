import pytest
import torch

from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.evaluation.choices import choose
from gptlab.evaluation.prompts import Example, Prompts
from gptlab.models.build import build_model
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig


def table(n=8, **options):
    texts = ["naïve", "it was", "so it goes on and on", "x"]
    rows = [
        Example(
            where=f"record {i}",
            prompt="was it " + "so " * (i % 4) + "?" * i,
            choices=tuple(texts[i % 2 :]),
            answer=texts[2],
        )
        for i in range(n)
    ]
    return Prompts(**{"items": rows, "pool": rows, "pool_name": "FILE", "seed": 1} | options)


def log_p(model, context, tokens):
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *tokens][:-1]]))[0]
    return torch.log_softmax(logits, -1)[range(len(context) - 1, len(context) + len(tokens) - 1), tokens].sum().item()


@pytest.mark.parametrize("batch_tokens", [1, 200, 16_384])
def test_each_choice_is_scored_as_by_one_forward_pass(small, monkeypatch, batch_tokens):
    monkeypatch.setattr("gptlab.generation.scoring.BATCH_TOKENS", batch_tokens)
    tokenizer = BPETokenizer.train(270, ["it was so naïve and it goes on and on"] * 3)
    model, prompts = small(vocab_size=270, context_length=200), table()
    found = choose(model, tokenizer, prompts, [0, 2])
    for n_fewshot in (0, 2):
        correct = correct_per_byte = 0
        for i, (row, sample) in enumerate(zip(prompts.items, found["samples"], strict=True)):
            text = prompts.text(i, n_fewshot)
            context = tokenizer.encode(text).tolist()
            expected = [
                log_p(model, context, tokenizer.encode(f"{text} {choice}").tolist()[len(context) :])
                for choice in row.choices
            ]
            scored = sample["fewshot"][str(n_fewshot)]
            assert scored["log_likelihood"] == pytest.approx(expected, abs=1e-3)
            best = max(range(len(expected)), key=expected.__getitem__)
            per_byte = [value / len(choice.encode()) for value, choice in zip(expected, row.choices, strict=True)]
            assert scored["chosen"] == row.choices[best]
            correct += row.choices[best] == row.answer
            correct_per_byte += row.choices[max(range(len(per_byte)), key=per_byte.__getitem__)] == row.answer
        assert found["numbers"][f"num_fewshot={n_fewshot}/accuracy"] == correct / 8
        assert found["numbers"][f"num_fewshot={n_fewshot}/accuracy_per_byte"] == correct_per_byte / 8
        assert correct_per_byte > correct  # a long choice is seldom the most likely as a whole


def test_an_encoder_decoder_scores_choices_with_its_decoder():
    tokenizer = ByteTokenizer()
    model = build_model(EncoderDecoderConfig(n_layer=2, n_head=2, d_model=16), 257, seed=1).eval()
    prompts = table(3)
    found = choose(model, tokenizer, prompts, [1])
    for i, sample in enumerate(found["samples"]):
        source = torch.tensor([[*tokenizer.encode(prompts.text(i, 1)), 256]])
        for choice, value in zip(sample["choices"], sample["fewshot"]["1"]["log_likelihood"], strict=True):
            ids = tokenizer.encode(choice).tolist()
            with torch.no_grad():
                logits = model(torch.tensor([[model.config.decoder_start_token_id, *ids[:-1]]]), source=source)[0]
            expected = torch.log_softmax(logits, -1)[range(len(ids)), ids].sum().item()
            assert value == pytest.approx(expected, abs=1e-3)


def test_half_a_pair_of_surrogates_is_three_bytes(small):
    """JSON may hold one."""
    row = Example(where="record 0", prompt="x", choices=("aaaa", "\ud800"), answer="aaaa")
    found = choose(small(context_length=20), ByteTokenizer(), table(items=[row], pool=[row]), [0])
    (sample,) = found["samples"]
    long, half = sample["fewshot"]["0"]["log_likelihood"]
    assert found["numbers"]["num_fewshot=0/accuracy_per_byte"] == float(long / 4 >= half / 3)


def test_refused_before_any_work(small, monkeypatch):
    monkeypatch.setattr("gptlab.evaluation.choices.score_continuations", lambda *_: pytest.fail("worked"))
    with pytest.raises(ValueError, match="more than the context of 60 holds; every prompt fits with num_fewshot=0"):
        choose(small(context_length=60), ByteTokenizer(), table(), [0, 3])
