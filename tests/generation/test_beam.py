import itertools

import pytest
import torch

from gptlab.generation.beam import beam_search

PROMPT = [3, 17, 22]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("n_beams, n_best", [(2, 1), (4, 4), (7, 3)])
def test_equals_transformers(gpt2_pair, length_penalty, n_beams, n_best):
    for eos in (None, 5, 11):
        theirs, ours = gpt2_pair(eos=eos)
        theirs.generation_config.eos_token_id = eos
        expected = theirs.generate(
            torch.tensor([PROMPT]),
            do_sample=False,
            num_beams=n_beams,
            num_return_sequences=n_best,
            length_penalty=length_penalty,
            max_new_tokens=12,
            output_scores=True,
            return_dict_in_generate=True,
        )
        found = beam_search(
            ours,
            PROMPT,
            12,
            n_beams=n_beams,
            n_best=n_best,
            length_penalty=length_penalty,
            ends=lambda tokens, eos=eos: tokens[-1] == eos,
        )
        assert len(found) == n_best
        for beam, sequence, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
            assert beam.tokens == sequence[3 : 3 + len(beam.tokens)].tolist()
            assert beam.score == pytest.approx(score.item(), abs=1e-4)


def test_as_many_beams_as_words_find_the_best_of_all(small):
    model, prompt, vocab_size = small(vocab_size=4), [1, 2], 4
    best = max(itertools.product(range(vocab_size), repeat=3), key=lambda tokens: log_p(model, prompt, tokens))
    found = beam_search(model, prompt, 3, n_beams=16, n_best=2)
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
    assert beam_search(model, [3], 8, n_beams=1)[0].tokens == sequence[1:]


def test_refusals(small):
    with pytest.raises(ValueError, match="beams=0 is below 1"):
        beam_search(small(), [1], 1, n_beams=0)
    with pytest.raises(ValueError, match="n_samples=3 is more than beams=2 can give"):
        beam_search(small(), [1], 1, n_beams=2, n_best=3)
