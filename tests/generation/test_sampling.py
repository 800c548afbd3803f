import pytest
import torch

from gptlab.generation.sampling import generate, next_token_probabilities
from gptlab.models.build import build_model
from gptlab.models.config import DecoderConfig

WORDS = 13
LOGITS = torch.tensor([1.5, -1.8, 0.9, -3.2])


@pytest.fixture
def model():
    return build_model(
        DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=6, init_std=0.5), WORDS, seed=0
    ).eval()


@pytest.mark.parametrize(
    "temperature, expected",
    [
        (1.0, [0.62704177, 0.02312729, 0.34412782, 0.00570312]),
        (0.5, [7.67673394e-01, 1.04431835e-03, 2.31218783e-01, 6.35050642e-05]),
        (0.0, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_probabilities(temperature, expected):
    assert torch.allclose(next_token_probabilities(LOGITS, temperature), torch.tensor(expected), rtol=1e-5)


def test_temperature_goes_from_greedy_to_uniform():
    rows = torch.stack((LOGITS, LOGITS.flip(0), -LOGITS))
    greedy = next_token_probabilities(rows, 0)
    assert torch.allclose(next_token_probabilities(rows, 1e-3), greedy, atol=1e-6)
    assert torch.allclose(next_token_probabilities(rows, 1e4), torch.full((3, 4), 0.25), atol=1e-3)
    with pytest.raises(ValueError, match=r"temperature=-0\.1 is below 0; use 0"):
        next_token_probabilities(LOGITS, -0.1)


def test_greedy_is_the_argmax_of_the_last_context(model):
    prompt = torch.tensor([[3, 1, 4]])
    result = generate(model, prompt, 9, context_length=6, temperature=0.0)
    assert result.shape == (1, 12) and torch.equal(result[:, :3], prompt)
    for end in range(3, 12):
        assert result[0, end] == model(result[:, max(0, end - 6) : end])[0, -1].argmax()


def test_draws_are_reproducible_and_follow_the_probabilities(model):
    prompt = torch.tensor([[3, 1, 4]])
    global_state = torch.get_rng_state()
    first, again, other = (
        generate(model, prompt, 20, context_length=6, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(global_state, torch.get_rng_state())
    generator = torch.Generator().manual_seed(0)
    draws = [generate(model, prompt, 1, context_length=6, generator=generator)[0, -1].item() for _ in range(200)]
    expected = next_token_probabilities(model(prompt)[0, -1], 1.0)
    share = torch.bincount(torch.tensor(draws), minlength=WORDS) / len(draws)
    assert (share - expected).abs().max() < 0.12


def test_nothing_to_draw_and_nothing_to_go_on(model):
    prompt = torch.tensor([[3, 1]])
    assert torch.equal(generate(model, prompt, 0, context_length=6), prompt)
    with pytest.raises(ValueError, match="give it at least one"):
        generate(model, prompt[:, :0], 1, context_length=6)
