import itertools

import pytest
import torch

from gptlab.generation.beam import beam_search

PROMPT = [3, 17, 22]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("num_beams, num_return_sequences", [(2, 1), (4, 4), (7, 3)])
def test_equals_transformers(gpt2_pair, length_penalty, num_beams, num_return_sequences):
    for eos in (None, 5, 11):
        theirs, ours = gpt2_pair(eos=eos)
        theirs.generation_config.eos_token_id = eos
        expected = theirs.generate(
            torch.tensor([PROMPT]),
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            length_penalty=length_penalty,
            max_new_tokens=12,
            output_scores=True,
            return_dict_in_generate=True,
        )
        found = beam_search(
            ours,
            PROMPT,
            12,
            num_beams=num_beams,
            num_return_sequences=num_return_sequences,
            length_penalty=length_penalty,
            ends=lambda tokens, eos=eos: tokens[-1] == eos,
        )
        assert len(found) == num_return_sequences
        for beam, sequence, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
            assert beam.tokens == sequence[3 : 3 + len(beam.tokens)].tolist()
            assert beam.score == pytest.approx(score.item(), abs=1e-4)


def test_as_many_beams_as_sequences_find_the_best_of_all(small):
    model, prompt, vocab_size = small(vocab_size=4), [1, 2], 4
    best = max(itertools.product(range(vocab_size), repeat=3), key=lambda tokens: log_p(model, prompt, tokens))
    found = beam_search(model, prompt, 3, num_beams=16, num_return_sequences=2)
    assert found[0].tokens == list(best)
    assert found[0].score == pytest.approx(log_p(model, prompt, best) / 3, abs=1e-5)


def log_p(model, prompt, tokens):
    logits = model(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None]).sum().item()


def test_one_beam_is_greedy(small):
    model = small()
    sequence = [3]
    for _ in range(8):
        sequence.append(model(torch.tensor([sequence]))[0, -1].argmax().item())
    assert beam_search(model, [3], 8, num_beams=1)[0].tokens == sequence[1:]


def test_more_sequences_than_beams_are_refused(small):
    with pytest.raises(ValueError, match="num_return_sequences=3 must be 1 to num_beams=2"):
        beam_search(small(), [1], 1, num_beams=2, num_return_sequences=3)
