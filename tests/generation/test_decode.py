import pytest
import torch

from gptlab.generation.decode import decode, generate_tokens, seeded
from gptlab.generation.decoding_state import DecodingState, window_start
from gptlab.generation.sampling import Sampling

CONTEXT = 12


def test_greedy_is_the_argmax_of_the_window(small):
    model, prompt = small(), torch.tensor([[3, 1, 4]])
    result = generate_tokens(model, prompt, 40, temperature=0.0)
    assert result.shape == (1, 43) and torch.equal(result[:, :3], prompt)
    for end in range(3, 43):
        assert result[0, end] == model(result[:, window_start(end, CONTEXT) : end])[0, -1].argmax()


def test_draws_are_reproducible_and_follow_the_probabilities(small, fits):
    model, prompt = small(), torch.tensor([[3, 1, 4]])
    global_state = torch.get_rng_state()
    first, again, other = (
        generate_tokens(model, prompt, 20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(global_state, torch.get_rng_state())
    generator = torch.Generator().manual_seed(0)
    draws = [generate_tokens(model, prompt, 1, generator=generator)[0, -1].item() for _ in range(500)]
    assert fits(draws, Sampling().probabilities(model(prompt)[:, -1])[0])


def test_a_sequence_does_not_depend_on_the_rest_of_the_batch(small):
    model, sampling = small(), Sampling(temperature=1.2, top_k=20)

    def written(prompts, generators):
        rows = [[] for _ in prompts]
        for draws in decode(DecodingState(model, prompts), 25, sampling, generators=generators):
            for draw in draws:
                rows[draw.index].append(draw.token)
        return rows

    prompts = [[3, 1, 4], [5], [9, 2, 6, 5, 3]]
    together = written(prompts, seeded(7, 3))
    assert together == [written([p], [seeded(7, 3)[i]])[0] for i, p in enumerate(prompts)]
    samples = written([prompts[0]] * 4, seeded(7, 4))
    assert samples[0] == together[0] and len({tuple(row) for row in samples}) == 4


def test_sequences_end_one_by_one(small):
    model = small()
    full = [[], []]
    for draws in decode(DecodingState(model, [[1], [2, 3]]), 30, Sampling(temperature=0.0)):
        for draw in draws:
            full[draw.index].append(draw.token)
    last = [full[0].index(full[0][4]), 20]  # row 0 ends early, row 1 later: full[row][:last + 1]
    counts, rows = [0, 0], [[], []]

    def ends(row, token):
        counts[row] += 1
        return counts[row] == last[row] + 1

    for draws in decode(DecodingState(model, [[1], [2, 3]]), 30, Sampling(temperature=0.0), ends=ends):
        for draw in draws:
            rows[draw.index].append(draw.token)
    assert rows == [full[row][: last[row] + 1] for row in (0, 1)]


def test_log_probabilities_are_the_models_own(small):
    model, prompt = small(), [3, 1, 4]
    sequence = list(prompt)
    for draws in decode(DecodingState(model, [prompt]), 8, Sampling(temperature=0.3, top_k=2), n_top=3):
        log_p = torch.log_softmax(model(torch.tensor([sequence]))[0, -1], -1)
        draw = draws[0]
        assert draw.log_p == pytest.approx(log_p[draw.token].item(), abs=1e-4)
        best = log_p.topk(3)
        assert [token for token, _ in draw.top] == best.indices.tolist()
        assert [value for _, value in draw.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        sequence.append(draw.token)


def test_no_tokens_to_draw_and_an_empty_prompt(small):
    model, prompt = small(), torch.tensor([[3, 1]])
    assert torch.equal(generate_tokens(model, prompt, 0), prompt)
    with pytest.raises(ValueError, match="give it at least one"):
        generate_tokens(model, prompt[:, :0], 1)
    with pytest.raises(ValueError, match=r"temperature=-1 must be at least 0; use 0 for greedy"):
        generate_tokens(model, prompt, 1, temperature=-1)


def test_only_the_tokenizers_vocabulary_is_drawn(small):
    model = small(vocab_size=64)
    assert (generate_tokens(model, torch.tensor([[3, 1]] * 5), 40, temperature=5.0, vocab_size=9) < 9).all()


def test_greedy_and_repetition_penalty_equal_transformers(gpt2_pair):
    theirs, ours = gpt2_pair()
    prompt = [3, 17, 22]
    for penalty in (1.0, 1.4):
        expected = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=15, repetition_penalty=penalty
        )[0, 3:]
        draws = decode(DecodingState(ours, [prompt]), 15, Sampling(temperature=0.0, repetition_penalty=penalty))
        assert [row[0].token for row in draws] == expected.tolist()
